"""What a training run leaves to look at: its epochs, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite, isnan
from typing import Any

import numpy as np

from fastopt.train.checks import counted

# Why a run that diverged has ended.
NOT_FINITE = "the loss is not finite"
DIVERGED = "the loss is more than ten times what it was before training"


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's samples, while the model was learning
    train_score: float  # likewise; accuracy or R²
    val_loss: float  # on held-out data, after the epoch
    val_score: float
    lr: float  # of the first parameter group, at the last step
    grad_norm: float  # 2-norm of the gradients before clipping, mean over the steps
    grad_norm_max: float  # the largest of the epoch; both are nan if norms were not asked for
    samples_per_second: float  # of training; evaluation not counted


@dataclass
class Seconds:
    """Where the time of training went, in seconds."""

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


# What the entries of a state may be, by the annotations of the fields.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "int": lambda value: type(value) is int,
    "list[Epoch]": lambda value: isinstance(value, list),
    "Seconds": lambda value: isinstance(value, Mapping),
    "str": lambda value: isinstance(value, str),
}


def _check(kind: type, state: Any, where: str) -> None:
    """Raise unless `state` has the fields of a dataclass, each of its kind."""
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
    max_norm: float | None = None  # what the gradients were clipped to

    @property
    def diverged(self) -> bool:
        """Whether a loss became NaN or infinite, or `Divergence` has ended the run."""
        return self.stop_reason == DIVERGED or not all(
            isfinite(e.train_loss) and isfinite(e.val_loss) for e in self.epochs
        )

    @property
    def best(self) -> Epoch:
        """The first epoch with the highest held-out score; nan is the lowest.

        Raises
        ------
        ValueError
            If there is no epoch yet.
        """
        if not self.epochs:
            raise ValueError("there is no best epoch before the first one")
        return max(self.epochs, key=lambda e: -inf if isnan(e.val_score) else e.val_score)

    def state_dict(self) -> dict[str, Any]:
        """Return it as mappings, lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """Return what `state_dict` was made of.

        Raises
        ------
        TypeError, ValueError
            If it was not `state_dict` that has made `state`.
        """
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
