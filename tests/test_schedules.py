"""Schedules: formulas, tables, states, bad input; see also test_torch_schedules."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from helpers import same_bits
from schedule_cases import COMPOSED, LRS, SOME, Schedule, groups, one


def sgd(lr: float = 1.0) -> fo.SGD:
    return fo.SGD([np.ones(2)], lr=lr, momentum=0.9)


def rates(schedule: Any, steps: int) -> list[float]:
    """Return the rate of the first group for steps 0 to `steps`."""
    result = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        schedule.step()
        result += schedule.get_last_lr()[:1]
    return result


def held(optimizer: Any) -> list[dict[str, Any]]:
    """Return the options of all groups."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


# -- values ------------------------------------------------------------------------------------

FORMULAS: list[tuple[Schedule, Callable[[int], float]]] = [
    (one("StepLR", step_size=30, gamma=0.5), lambda t: 0.5 ** (t // 30)),
    (
        one("MultiStepLR", milestones=[150, 20, 20], gamma=0.7),
        lambda t: 0.7 ** (2 * (t >= 20) + (t >= 150)),
    ),
    (one("ConstantLR", factor=0.3, total_iters=40), lambda t: 0.3 if t < 40 else 1.0),
    (one("ConstantLR", factor=0.0, total_iters=40), lambda t: 0.0 if t < 40 else 1.0),
    (
        one("LinearLR", start_factor=0.01, end_factor=0.9, total_iters=70),
        lambda t: 0.01 + 0.89 * min(t, 70) / 70,
    ),
    (
        one("LinearLR", start_factor=1.0, end_factor=0.0, total_iters=70),
        lambda t: max(0, 1 - t / 70),
    ),
    (one("ExponentialLR", gamma=0.97), lambda t: 0.97**t),
    (one("PolynomialLR", total_iters=90, power=1.7), lambda t: (1 - min(t, 90) / 90) ** 1.7),
    (
        one("CosineAnnealingLR", T_max=60, eta_min=0.0),
        lambda t: (1 + math.cos(math.pi * t / 60)) / 2,
    ),
    (one("LambdaLR", lr_lambda=lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
]


@pytest.mark.parametrize(("schedule", "factor"), FORMULAS, ids=[str(row[0]) for row in FORMULAS])
def test_rates_follow_the_formula(schedule: Schedule, factor: Callable[[int], float]) -> None:
    optimizer = groups("SGD")
    made = schedule.make(fo, optimizer)
    for t in range(201):
        for lr, first in zip(made.get_last_lr(), LRS, strict=True):
            # A step multiplies once, by a factor of a few roundings; a cosine turns at its bottom,
            # where the quotient of two small numbers is the inaccurate one.
            assert abs(lr - first * factor(t)) <= 2.0**-53 * first * (4 * t + 4), t
        made.step()


def test_cosine_ends_at_eta_min_exactly_and_comes_back() -> None:
    made = fo.CosineAnnealingLR(sgd(), T_max=10, eta_min=0.25)
    values = rates(made, 20)
    assert values[10] == 0.25
    assert values[20] == pytest.approx(1.0, rel=1e-14)
    assert values[:11] == sorted(values[:11], reverse=True)
    assert values[10:] == sorted(values[10:])


def test_warm_restarts_start_from_the_full_rate() -> None:
    values = rates(fo.CosineAnnealingWarmRestarts(sgd(), T_0=3, T_mult=2, eta_min=0.1), 30)
    assert [t for t, lr in enumerate(values) if lr == 1.0] == [0, 3, 9, 21]
    assert values[6] == pytest.approx(0.55)  # the middle of the second period
    assert min(values) > 0.1


def test_warm_restarts_continue_in_the_right_period() -> None:
    first = fo.CosineAnnealingWarmRestarts(sgd(), T_0=3, T_mult=2)
    values = rates(first, 40)
    for t in range(39):
        optimizer = sgd()
        optimizer.param_groups[0]["initial_lr"] = 1.0
        again = fo.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2, last_epoch=t)
        assert again.get_last_lr() == [values[t + 1]]


def test_warm_restarts_at_fractions_of_epochs() -> None:
    made = fo.CosineAnnealingWarmRestarts(sgd(), T_0=2, T_mult=3, eta_min=0.5)
    for epoch, since in [
        (0.5, 0.25),
        (1.99, 0.995),
        (2, 0),
        (5.5, 3.5 / 6),
        (7.75, 5.75 / 6),
        (1, 0.5),
    ]:
        made.step(epoch)
        assert made.get_last_lr()[0] == pytest.approx(0.75 + math.cos(math.pi * since) / 4)
        assert (made.last_epoch, made.fraction) == (math.floor(epoch), epoch % 1)
    made.step(np.float32(1.5))
    other = fo.CosineAnnealingWarmRestarts(sgd(), T_0=9)
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    for schedule in (made, other):
        schedule.step()  # 2.5
        assert schedule.get_last_lr()[0] == pytest.approx(0.75 + math.cos(math.pi / 12) / 4)


def test_a_state_without_a_fraction_is_at_a_whole_epoch() -> None:
    made = fo.CosineAnnealingWarmRestarts(sgd(), T_0=4)
    made.step(2.25)
    state = fo.CosineAnnealingWarmRestarts(sgd(), T_0=4).state_dict()
    del state["fraction"]
    made.load_state_dict(state)
    assert (made.last_epoch, made.fraction) == (0, 0.0)


def test_a_sequence_restarts_a_fraction_too() -> None:
    optimizer = sgd()
    part = fo.CosineAnnealingWarmRestarts(optimizer, T_0=4)
    part.step(1.5)
    made = fo.SequentialLR(optimizer, [fo.ConstantLR(optimizer, 0.5), part], [1])
    made.step()
    assert made.get_last_lr() == [1.0]


@pytest.mark.parametrize(
    ("epoch", "error"),
    [
        (-0.5, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (1e300, ValueError),
        (10**400, ValueError),
        ("1", TypeError),
        ([1.0], TypeError),
        (1j, TypeError),
        (np.array([1.0]), TypeError),
    ],
    ids=repr,
)
def test_bad_epochs(epoch: Any, error: type[Exception]) -> None:
    optimizer = sgd()
    made = fo.CosineAnnealingWarmRestarts(optimizer, T_0=4)
    made.step(2.25)
    with refused(error, "epoch", optimizer=optimizer, schedule=made):
        made.step(epoch)


@pytest.mark.parametrize("shape", ["cos", "linear"])
def test_one_cycle(shape: Any) -> None:
    optimizer = sgd()
    made = fo.OneCycleLR(optimizer, 2.0, total_steps=101, pct_start=41 / 101, anneal_strategy=shape)
    values, momenta = [], []
    for _ in range(101):
        values += made.get_last_lr()
        momenta.append(optimizer.param_groups[0]["momentum"])
        made.step()
    assert values[0] == pytest.approx(2 / 25)
    assert values[40] == 2.0 == max(values)
    assert values[100] == pytest.approx(2 / 25 / 1e4)
    assert values[20] == pytest.approx((2 / 25 + 2) / 2)
    assert values[70] == pytest.approx((2 + 2 / 25e4) / 2)
    assert momenta[40] == 0.85 == min(momenta)
    assert momenta[0] == pytest.approx(0.95)
    assert momenta[100] == pytest.approx(0.95)
    assert optimizer.param_groups[0]["initial_lr"] == 2 / 25


def test_one_cycle_in_three_phases_comes_back_to_its_first_rate() -> None:
    made = fo.OneCycleLR(sgd(), 2.0, total_steps=50, pct_start=0.4, three_phase=True)
    values = rates(made, 49)
    assert values[19] == 2.0
    assert values[38] == pytest.approx(2 / 25)
    assert values[49] == pytest.approx(2 / 25e4)
    np.testing.assert_allclose(values[:39], values[38::-1], rtol=1e-13)


@pytest.mark.parametrize(
    ("total", "start", "expected"),
    [(10, 0.1, {0: 2.0, 9: 2 / 25e4}), (4, 1.0, {0: 2 / 25, 3: 2.0, 4: 2 / 25e4})],
)
def test_a_phase_of_one_cycle_without_length(
    total: int, start: float, expected: dict[int, float]
) -> None:
    values = rates(fo.OneCycleLR(sgd(), 2.0, total_steps=total, pct_start=start), total)
    for t, lr in expected.items():
        assert values[t] == pytest.approx(lr), t


def test_two_one_cycles_keep_their_own_bounds() -> None:
    optimizer = sgd()
    first = fo.OneCycleLR(optimizer, 2.0, total_steps=20)
    fo.OneCycleLR(optimizer, 7.0, total_steps=20)
    assert max(rates(first, 19)) == 2.0


def test_one_cycle_sets_the_first_beta() -> None:
    optimizer = fo.AdamW([np.ones(2)], betas=(0.5, 0.99))
    made = fo.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.5)
    for _ in range(4):
        made.step()
    assert optimizer.param_groups[0]["betas"] == (0.85, 0.99)
    optimizer.step([np.ones(2)])


@given(
    metrics=st.lists(st.floats(0, 1) | st.just(math.nan), max_size=40),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
)
def test_plateau_reduces_when_patience_is_out(
    metrics: list[float], patience: int, cooldown: int
) -> None:
    optimizer = sgd()
    made = fo.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, cooldown=cooldown, threshold=0.0, eps=0.0
    )
    lr, bad, rest = 1.0, 0, 0  # the rule of the docstring, applied to the list of all metrics
    seen: list[float] = []
    for metric in metrics:
        best = min((m for m in seen if not math.isnan(m)), default=math.inf)
        bad = 0 if metric < best or rest else bad + 1
        rest = max(0, rest - 1)
        if bad > patience:
            lr, bad, rest = lr / 2, 0, cooldown
        seen.append(metric)
        made.step(metric)
        assert made.get_last_lr() == [lr] == [optimizer.param_groups[0]["lr"]]


def test_plateau_heeds_mode_threshold_and_floor() -> None:
    optimizer = sgd()
    made = fo.ReduceLROnPlateau(
        optimizer, "max", 0.1, 0, threshold=0.5, threshold_mode="abs", min_lr=0.05
    )
    table = [(1.0, 1.0), (1.5, 0.1), (1.6, 0.1), (1.7, 0.05), (1.8, 0.05)]
    for metric, lr in table:
        made.step(metric)
        assert made.get_last_lr() == [lr]
    assert made.best == 1.6


def test_plateau_leaves_a_rate_that_would_fall_by_eps() -> None:
    for eps, lr in ((0.5, 1.0), (0.4999, 0.5)):
        made = fo.ReduceLROnPlateau(sgd(), factor=0.5, patience=0, eps=eps)
        made.step(1.0)
        made.step(1.0)
        assert made.get_last_lr() == [lr]


NEGATIVE = [-1.0, -0.95, -0.9, -0.85]


def test_plateau_warns_once_of_a_negative_best_and_keeps_torchs_values() -> None:
    made = fo.ReduceLROnPlateau(sgd(), patience=0, factor=0.5, threshold=0.1)
    with pytest.warns(UserWarning, match="threshold_mode='rel_abs' or 'abs'") as caught:
        made.step(NEGATIVE[0])
    assert caught[0].filename == __file__
    for metric in NEGATIVE[1:]:
        made.step(metric)  # no second one, which would be an error
    assert (made.best, made.get_last_lr()) == (-0.85, [1.0])
    with pytest.warns(UserWarning, match="negative, -2.0"):
        fo.ReduceLROnPlateau(sgd(), "max").step(-2.0)


def test_plateau_whose_warning_is_an_error_goes_on() -> None:
    optimizer = sgd()
    made = fo.ReduceLROnPlateau(optimizer, patience=0)
    with refused(UserWarning, "negative, -1.0", optimizer=optimizer, schedule=made):
        made.step(-1.0)  # the tests turn warnings into errors
    made.step(-1.0)
    assert made.best == -1.0


@pytest.mark.parametrize(
    "options",
    [
        {"threshold_mode": "abs", "threshold": 0.01},
        {"threshold_mode": "rel_abs", "threshold": 0.1},
        {"threshold": 0.0},
    ],
    ids=str,
)
def test_plateau_takes_negative_metrics(options: dict[str, Any]) -> None:
    made = fo.ReduceLROnPlateau(sgd(), patience=0, factor=0.5, **options)
    for metric in NEGATIVE:
        made.step(metric)
    assert (made.best, made.get_last_lr()) == (-1.0, [0.125])


@pytest.mark.parametrize(("mode", "sign"), [("min", -1.0), ("max", 1.0)])
def test_plateau_relative_to_the_size_of_the_best(mode: Any, sign: float) -> None:
    for best in (-2.0, 2.0):
        for change, better in [(0.19, False), (0.21, True), (-0.1, False)]:
            made = fo.ReduceLROnPlateau(sgd(), mode, threshold=0.1, threshold_mode="rel_abs")
            made.step(best)
            made.step(best + sign * change)
            assert made.num_bad_epochs == (not better)
    made.step(math.nan)
    assert made.num_bad_epochs > 0


@pytest.mark.parametrize("metrics", [[1.0, 0.5, 0.0], [math.nan, math.inf, 2.0], [3, -math.inf]])
def test_plateau_does_not_warn_of_other_metrics(metrics: list[float]) -> None:
    made = fo.ReduceLROnPlateau(sgd())
    for metric in metrics:
        made.step(metric)
    assert made.best == metrics[-1]
    reverse = fo.ReduceLROnPlateau(sgd(), "max")
    for metric in (0.5, -0.3):  # the best is not negative
        reverse.step(metric)


def test_a_rate_from_elsewhere_is_what_the_next_step_multiplies() -> None:
    optimizer = sgd()
    made = fo.ExponentialLR(optimizer, 0.5)
    optimizer.param_groups[0]["lr"] = np.float32(8.0)
    made.step()
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert made.get_last_lr() == [4.0] == [optimizer.param_groups[0]["lr"]]
    made.get_last_lr()[0] = 7.0
    assert made.get_last_lr() == [4.0]


# -- composition -------------------------------------------------------------------------------


def nested(m: Any, o: Any) -> Any:
    inner = m.SequentialLR(o, [m.ConstantLR(o, 0.5, 2), m.ExponentialLR(o, 0.5)], milestones=[2])
    chain = m.ChainedScheduler([m.ConstantLR(o, 0.25, 2), m.ExponentialLR(o, 0.5)])
    other = m.SequentialLR(o, [m.StepLR(o, 1, 0.1), m.StepLR(o, 1, 0.5)], milestones=[1])
    return m.SequentialLR(o, [inner, chain, other], milestones=[4, 8])


def test_sequences_hold_sequences_and_chains() -> None:
    expected = [0.5, 0.5, 1, 0.5, 0.25, 0.125, 0.25, 0.125, 1, 1, 0.5, 0.25]
    assert rates(nested(fo, sgd()), 11) == expected


def test_a_schedule_that_has_been_used_starts_anew_in_a_sequence() -> None:
    optimizer = sgd()
    chain = fo.ChainedScheduler([fo.ConstantLR(optimizer, 0.5, 2), fo.StepLR(optimizer, 3, 0.1)])
    for _ in range(5):
        chain.step()
    assert chain.last_epoch == 5
    made = fo.SequentialLR(optimizer, [fo.ConstantLR(optimizer, 1.0), chain], milestones=[2])
    assert rates(made, 6) == pytest.approx([1, 1, 0.5, 0.5, 1, 0.1, 0.1])
    assert (made.last_epoch, chain.last_epoch) == (6, 4)


def test_a_sequence_that_begins_with_a_chain_starts_at_the_full_rate() -> None:
    optimizer = sgd()
    chain = fo.ChainedScheduler([fo.ExponentialLR(optimizer, 0.5), fo.StepLR(optimizer, 2, 0.1)])
    made = fo.SequentialLR(optimizer, [chain, fo.ConstantLR(optimizer, 1.0)], milestones=[3])
    assert rates(made, 4) == pytest.approx([1, 0.5, 0.025, 1, 1])


def test_warm_up_to_the_peak_and_down_to_nothing() -> None:
    optimizer = sgd()
    warmup, total = 10, 100
    made = fo.SequentialLR(
        optimizer,
        [
            fo.LinearLR(optimizer, 1e-2, total_iters=warmup),
            fo.CosineAnnealingLR(optimizer, T_max=total - warmup),
        ],
        milestones=[warmup],
    )
    values = rates(made, total)
    assert values[0] == 1e-2
    assert values[warmup] == 1.0 == max(values)
    assert values[total] == 0
    assert np.all(np.diff(values[: warmup + 1]) > 0)
    assert np.all(np.diff(values[warmup:]) < 0)


# -- optimizers, groups ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("schedule", SOME, ids=str)
def test_fused_and_reference_train_alike(schedule: Schedule, kind: str) -> None:
    results = []
    for name in (kind, f"reference.{kind}"):
        rng = np.random.default_rng(3)
        optimizer = groups(name)
        made = schedule.make(fo, optimizer)
        for _ in range(30):
            optimizer.step([[rng.standard_normal(3)], [rng.standard_normal(3)]])
            made.step()
        results.append([g["params"][0] for g in optimizer.param_groups])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert not np.array_equal(results[0][0], np.ones(3))


def test_anything_with_groups_will_do() -> None:
    class Plain:
        param_groups: list[dict[str, Any]] = [{"lr": 1}]  # noqa: RUF012

    optimizer = Plain()
    assert rates(fo.StepLR(optimizer, 1, 0.5), 2) == [1.0, 0.5, 0.25]
    assert optimizer.param_groups == [{"lr": 0.25, "initial_lr": 1.0}]


@pytest.mark.parametrize("name", ["fused", "reference"])
@pytest.mark.parametrize("schedule", SOME, ids=str)
def test_a_group_that_is_added_later_joins(schedule: Schedule, name: str) -> None:
    optimizer = sgd() if name == "fused" else fo.reference.SGD([np.ones(2)], lr=1.0, momentum=0.9)
    made = schedule.make(fo, optimizer)
    lone = schedule.make(fo, sgd())
    for _ in range(5):
        made.step()
        lone.step()
    optimizer.add_param_group({"params": {"late": np.ones(3)}, "lr": 0.5})
    kept = made.state_dict()
    for _ in range(40):
        made.step()
        lone.step()
        first, late = made.get_last_lr()
        assert lone.get_last_lr() == [first]
        assert late == optimizer.param_groups[1]["lr"]
        optimizer.step({"0": np.ones(2), "late": np.ones(3)})
    if isinstance(made, fo.OneCycleLR):
        assert late == first
    elif schedule.name != "one cycle, then exponential":
        assert optimizer.param_groups[1]["initial_lr"] == 0.5
    made.load_state_dict(json.loads(json.dumps(kept)))
    made.step()
    assert len(made.get_last_lr()) == 2


@pytest.mark.parametrize(
    "row",
    [*SOME, Schedule("plateau", lambda m, o: m.ReduceLROnPlateau(o, patience=0, factor=0.5))],
    ids=str,
)
def test_a_group_that_is_removed_leaves(row: Schedule) -> None:
    """The other group continues as if it were alone; a new group joins."""

    class Plain:
        def __init__(self, *lrs: float) -> None:
            self.param_groups = [{"params": (lr,), "lr": lr, "momentum": 0.9} for lr in lrs]

    def go(schedule: Any) -> None:
        schedule.step(*[1.0] * isinstance(schedule, fo.ReduceLROnPlateau))

    optimizer, lone, late = Plain(0.25, 0.5), Plain(0.5), Plain(1.0)
    made, alone = row.make(fo, optimizer), row.make(fo, lone)
    for _ in range(5):
        go(made)
        go(alone)
    del optimizer.param_groups[0]
    assert made.get_last_lr() == alone.get_last_lr()
    assert json.loads(json.dumps(made.state_dict())) == alone.state_dict()
    row.make(fo, lone).load_state_dict(made.state_dict())
    optimizer.param_groups += late.param_groups
    for _ in range(30):
        go(made)
        go(alone)
        assert made.get_last_lr()[:1] == alone.get_last_lr()
    assert len(made.get_last_lr()) == 2
    assert optimizer.param_groups[1].get("initial_lr", 1.0) in (1.0, 0.3 / 25)


def test_a_later_group_is_scaled_like_the_others() -> None:
    optimizer = sgd()
    step, function = fo.StepLR(optimizer, 2, 0.5), fo.LambdaLR(sgd(), lambda t: 1 / (1 + t))
    step.step()
    optimizer.add_param_group({"params": {"late": np.ones(3)}, "lr": 0.25})
    step.step()
    assert step.get_last_lr() == [0.5, 0.125]
    function.step()
    other: Any = function.optimizer
    other.add_param_group({"params": {"late": np.ones(3)}, "lr": 0.25})
    function.step()
    assert function.get_last_lr() == [1 / 3, 0.25 / 3]


def test_no_output_and_no_warning_in_any_order(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = sgd()
        made = fo.StepLR(optimizer, 2)
        made.step()
        made.step()
        optimizer.step([np.ones(2)])
        made.step()
    assert capfd.readouterr() == ("", "")


# -- states ------------------------------------------------------------------------------------


def train(optimizer: Any, made: Any, start: int, stop: int) -> None:
    for t in range(start, stop):
        rng = np.random.default_rng(t)
        optimizer.step([[rng.standard_normal(3)], [rng.standard_normal(3)]])
        made.step()


@pytest.mark.parametrize("order", ["optimizer first", "schedule first", "schedule made after"])
@pytest.mark.parametrize(
    "schedule",
    [*SOME, Schedule("nested", nested)],
    ids=str,
)
def test_resuming_at_any_step_is_never_having_stopped(schedule: Schedule, order: str) -> None:
    stop = 45
    whole = groups("AdamW")
    whole_made = schedule.make(fo, whole)
    train(whole, whole_made, 0, stop)
    runner = groups("AdamW")
    runner_made = schedule.make(fo, runner)
    for at in range(stop):
        saved = json.dumps(runner_made.state_dict(), allow_nan=False)
        kept = copy.deepcopy(runner.state_dict())
        resumed = groups("AdamW")
        for new, old in zip(resumed.param_groups, runner.param_groups, strict=True):
            new["params"][0][...] = old["params"][0]
        if order == "schedule made after":
            resumed.load_state_dict(kept)
        made = schedule.make(fo, resumed)
        if order == "optimizer first":
            resumed.load_state_dict(kept)
        made.load_state_dict(json.loads(saved))
        if order == "schedule first":
            resumed.load_state_dict(kept)
        assert made.state_dict() == runner_made.state_dict()
        if at % 6 == 0:
            train(resumed, made, at, stop)
            assert made.state_dict() == whole_made.state_dict()
            assert str(held(resumed)) == str(held(whole))
            for new, old in zip(resumed.param_groups, whole.param_groups, strict=True):
                assert same_bits(new["params"][0], old["params"][0])
        train(runner, runner_made, at, at + 1)


def test_a_plateau_resumes_at_any_step() -> None:
    metrics = np.random.default_rng(2).random(40).tolist()
    whole = fo.ReduceLROnPlateau(sgd(), patience=2, factor=0.5, cooldown=1)
    for metric in metrics:
        whole.step(metric)
    for at in range(40):
        first = fo.ReduceLROnPlateau(sgd(), patience=2, factor=0.5, cooldown=1)
        for metric in metrics[:at]:
            first.step(metric)
        second = fo.ReduceLROnPlateau(sgd())
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for metric in metrics[at:]:
            second.step(metric)
        assert second.state_dict() == whole.state_dict()


def test_a_state_is_a_copy_and_brings_its_options() -> None:
    made = fo.MultiStepLR(sgd(), [3, 5], 0.5)
    state = made.state_dict()
    made.step()
    assert state["last_epoch"] == 0
    state["milestones"].append(1)
    assert made.milestones == [3, 5]
    other = fo.MultiStepLR(sgd(), [], 0.1)
    other.load_state_dict(state)
    state["milestones"].append(2)
    assert (other.milestones, other.gamma) == ([3, 5, 1], 0.5)


def test_a_schedule_of_your_own_is_saved_too() -> None:
    class Ramp(fo.LRScheduler):
        def __init__(self, optimizer: Any, heights: list[float], last_epoch: int = -1) -> None:
            self.heights = heights
            super().__init__(optimizer, last_epoch)

        def get_lr(self) -> list[float]:
            height = self.heights[self.last_epoch % len(self.heights)]
            return [base * height for base in self.base_lrs]

    made = Ramp(sgd(), [1.0, 0.5, 2.0])
    made.step()
    other = Ramp(sgd(), [1.0])
    other.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert rates(other, 2) == [0.5, 2.0, 1.0]


# -- texts -------------------------------------------------------------------------------------


def test_a_schedule_shows_its_options_and_where_it_is() -> None:
    optimizer = sgd()
    step = fo.StepLR(optimizer, 3, 0.5)
    assert repr(step) == "StepLR(step_size=3, gamma=0.5, last_epoch=0, lr=[1.0])"
    function = fo.LambdaLR(sgd(), lambda t: 1.0)
    assert repr(function) == "LambdaLR(last_epoch=0, lr=[1.0])"
    made = fo.SequentialLR(optimizer, [step, fo.ExponentialLR(optimizer, 0.5)], [4])
    made.step()
    assert repr(made) == (
        "SequentialLR([StepLR(step_size=3, gamma=0.5, last_epoch=1, lr=[1.0]), "
        "ExponentialLR(gamma=0.5, last_epoch=0, lr=[1.0])], milestones=[4], last_epoch=1, lr=[1.0])"
    )
    plateau = repr(fo.ReduceLROnPlateau(sgd()))
    assert "patience=10" in plateau
    assert plateau.endswith(
        "best=None, num_bad_epochs=0, cooldown_counter=0, last_epoch=0, lr=[1.0])"
    )
    assert len(repr(fo.MultiStepLR(sgd(), range(1, 10**5)))) < 120
    unmade = object.__new__(fo.StepLR)
    assert repr(unmade) == "StepLR(last_epoch=None, lr=None)"


# -- bad input ---------------------------------------------------------------------------------


@contextmanager
def refused(
    error: type[Exception], *words: str, optimizer: Any, schedule: Any = None
) -> Iterator[None]:
    """Expect `error` with all `words`, and groups and schedule as they were."""
    before = held(optimizer)
    state = schedule and schedule.state_dict()
    with pytest.raises(error) as caught:
        yield
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert held(optimizer) == before
    assert (schedule and schedule.state_dict()) == state


BAD_OPTIONS: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    ("StepLR", {"step_size": 0}, ValueError, ["step_size", ">= 1", "0"]),
    ("StepLR", {"step_size": 2.0}, TypeError, ["step_size", "integer", "2.0"]),
    ("StepLR", {"step_size": 2, "gamma": -0.1}, ValueError, ["gamma", ">= 0", "-0.1"]),
    ("StepLR", {"step_size": 2, "gamma": math.nan}, ValueError, ["gamma", "nan"]),
    ("StepLR", {"step_size": 2, "gamma": "0.1"}, TypeError, ["gamma", "number", "'0.1'"]),
    ("StepLR", {"step_size": 2, "last_epoch": -2}, ValueError, ["last_epoch", "-2"]),
    ("StepLR", {"step_size": 2, "last_epoch": 3}, KeyError, ["initial_lr", "last_epoch=3"]),
    ("MultiStepLR", {"milestones": 3}, TypeError, ["milestones", "3"]),
    ("MultiStepLR", {"milestones": [1, 2.5]}, TypeError, ["milestones[1]", "2.5"]),
    ("MultiStepLR", {"milestones": [-1]}, ValueError, ["milestones[0]", "-1"]),
    ("ConstantLR", {"factor": 1.5}, ValueError, ["factor", "[0, 1]", "1.5"]),
    ("ConstantLR", {"total_iters": 0}, ValueError, ["total_iters", ">= 1", "0"]),
    ("LinearLR", {"start_factor": 0}, ValueError, ["start_factor", "(0, 1]", "0"]),
    ("LinearLR", {"end_factor": 1.1}, ValueError, ["end_factor", "[0, 1]", "1.1"]),
    ("LinearLR", {"total_iters": 0}, ValueError, ["total_iters", ">= 1"]),
    ("ExponentialLR", {"gamma": math.inf}, ValueError, ["gamma", "finite", "inf"]),
    ("PolynomialLR", {"power": -1}, ValueError, ["power", "-1"]),
    ("PolynomialLR", {"total_iters": None}, TypeError, ["total_iters", "None"]),
    ("CosineAnnealingLR", {"T_max": 0}, ValueError, ["T_max", "0"]),
    ("CosineAnnealingLR", {"T_max": 5, "eta_min": -1e-9}, ValueError, ["eta_min", "-1e-09"]),
    ("CosineAnnealingWarmRestarts", {"T_0": 0}, ValueError, ["T_0", "0"]),
    ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 1.5}, TypeError, ["T_mult", "1.5"]),
    ("LambdaLR", {"lr_lambda": 0.5}, TypeError, ["lr_lambda", "0.5"]),
    ("LambdaLR", {"lr_lambda": [abs]}, ValueError, ["lr_lambda", "1 value ", "2 parameter groups"]),
    ("LambdaLR", {"lr_lambda": lambda t: -1.0}, ValueError, ["group 0", "step 0", "-0.1"]),
    ("LambdaLR", {"lr_lambda": [lambda t: 1, lambda t: math.nan]}, ValueError, ["group 1", "nan"]),
    ("LambdaLR", {"lr_lambda": lambda t: None}, TypeError, ["lr_lambda", "None"]),
    ("OneCycleLR", {"max_lr": 0.1}, ValueError, ["total_steps", "epochs", "steps_per_epoch"]),
    ("OneCycleLR", {"max_lr": 0.1, "epochs": 3}, ValueError, ["total_steps"]),
    ("OneCycleLR", {"max_lr": 0.1, "epochs": 0, "steps_per_epoch": 3}, ValueError, ["epochs", "0"]),
    ("OneCycleLR", {"max_lr": 0.1, "total_steps": 0}, ValueError, ["total_steps", "0"]),
    ("OneCycleLR", {"max_lr": -0.1, "total_steps": 9}, ValueError, ["max_lr", "-0.1"]),
    ("OneCycleLR", {"max_lr": [0.1], "total_steps": 9}, ValueError, ["max_lr", "1 value "]),
    ("OneCycleLR", {"max_lr": [0.1, "x"], "total_steps": 9}, TypeError, ["max_lr[1]", "'x'"]),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": 2}, ValueError, ["pct_start", "2"]),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "div_factor": 0}, ValueError, ["div_factor"]),
    (
        "OneCycleLR",
        {"max_lr": 1, "total_steps": 9, "anneal_strategy": "sine"},
        ValueError,
        ["anneal_strategy", "'cos' or 'linear'", "'sine'"],
    ),
    (
        "OneCycleLR",
        {"max_lr": 1, "total_steps": 9, "max_momentum": 1},
        ValueError,
        ["max_momentum"],
    ),
    (
        "OneCycleLR",
        {"max_lr": 1, "total_steps": 9, "base_momentum": [0.8]},
        ValueError,
        ["base_momentum", "1 value ", "2 parameter groups"],
    ),
    (
        "OneCycleLR",
        {"max_lr": 1, "total_steps": 9, "three_phase": "yes"},
        TypeError,
        ["three_phase"],
    ),
    ("ReduceLROnPlateau", {"mode": "least"}, ValueError, ["mode", "'min' or 'max'", "'least'"]),
    ("ReduceLROnPlateau", {"factor": 1.0}, ValueError, ["factor", "[0, 1)", "1.0"]),
    ("ReduceLROnPlateau", {"patience": -1}, ValueError, ["patience", "-1"]),
    ("ReduceLROnPlateau", {"threshold_mode": "x"}, ValueError, ["threshold_mode", "'x'"]),
    ("ReduceLROnPlateau", {"min_lr": [0.1]}, ValueError, ["min_lr", "1 value "]),
    ("ReduceLROnPlateau", {"eps": None}, TypeError, ["eps", "None"]),
]


