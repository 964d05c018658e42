"""A training run as data: every choice by name, checked, with the command that repeats it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import fastopt as fo
from fastopt.train.data import TASKS, Data, Task, load_data
from fastopt.train.loop import Trainer
from fastopt.train.model import MLP
from fastopt.train.objective import LOSSES, Objective


class OptimizerChoice(NamedTuple):
    """An optimizer by name, and where to start."""

    make: Callable[..., fo.Optimizer]
    title: str
    lr: float
    weight_decay: float
    momentum: float | None  # None: it has no such option


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "sgd": OptimizerChoice(fo.SGD, "SGD", 0.1, 0.0, 0.0),
    "momentum": OptimizerChoice(fo.SGD, "SGD with momentum", 0.02, 0.0, 0.9),
    "rmsprop": OptimizerChoice(fo.RMSprop, "RMSprop", 1e-3, 0.0, 0.0),
    "adam": OptimizerChoice(fo.Adam, "Adam", 1e-3, 0.0, None),
    "adamw": OptimizerChoice(fo.AdamW, "AdamW", 1e-3, 1e-2, None),
}


# The schedules by name; `make_scheduler` says what they are.
SCHEDULES = ("constant", "step", "exponential", "linear", "cosine", "one-cycle", "plateau")


class ConfigError(ValueError):
    """A choice that cannot be used: `name` is the field, `problem` what is wrong with it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True)
