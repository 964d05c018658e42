"""The history of a training run: its epochs, the time of each part, and overfitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from math import inf, isfinite, isnan
from statistics import median
from typing import Any

import numpy as np

from fastopt._checks import counted, non_negative

# The stop reason of a run that diverged.
NOT_FINITE = "the loss is not finite"
DIVERGED = "the loss is more than ten times what it was before training"


@dataclass(frozen=True)
class Epoch:
    """The results of one pass over the training data."""

    epoch: int  # from 1
    train_loss: float  # mean over the samples of the epoch, during training
    train_score: float  # the same of the score: accuracy or R²
    val_loss: float  # on held-out data, after the epoch
    val_score: float
    lr: float  # of the first parameter group, at the last step
    grad_norm: float  # 2-norm of the gradients before clipping, mean over the steps
    grad_norm_max: float  # the largest of the epoch; both are nan if no norm was recorded
    samples_per_second: float  # of training, without evaluation


@dataclass
class Seconds:
    """The time of each part of training, in seconds."""

    batch: float = 0.0  # gathering the rows of a batch
    forward: float = 0.0
    loss: float = 0.0  # value and gradient
    backward: float = 0.0
    step: float = 0.0
    evaluation: float = 0.0
    total: float = 0.0


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, (float, np.floating))


# The types of the entries of a state, by the annotations of the fields.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "int": lambda value: type(value) is int,
    "list[Epoch]": lambda value: isinstance(value, list),
    "Seconds": lambda value: isinstance(value, Mapping),
    "str": lambda value: isinstance(value, str),
}


def _check(kind: type, state: Any, where: str) -> None:
    """Raise unless `state` has the fields of a dataclass, each of its type."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{where} must be a mapping, not {type(state).__name__}")
    own = fields(kind)
    if state.keys() != {one.name for one in own}:
        raise ValueError(f"{where} must have {', '.join(one.name for one in own)}")
    for one in own:
        value = state[one.name]
        if not _KINDS[str(one.type)](value):
            raise TypeError(f"{one.name} of {where} must be {one.type}, not {type(value).__name__}")


@dataclass(repr=False)
class History:
    """The epochs of a training run so far."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    stop_reason: str = ""  # why training ended before its last epoch
    max_norm: float | None = None  # the norm of clipping

    @property
    def diverged(self) -> bool:
        """Whether a loss became NaN or infinite, or `Divergence` has ended the run."""
        return self.stop_reason == DIVERGED or not all(
            isfinite(e.train_loss) and isfinite(e.val_loss) for e in self.epochs
        )

    @property
    def best(self) -> Epoch:
        """The first epoch with the highest held-out score; nan is the lowest.

        ValueError before the first epoch.
        """
        if not self.epochs:
            raise ValueError("there is no best epoch before the first one")
        return max(self.epochs, key=lambda e: -inf if isnan(e.val_score) else e.val_score)

    def state_dict(self) -> dict[str, Any]:
        """Return the history as mappings, lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """Return the history for a `state_dict`; TypeError or ValueError for other values."""
        _check(cls, state, "the history")
        for number, epoch in enumerate(state["epochs"], 1):
            _check(Epoch, epoch, f"epoch {number}")
            if epoch["epoch"] != number:
                raise ValueError(f"epoch {number} has the number {epoch['epoch']}")
        _check(Seconds, state["seconds"], "seconds")
        return cls(
            **dict(state)
            | {
                "epochs": [Epoch(**epoch) for epoch in state["epochs"]],
                "seconds": Seconds(**state["seconds"]),
            }
        )

    def __repr__(self) -> str:
        parts = [counted(len(self.epochs), "epoch")]
        if self.epochs:
            final, best = self.epochs[-1], self.best
            parts.append(f"final held-out loss {final.val_loss:.4g}")
            if not (self.diverged or isnan(best.val_score)):
                parts.append(f"best held-out score {best.val_score:.4g} in epoch {best.epoch}")
        if self.stop_reason:
            parts.append(f"stopped: {self.stop_reason}")
        return f"History({', '.join(parts)})"


WINDOW = 5  # epochs in a running median


@dataclass(frozen=True)
class Overfitting:
    """The held-out loss has risen while the training loss fell."""

    epoch: int  # where the held-out loss was lowest
    lowest: float  # the held-out loss there
    latest: float  # the held-out loss at the end; both are medians of five epochs

    def __str__(self) -> str:
        return (
            f"overfitting: the held-out loss was lowest around epoch {self.epoch} and has risen "
            f"since, from {self.lowest:.4g} to {self.latest:.4g} (medians of {WINDOW} epochs), "
            "while the training loss kept falling"
        )


def find_overfitting(epochs: Sequence[Epoch], rise: float = 0.05) -> Overfitting | None:
    """Return where the held-out loss began to rise, or None if it did not.

    The losses are running medians of five epochs, so that one unusual epoch does not matter. There
    is overfitting if, since the lowest held-out loss,

    - the held-out loss has risen by more than the share `rise`,
    - and by more than three standard deviations of its noise, which is estimated from the median
      difference of neighbouring epochs,
    - and the training loss has fallen.

    Parameters
    ----------
    epochs : sequence of Epoch
    rise : float
        >= 0.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="diabetes", dropout=0, lr=0.01).build()
    >>> found = train.find_overfitting(trainer.fit(60).epochs)
    >>> found is not None and found.epoch < 30
    True
    """
    rise = non_negative("rise", rise)
    if len(epochs) < 2 * WINDOW or not all(isfinite(e.train_loss + e.val_loss) for e in epochs):
        return None
    raw = [e.val_loss for e in epochs]
    val, train = _smooth(raw), _smooth([e.train_loss for e in epochs])
    at = val.index(min(val))
    # For normal noise, the median of |a - b| is 0.954 standard deviations.
    noise = median(abs(b - a) for a, b in pairwise(raw)) / 0.954
    if val[-1] - val[at] > max(rise * abs(val[at]), 3 * noise) and train[-1] < train[at]:
        return Overfitting(epochs[at + WINDOW // 2].epoch, val[at], val[-1])
    return None


def still_falls(epochs: Sequence[Epoch], fall: float = 0.05) -> bool:
    """Return whether the held-out loss still falls at the end: more epochs may help.

    The losses are running medians of five epochs. The loss still falls if the lowest is in the last
    tenth of the epochs, and if in the second half it has fallen

    - by more than the share `fall` of the lowest loss,
    - and by more than a hundredth of the first loss: it is not yet close to 0,
    - and by more than three standard deviations of its noise.

    Parameters
    ----------
    epochs : sequence of Epoch
    fall : float
        >= 0.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="iris").build()
    >>> train.still_falls(trainer.fit(30).epochs)
    True
    """
    fall = non_negative("fall", fall)
    if len(epochs) < 2 * WINDOW or not all(isfinite(e.val_loss) for e in epochs):
        return False
    raw = [e.val_loss for e in epochs]
    val = _smooth(raw)
    lowest = min(val)
    fallen = val[len(val) // 2] - lowest
    bends = [abs(a - 2 * b + c) for a, b, c in zip(raw, raw[1:], raw[2:], strict=False)]
    noise = median(bends) / 1.652  # in standard deviations of normal noise; a trend has no bend
    least = max(fall * abs(lowest), 0.01 * abs(raw[0]), 3 * noise)
    return val.index(lowest) >= 0.9 * (len(val) - 1) and fallen > least


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the running medians of `WINDOW` values."""
    return [median(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