# Each argument gets each of these values. An accepted value is kept as a plain Python number.
ODD: list[Any] = [
    "x", b"ab", None, [], [None], {}, 1j, np.complex64(1), math.nan, -math.inf, 10**400, -1, 2**63,
    2**63 - 1, 5e-324, 1e308, True, np.True_, np.float32(0.5), np.int64(3), np.longdouble("1e4000"),
    np.array(3), np.array([0.5]), np.zeros((2, 2)), np.timedelta64(5, "s"), np.array(None),
    Fraction(1, 2), range(2), object(), lambda t: 0.5,
]  # fmt: skip
ARGUMENTS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 2], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "LinearLR": {"start_factor": 0.5, "end_factor": 0.9, "total_iters": 3},
    "ExponentialLR": {"gamma": 0.5},
    "PolynomialLR": {"total_iters": 3, "power": 2.0},
    "LambdaLR": {"lr_lambda": lambda t: 0.5},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2, "eta_min": 0.01},
    "OneCycleLR": {
        "max_lr": 0.3, "total_steps": 9, "pct_start": 0.3, "anneal_strategy": "cos",
        "cycle_momentum": True, "base_momentum": 0.8, "max_momentum": 0.9, "div_factor": 25,
        "final_div_factor": 100, "three_phase": False,
    },
    "ReduceLROnPlateau": {
        "mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1, "threshold_mode": "rel",
        "cooldown": 1, "min_lr": 0.0, "eps": 1e-8,
    },
}  # fmt: skip