class RunConfig:
    """Everything that a training run depends on; two equal ones give the same bits.

    The command ``fastopt train`` has an option for each field. None leaves the choice to the task
    or the optimizer; `resolved` tells what that comes to.

    Parameters
    ----------
    data : str or path
        As `load_data` takes it.
    task : {"classification", "binary", "regression"}, optional
        As `load_data` takes it.
    loss : str, optional
        As `Objective` takes it.
    label_smoothing : float
        In [0, 1]; for cross-entropy.
    optimizer : str
        One of `OPTIMIZERS`: "sgd", "momentum", "rmsprop", "adam", "adamw".
    lr, weight_decay : float, optional
        Finite and >= 0.
    momentum : float, optional
        Finite and >= 0; for SGD and RMSprop.
    batch_size, epochs : int
        At least 1.
    schedule : str
        One of `SCHEDULES`: how the learning rate goes from `lr` on; see `make_scheduler`.
    warmup : int
        Steps in which the learning rate rises to `lr` first.
    max_norm : float, optional
        Clip the gradients to this 2-norm; greater than 0.
    accumulate : int
        Batches whose gradients make one step; at least 1.
    ema : float, optional
        Decay of a moving average of the weights, in [0, 1); it is the averages that are evaluated.
        At first the decay is smaller; see the warm-up of `WeightEMA`.
    hidden : tuple of int
        Widths of the hidden layers; may be empty.
    dropout : float
        In [0, 1).
    patience : int, optional
        Stop when the held-out loss has not fallen for this many epochs; see `EarlyStopping`.
    seed : int
        Of the split, the weights, the order and the dropout; in [0, 2**32).

    Raises
    ------
    ConfigError
        A ValueError that names the field and the value.
    TypeError
        If a value is of another type.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from fastopt import train
    >>> config = train.RunConfig(data="iris", optimizer="momentum", hidden=(16,), epochs=5)
    >>> print(config.command())
    fastopt train --data iris --optimizer momentum --epochs 5 --hidden 16
    >>> replace(config, optimizer="sgd").resolved().lr
    0.1
    >>> history = config.build().fit(config.epochs)
    >>> len(history.epochs)
    5
    """

    data: str = "digits"
    task: Task | None = None
    loss: str | None = None
    label_smoothing: float = 0.0
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    batch_size: int = 64
    epochs: int = 30
    schedule: str = "constant"
    warmup: int = 0
    max_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.hidden, Iterable) and not isinstance(self.hidden, str):
            object.__setattr__(self, "hidden", tuple(self.hidden))
        if isinstance(self.data, Path):
            object.__setattr__(self, "data", str(self.data))
        for name, wanted, least, most in _INTEGERS:
            self._check_number(name, int, wanted, least, most)
        for name, wanted, least, most in _FLOATS:
            self._check_number(name, float, wanted, least, most)
        self._check_choice("task", TASKS)
        self._check_choice("optimizer", OPTIMIZERS)
        self._check_choice("schedule", SCHEDULES)
        self._check_choice("loss", dict.fromkeys(sum(LOSSES.values(), ())))
        if not isinstance(self.data, str):
            raise TypeError(f"data must be a string, not {self.data!r}")
        if not isinstance(self.hidden, tuple):
            raise TypeError(f"hidden must be a sequence of widths, not {self.hidden!r}")
        for width in self.hidden:
            if isinstance(width, bool) or not isinstance(width, int):
                raise TypeError(f"hidden must hold whole numbers, not {width!r}")
            if width < 1:
                raise ConfigError("hidden", f"must hold widths of at least 1, not {width}")
        if not self.dropout < 1:
            raise ConfigError("dropout", f"must be in [0, 1), not {self.dropout}")
        if self.ema == 1:
            raise ConfigError("ema", "must be in [0, 1), not 1: it would never move")
        if self.max_norm == 0:
            raise ConfigError("max_norm", "must be greater than 0, not 0")
        if self.momentum is not None and OPTIMIZERS[self.optimizer].momentum is None:
            raise ConfigError("momentum", f"is for SGD and RMSprop, not {self.optimizer}")
        if self.warmup and self.schedule == "one-cycle":
            raise ConfigError("warmup", "must be 0 with the schedule one-cycle, which has its own")
        if self.warmup and self.schedule == "plateau":
            raise ConfigError("warmup", "must be 0 with the schedule plateau, which goes by epochs")
        if self.task is not None:
            self._check_task(self.task)

    def _check_number(
        self, name: str, kind: type[int] | type[float], wanted: str, least: float, most: float
    ) -> None:
        value = getattr(self, name)
        if value is None and _DEFAULTS[name] is None:
            return
        accepted = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted):
            what = "a whole number" if kind is int else "a number"
            raise TypeError(f"{name} must be {what}, not {value!r}")
        if not (least <= value <= most):  # NaN too
            raise ConfigError(name, f"must be {wanted}, not {value}")

    def _check_choice(self, name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        if value not in tuple(choices) and not (value is None and _DEFAULTS[name] is None):
            raise ConfigError(name, f"must be one of {', '.join(choices)}, not {value!r}")

    def _check_task(self, task: Task) -> None:
        """Check what depends on the task."""
        if self.loss is not None and self.loss not in LOSSES[task]:
            raise ConfigError(
                "loss", f"must be one of {', '.join(LOSSES[task])} for {task}, not {self.loss!r}"
            )
        if self.label_smoothing and (self.loss or LOSSES[task][0]) != "cross-entropy":
            raise ConfigError(
                "label_smoothing",
                f"is for the loss cross-entropy; it must be 0 for {task}"
                if self.loss is None
                else f"is for the loss cross-entropy, not {self.loss}",
            )

    def resolved(self, task: Task | None = None) -> RunConfig:
        """Return it with the optimizer's defaults, and those of the task, in place of None."""
        choice = OPTIMIZERS[self.optimizer]
        task = task or self.task
        return replace(
            self,
            task=task,
            loss=LOSSES[task][0] if self.loss is None and task else self.loss,
            lr=choice.lr if self.lr is None else self.lr,
            weight_decay=choice.weight_decay if self.weight_decay is None else self.weight_decay,
            momentum=choice.momentum if self.momentum is None else self.momentum,
        )

    def load(self) -> Data:
        """Return the data; see `load_data` for what is raised."""
        return load_data(self.data, self.task, self.seed)

    def build(self, data: Data | None = None) -> Trainer:
        """Return a trainer with a new model, ready for ``fit(config.epochs)``.

        Parameters
        ----------
        data : Data, optional
            To share what is loaded already; loaded without it.

        Raises
        ------
        DataError
            If the data cannot be loaded.
        ConfigError
            If the data's task does not take the loss.
        """
        data = self.load() if data is None else data
        self._check_task(data.task)
        full = self.resolved(data.task)
        model = MLP([data.features, *self.hidden, data.outputs], self.dropout, (self.seed, 1))
        options: dict[str, Any] = {"lr": full.lr, "weight_decay": full.weight_decay}
        if full.momentum is not None:
            options["momentum"] = full.momentum
        optimizer = OPTIMIZERS[self.optimizer].make(model.params, **options)
        batches = -(-len(data.y_train) // self.batch_size)
        steps = -(-batches // self.accumulate)
        return Trainer(
            model,
            data,
            optimizer,
            Objective(data.task, self.loss, label_smoothing=self.label_smoothing),
            batch_size=self.batch_size,
            seed=self.seed,
            scheduler=make_scheduler(
                optimizer, self.schedule, self.epochs, steps_per_epoch=steps, warmup=self.warmup
            ),
            schedule_per="epoch" if self.schedule == "plateau" else "step",
            max_norm=self.max_norm,
            accumulate=self.accumulate,
            ema=None if self.ema is None else fo.WeightEMA(model.params, self.ema, warmup=True),
        )

    def command(self) -> str:
        """Return the command line that repeats the run."""
        words = ["fastopt", "train"]
        for name, value in asdict(self).items():
            if value != _DEFAULTS[name]:
                text = value
                if name == "hidden":
                    text = ",".join(map(str, value)) or "none"
                words += [f"--{name.replace('_', '-')}", str(text)]
        return shlex.join(words)


def make_scheduler(
    optimizer: fo.Optimizer, name: str, epochs: int, *, steps_per_epoch: int, warmup: int = 0
) -> fo.LRScheduler | None:
    """Return one of `SCHEDULES` over a run, or None where the learning rate stays as it is.

    It is to be moved on after each step of the optimizer; "plateau" after each epoch.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate is where the schedule starts; for "one-cycle", the highest.
    name : str
        "constant"; "step", a tenth after each third of the epochs; "exponential", to a hundredth at
        the end; "linear" and "cosine", to 0; "one-cycle", up in three tenths of the run, then to
        almost 0, and momentum the other way if there is one; "plateau", a tenth when the held-out
        loss has not fallen for a tenth of the epochs.
    epochs, steps_per_epoch : int
        The length of the run.
    warmup : int
        Steps of a linear rise before it; not for "one-cycle" and "plateau".

    Raises
    ------
    ConfigError
        If there is no such schedule or the warm-up is longer than the run.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> from fastopt import train
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = train.make_scheduler(opt, "cosine", epochs=2, steps_per_epoch=3, warmup=2)
    >>> rates = []
    >>> for step in range(6):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [0.3333 0.6667 1.     0.8536 0.5    0.1464]
    """
    total = epochs * steps_per_epoch
    if warmup and not warmup < total:
        raise ConfigError("warmup", f"must be less than the {total} steps of the run, not {warmup}")
    groups = optimizer.param_groups
    main: fo.LRScheduler
    if name == "constant":
        return fo.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup) if warmup else None
    if name == "plateau":
        return fo.ReduceLROnPlateau(optimizer, patience=max(1, epochs // 10))
    if name == "one-cycle":
        return fo.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total,
            cycle_momentum=all("betas" in g or g.get("momentum") for g in groups),
        )
    # A warm-up is made first: each schedule takes the rate that the groups had before any.
    rise = fo.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup) if warmup else None
    if name == "step":
        main = fo.StepLR(optimizer, -(-epochs // 3) * steps_per_epoch)
    elif name == "exponential":
        main = fo.ExponentialLR(optimizer, 0.01 ** (1 / (total - warmup)))
    elif name == "linear":
        main = fo.LinearLR(optimizer, 1.0, 0.0, total - warmup)
    elif name == "cosine":
        main = fo.CosineAnnealingLR(optimizer, total - warmup)
    else:
        raise ConfigError("schedule", f"must be one of {', '.join(SCHEDULES)}, not {name!r}")
    if rise is None:
        return main
    return fo.SequentialLR(optimizer, [rise, main], [warmup])


_DEFAULTS = {f.name: f.default for f in fields(RunConfig)}
# Name, what to say, and the range of each number. Beyond these whole ones, even floats end.
_INT, _FLOAT = 2**63 - 1, sys.float_info.max
_INTEGERS: tuple[tuple[str, str, float, float], ...] = (
    ("batch_size", "at least 1", 1, _INT),
    ("epochs", "at least 1", 1, _INT),
    ("warmup", "at least 0", 0, _INT),
    ("accumulate", "at least 1", 1, _INT),
    ("patience", "at least 1", 1, _INT),
    ("seed", "in [0, 2**32)", 0, 2**32 - 1),
)
_FLOATS = (
    ("lr", "finite and >= 0", 0, _FLOAT),
    ("weight_decay", "finite and >= 0", 0, _FLOAT),
    ("momentum", "finite and >= 0", 0, _FLOAT),
    ("max_norm", "finite and > 0", 0, _FLOAT),
    ("label_smoothing", "in [0, 1]", 0, 1),
    ("dropout", "in [0, 1)", 0, 1),
    ("ema", "in [0, 1)", 0, 1),
)
