"""The configuration of a training run: checked options, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt._checks import (
    Check,
    below_one,
    choice,
    counted,
    flag,
    fraction,
    integer,
    list_of,
    non_negative,
    positive,
)
from fastopt.train.checks import kind, seed32, text
from fastopt.train.data import TASKS, Array, Data, Task
from fastopt.train.loading import load_data
from fastopt.train.loop import Trainer
from fastopt.train.model import ACTIVATIONS, MLP
from fastopt.train.objective import LOSSES, Objective


class OptimizerChoice(NamedTuple):
    """An optimizer with its default options."""

    make: Callable[..., fo.Optimizer]
    title: str
    lr: float
    weight_decay: float
    momentum: float | None  # None: it has no momentum


OPTIMIZERS: dict[str, OptimizerChoice] = {
    "sgd": OptimizerChoice(fo.SGD, "SGD", 0.1, 0.0, 0.0),
    "momentum": OptimizerChoice(fo.SGD, "SGD with momentum", 0.02, 0.0, 0.9),
    "rmsprop": OptimizerChoice(fo.RMSprop, "RMSprop", 1e-3, 0.0, 0.0),
    "adam": OptimizerChoice(fo.Adam, "Adam", 1e-3, 0.0, None),
    "adamw": OptimizerChoice(fo.AdamW, "AdamW", 1e-3, 1e-2, None),
}

_listed: set[Any] = {fo.Optimizer, *(own.make for own in OPTIMIZERS.values())}
for _name, _item in vars(fo).items():  # an optimizer that is not listed has its own defaults
    if isinstance(_item, type) and issubclass(_item, fo.Optimizer) and _item not in _listed:
        _own = {name: option.default for name, option in signature(_item).parameters.items()}
        if {"lr", "weight_decay"} <= _own.keys():  # without them, a `RunConfig` cannot describe it
            OPTIMIZERS[_name.lower()] = OptimizerChoice(
                _item, _name, _own["lr"], _own["weight_decay"], _own.get("momentum")
            )

# The optimizers that have a momentum, for messages.
WITH_MOMENTUM = " and ".join(
    dict.fromkeys(c.make.__name__ for c in OPTIMIZERS.values() if c.momentum is not None)
)

# The names of the schedules; see `make_scheduler`.
SCHEDULES = ("constant", "step", "exponential", "linear", "cosine", "one-cycle", "plateau")


class ConfigError(ValueError):
    """An option that cannot be used: `name` is the field, `problem` the reason."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, repr=False)