def is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (int, float, str, bool)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, key) for name, row in ARGUMENTS.items() for key in row]
)
def test_odd_values_of_an_argument_are_refused_by_name_or_kept_as_plain_numbers(
    name: str, argument: str
) -> None:
    for value in ODD:
        optimizer = groups("SGD")
        before = held(optimizer)
        message = ""
        try:
            with np.errstate(all="raise"):
                made = getattr(fo, name)(optimizer, **{**ARGUMENTS[name], argument: value})
        except (TypeError, ValueError) as error:
            message = str(error)
        if message:
            assert held(optimizer) == before
            # A rate is the product of several arguments.
            assert argument in message or "the rate of group 0 at step 0" in message
            assert len(message) < 200
        else:
            assert all(map(is_plain, made.state_dict().values())), value
            assert all(type(group["lr"]) is float for group in optimizer.param_groups)


# The names of the rows contain no addresses, because each test process must find the same names.
@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    BAD_OPTIONS,
    ids=[f"{number}-{row[0]}" for number, row in enumerate(BAD_OPTIONS)],
)
def test_bad_options(
    name: str, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    optimizer = groups("SGD")
    with refused(error, *words, optimizer=optimizer):
        getattr(fo, name)(optimizer, **options)


NUMBERS = [
    (name, key)
    for name, row in ARGUMENTS.items()
    for key, value in row.items()
    if type(value) in (int, float)
]


@pytest.mark.parametrize("value", [True, np.True_], ids=repr)
@pytest.mark.parametrize(("name", "argument"), NUMBERS)
def test_true_is_no_number(name: str, argument: str, value: Any) -> None:
    optimizer = groups("SGD")
    with refused(TypeError, argument, "True", optimizer=optimizer):
        getattr(fo, name)(optimizer, **{**ARGUMENTS[name], argument: value})


def test_true_is_no_rate_no_metric_and_no_epoch() -> None:
    optimizer = groups("SGD")
    plateau = fo.ReduceLROnPlateau(optimizer)
    restarts = fo.CosineAnnealingWarmRestarts(optimizer, 3)
    with refused(TypeError, "metrics", "True", optimizer=optimizer, schedule=plateau):
        plateau.step(True)
    with refused(TypeError, "epoch", "True", optimizer=optimizer, schedule=restarts):
        restarts.step(True)
    optimizer.param_groups[0]["lr"] = True
    with refused(TypeError, "lr of parameter group 0", "True", optimizer=optimizer):
        fo.StepLR(optimizer, 3)


@pytest.mark.parametrize("epoch", [2**63, 2**63 - 1, 2.0**63, 1e300], ids=repr)
def test_an_epoch_beyond_64_bits_is_shown(epoch: float) -> None:
    optimizer = groups("SGD")
    made = fo.CosineAnnealingWarmRestarts(optimizer, 3)
    with refused(ValueError, "below 2**63", repr(epoch), optimizer=optimizer, schedule=made):
        made.step(epoch)
    made.step(np.nextafter(2.0**63, 0))
    assert made.last_epoch == 2**63 - 1024


def test_bad_optimizers() -> None:
    make: Any = fo.StepLR
    with pytest.raises(TypeError, match="param_groups; list has none"):
        make([np.ones(2)], 3)
    optimizer = sgd()
    del optimizer.param_groups[0]["lr"]
    with refused(ValueError, "group 0", "'lr'", optimizer=optimizer):
        make(optimizer, 3)
    rmsprop = fo.RMSprop([np.ones(2)])
    del rmsprop.param_groups[0]["momentum"]
    with refused(ValueError, "cycle_momentum=False", optimizer=rmsprop):
        fo.OneCycleLR(rmsprop, 0.1, total_steps=9)
    made = fo.OneCycleLR(rmsprop, 0.1, total_steps=9, cycle_momentum=False)
    assert made.state_dict()["momentum"] == []
    untouched = sgd()
    abstract: Any = fo.LRScheduler
    with refused(TypeError, "abstract", "get_lr", optimizer=untouched):
        abstract(untouched)


def test_rates_that_others_set_are_those_in_use() -> None:
    optimizer = sgd()
    plateau = fo.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for metric in (1.0, 2.0):
        plateau.step(metric)
        assert plateau.get_lr() == plateau.get_last_lr() == [optimizer.param_groups[0]["lr"]]
    assert plateau.get_lr() == [0.5]
    for compose in (
        lambda o: fo.SequentialLR(o, [fo.StepLR(o, 1), fo.ConstantLR(o)], [2]),
        lambda o: fo.ChainedScheduler([fo.StepLR(o, 1), fo.ConstantLR(o)]),
    ):
        optimizer = sgd()
        made = compose(optimizer)
        for _ in range(4):
            optimizer.step([np.ones(2)])
            made.step()
            assert made.get_lr() == made.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_bad_compositions() -> None:
    make: Any = fo.SequentialLR
    chain: Any = fo.ChainedScheduler
    o = sgd()
    good = fo.StepLR(o, 3)
    stranger = fo.StepLR(sgd(), 3)
    rows: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
        (lambda: make(o, [], []), ValueError, ["schedulers is empty"]),
        (lambda: make(o, good, []), TypeError, ["schedulers must be a list", "StepLR"]),
        (lambda: make(o, [good, 3], [1]), TypeError, ["schedulers[1]", "int"]),
        (lambda: make(o, [good, stranger], [1]), ValueError, ["schedulers[1]", "another"]),
        (lambda: make(o, [good, good], []), ValueError, ["0 values", "2 schedules"]),
        (lambda: make(o, [good] * 3, [5, 4]), ValueError, ["must not decrease", "[5, 4]"]),
        (lambda: make(o, [good] * 2, [-5]), ValueError, ["milestones[0]", "-5"]),
        (lambda: make(o, [good] * 2, 5), TypeError, ["milestones", "5"]),
        (lambda: make(None, [good], []), TypeError, ["optimizer", "NoneType"]),
        (lambda: make(o, "ab", [1]), TypeError, ["schedulers must be a list", "str"]),
        (lambda: make(o, [fo.ReduceLROnPlateau(o)], []), ValueError, ["schedulers[0]", "metric"]),
        (lambda: chain([]), ValueError, ["schedulers is empty"]),
        (lambda: chain(good), TypeError, ["StepLR"]),
        (lambda: chain([good, stranger]), ValueError, ["schedulers[1]", "another"]),
        (lambda: chain([fo.ReduceLROnPlateau(o)]), ValueError, ["schedulers[0]", "metric"]),
    ]
    for row, error, words in rows:
        with refused(error, *words, optimizer=o, schedule=good):
            row()


