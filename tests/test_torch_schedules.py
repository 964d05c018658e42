"""Schedules against torch 2.13, to the last bit; skipped where it is not installed."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from schedule_cases import LRS, SCHEDULES, SOME, Schedule, groups, one

torch = pytest.importorskip("torch")
theirs = torch.optim.lr_scheduler

# A warning of torch for a SequentialLR that begins with a ChainedScheduler.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")


def witness(kind: str) -> Any:
    params = [
        {"params": [torch.nn.Parameter(torch.ones(3, dtype=torch.float64))], "lr": lr} for lr in LRS
    ]
    options = {"momentum": 0.9} if kind == "SGD" else {}
    return getattr(torch.optim, kind)(params, **options)


def options(optimizer: Any) -> list[tuple[Any, ...]]:
    """Return the options that schedules set in the groups."""
    return [
        (g["lr"], g.get("initial_lr"), g.get("momentum"), tuple(g.get("betas", ())))
        for g in optimizer.param_groups
    ]


def run_beside(schedule: Schedule, kind: str, steps: int) -> None:
    ours, other = groups(kind), witness(kind)
    mine, its = schedule.make(fo, ours), schedule.make(theirs, other)
    for step in range(steps):
        assert options(ours) == options(other), step
        assert mine.get_last_lr() == its.get_last_lr(), step
        if step < steps - 1:
            other.step()  # or torch warns
            its.step()
            mine.step()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_two_hundred_steps_equal_torch(schedule: Schedule) -> None:
    run_beside(schedule, "SGD", schedule.last + 1)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("schedule", SOME, ids=str)
def test_other_optimizers(schedule: Schedule, kind: str) -> None:
    run_beside(schedule, kind, schedule.last + 1)


@pytest.mark.parametrize("mult", [1, 2, 3])
@pytest.mark.parametrize("first", [1, 3, 10])
def test_warm_restarts_at_fractions_of_epochs_equal_torch(first: int, mult: int) -> None:
    row = one("CosineAnnealingWarmRestarts", T_0=first, T_mult=mult, eta_min=0.01)
    ours, other = groups("SGD"), witness("SGD")
    mine, its = row.make(fo, ours), row.make(theirs, other)
    other.step()
    for epoch in range(130):
        for part in (0, 0.1, 1 / 3, 0.5, 1 - 1e-9):
            mine.step(epoch + part)
            its.step(epoch + part)
            assert mine.last_epoch == its.last_epoch == epoch
            if (first, mult, epoch, part) == (1, 3, 121, 0):
                # The logarithm of 243 to base 3 is 4.999... in torch, and the restart is missed.
                assert (mine.get_last_lr()[0], its.get_last_lr()[0]) == (LRS[0], 0.01)
            else:
                assert mine.get_last_lr() == its.get_last_lr(), epoch + part
    for _ in range(50):
        mine.step()
        its.step()
        assert mine.get_last_lr() == pytest.approx(its.get_last_lr(), rel=1e-12)


def test_negative_rates_of_torch_are_zero() -> None:
    negative = 0
    for start in (1 / 3, 0.1, 0.7, 1.0, 1e-3):
        for total in range(1, 40):
            row = one("LinearLR", start_factor=start, end_factor=0.0, total_iters=total)
            ours, other = groups("SGD"), witness("SGD")
            mine, its = row.make(fo, ours), row.make(theirs, other)
            for _ in range(total + 2):
                other.step()
                its.step()
                mine.step()
                assert mine.get_last_lr() == [max(0.0, lr) for lr in its.get_last_lr()]
                assert all(lr > -1e-16 for lr in its.get_last_lr())
            negative += its.get_last_lr()[0] < 0
    assert negative > 20  # otherwise this tests nothing


def test_a_cosine_that_returns_to_nothing_is_not_below_it() -> None:
    negative = 0
    for half in range(2, 40):
        row = one("CosineAnnealingLR", T_max=half, eta_min=0.0044)
        ours, other = groups("SGD"), witness("SGD")
        ours.param_groups[1]["lr"] = other.param_groups[1]["lr"] = 0.0
        mine, its = row.make(fo, ours), row.make(theirs, other)
        for _ in range(2 * half):
            other.step()
            its.step()
            mine.step()
        first, second = its.get_last_lr()
        assert -1e-15 < second < 1e-15
        assert mine.get_last_lr() == [first, max(0.0, second)]
        for _ in range(200):  # goes on from there
            mine.step()
        negative += second < 0
    assert negative > 5


def test_the_line_of_one_cycle_stops_where_torch_goes_below_zero() -> None:
    row = one("OneCycleLR", max_lr=0.3, total_steps=9, anneal_strategy="linear")
    ours, other = groups("SGD"), witness("SGD")
    mine, its = row.make(fo, ours), row.make(theirs, other)
    for _ in range(8):
        other.step()
        its.step()
        mine.step()
    last = mine.get_last_lr()
    assert last == its.get_last_lr()
    its.step()
    mine.step()
    assert its.get_last_lr()[0] < 0
    assert mine.get_last_lr() == last


@pytest.mark.parametrize("at", [0, 1, 19, 20, 21, 63, 130])
@pytest.mark.parametrize("schedule", [s for s in SOME if s.last == 200], ids=str)
def test_a_resumed_schedule_goes_on_as_torch_does(schedule: Schedule, at: int) -> None:
    other = witness("SGD")
    its = schedule.make(theirs, other)
    ours = groups("SGD")
    mine = schedule.make(fo, ours)
    for step in range(200):
        if step == at:
            saved = json.dumps(mine.state_dict(), allow_nan=False)
            kept = ours.state_dict()
            ours = groups("SGD")
            mine = schedule.make(fo, ours)
            ours.load_state_dict(kept)
            mine.load_state_dict(json.loads(saved))
        assert options(ours) == options(other), step
        other.step()
        its.step()
        mine.step()


PLATEAUS: list[dict[str, Any]] = [
    {},
    {"patience": 0, "factor": 0.5},
    {"patience": 3, "cooldown": 4, "factor": 0.7},
    {"patience": 2, "threshold": 0.1, "threshold_mode": "abs"},
    {"patience": 2, "threshold": 0.1, "min_lr": 1e-3, "factor": 0.3},
    {"patience": 1, "min_lr": [1e-2, 1e-4], "factor": 0.0, "eps": 0.05},
    {"patience": 1, "threshold": 1.0},
    {"patience": 1, "threshold": 0.0, "eps": 0.0, "factor": 0.9},
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("plateau", PLATEAUS, ids=str)
@pytest.mark.filterwarnings("ignore:the best metric is negative:UserWarning")
def test_plateau_equals_torch(plateau: dict[str, Any], mode: str) -> None:
    rng = np.random.default_rng(5)
    metrics = np.exp(-np.arange(200) / 40) + 0.1 * rng.standard_normal(200)
    metrics[rng.integers(0, 200, 20)] = rng.choice([np.nan, np.inf, -1.0, 0.0], 20)
    metrics[0] = np.nan
    ours, other = groups("SGD"), witness("SGD")
    mine = fo.ReduceLROnPlateau(ours, mode, **plateau)  # type: ignore[arg-type]
    its = theirs.ReduceLROnPlateau(other, mode, **plateau)
    for step, metric in enumerate(metrics):
        if step % 23 == 22:
            saved = json.dumps(mine.state_dict())
            kept = ours.state_dict()
            ours = groups("SGD")
            mine = fo.ReduceLROnPlateau(ours)
            mine.load_state_dict(json.loads(saved))
            ours.load_state_dict(kept)
        mine.step(metric)
        its.step(metric)
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in other.param_groups]
        assert mine.get_last_lr() == its.get_last_lr()
        assert (mine.last_epoch, mine.num_bad_epochs, mine.cooldown_counter) == (
            its.last_epoch,
            its.num_bad_epochs,
            its.cooldown_counter,
        )


@pytest.mark.parametrize("last_epoch", [0, 1, 4, 9, 49])
@pytest.mark.parametrize(
    "row",
    [
        ("StepLR", {"step_size": 5}),
        ("MultiStepLR", {"milestones": [5, 10]}),
        ("ConstantLR", {"total_iters": 10}),
        ("LinearLR", {"total_iters": 20}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("PolynomialLR", {"total_iters": 60}),
        ("CosineAnnealingLR", {"T_max": 60, "eta_min": 0.001}),
        ("CosineAnnealingWarmRestarts", {"T_0": 7}),
        ("CosineAnnealingWarmRestarts", {"T_0": 80, "T_mult": 2}),
        ("LambdaLR", {"lr_lambda": lambda epoch: 0.9**epoch}),
    ],
    ids=lambda row: row[0],
)
def test_last_epoch_continues_as_torch_does(row: tuple[str, Any], last_epoch: int) -> None:
    name, arguments = row
    ours, other = groups("SGD"), witness("SGD")
    for optimizer in (ours, other):
        for group in optimizer.param_groups:
            group["initial_lr"], group["lr"] = group["lr"], 0.61 * group["lr"]
    mine = getattr(fo, name)(ours, **arguments, last_epoch=last_epoch)
    its = getattr(theirs, name)(other, **arguments, last_epoch=last_epoch)
    for step in range(30):
        assert options(ours) == options(other), step
        assert mine.last_epoch == its.last_epoch
        other.step()
        its.step()
        mine.step()


@pytest.mark.parametrize("name", sorted(fo.schedules.__all__))
def test_arguments_and_defaults_are_those_of_torch(name: str) -> None:
    def arguments(cls: Any) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(cls).parameters.values()]

    assert arguments(getattr(fo, name)) == arguments(getattr(theirs, name))
