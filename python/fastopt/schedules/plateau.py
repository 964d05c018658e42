"""The schedule that depends on a metric."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any, ClassVar, Literal, SupportsFloat

from fastopt._checks import (
    Check,
    below_one,
    choice,
    for_each_group,
    integer,
    non_negative,
    one_or_each,
    to_float,
)
from fastopt.schedules._base import HasGroups, LRScheduler, groups_of, keys_of


class ReduceLROnPlateau(LRScheduler):
    r"""Multiply the rate by `factor` when a metric has stopped improving.

    A step is *bad* if its metric is not better than the best metric by the `threshold`. NaN is
    never better. After more than `patience` bad steps in a row, the rates are reduced:

    .. math:: \eta \leftarrow \max(\mathrm{factor} \cdot \eta,\ \mathrm{min\_lr})

    The count of bad steps then begins again, after `cooldown` steps that do not count.

    Parameters
    ----------
    mode : {"min", "max"}
        Whether smaller or larger is better.
    factor : float
        In [0, 1).
    patience : int
        The number of bad steps in a row that do not reduce the rate. At least 0.
    threshold : float
        At least 0.
    threshold_mode : {"rel", "abs", "rel_abs"}
        When a metric is better:

        - "rel": below ``best * (1 - threshold)``; for mode "max", above ``best * (1 + threshold)``
        - "abs": below ``best - threshold``; for mode "max", above ``best + threshold``
        - "rel_abs": like "abs" with the threshold ``threshold * abs(best)``; not in torch

        Do not use "rel" for negative metrics, such as log-likelihoods: a slightly worse metric
        then counts as better. After a loss of -1 and with a threshold of 0.1, every loss below -0.9
        is better. torch does the same, so "rel" keeps these values. Use "rel_abs" or "abs".
    cooldown : int
        At least 0.
    min_lr : float, or list with one for each group
        At least 0.
    eps : float
        A rate that would fall by at most this is not changed. At least 0.

    Attributes
    ----------
    best : float or None
        The best metric; None before the first step.
    num_bad_epochs, cooldown_counter : int
        The bad steps in a row, and the remaining steps of the cooldown.

    Warns
    -----
    UserWarning
        Once, at a `step`, if the best metric is negative and `threshold_mode` is "rel".

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.ReduceLROnPlateau(opt, factor=0.5, patience=1)
    >>> rates = []
    >>> for loss in [3.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
    ...     schedule.step(loss)
    ...     rates += schedule.get_last_lr()
    >>> rates
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    """

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_lr: float | list[float]
    eps: float
    best: float | None
    _warned = False
    _options: ClassVar[Mapping[str, Check]] = {
        "mode": choice("min", "max"),
        "factor": below_one,
        "patience": integer(0),
        "threshold": non_negative,
        "threshold_mode": choice("rel", "abs", "rel_abs"),
        "cooldown": integer(0),
        "min_lr": one_or_each(non_negative),
        "eps": non_negative,
    }

    def __init__(
        self,
        optimizer: HasGroups,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs", "rel_abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self._accept(
            mode=mode,
            factor=factor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            cooldown=cooldown,
            min_lr=min_lr,
            eps=eps,
        )
        for_each_group("min_lr", self.min_lr, len(groups_of(optimizer)))
        self.optimizer = optimizer
        self.last_epoch = 0
        self.best = None
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self._last_lr = self._lrs()
        self._groups = keys_of(optimizer)

    def step(self, metrics: SupportsFloat) -> None:  # type: ignore[override]  # as in torch
        """Record a metric, and reduce the rates after too many bad steps.

        Parameters
        ----------
        metrics : float
            The loss or score of the last epoch, usually on validation data.
        """
        metric = to_float("metrics", metrics)
        better = self._is_better(metric)
        best = metric if better else self.best
        relative = self.threshold_mode == "rel" and self.threshold > 0
        if relative and best is not None and -inf < best < 0 and not self._warned:
            self._warned = True  # first: if the warning is an error, the next call works
            warnings.warn(
                f"the best metric is negative, {best}: with threshold_mode='rel' a metric that is "
                "worse by less than the threshold counts as better, as in torch; pass "
                "threshold_mode='rel_abs' or 'abs' for metrics that may be negative",
                stacklevel=2,
            )
        self._change(lambda draft: draft._take_note(best, better))

    def _take_note(self, best: float | None, better: bool) -> None:
        rates = self._lrs()
        floors = for_each_group("min_lr", self.min_lr, len(rates))
        self.last_epoch = integer(0)("last_epoch", self.last_epoch + 1)
        self.best = best
        self.num_bad_epochs = 0 if better else self.num_bad_epochs + 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
            lower = [max(lr * self.factor, low) for lr, low in zip(rates, floors, strict=True)]
            rates = [
                new if old - new > self.eps else old for old, new in zip(rates, lower, strict=True)
            ]
            self._set_lrs(rates)
        self._last_lr = rates

    def get_lr(self) -> list[float]:
        """Return the present rates; only a metric changes them."""
        return self._lrs()

    def _is_better(self, metric: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        best = sign * -inf if self.best is None else self.best
        if self.threshold_mode == "rel":
            bar = best * (1.0 + sign * self.threshold)
        elif self.threshold_mode == "rel_abs" and isfinite(best):
            bar = best + sign * self.threshold * abs(best)
        else:
            bar = best + sign * self.threshold
        return metric < bar if self.mode == "min" else metric > bar

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | {
            "best": lambda name, value: None if value is None else to_float(name, value),
            "num_bad_epochs": integer(0),
            "cooldown_counter": integer(0),
        }

    def _read(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._read(state_dict)
        for_each_group("min_lr", values["min_lr"], len(self.optimizer.param_groups))
        return values