def test_one_cycle_has_an_end() -> None:
    optimizer = sgd()
    made = fo.OneCycleLR(optimizer, 1.0, total_steps=5)
    for _ in range(5):
        made.step()
    with refused(ValueError, "end", "total_steps=5", optimizer=optimizer, schedule=made):
        made.step()


def test_a_step_that_fails_changes_nothing() -> None:
    optimizer = sgd()
    made: Any = fo.LambdaLR(optimizer, lambda t: 1 / (2 - t))
    made.step()
    with refused(ZeroDivisionError, optimizer=optimizer, schedule=made):
        made.step()
    optimizer = sgd()
    made = fo.ExponentialLR(optimizer, 1e200)
    made.step()
    with refused(ValueError, "group 0", "step 2", "inf", optimizer=optimizer, schedule=made):
        made.step()
    for wrap in (lambda chain: chain, lambda chain: fo.SequentialLR(chain.optimizer, [chain], [])):
        optimizer = sgd()
        made = wrap(
            fo.ChainedScheduler(
                [fo.ExponentialLR(optimizer, 0.5), fo.OneCycleLR(optimizer, 1.0, total_steps=3)]
            )
        )
        for _ in range(3):
            made.step()
        with refused(ValueError, "total_steps=3", optimizer=optimizer, schedule=made):
            made.step()