class RunConfig:
    """All options of a training run; equal configurations give the same bits.

    NumPy numbers are converted to int and float, sequences to tuples.

    The command ``fastopt train`` has an option for each field. None means the default of the task
    or of the optimizer; `resolved` returns the values in use.

    Parameters
    ----------
    data : str or path
        See `load_data`.
    task : {"classification", "binary", "regression"}, optional
        See `load_data`.
    loss : str, optional
        See `Objective`.
    label_smoothing : float
        In [0, 1]; for cross-entropy.
    optimizer : str
        One of `OPTIMIZERS`.
    lr, weight_decay : float, optional
        Finite and >= 0.
    momentum : float, optional
        Finite and >= 0; for SGD and RMSprop.
    batch_size, epochs : int
        At least 1.
    schedule : str
        One of `SCHEDULES`; see `make_scheduler`.
    warmup : int
        The number of first steps in which the learning rate rises to `lr`.
    max_norm : float, optional
        Clip the gradients to this 2-norm; greater than 0.
    accumulate : int
        The number of batches whose gradients are added for one step; at least 1.
    ema : float, optional
        Decay of a moving average of the weights, in [0, 1). The averages are evaluated. The first
        steps have a smaller decay; see the warm-up of `WeightEMA`.
    hidden : tuple of int
        Widths of the hidden layers. It may be empty.
    activation : str
        The function after each hidden layer, one of `ACTIVATIONS`; see `MLP`.
    dropout : float
        In [0, 1).
    patience : int, optional
        Stop when the held-out loss has not fallen for this many epochs; see `EarlyStopping`.
    seed : int
        In [0, 2**32); for the split, the weights, the order and the dropout.
    target, drop, delimiter, header
        Of a table; see `load_data`.

    Raises
    ------
    ConfigError
        A ValueError that names the field and the value.

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
    activation: str = "relu"
    dropout: float = 0.1
    patience: int | None = None
    seed: int = 0
    target: str | None = None
    drop: tuple[str, ...] = ()
    delimiter: str | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is None and _DEFAULTS[name] is None:
                continue
            try:
                value = check(name, value)
            except ValueError as error:
                raise ConfigError(name, str(error).removeprefix(f"{name} ")) from error
            object.__setattr__(self, name, value)
        if self.momentum is not None and OPTIMIZERS[self.optimizer].momentum is None:
            raise ConfigError("momentum", f"is for {WITH_MOMENTUM}, not {self.optimizer}")
        if self.warmup and self.schedule == "one-cycle":
            raise ConfigError("warmup", "must be 0 with the schedule one-cycle, which has its own")
        if self.warmup and self.schedule == "plateau":
            raise ConfigError("warmup", "must be 0 with the schedule plateau, which goes by epochs")
        if self.task is not None:
            self._check_task(self.task)

    def __repr__(self) -> str:
        given = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"RunConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"

    def _check_task(self, task: Task) -> None:
        """Check the options that depend on the task."""
        try:
            Objective(task, self.loss, label_smoothing=self.label_smoothing)
        except ValueError as error:
            name, _, problem = str(error).partition(" ")
            raise ConfigError(name, problem) from error

    def resolved(self, task: Task | None = None) -> RunConfig:
        """Return a copy with the defaults of the optimizer and the task in place of None."""
        own = OPTIMIZERS[self.optimizer]
        task = self.task if task is None else task
        if task is not None:
            choice(*TASKS)("task", task)
        return replace(
            self,
            task=task,
            loss=LOSSES[task][0] if self.loss is None and task else self.loss,
            lr=own.lr if self.lr is None else self.lr,
            weight_decay=own.weight_decay if self.weight_decay is None else self.weight_decay,
            momentum=own.momentum if self.momentum is None else self.momentum,
        )

    def load(self) -> Data:
        """Return the data; see `load_data` for the exceptions."""
        return load_data(
            self.data,
            self.task,
            self.seed,
            target=self.target,
            drop=self.drop,
            delimiter=self.delimiter,
            header=self.header,
        )

    def build(self, data: Data | None = None, comm: Any = None) -> Trainer:
        """Return a trainer with a new model, ready for ``fit(config.epochs)``.

        Parameters
        ----------
        data : Data, optional
            The loaded data; without it, they are loaded.
        comm : mpi4py.MPI.Comm, optional
            The ranks that train together, with a `fastopt.distributed.Sharded`. All of them call
            `build` and give the same values; see `Trainer`.

        Raises
        ------
        DataError, ConfigError
            See `load_data` and `check`.
        ValueError
            If ranks have different values.
        """
        data = self.load() if data is None else data
        self.check(data)
        widths = [data.features, *self.hidden, data.outputs]
        model = MLP(widths, self.dropout, (self.seed, 1), self.activation)
        optimizer, scheduler = self._make_optimizer(data, model.params, comm)
        return Trainer(
            model,
            data,
            optimizer,
            Objective(data.task, self.loss, label_smoothing=self.label_smoothing),
            batch_size=self.batch_size,
            seed=self.seed,
            scheduler=scheduler,
            schedule_per="epoch" if self.schedule == "plateau" else "step",
            max_norm=self.max_norm,
            accumulate=self.accumulate,
            ema=None if self.ema is None else fo.WeightEMA(model.params, self.ema, warmup=True),
        )

    def check(self, data: Data) -> None:
        """Raise the exceptions of `build` for these data, without a model.

        Raises
        ------
        ConfigError
            If the data's task does not take the loss, or the optimizer or the schedule does not
            take a number.
        """
        kind("data", data, Data)
        self._check_task(data.task)
        self._make_optimizer(data, {"one": np.zeros(1, np.float32)})

    def _make_optimizer(
        self, data: Data, params: Mapping[str, Array], comm: Any = None
    ) -> tuple[fo.Optimizer, fo.LRScheduler | None]:
        """Return an optimizer for the parameters, and its schedule."""
        full = self.resolved(data.task)
        options: dict[str, Any] = {"lr": full.lr, "weight_decay": full.weight_decay}
        if full.momentum is not None:
            options["momentum"] = full.momentum
        make: Callable[..., Any] = OPTIMIZERS[self.optimizer].make
        optimizer: Any
        if comm is not None and comm.Get_size() > 1:
            from fastopt.distributed import Sharded

            optimizer = Sharded(make, params, comm, **options)  # of options that `check` has taken
        else:
            try:
                optimizer = make(params, **options)
            except ValueError as error:  # too large for float32, alone or multiplied
                problem = str(error).partition(", the dtype")[0]
                name = next((n for n in ("weight_decay", "momentum") if n in problem), "lr")
                raise ConfigError(name, f"cannot be {options[name]:g} here: {problem}") from error
        batches = -(-len(data.y_train) // self.batch_size)
        steps = -(-batches // self.accumulate)
        scheduler = make_scheduler(
            optimizer, self.schedule, self.epochs, steps_per_epoch=steps, warmup=self.warmup
        )
        return optimizer, scheduler

    def command(self) -> str:
        """Return the command line that repeats the run."""
        words = ["fastopt", "train"]
        for name, value in asdict(self).items():
            option = f"--{name.replace('_', '-')}"
            if name == "header" and value is not None:
                words.append("--header" if value else "--no-header")
            elif name == "drop":
                words += [word for column in value for word in (option, column)]
            elif value != _DEFAULTS[name]:
                text = value
                if name == "hidden":
                    text = ",".join(map(str, value)) or "none"
                words += [option, str(text)]
        return shlex.join(words)


def make_scheduler(
    optimizer: fo.Optimizer, name: str, epochs: int, *, steps_per_epoch: int, warmup: int = 0
) -> fo.LRScheduler | None:
    """Return one of `SCHEDULES` for a run, or None if the learning rate does not change.

    Call its `step` after each step of the optimizer; that of "plateau" after each epoch.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate is the first rate of the schedule; for "one-cycle", the highest rate.
    name : str
        - "constant": the rate does not change
        - "step": a tenth after each third of the epochs
        - "exponential": falls to a hundredth at the end
        - "linear", "cosine": falls to 0
        - "one-cycle": rises in three tenths of the run, then falls to almost 0; momentum, if there
          is one, changes in the other direction
        - "plateau": a tenth if the held-out loss has not fallen for a tenth of the epochs
    epochs, steps_per_epoch : int
        The length of the run.
    warmup : int
        The number of steps of a linear rise before it; not for "one-cycle" and "plateau".

    Raises
    ------
    ConfigError
        If the name is unknown, the warm-up is longer than the run, or the run has more steps than
        the schedule can count.

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
    epochs = integer(1)("epochs", epochs)
    warmup = integer(0)("warmup", warmup)
    total = epochs * integer(1)("steps_per_epoch", steps_per_epoch)
    if warmup and not warmup < total:
        steps = counted(total, "step")
        raise ConfigError("warmup", f"must be less than the {steps} of the run, not {warmup}")
    choice(*SCHEDULES)("name", name)
    if total >= 2**63 and name not in ("constant", "plateau"):
        raise ConfigError(
            "epochs",
            f"must be less than {2**63 // steps_per_epoch} for the schedule {name}, which counts "
            f"steps, not {epochs}",
        )
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
    # The warm-up is made first: the first schedule records the initial rate for the others.
    rise = fo.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup) if warmup else None
    if name == "step":
        main = fo.StepLR(optimizer, -(-epochs // 3) * steps_per_epoch)
    elif name == "exponential":
        main = fo.ExponentialLR(optimizer, 0.01 ** (1 / (total - warmup)))
    elif name == "linear":
        main = fo.LinearLR(optimizer, 1.0, 0.0, total - warmup)
    else:
        main = fo.CosineAnnealingLR(optimizer, total - warmup)
    if rise is None:
        return main
    return fo.SequentialLR(optimizer, [rise, main], [warmup])


def _texts(name: str, value: Any) -> tuple[str, ...]:
    return tuple(list_of(text)(name, value))


def _widths(name: str, value: Any) -> tuple[int, ...]:
    return tuple(list_of(integer(1))(name, value))


_DEFAULTS = {f.name: f.default for f in fields(RunConfig)}
_CHECKS: dict[str, Check] = {
    "data": lambda name, data: str(data) if isinstance(data, Path) else text(name, data),
    "task": choice(*TASKS),
    "loss": choice(*dict.fromkeys(sum(LOSSES.values(), ()))),
    "label_smoothing": fraction,
    "optimizer": choice(*OPTIMIZERS),
    "lr": non_negative,
    "weight_decay": non_negative,
    "momentum": non_negative,
    "batch_size": integer(1),
    "epochs": integer(1),
    "schedule": choice(*SCHEDULES),
    "warmup": integer(0),
    "max_norm": positive,
    "accumulate": integer(1),
    "ema": below_one,
    "hidden": _widths,
    "activation": choice(*ACTIVATIONS),
    "dropout": below_one,
    "patience": integer(1),
    "seed": seed32,
    "target": text,
    "drop": _texts,
    "delimiter": text,
    "header": flag,
}
