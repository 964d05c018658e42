"""Schedules made of schedules: one after another, or several at the same time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from fastopt._checks import Check, counted, integer, list_of, short_repr
from fastopt.schedules._base import HasGroups, LRScheduler, groups_of, initial_lr, keys_of
from fastopt.schedules.plateau import ReduceLROnPlateau

Composed = TypeVar("Composed", bound="ComposedLR")


class ComposedLR(LRScheduler):
    """A list of schedules, and their states."""

    schedulers: list[LRScheduler]
    _unsaved: ClassVar[tuple[str, ...]] = ("optimizer", "schedulers")

    def _adopt(self, schedulers: Sequence[LRScheduler], optimizer: HasGroups | None) -> None:
        """Check and keep the schedules and their common optimizer."""
        if isinstance(schedulers, str) or not isinstance(schedulers, Sequence):
            raise TypeError(f"schedulers must be a list, not {type(schedulers).__name__}")
        if not schedulers:
            raise ValueError("schedulers is empty: there is nothing to schedule")
        for number, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"schedulers[{number}] must be a schedule, not {type(scheduler).__name__}"
                )
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"schedulers[{number}] is a ReduceLROnPlateau, which needs a metric at each "
                    "step; step it beside this schedule"
                )
        self.optimizer = schedulers[0].optimizer if optimizer is None else optimizer
        for number, scheduler in enumerate(schedulers):
            if scheduler.optimizer is not self.optimizer:
                raise ValueError(f"schedulers[{number}] belongs to another optimizer")
        self.schedulers = list(schedulers)
        self.base_lrs = [initial_lr(group) for group in groups_of(self.optimizer)]
        self._groups = keys_of(self.optimizer)

    def get_lr(self) -> list[float]:
        """Return the rates that the schedules have set."""
        return self._lrs()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the states of the schedules; see `LRScheduler.state_dict`."""
        return super().state_dict() | {"schedulers": [s.state_dict() for s in self.schedulers]}

    def _copy(
        self: Composed, optimizer: HasGroups, copies: list[tuple[LRScheduler, LRScheduler]]
    ) -> Composed:
        copy = super()._copy(optimizer, copies)
        copy.schedulers = []
        for scheduler in self.schedulers:
            made = [new for old, new in copies if old is scheduler]  # a schedule may appear twice
            copy.schedulers.append(made[0] if made else scheduler._copy(optimizer, copies))
        return copy

    def _repr_first(self) -> str:
        return f"[{', '.join(map(repr, self.schedulers))}], "

    def _rewind(self) -> None:
        super()._rewind()
        for scheduler in self.schedulers:
            scheduler._rewind()

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | {"schedulers": self._read_schedulers}

    def _read_schedulers(self, name: str, states: Any) -> list[dict[str, Any]]:
        count = len(self.schedulers)
        states = list_of(lambda _, state: state, count, count)(name, states)
        return [s._read(state) for s, state in zip(self.schedulers, states, strict=True)]

    def _take(self, values: dict[str, Any]) -> None:
        values = dict(values)
        for scheduler, state in zip(self.schedulers, values.pop("schedulers"), strict=True):
            scheduler._take(state)
        super()._take(values)


class SequentialLR(ComposedLR):
    """Use one schedule after another; each begins at its milestone with the initial rates.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        New schedules of `optimizer`. A `SequentialLR` or `ChainedScheduler` is allowed, a
        `ReduceLROnPlateau` is not. `last_epoch` only changes the count.
    milestones : sequence of int
        The steps at which the second and each later schedule begins: one less than there are
        schedules, not decreasing.

    Examples
    --------
    Linear warm-up, then half a cosine to the end of the run:

    >>> import numpy as np, fastopt as fo
    >>> warmup, total = 2, 6
    >>> opt = fo.AdamW([np.zeros(1)], lr=1.0)
    >>> schedule = fo.SequentialLR(
    ...     opt,
    ...     [
    ...         fo.LinearLR(opt, start_factor=1 / (warmup + 1), total_iters=warmup),
    ...         fo.CosineAnnealingLR(opt, T_max=total - warmup),
    ...     ],
    ...     milestones=[warmup],
    ... )
    >>> rates = []
    >>> for batch in range(total + 1):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [0.3333 0.6667 1.     0.8536 0.5    0.1464 0.    ]
    """

    milestones: list[int]
    _options: ClassVar[Mapping[str, Check]] = {"milestones": list_of(integer(0))}

    def __init__(
        self,
        optimizer: HasGroups,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        groups_of(optimizer)
        self._adopt(schedulers, optimizer)
        self._accept(milestones=milestones)
        self._check_milestones(self.milestones)
        self.last_epoch = integer(-1)("last_epoch", last_epoch) + 1
        self._last_lr = self._lrs()
        self._change(lambda draft: draft._start())

    def _start(self) -> None:
        self._set_lrs(self.base_lrs)
        self._begin()

    def _advance(self) -> None:
        epoch = integer(0)("last_epoch", self.last_epoch + 1)
        turn = bisect_right(self.milestones, epoch)
        scheduler = self.schedulers[turn]
        if turn > 0 and self.milestones[turn - 1] == epoch:
            scheduler._restart()
        else:
            scheduler.step()
        self.last_epoch, self._last_lr = epoch, scheduler.get_last_lr()

    def _begin(self) -> None:
        scheduler = self.schedulers[bisect_right(self.milestones, self.last_epoch)]
        scheduler._begin()
        self._last_lr = scheduler.get_last_lr()

    def _check_milestones(self, milestones: list[int]) -> None:
        if len(milestones) != len(self.schedulers) - 1:
            raise ValueError(
                f"milestones has {counted(len(milestones), 'value')} for "
                f"{counted(len(self.schedulers), 'schedule')}; it must have one less"
            )
        if sorted(milestones) != milestones:
            raise ValueError(f"milestones must not decrease, as in {short_repr(milestones)}")

    def _read(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._read(state_dict)
        self._check_milestones(values["milestones"])
        return values


class ChainedScheduler(ComposedLR):
    """Step several schedules together; each changes the rates that the one before has set.

    Use it with schedules that multiply the present rate. Schedules that compute the rate from the
    initial rate (`LambdaLR`, `CosineAnnealingWarmRestarts`, `OneCycleLR`) overwrite the rates of
    those before them.

    Parameters
    ----------
    schedulers : sequence of LRScheduler
        Schedules of one optimizer, in the order in which they change the rates. A
        `ReduceLROnPlateau` is not allowed.
    optimizer : optional
        The optimizer of the schedules.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.ChainedScheduler(
    ...     [fo.ConstantLR(opt, factor=0.5, total_iters=2), fo.ExponentialLR(opt, gamma=0.5)]
    ... )
    >>> rates = []
    >>> for epoch in range(4):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [0.5, 0.25, 0.25, 0.125]
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: HasGroups | None = None
    ) -> None:
        self._adopt(schedulers, optimizer)
        self.last_epoch = self.schedulers[0].last_epoch
        self._last_lr = self._lrs()

    def _advance(self) -> None:
        for scheduler in self.schedulers:
            scheduler.step()
        self.last_epoch = integer(0)("last_epoch", self.last_epoch + 1)
        self._last_lr = self._lrs()

    def _begin(self) -> None:
        for scheduler in self.schedulers:
            scheduler._begin()
        self._last_lr = self._lrs()