def test_a_sequence_whose_next_schedule_cannot_start_stays_where_it_is() -> None:
    optimizer = sgd()
    fine = True
    lame = fo.LambdaLR(optimizer, lambda t: 1.0 if fine else math.nan)
    made = fo.SequentialLR(optimizer, [fo.ExponentialLR(optimizer, 0.5), lame], milestones=[2])
    made.step()
    fine = False
    with refused(ValueError, "nan", optimizer=optimizer, schedule=made):
        made.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_groups_that_come_without_options_of_their_own() -> None:
    rows: list[Callable[[Any], Any]] = [
        lambda o: fo.LambdaLR(o, [abs]),
        lambda o: fo.OneCycleLR(o, [0.1], total_steps=9),
        lambda o: fo.OneCycleLR(o, 0.1, total_steps=9, max_momentum=[0.9]),
        lambda o: fo.ReduceLROnPlateau(o, min_lr=[0.0]),
    ]
    for row in rows:
        optimizer = sgd()
        made = row(optimizer)
        optimizer.add_param_group({"params": {"late": np.ones(3)}})
        with refused(ValueError, "1 value ", "2 param", optimizer=optimizer, schedule=made):
            made.step(*[1.0] * isinstance(made, fo.ReduceLROnPlateau))


def test_bad_metrics() -> None:
    optimizer = sgd()
    made: Any = fo.ReduceLROnPlateau(optimizer)
    for metric in ("0.5", None, [0.5]):
        with refused(TypeError, "metrics", repr(metric), optimizer=optimizer, schedule=made):
            made.step(metric)


