"""The base class of the schedules: the step count, the rates of the groups, state dicts.

Every change of a schedule works on a draft: copies of the schedules and of the groups. The changes
of the draft are then written in one call (`_write`). An exception at any place therefore leaves the
old state or the new state.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from math import inf
from operator import ior
from typing import Any, ClassVar, Protocol, TypeVar

from fastopt._checks import (
    Check,
    NamesError,
    counted,
    integer,
    list_of,
    mapping,
    non_negative,
    short_repr,
    to_float,
)
from fastopt._structure import require_same_names
from fastopt._types import Group

Schedule = TypeVar("Schedule", bound="LRScheduler")


class HasGroups(Protocol):
    """An optimizer for a schedule: it has groups with an ``"lr"``."""

    @property
    def param_groups(self) -> list[Group]: ...


class _Draft:
    """An optimizer with copies of its groups; everything else is not copied."""

    def __init__(self, optimizer: HasGroups) -> None:
        self._optimizer = optimizer
        self.param_groups = [dict(group) for group in optimizer.param_groups]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class LRScheduler(ABC):
    r"""Base class of all schedules, and of your own.

    A schedule sets ``group["lr"]`` in every group of an optimizer: for step 0 when it is made, for
    the next step in every call of `step`. The rate of a group before that is its *initial rate*
    :math:`\eta_0`. It is kept in ``group["initial_lr"]`` for later schedules.

    Call `step` after ``optimizer.step``, either once for each batch or once for each epoch. The
    numbers of steps in the options count these calls. A call before the first ``optimizer.step``
    skips the rate of step 0.

    If you add a group to the optimizer, it joins the schedule at the next `step`. Its rate is then
    its initial rate, and options that are one number apply to it. If you remove a group from the
    optimizer, it also leaves the schedule; shorten options that are a list yourself.

    **Your own schedule** is a subclass with `get_lr`. `state_dict` saves the attributes whose names
    do not begin with an underscore.

    All schedules have these parameters; only `ReduceLROnPlateau` and `ChainedScheduler` have no
    `last_epoch`.

    Parameters
    ----------
    optimizer
        A fused or reference optimizer, or any object with ``param_groups``.
    last_epoch : int
        -1 begins. k >= 0 continues after step k, as in torch: the groups must hold the rates of
        that step and their ``"initial_lr"``. Prefer `load_state_dict`, which is exact for every
        schedule.

    Attributes
    ----------
    last_epoch : int
        The number of the present step.
    base_lrs : list of float
        The initial rate of each group.

    Raises
    ------
    KeyError
        With `last_epoch` >= 0, if a group has no ``"initial_lr"``.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> class InverseRoot(fo.LRScheduler):
    ...     def get_lr(self):
    ...         return [base / (1 + self.last_epoch) ** 0.5 for base in self.base_lrs]
    >>> opt = fo.SGD([np.zeros(1)], lr=0.5)
    >>> schedule = InverseRoot(opt)
    >>> for _ in range(3):
    ...     schedule.step()
    >>> opt.param_groups[0]["lr"]
    0.25
    """

    optimizer: HasGroups
    last_epoch: int
    base_lrs: list[float]
    _last_lr: list[float]
    _groups: Sequence[object] = ()  # the keys of the groups of the rates; see `keys_of`

    _options: ClassVar[Mapping[str, Check]] = {}  # the checks of the saved attributes
    _unsaved: ClassVar[tuple[str, ...]] = ("optimizer",)
    # As in torch: with last_epoch >= 0, the class keeps the present rates instead of a step.
    _continues_as_is: ClassVar[bool] = False

    def __init__(self, optimizer: HasGroups, last_epoch: int = -1) -> None:
        groups = groups_of(optimizer)
        last_epoch = integer(-1)("last_epoch", last_epoch)
        if last_epoch >= 0:
            for number, group in enumerate(groups):
                if "initial_lr" not in group:
                    raise NamesError(
                        f"parameter group {number} has no 'initial_lr', which last_epoch="
                        f"{last_epoch} needs; load the optimizer's state first, or start with -1"
                    )
        self.optimizer = optimizer
        self.last_epoch = last_epoch + 1
        self.base_lrs = []
        self._last_lr = []
        self._change(lambda draft: draft._start())

    @abstractmethod
    def get_lr(self) -> list[float]:
        """Return the rate of each group for step `last_epoch`; a subclass defines it.

        It may read `base_lrs` and the present rates in ``optimizer.param_groups``. It must not
        write anything. `get_last_lr` returns the rates in use.
        """

    def get_last_lr(self) -> list[float]:
        """Return the rates that this schedule has set last, one for each group."""
        self._forget_groups()
        return list(self._last_lr)

    def step(self) -> None:
        """Set the rates of the next step.

        Raises
        ------
        ValueError
            If a rate would be negative, infinite or NaN, or if the schedule has no next step.
        """
        self._change(lambda draft: draft._advance())

    def state_dict(self) -> dict[str, Any]:
        """Return the options and counters as numbers, strings, lists and None, for JSON.

        ``"lr"`` contains the present rates of the groups, so that the state may be loaded before or
        after the state of the optimizer.
        """
        self._forget_groups()
        return {
            **{
                key: list(value) if isinstance(value, list) else value
                for key, value in vars(self).items()
                if key not in self._unsaved and not key.startswith("_")
            },
            "last_lr": list(self._last_lr),
            "lr": self._lrs(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a result of `state_dict`, including the rates of the groups."""
        values = self._read(state_dict)
        self._change(lambda draft: draft._take(values))

    def __repr__(self) -> str:
        hidden = {"base_lrs", "last_epoch", *self._unsaved}
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in hidden}
        shown["last_epoch"] = vars(self).get("last_epoch")
        shown["lr"] = vars(self).get("_last_lr")
        options = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in shown.items())
        return f"{type(self).__name__}({self._repr_first()}{options})"

    def _repr_first(self) -> str:
        """Return the beginning of the repr, before the options."""
        return ""

    # The next methods change the schedule and the groups: call them on a draft.

    def _start(self) -> None:
        """Record the initial rates and set the rates of the first step."""
        self._join_groups()
        self._begin()

    def _advance(self) -> None:
        """Go to the next step."""
        self._go_to(self.last_epoch + 1)

    def _go_to(self, epoch: int) -> None:
        self.last_epoch = integer(0)("last_epoch", epoch)
        self._join_groups()
        self._apply(self.get_lr())

    def _begin(self) -> None:
        """Set the rates of the first step of this object."""
        as_is = self._continues_as_is and self.last_epoch > 0
        self._apply(self._lrs() if as_is else self.get_lr())

    def _restart(self) -> None:
        """Begin again with the initial rates, as the next schedule in a `SequentialLR`."""
        self._rewind()
        self._join_groups()
        self._set_lrs(self.base_lrs)
        self._begin()

    def _rewind(self) -> None:
        self.last_epoch = 0

    def _lrs(self) -> list[float]:
        groups = enumerate(self.optimizer.param_groups)
        return [to_float(f"the lr of parameter group {i}", group["lr"]) for i, group in groups]

    def _set_lrs(self, lrs: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def _join_groups(self) -> None:
        """Record the initial rates of new groups."""
        new = self.optimizer.param_groups[len(self.base_lrs) :]
        self.base_lrs = [*self.base_lrs, *map(initial_lr, new)]

    def _forget_groups(self) -> None:
        """Drop the rates of groups that have been removed from the optimizer."""
        there = set(map(id, keys_of(self.optimizer)))
        gone = {i for i, key in enumerate(self._groups) if id(key) not in there}
        if gone:
            lists = {"_groups", "base_lrs", "_last_lr"} & vars(self).keys()
            vars(self).update(
                {
                    name: [x for i, x in enumerate(vars(self)[name]) if i not in gone]
                    for name in lists
                }
            )

    def _apply(self, lrs: list[float]) -> None:
        """Check the rates and set them."""
        groups = self.optimizer.param_groups
        if not isinstance(lrs, Iterable):
            raise TypeError(
                f"get_lr of {type(self).__name__} must return a list with a rate for each group, "
                f"not {short_repr(lrs)}"
            )
        lrs = list(lrs)
        if len(lrs) != len(groups):
            raise ValueError(
                f"get_lr of {type(self).__name__} must return one rate for each group: it gave "
                f"{counted(len(lrs), 'rate')} for {counted(len(groups), 'group')}"
            )
        lrs = [
            lr if type(lr) is float and 0 <= lr < inf else self._checked(i, lr)
            for i, lr in enumerate(lrs)
        ]
        self._set_lrs(lrs)
        for group, base in zip(groups, self.base_lrs, strict=True):
            group.setdefault("initial_lr", base)
        self._last_lr = lrs

    def _checked(self, group: int, lr: Any) -> Any:
        what = f"the rate of group {group} at step {self.last_epoch} of {type(self).__name__}"
        return non_negative(what, lr)

    def _accept(self, **options: Any) -> None:
        """Check options and keep them as attributes."""
        checked = {name: self._options[name](name, value) for name, value in options.items()}
        vars(self).update(checked)

    def _checks(self) -> dict[str, Check]:
        """Return the checks of the values in a state dict."""
        return {
            **self._options,
            "last_epoch": integer(0),
            **dict.fromkeys(("base_lrs", "last_lr", "lr"), list_of(non_negative)),
        }

    def _read(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return the checked values of a state dict."""
        name = type(self).__name__
        mapping("state_dict", state_dict)
        own = self.state_dict()
        require_same_names(own, state_dict, f"state dict of {name}")
        checks = self._checks()
        values = {key: checks.get(key, _as_it_is)(key, state_dict[key]) for key in own}
        groups = len(self.optimizer.param_groups)
        # A group that was added after the last step has no entry in the last two.
        for key, least in (("lr", groups), ("base_lrs", 0), ("last_lr", 0)):
            count = len(values.get(key, ()))
            if not least <= count <= groups:
                raise ValueError(
                    f"the state dict of {name} has {counted(count, 'rate')} in {key!r}, but the "
                    f"optimizer has {counted(groups, 'parameter group')}; give it the same groups, "
                    "or do not load the schedule"
                )
        return values

    def _take(self, values: dict[str, Any]) -> None:
        """Put checked values in place."""
        values = dict(values)
        self._last_lr = values.pop("last_lr")
        self._set_lrs(values.pop("lr"))
        vars(self).update(values)

    def _change(self: Schedule, work: Callable[[Schedule], None]) -> None:
        """Do `work` on a draft of this schedule, then write the changes."""
        optimizer = _Draft(self.optimizer)
        copies: list[tuple[LRScheduler, LRScheduler]] = []
        draft = self._copy(optimizer, copies)
        old = [*self.optimizer.param_groups, *(vars(schedule) for schedule, _ in copies)]
        new = [*optimizer.param_groups, *(vars(schedule) for _, schedule in copies)]
        before = [dict(entries) for entries in new]
        for _, copy in copies:
            copy._forget_groups()
        work(draft)
        for _, copy in copies:
            copy._groups = keys_of(optimizer)
        changes = [
            {key: value for key, value in after.items() if key not in was or value is not was[key]}
            for was, after in zip(before, new, strict=True)
        ]
        _write(old, changes)

    def _copy(
        self: Schedule, optimizer: HasGroups, copies: list[tuple[LRScheduler, LRScheduler]]
    ) -> Schedule:
        """Return a copy that works on `optimizer`; add the original and the copy to `copies`."""
        copy = object.__new__(type(self))
        vars(copy).update(vars(self))
        copy.optimizer = optimizer
        copies.append((self, copy))
        return copy


class FactorLR(LRScheduler):
    """A schedule that multiplies the present rate of every group by one factor at each step.

    Other schedules may change the rates too.
    """

    @abstractmethod
    def factor_at(self, epoch: int) -> float:
        """Return the factor between the rates of steps ``epoch - 1`` and `epoch`."""

    def get_lr(self) -> list[float]:
        """Return the present rates times the factor of step `last_epoch`."""
        factor = self.factor_at(self.last_epoch)
        return [lr * factor for lr in self._lrs()]


def _as_it_is(name: str, value: Any) -> Any:
    """Return the value of an attribute that a subclass outside this package has added."""
    return list(value) if isinstance(value, list) else value


def keys_of(optimizer: HasGroups) -> list[object]:
    """Return an object for each group that identifies it; a copy of the group has it too."""
    return [group.get("params") for group in optimizer.param_groups]


def initial_lr(group: Group) -> float:
    """Return the initial rate of a group; without one, its present rate."""
    name = "initial_lr" if "initial_lr" in group else "lr"
    return to_float(f"the {name} of a parameter group", group[name])


def groups_of(optimizer: HasGroups) -> list[Group]:
    """Return the groups of an optimizer, all of which have a learning rate."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise TypeError(f"optimizer must have param_groups; {type(optimizer).__name__} has none")
    for number, group in enumerate(groups):
        if not isinstance(group, dict) or "lr" not in group:
            raise ValueError(f"parameter group {number} of the optimizer has no 'lr'")
        to_float(f"the lr of parameter group {number}", group["lr"])
    return groups


def _write(targets: list[dict[str, Any]], changes: list[dict[str, Any]]) -> None:
    """Update each target with its changes.

    One call in C does all updates, so that no signal handler runs between two of them. Only a new
    key needs memory. If there is no memory, another call in C, which needs no memory, removes the
    new keys and restores the old values.
    """
    before = [
        {key: target[key] for key in change if key in target}
        for target, change in zip(targets, changes, strict=True)
    ]
    removals = [  # the pop of the target's class: that of an OrderedDict differs from dict's
        map(
            type(target).pop,
            repeat(target),
            [key for key in change if key not in target],
            repeat(None),
        )
        for target, change in zip(targets, changes, strict=True)
    ]
    run = deque[Any](maxlen=0).extend
    forth = map(ior, targets, changes)
    back = chain(chain.from_iterable(removals), map(ior, targets, before))
    try:
        run(forth)
    except BaseException:  # a subclass of dict may raise anything
        run(back)
        raise
