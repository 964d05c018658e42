"""Schedules after exceptions: in the old state or the new one, and usable.

An exception is raised once at every place in the package where the interpreter handles signals:
after calls, at the start of functions and at the end of loops.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

import fastopt as fo
from fastopt.schedules._base import _write
from helpers import interrupt_everywhere
from schedule_cases import Schedule, groups, one


def held(optimizer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


SINGLE = [
    one("StepLR", step_size=1, gamma=0.5),
    one("CosineAnnealingWarmRestarts", T_0=3, T_mult=2),
    one("LambdaLR", lr_lambda=lambda epoch: 0.95**epoch),
    one("OneCycleLR", max_lr=0.3, total_steps=60),
]
PAIR = Schedule(
    "sequence",
    lambda m, o: m.SequentialLR(o, [m.StepLR(o, 1), m.OneCycleLR(o, 1.0, 60)], milestones=[2]),
)
COMPOUND = [
    Schedule(
        "sequence of a chain",
        lambda m, o: m.SequentialLR(
            o,
            [
                m.ChainedScheduler([m.ConstantLR(o, 0.5, 3), m.StepLR(o, 1)]),
                m.ExponentialLR(o, 0.5),
            ],
            milestones=[2],
        ),
    ),
    Schedule(
        "chain of a sequence",
        lambda m, o: m.ChainedScheduler(
            [
                m.SequentialLR(o, [m.StepLR(o, 1), m.OneCycleLR(o, 1.0, 60)], milestones=[2]),
                m.ExponentialLR(o, 0.5),
            ]
        ),
    ),
    Schedule("plateau", lambda m, o: m.ReduceLROnPlateau(o, patience=0, factor=0.5, cooldown=2)),
]


def go(schedule: Any) -> None:
    if isinstance(schedule, fo.ReduceLROnPlateau):
        schedule.step(2.0)
    else:
        schedule.step()


@pytest.mark.parametrize("steps", [0, 1])  # the second one is that of a milestone
@pytest.mark.parametrize("row", SINGLE + COMPOUND, ids=str)
def test_a_step_is_taken_or_not(row: Schedule, steps: int) -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        optimizer = groups("SGD")
        schedule = row.make(fo, optimizer)
        for _ in range(steps):
            go(schedule)
        return lambda: go(schedule), lambda: (held(optimizer), schedule.state_dict())

    assert interrupt_everywhere(make) > 10


@pytest.mark.parametrize("row", [SINGLE[0], PAIR, COMPOUND[-1]], ids=str)
def test_a_state_is_loaded_or_not(row: Schedule) -> None:
    saved = row.make(fo, groups("SGD"))
    for _ in range(4):
        go(saved)
    state = saved.state_dict()

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        optimizer = groups("SGD")
        schedule = row.make(fo, optimizer)
        return (
            lambda: schedule.load_state_dict(state),
            lambda: (held(optimizer), schedule.state_dict()),
        )

    assert interrupt_everywhere(make) > 10


@pytest.mark.parametrize("row", SINGLE, ids=str)
def test_the_groups_are_those_of_a_schedule_that_is_made_or_not(row: Schedule) -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        optimizer = groups("AdamW")
        for group in optimizer.param_groups:
            group["lr"] = 1.0
        return lambda: row.make(fo, optimizer), lambda: held(optimizer)

    assert interrupt_everywhere(make) > 10


def test_a_sequence_is_made_or_not() -> None:
    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        optimizer = groups("AdamW")
        parts = [fo.LinearLR(optimizer, 0.1), fo.OneCycleLR(optimizer, 1.0, total_steps=9)]
        for part in parts:
            part.step()
        return (
            lambda: fo.SequentialLR(optimizer, parts, [3]),
            lambda: (held(optimizer), [part.state_dict() for part in parts]),
        )

    assert interrupt_everywhere(make) > 10


def test_a_write_that_runs_out_of_memory_is_taken_back() -> None:
    class Full(dict[str, int]):
        def __ior__(self, other: object) -> Full:  # type: ignore[override, misc]
            if other:
                raise MemoryError
            return self

    targets: list[dict[str, Any]] = [{"lr": 1, "other": 2}, Full()]
    with pytest.raises(MemoryError):
        _write(targets, [{"lr": 3}, {"initial_lr": 1}])
    assert targets == [{"lr": 1, "other": 2}, {}]


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_key_that_was_new_is_removed_if_a_later_write_fails(kind: type[dict[str, Any]]) -> None:
    class Refusing(dict[str, Any]):
        def __ior__(self, other: Any) -> Refusing:  # type: ignore[override, misc]
            super().__ior__(other)
            if "broken" in other:
                raise MemoryError
            return self

    targets = [kind(lr=1), Refusing(lr=2)]
    with pytest.raises(MemoryError):
        _write(targets, [{"initial_lr": 1, "lr": 3}, {"broken": 1, "lr": 4}])
    assert targets == [{"lr": 1}, {"lr": 2}]
    assert [list(target) for target in targets] == [["lr"], ["lr"]]
    _write(targets, [{"initial_lr": 1}, {"lr": 4}])
    assert targets == [{"lr": 1, "initial_lr": 1}, {"lr": 4}]