BAD_STATES: list[tuple[str, Callable[[dict[str, Any]], Any], type[Exception], list[str]]] = [
    ("missing", lambda d: d.pop("gamma"), KeyError, ["ExponentialLR", "missing", "'gamma'"]),
    ("extra", lambda d: d.update(step_size=1), KeyError, ["not known", "'step_size'"]),
    ("gamma", lambda d: d.update(gamma=-1), ValueError, ["gamma", "-1"]),
    ("count", lambda d: d.update(last_epoch=-1), ValueError, ["last_epoch", "-1"]),
    ("kind", lambda d: d.update(last_epoch="3"), TypeError, ["last_epoch", "'3'"]),
    ("rates", lambda d: d.update(lr=[0.1]), ValueError, ["1 rate in 'lr'", "2 parameter groups"]),
    ("rate", lambda d: d.update(lr=[0.1, math.nan]), ValueError, ["lr[1]", "nan"]),
    (
        "bases",
        lambda d: d.update(base_lrs=[1.0] * 3),
        ValueError,
        ["3 rates in 'base_lrs'", "2 param"],
    ),
    ("list", lambda d: d.update(base_lrs=1.0), TypeError, ["base_lrs", "1.0"]),
]


@pytest.mark.parametrize("row", BAD_STATES, ids=lambda row: row[0])
@pytest.mark.parametrize("where", ["alone", "in a sequence", "in a chain"])
def test_bad_states(where: str, row: Any) -> None:
    _, spoil, error, words = row
    optimizer = groups("SGD")
    last = fo.ExponentialLR(optimizer, 0.5)
    made: Any = last
    if where == "in a sequence":
        made = fo.SequentialLR(optimizer, [fo.StepLR(optimizer, 2), last], milestones=[3])
    elif where == "in a chain":
        made = fo.ChainedScheduler([fo.StepLR(optimizer, 2), last])
    state = made.state_dict()
    for _ in range(4):
        made.step()
    spoil(state if where == "alone" else state["schedulers"][1])
    with refused(error, *words, optimizer=optimizer, schedule=made):
        made.load_state_dict(state)


