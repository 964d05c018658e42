"""Training runs of experiments: a configuration and its history."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

from fastopt._checks import choice
from fastopt.train.callbacks import Divergence, EarlyStopping
from fastopt.train.checks import kind
from fastopt.train.config import OPTIMIZERS, RunConfig
from fastopt.train.data import Data, Task
from fastopt.train.history import Epoch, History
from fastopt.train.loop import Callback


@dataclass(frozen=True)
class Run:
    """A training run that has ended.

    Attributes
    ----------
    config : RunConfig
    history : History
        With at least one epoch.
    """

    config: RunConfig
    history: History

    @property
    def final(self) -> Epoch:
        """The last epoch."""
        return self.history.epochs[-1]

    @property
    def diverged(self) -> bool:
        """Whether it diverged; see `History.diverged`."""
        return self.history.diverged

    @property
    def rank(self) -> tuple[bool, float, float]:
        """The sort key, the best run first: the final held-out score, then the loss."""
        score, loss = self.final.val_score, self.final.val_loss
        return self.diverged, inf if isnan(score) else -score, inf if isnan(loss) else loss

    def facts(self, task: Task) -> dict[str, Any]:
        """Return the options and results as a flat mapping, for a row of a table.

        The best score and epoch of a run that diverged are None.
        """
        full = self.config.resolved(task)
        final, best = self.final, self.history.best
        lowest = min((e.val_loss for e in self.history.epochs), key=_nan_last)
        return {name: getattr(full, name) for name in AXES} | {
            "epochs": final.epoch,
            "train_loss": final.train_loss,
            "val_loss": final.val_loss,
            "lowest_val_loss": None if self.diverged else lowest,
            "train_score": final.train_score,
            "val_score": final.val_score,
            "best_val_score": None if self.diverged else best.val_score,
            "best_epoch": None if self.diverged else best.epoch,
            "seconds": self.history.seconds.total,
            "diverged": self.diverged,
            "stop_reason": self.history.stop_reason,
            "command": self.config.command(),
        }


def _nan_last(value: float) -> float:
    return inf if isnan(value) else value


def run(config: RunConfig, data: Data, callbacks: Iterable[Callback] = ()) -> Run:
    """Train with `config` and return the run, which ends early if it diverges.

    Parameters
    ----------
    config : RunConfig
    data : Data
    callbacks : iterable of Callback
        Additional callbacks.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> config = train.RunConfig(data="iris", epochs=20, lr=0.01)
    >>> experiments.run(config, config.load()).final.val_score > 0.8
    True
    """
    kind("config", config, RunConfig)
    kind("data", data, Data)
    own: list[Callback] = [Divergence()]
    if config.patience is not None:
        own.append(EarlyStopping(config.patience))
    return Run(config, config.build(data).fit(config.epochs, [*own, *callbacks]))


def compare(
    configs: Iterable[RunConfig],
    data: Data,
    callbacks: Callable[[RunConfig], Iterable[Callback]] = lambda config: (),
) -> Generator[Run, None, None]:
    """Train the configurations in order, and yield each run when it has ended.

    All runs use the same data. Runs with the same `hidden`, `activation`, `seed` and `batch_size`
    begin with the same weights and use the same batches.

    Parameters
    ----------
    configs : iterable of RunConfig
    data : Data
    callbacks : callable
        Returns the callbacks of a run.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> base = train.RunConfig(data="iris", epochs=5, hidden=(16,))
    >>> configs = experiments.Space(base, {"optimizer": ["sgd", "adam"]}).configs()
    >>> [run.config.optimizer for run in experiments.compare(configs, base.load())]
    ['sgd', 'adam']
    """
    configs = list(configs)
    for config in configs:  # before the first run takes time
        kind("each of configs", config, RunConfig)
        config.check(data)
    for config in configs:
        yield run(config, data, callbacks(config))


# The fields of `RunConfig` that may vary, in the order of the axes of pictures, and their types.
AXES: dict[str, type] = {
    "lr": float,
    "batch_size": int,
    "weight_decay": float,
    "dropout": float,
    "optimizer": str,
    "schedule": str,
    "loss": str,
    "activation": str,
}


def label(config: RunConfig, names: Sequence[str]) -> str:
    """Return some options of a configuration as text, such as ``Adam, lr 0.001``."""
    full = config.resolved()
    parts = []
    for name in names:
        choice(*AXES)("a name", name)
    for name in sorted(names, key=["optimizer", *AXES].index):
        value = getattr(full, name)
        if name == "optimizer":
            parts.append(OPTIMIZERS[value].title)
        elif name == "loss":
            parts.append(str(value))
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)


def choice_of(config: RunConfig, names: Iterable[str]) -> Mapping[str, Any]:
    """Return the fields `names` of a configuration."""
    return {name: getattr(config, name) for name in sorted(names)}
