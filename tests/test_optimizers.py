"""The Python classes of the optimizers, and the rules of each optimizer one by one."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case, make_grads
from fastopt._types import FloatArray
from helpers import same_bits

ONE = np.ones(1, np.float32)


def shapes(seed: int = 0) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in [(8, 5), (8,), (3, 8), (), (0, 4)]]


# -- structure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mapping_sequence_and_groups_are_the_same(case: Case) -> None:
    grads = make_grads(shapes(), 3)
    names = list("abcde")
    results = []
    a, b, c = shapes(), shapes(), shapes()
    mapping = case.fused(dict(zip(names, a, strict=True)))
    sequence = case.fused(iter(b))
    groups = case.fused([{"params": c[:2]}, {"params": dict(zip("xyz", c[2:], strict=True))}])
    for step in grads:
        mapping.step(dict(zip(reversed(names), reversed(step), strict=True)))
        sequence.step(tuple(step))
        groups.step([step[:2], dict(zip("xyz", step[2:], strict=True))])
    for optimizer in (mapping, sequence, groups):
        results.append([dict(s) for s in optimizer.state.values()])
    for x, y, z in zip(a, b, c, strict=True):
        assert same_bits(x, y)
        assert same_bits(x, z)
    for x, y, z in zip(*results, strict=True):
        assert all(same_bits(x[k], y[k]) and same_bits(x[k], z[k]) for k in x)
    assert list(mapping.state) == names
    assert list(sequence.state) == ["0", "1", "2", "3", "4"]
    assert list(groups.state) == ["0", "1", "x", "y", "z"]


def test_groups_take_gradients_by_name_and_in_their_own_structure() -> None:
    structures: list[Any] = [
        {"0": ONE, "w": 2 * ONE},
        [[ONE], {"w": 2 * ONE}],
        [{"params": [ONE]}, {"params": {"w": 2 * ONE}}],
    ]
    for grads in structures:
        a, b = np.zeros(1, np.float32), np.zeros(1, np.float32)
        groups: list[dict[str, Any]] = [{"params": a, "lr": 1.0}, {"params": {"w": b}}]
        opt = fo.SGD(groups, lr=0.5)
        opt.step(grads)
        assert (a[0], b[0]) == (-1, -1)


def test_groups_equal_several_optimizers() -> None:
    p, q = shapes(), shapes()
    grads = make_grads(p, 4)
    groups: list[dict[str, Any]] = [{"params": p[:2], "lr": 0.1}, {"params": p[2:], "eps": 0.1}]
    grouped = fo.AdamW(groups)
    first = fo.AdamW(q[:2], lr=0.1)
    second = fo.AdamW(q[2:], eps=0.1)
    for step in grads:
        grouped.step([step[:2], step[2:]])
        first.step(step[:2])
        second.step(step[2:])
    assert all(same_bits(a, b) for a, b in zip(p, q, strict=True))


def test_add_param_group() -> None:
    a, b = np.zeros(1, np.float32), np.zeros(1, np.float32)
    opt = fo.SGD([a], lr=1.0)
    opt.step([ONE])
    opt.add_param_group({"params": [b], "lr": 0.25})
    opt.step([ONE, ONE])
    assert (a[0], b[0]) == (-2, -0.25)
    assert [s["step"] for s in opt.state.values()] == [2, 1]
    assert [g["lr"] for g in opt.param_groups] == [1.0, 0.25]
    assert opt.param_groups[1]["params"][0] is b


def test_options_are_read_at_every_step() -> None:
    p = np.zeros(1, np.float32)
    opt = fo.SGD([p], lr=1.0)
    opt.step([ONE])
    opt.param_groups[0]["lr"] = np.float64(0.5)
    opt.step([ONE])
    opt.param_groups[0]["maximize"] = True
    opt.step([2 * ONE])
    assert p[0] == -0.5


def test_options_switched_on_later_start_with_fresh_state() -> None:
    p, q = np.zeros(1, np.float32), np.zeros(1, np.float32)
    fused, reference = (
        fo.SGD([p], lr=1.0, dampening=0.5),
        fo.reference.SGD([q], lr=1.0, dampening=0.5),
    )
    for opt in (fused, reference):
        opt.step([ONE])
        opt.param_groups[0]["momentum"] = 0.9
        opt.step([ONE])  # as torch: the buffer is set to this gradient, without dampening
        opt.step([ONE])
    assert same_bits(p, q)
    assert p[0] == np.float32(-1 - 1 - 1.4)


def test_repr_says_what_it_holds() -> None:
    text = repr(fo.AdamW({"weight": np.ones((2, 3)), "bias": np.ones(2)}, lr=0.125))
    for part in (
        "AdamW",
        "weight, bias",
        "2 arrays",
        "8 elements",
        "lr: 0.125",
        "betas: (0.9, 0.999)",
    ):
        assert part in text


def test_state_view() -> None:
    p = {"w": np.ones(3, np.float32)}
    opt = fo.Adam(p)
    assert dict(opt.state["w"]) == {"step": 0}
    opt.step({"w": np.ones(3, np.float32)})
    state = opt.state["w"]
    assert state["step"] == 1
    assert type(state["step"]) is int
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["exp_avg"] is opt.state["w"]["exp_avg"]
    assert len(opt.state) == 1
    assert "exp_avg" in repr(opt.state)
    with pytest.raises(TypeError):
        state["step"] = 5  # type: ignore[index]
    with pytest.raises(KeyError):
        opt.state["v"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_save_load_continue_equals_continue(case: Case) -> None:
    p = shapes()
    grads = make_grads(p, 6)
    straight = case.fused(p)
    for step in grads[:3]:
        straight.step(step)
    q = [a.copy() for a in p]
    saved = copy.deepcopy(straight.state_dict())
    resumed = case.fused(q)
    resumed.load_state_dict(saved)
    for step in grads[3:]:
        straight.step(step)
        resumed.step(step)
    assert all(same_bits(a, b) for a, b in zip(p, q, strict=True))
    # Loading copies: the dict is not changed.
    for name, state in saved["state"].items():
        assert state["step"] <= 3
        assert all(v is not resumed.state[name][k] for k, v in state.items() if k != "step")


def test_load_brings_options_and_accepts_lists_for_tuples() -> None:
    opt = fo.Adam([np.ones(2, np.float32)], lr=0.5, betas=(0.5, 0.6))
    saved = opt.state_dict()
    saved["param_groups"][0]["betas"] = [0.5, 0.6]
    saved["param_groups"][0]["initial_lr"] = 1.0  # written by a schedule
    other = fo.Adam([np.ones(2, np.float32)])
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.5
    assert other.param_groups[0]["betas"] == (0.5, 0.6)
    assert other.param_groups[0]["initial_lr"] == 1.0
    other.step([np.ones(2, np.float32)])


def test_a_loaded_buffer_is_used_even_at_step_0() -> None:
    results = []
    for module in (fo, fo.reference):
        p = np.zeros(1)
        opt = module.SGD([p], lr=1.0, momentum=0.9)
        saved = opt.state_dict()
        saved["state"]["0"]["momentum_buffer"] = np.full(1, 5.0)  # torch's SGD counts no steps
        opt.load_state_dict(saved)
        opt.step([np.ones(1)])
        results.append(p[0])
    assert results == [-5.5, -5.5]


@pytest.mark.parametrize(
    ("name", "option"), [("SGD", {"momentum": 0.9}), ("Adam", {"amsgrad": True})]
)
def test_own_state_dict_loads_after_an_option_was_switched_on(
    name: str, option: dict[str, Any]
) -> None:
    p = np.zeros(1, np.float32)
    opt = getattr(fo, name)([p])
    opt.step([ONE])
    opt.param_groups[0].update(option)
    opt.load_state_dict(opt.state_dict())
    opt.step([ONE])


def test_names_do_not_come_from_a_file() -> None:
    opt = fo.SGD({"w": np.zeros(1, np.float32)})
    saved = opt.state_dict()
    saved["param_groups"][0]["param_names"] = ["x"]
    opt.load_state_dict(saved)
    assert list(opt.param_groups[0]["param_names"]) == ["w"]


def test_adamw_does_not_turn_into_adam() -> None:
    p = [np.zeros(1, np.float32)]
    with pytest.raises(ValueError, match="load it into Adam"):
        fo.AdamW(p).load_state_dict(fo.Adam(p).state_dict())


def test_numpy_scalars_as_options() -> None:
    p, q = np.ones(3, np.float32), np.ones(3, np.float32)
    betas: Any = (np.float64(0.9), np.float32(0.5))
    for opt in (fo.Adam([p], betas=betas), fo.reference.Adam([q], betas=betas)):
        opt.step([np.full(3, 0.1, np.float32)])
    assert same_bits(p, q)


def test_copies_are_refused_with_the_way_out() -> None:
    opt = fo.SGD([np.zeros(1, np.float32)])
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            attempt(opt)


def test_load_into_another_memory_order() -> None:
    p = np.arange(6, dtype=np.float32).reshape(2, 3)
    q = np.asfortranarray(p)
    a, b = fo.Adam([p]), fo.Adam([q])
    a.step([p.copy()])
    b.step([p[::-1].copy()])
    b.load_state_dict(a.state_dict())
    assert same_bits(b.state["0"]["exp_avg"], a.state["0"]["exp_avg"])
    assert b.state["0"]["exp_avg"].strides == q.strides


def test_subclasses_and_memory_maps_are_updated(tmp_path: Any) -> None:
    p = np.memmap(tmp_path / "p", dtype=np.float32, mode="w+", shape=(5,))
    fo.SGD([p], lr=1.0).step([np.ones(5, np.float32)])
    p.flush()
    assert np.all(np.fromfile(tmp_path / "p", np.float32) == -1)


# -- semantics, SGD ----------------------------------------------------------------------------


def test_dampening_is_not_applied_on_the_first_step() -> None:
    p = np.zeros(1, np.float32)
    opt = fo.SGD([p], lr=1.0, momentum=0.9, dampening=0.5)
    opt.step([ONE])
    assert p[0] == -1.0
    opt.step([ONE])
    assert p[0] == np.float32(-2.4)


def test_first_is_counted_for_each_parameter() -> None:
    p, q = np.zeros(1, np.float32), np.zeros(1, np.float32)
    opt = fo.SGD([p, q], lr=1.0, momentum=0.9, dampening=0.5)
    opt.step([ONE, None])
    assert q[0] == 0
    assert dict(opt.state["1"]) == {"step": 0}
    opt.step([None, ONE])
    assert q[0] == -1.0
    opt.step([None, ONE])
    assert q[0] == np.float32(-2.4)
    assert p[0] == -1.0


def test_moving_average_momentum_of_textbooks() -> None:
    p = np.zeros(1)
    opt = fo.SGD([p], lr=1.0, momentum=0.9, dampening=0.9, momentum_init="zero")
    velocity, expected = 0.0, 0.0
    for g in (1.0, 2.0, -1.0):
        opt.step([np.array([g])])
        velocity = 0.9 * velocity + (1 - 0.9) * g
        expected -= velocity
    assert p[0] == pytest.approx(expected, rel=1e-15)


def test_weight_decay_enters_before_momentum_and_maximize_before_both() -> None:
    p = np.full(1, 2.0)
    fo.SGD([p], lr=1.0, momentum=0.5, weight_decay=0.5, maximize=True).step([np.ones(1)])
    assert p[0] == 2 - (-1 + 0.5 * 2)


# -- semantics, RMSprop ------------------------------------------------------------------------


def test_centered_rmsprop_stays_finite_with_constant_gradients(isa: str) -> None:
    g = np.linspace(1e3, 2e3, 1000).astype(np.float32)
    p = np.zeros(1000, np.float32)
    opt = fo.RMSprop([p], centered=True)
    for _ in range(2000):
        opt.step([g])
    assert np.all(np.isfinite(p))


def test_rmsprop_puts_eps_outside_the_root() -> None:
    p = np.zeros(1)
    fo.RMSprop([p], lr=1.0, alpha=0.75, eps=3.0).step([np.full(1, 2.0)])
    assert p[0] == -2 / (math.sqrt(0.25 * 4) + 3)


# -- semantics, Adam ---------------------------------------------------------------------------


def test_amsgrad_takes_the_maximum_of_the_uncorrected_average() -> None:
    p = np.zeros(1)
    opt = fo.Adam([p], amsgrad=True, betas=(0.9, 0.5))
    opt.step([np.full(1, 4.0)])
    opt.step([np.zeros(1)])
    assert opt.state["0"]["exp_avg_sq"][0] == 4.0
    assert opt.state["0"]["max_exp_avg_sq"][0] == 8.0


def test_zero_over_zero_follows_ieee() -> None:
    p = np.ones(3, np.float32)
    fo.Adam([p], betas=(0.0, 0.0), eps=0.0).step([np.zeros(3, np.float32)])
    assert np.all(np.isnan(p))


def test_steps_beyond_2_to_the_24_are_counted() -> None:
    opt = fo.Adam([np.ones(1, np.float32)])
    opt.step([ONE])
    for step in (2**24, 2**24 + 1, 2**40):
        saved = opt.state_dict()
        saved["state"]["0"]["step"] = step
        opt.load_state_dict(saved)
        opt.step([ONE])
        assert opt.state["0"]["step"] == step + 1


def test_weight_decay_zero_does_not_touch_infinite_parameters() -> None:
    p = np.full(1, np.inf, np.float32)
    fo.SGD([p], lr=1.0).step([ONE])
    fo.Adam([p]).step([ONE])
    fo.AdamW([p], weight_decay=0.0).step([ONE])
    assert p[0] == np.inf


def test_state_keeps_its_own_dtype() -> None:
    for dtype in (np.float32, np.float64):
        opt = fo.Adam([np.ones(2, dtype)])
        opt.step([np.ones(2, dtype)])
        assert opt.state["0"]["exp_avg"].dtype == dtype


def test_mixed_dtypes_in_one_step() -> None:
    p: list[Any] = [np.ones(5, np.float32), np.ones(5, np.float64)]
    q = [a.copy() for a in p]
    for cls, arrays in ((fo.AdamW, p), (fo.reference.AdamW, q)):
        cls(arrays).step([np.full(5, 0.1, a.dtype) for a in arrays])
    assert all(same_bits(a, b) for a, b in zip(p, q, strict=True))