def test_bad_states_of_other_schedules() -> None:
    rows: list[tuple[Callable[[Any], Any], dict[str, Any], type[Exception], list[str]]] = [
        (
            lambda o: fo.SequentialLR(o, [fo.StepLR(o, 1), fo.StepLR(o, 1)], [2]),
            {"milestones": [1, 2]},
            ValueError,
            ["2 values", "2 schedules"],
        ),
        (
            lambda o: fo.SequentialLR(o, [fo.StepLR(o, 1)], []),
            {"schedulers": []},
            ValueError,
            ["schedulers", "1 value,", "not 0"],
        ),
        (lambda o: fo.ChainedScheduler([fo.StepLR(o, 1)]), {"schedulers": 3}, TypeError, ["3"]),
        (
            lambda o: fo.OneCycleLR(o, 0.1, total_steps=9),
            {"max_lr": [0.1]},
            ValueError,
            ["max_lr", "1 value ", "2 parameter groups"],
        ),
        (
            lambda o: fo.OneCycleLR(o, 0.1, total_steps=9),
            {"momentum": [0.9, 1.0]},
            ValueError,
            ["momentum[1]", "1.0"],
        ),
        (lambda o: fo.ReduceLROnPlateau(o), {"best": "low"}, TypeError, ["best", "'low'"]),
        (lambda o: fo.ReduceLROnPlateau(o), {"min_lr": [0.1]}, ValueError, ["min_lr", "1 value "]),
    ]
    for make, spoil, error, words in rows:
        optimizer = groups("SGD")
        made = make(optimizer)
        with refused(error, *words, optimizer=optimizer, schedule=made):
            made.load_state_dict(made.state_dict() | spoil)
        with refused(TypeError, "must be a mapping, not []", optimizer=optimizer, schedule=made):
            made.load_state_dict([])


