"""Which configurations a sweep tries: a grid, or a random sample of one or of ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import exp, isfinite, log
from typing import Any

import numpy as np

from fastopt import train as ft
from fastopt.experiments.runs import AXES


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included.

    Parameters
    ----------
    low, high : float
        With ``low < high``.
    log : bool
        Whether factors count, not differences: each decade then gets as many draws as another, and
        `low` must be greater than 0.

    Raises
    ------
    ValueError
        If these are no range.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range must go up, not from {self.low:g} to {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range must begin above 0, not at {self.low:g}")

    def draw(self, rng: np.random.Generator) -> float:
        """Return a number with four digits, so that a command line can repeat it."""
        if self.log:
            value = exp(rng.uniform(log(self.low), log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """What a sweep tries.

    Parameters
    ----------
    base : RunConfig
        What all runs share; its seed also chooses what is drawn.
    axes : mapping of str to sequence or `Range`
        The values of the fields that vary, of those in `AXES`.
    trials : int, optional
        How many to draw, at least 1. Without it, all combinations are tried; 20 are drawn if an
        axis is a range. A larger number begins with the same draws.

    Raises
    ------
    ConfigError
        If a value cannot be used.
    ValueError
        If an axis has no value, one value twice, or an unknown name; or `trials` is less than 1.

    Examples
    --------
    >>> from fastopt import experiments, train
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

    base: ft.RunConfig
    axes: Mapping[str, Sequence[Any] | Range]
    trials: int | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"trials must be at least 1, not {self.trials}")
        for name, values in self.axes.items():
            if name not in AXES:
                raise ValueError(f"an axis must be one of {', '.join(AXES)}, not {name!r}")
            if isinstance(values, Range):
                if AXES[name] is str:
                    raise ValueError(f"{name} takes names, not a range")
                kind = AXES[name]
                values = [kind(values.low), kind(values.high)]
            elif not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must have values that differ, not {list(values)}")
            for value in values:
                _with(self.base, {name: value})  # raises if it cannot be used

    @property
    def random(self) -> bool:
        """Whether configurations are drawn."""
        return self.trials is not None or any(isinstance(v, Range) for v in self.axes.values())

    def configs(self) -> list[ft.RunConfig]:
        """Return what to try, no configuration twice."""
        lists = [values for values in self.axes.values() if not isinstance(values, Range)]
        if len(lists) == len(self.axes):
            grid = [
                _with(self.base, dict(zip(self.axes, values, strict=True)))
                for values in product(*lists)
            ]
            if self.trials is None:
                return grid
            order = np.random.default_rng((self.base.seed, 2)).permutation(len(grid))
            return [grid[i] for i in order[: self.trials]]
        rng = np.random.default_rng((self.base.seed, 2))
        wanted = self.trials or 20
        drawn: dict[ft.RunConfig, None] = {}
        for _ in range(100 * wanted):  # a range of a few whole numbers may not have as many
            drawn[_with(self.base, {name: self._draw(name, rng) for name in self.axes})] = None
            if len(drawn) == wanted:
                break
        return list(drawn)

    def _draw(self, name: str, rng: np.random.Generator) -> Any:
        values = self.axes[name]
        if not isinstance(values, Range):
            return values[int(rng.integers(len(values)))]
        value = values.draw(rng)
        return round(value) if AXES[name] is int else value

    def facts(self) -> dict[str, Any]:
        """Return what makes it another space: all but `trials`."""
        return {
            "base": asdict(self.base) | {"hidden": list(self.base.hidden)},
            "axes": {
                name: asdict(values) if isinstance(values, Range) else list(values)
                for name, values in sorted(self.axes.items())
            },
        }


def _with(base: ft.RunConfig, choices: Mapping[str, Any]) -> ft.RunConfig:
    return replace(base, **choices)
