"""The configurations of a sweep: a grid, or a random sample of a grid or of ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import exp, isfinite, log
from typing import Any

import numpy as np

from fastopt._checks import choice, finite, integer
from fastopt.train.checks import kind
from fastopt.train.config import RunConfig
from fastopt.train.experiments.runs import AXES


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Parameters
    ----------
    low, high : float
        With ``low < high``.
    log : bool
        Draw the logarithm uniformly, not the number: each decade is equally likely. `low` must then
        be greater than 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            value = finite(f"{name} of a range", value)
            object.__setattr__(self, name, value)
        if not self.low < self.high:
            raise ValueError(f"a range must go up, not from {self.low:g} to {self.high:g}")
        if not isfinite(self.high - self.low):
            raise ValueError(
                f"a range must have a finite width, not from {self.low:g} to {self.high:g}"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must begin above 0, not at {self.low:g}")

    def draw(self, rng: np.random.Generator) -> float:
        """Return a random number with four digits, so that a command line can repeat it."""
        if self.log:
            value = exp(rng.uniform(log(self.low), log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """The configurations of a sweep.

    Parameters
    ----------
    base : RunConfig
        The options that all runs share. Its seed is also the seed of the draws.
    axes : mapping of str to sequence, array of one dimension or `Range`
        The values of the fields that vary; the fields must be in `AXES`.
    trials : int, optional
        The number of random draws, at least 1. By default, all combinations; 20 draws if an axis is
        a range. A larger number begins with the same draws.

    Raises
    ------
    ConfigError
        If a `RunConfig` does not take a value.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> space = experiments.Space(
    ...     train.RunConfig(data="iris"), {"lr": [0.01, 0.1], "batch_size": [8, 16, 32]}
    ... )
    >>> len(space.configs())
    6
    >>> space = experiments.Space(
    ...     train.RunConfig(), {"lr": experiments.Range(1e-4, 1e-1, log=True)}, trials=2
    ... )
    >>> [config.lr for config in space.configs()]
    [0.0001748, 0.001612]
    """

    base: RunConfig
    axes: Mapping[str, Sequence[Any] | Range]
    trials: int | None = None

    def __post_init__(self) -> None:
        kind("base", self.base, RunConfig)
        kind("axes", self.axes, Mapping)
        if self.trials is not None:
            object.__setattr__(self, "trials", integer(1)("trials", self.trials))
        axes: dict[str, list[Any] | Range] = {}
        for name, values in self.axes.items():
            choice(*AXES)("an axis", name)
            if isinstance(values, Range):
                if AXES[name] is str:
                    raise ValueError(f"{name} takes names, not a range")
                axes[name] = values
                ends = [AXES[name](values.low), AXES[name](values.high)]
            else:
                axes[name] = ends = _listed(name, values)
            for value in ends:
                replace(self.base, **{name: value})  # raises if it cannot be used
            if not ends or len(set(ends)) < len(ends):
                raise ValueError(f"{name} must have values that differ, not {ends}")
        object.__setattr__(self, "axes", axes)

    @property
    def random(self) -> bool:
        """Whether configurations are drawn at random."""
        return self.trials is not None or any(isinstance(v, Range) for v in self.axes.values())

    def configs(self) -> list[RunConfig]:
        """Return the configurations, each once."""
        lists = [values for values in self.axes.values() if not isinstance(values, Range)]
        if len(lists) == len(self.axes):
            grid = [
                replace(self.base, **dict(zip(self.axes, values, strict=True)))
                for values in product(*lists)
            ]
            if self.trials is None:
                return grid
            order = np.random.default_rng((self.base.seed, 2)).permutation(len(grid))
            return [grid[i] for i in order[: self.trials]]
        rng = np.random.default_rng((self.base.seed, 2))
        wanted = self.trials or 20
        drawn: dict[RunConfig, None] = {}
        known = 0  # draws in a row: a range of whole numbers may have fewer numbers than trials
        while len(drawn) < wanted and known < 1000:
            config = replace(self.base, **{name: self._draw(name, rng) for name in self.axes})
            known = known + 1 if config in drawn else 0
            drawn[config] = None
        return list(drawn)

    def _draw(self, name: str, rng: np.random.Generator) -> Any:
        values = self.axes[name]
        if not isinstance(values, Range):
            return values[int(rng.integers(len(values)))]
        value = values.draw(rng)
        return round(value) if AXES[name] is int else value

    def facts(self) -> dict[str, Any]:
        """Return the parts that identify the space: all except `trials`."""
        return {
            "base": asdict(self.base) | {"hidden": list(self.base.hidden)},
            "axes": {
                name: asdict(values) if isinstance(values, Range) else list(values)
                for name, values in sorted(self.axes.items())
            },
        }


def _listed(name: str, values: Any) -> list[Any]:
    """Return the values of an axis as a list of Python numbers and strings."""
    ndim = getattr(values, "ndim", 1)
    if isinstance(values, str) or not isinstance(values, Iterable) or ndim != 1:
        raise TypeError(f"{name} must be a list of values or a Range, not {values!r}")
    return [value.item() if isinstance(value, np.generic) else value for value in values]