JSON: list[Any] = [
    None, True, -1, 0, 3, 2**63, 10**400, 0.5, 1e308, math.nan, -math.inf, "", "min", [], [0.5],
    [0.1, 0.2], [[]], [None], {}, {"a": 1}, [{}],
]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        SOME[1],
        one("OneCycleLR", max_lr=[0.3, 0.2], total_steps=20),
        Schedule("plateau", lambda m, o: m.ReduceLROnPlateau(o, min_lr=[0.0, 0.1])),
        Schedule("nested", nested),
    ],
    ids=str,
)
def test_a_state_with_any_entry_of_another_kind_loads_or_is_refused(row: Schedule) -> None:
    optimizer = groups("SGD")
    made = row.make(fo, optimizer)
    good = made.state_dict()

    def spoiled(part: Any) -> Iterator[Any]:
        yield from JSON
        kind = type(part)
        for key in part if kind is dict else range(len(part)) if kind is list else ():
            for new in spoiled(part[key]):
                other = copy.copy(part)
                other[key] = new
                yield other

    loaded = 0
    for state in spoiled(good):
        before = held(optimizer), made.state_dict()
        try:
            made.load_state_dict(state)
        except (TypeError, ValueError, KeyError):
            assert (held(optimizer), made.state_dict()) == before
        else:
            loaded += 1
            json.dumps(made.state_dict())
            made.load_state_dict(good)
    assert loaded > 10


HUGE = [10**9, 10**18, 2**53 + 1, 2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize("last", HUGE)
@pytest.mark.parametrize("row", SOME, ids=str)
def test_huge_counts_take_no_time_and_end_with_a_named_error(row: Schedule, last: int) -> None:
    optimizer = groups("SGD")
    made = row.make(fo, optimizer)
    good = made.state_dict()
    for number in (3, last - 1, last):
        lengths = dict.fromkeys(
            ["total_iters", "T_max", "T_0", "T_mult", "step_size", "total_steps"], number
        )
        state = copy.deepcopy(good)
        for part in (state, *state.get("schedulers", [])):
            part["last_epoch"] = last
            part.update({key: value for key, value in lengths.items() if key in part})
        made.load_state_dict(state)
        for _ in range(3):
            with contextlib.suppress(ValueError):
                made.step()
    if last == 2**63 - 1 and "one cycle" not in row.name.lower() and row.name[:3] != "One":
        with refused(ValueError, "last_epoch", "64 bits", optimizer=optimizer, schedule=made):
            made.step()


def test_rates_near_the_end_of_very_many_steps() -> None:
    """If rounding makes a divisor 0, the rate is still that of the formula."""
    rows: list[tuple[Callable[[Any, int], Any], int, int]] = [
        (lambda o, n: fo.CosineAnnealingLR(o, n), 10**9, 10**9 - 1),
        (lambda o, n: fo.PolynomialLR(o, n), 2**60, 2**60 - 1),
        (lambda o, n: fo.LinearLR(o, 1 / 3, 0.0, n), 2**60, 2**60 - 1),
    ]
    for make, total, last in rows:
        optimizer = sgd()
        made = make(optimizer, total)
        made.load_state_dict(made.state_dict() | {"last_epoch": last, "lr": [1e-18]})
        made.step()
        assert 0 <= made.get_last_lr()[0] <= 1e-17
    power = fo.MultiStepLR(sgd(), [1, 1], gamma=1e200)
    with refused(ValueError, "inf", optimizer=power.optimizer, schedule=power):
        power.step()
    tiny = fo.ConstantLR(sgd(), factor=5e-324, total_iters=1)
    tiny.step()
    assert tiny.get_last_lr() == [1.0]


def test_a_state_brings_its_cycle_of_momentum() -> None:
    optimizer = groups("AdamW")
    fixed = fo.OneCycleLR(groups("AdamW"), 0.1, total_steps=9, cycle_momentum=False)
    made = fo.OneCycleLR(optimizer, 0.1, total_steps=9)
    cycling = made.state_dict()
    made.load_state_dict(fixed.state_dict())
    assert not made.cycle_momentum
    made.load_state_dict(cycling)
    assert made.cycle_momentum
    optimizer.param_groups[1]["betas"] = None
    with refused(TypeError, "betas of parameter group 1", optimizer=optimizer):
        made.step()
    del optimizer.param_groups[1]["betas"]
    with refused(ValueError, "group 1", "cycle_momentum=False", optimizer=optimizer):
        made.load_state_dict(cycling)


@pytest.mark.parametrize("lr", [None, "0.5", [0.5], 1j], ids=repr)
def test_a_rate_in_a_group_that_is_no_number_is_named(lr: Any) -> None:
    optimizer = groups("SGD")
    made = fo.StepLR(optimizer, 1)
    optimizer.param_groups[1]["lr"] = lr
    with refused(TypeError, "the lr of parameter group 1", optimizer=optimizer):
        made.step()


def test_an_option_may_be_an_array_of_numbers() -> None:
    peaks: Any = np.array([0.5, 0.2], np.float32)
    made = fo.OneCycleLR(groups("SGD"), peaks, total_steps=9)
    assert made.max_lr == [0.5, float(np.float32(0.2))]
    assert fo.MultiStepLR(sgd(), np.array([2, 5])).milestones == [2, 5]


def test_a_function_that_writes_into_a_group_is_heard() -> None:
    optimizer = sgd()

    def function(epoch: int) -> float:
        optimizer.param_groups[0]["weight_decay"] = 0.1 * epoch
        return 0.5**epoch

    made = fo.LambdaLR(optimizer, function)
    made.step()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (
        0.5,
        0.1,
    )


def test_a_schedule_that_appears_twice_is_one() -> None:
    optimizer = sgd()
    part = fo.ExponentialLR(optimizer, 0.5)
    made = fo.ChainedScheduler([part, part])
    made.step()
    assert (part.last_epoch, made.get_last_lr()) == (2, [0.25])


def test_every_class_is_in_the_table() -> None:
    rows = {str(s).split("(")[0] for s in SOME} | {"SequentialLR", "ChainedScheduler"}
    assert COMPOSED
    assert rows >= set(fo.schedules.__all__) - {"LRScheduler", "ReduceLROnPlateau"}
    for name in fo.schedules.__all__:
        assert getattr(fo, name) is getattr(fo.schedules, name)
        assert name in str(fo.schedules.__doc__)
