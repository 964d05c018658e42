"""Clipping, scaling, skipping and zeroing within a step; norms over a fixed grid."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, DTYPES, Case, make_grads, make_params
from helpers import Setting, refused, same_bits


@cache
def gradients(dtype: Any) -> list[list[Any]]:
    return make_grads(make_params(dtype)[:-3], 3)


@pytest.mark.parametrize(
    ("max_norm", "norm_type", "dtype"),
    [
        (0.5, 2.0, np.float32),
        (0.5, 2.0, np.float64),
        (0.5, np.inf, np.float32),
        (1e9, 2, np.float64),
        (None, np.inf, np.float32),
    ],
)
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_steps_with_clipping_equal_the_reference(
    case: Case, dtype: Any, max_norm: float | None, norm_type: float, setting: Setting
) -> None:
    params, copies = make_params(dtype)[:-3], make_params(dtype)[:-3]  # without the NaNs
    a, b = case.fused(params), case.reference(copies)
    for number, grads in enumerate(gradients(dtype)):
        before = [None if g is None else g.copy() for g in grads]
        options: dict[str, Any] = {"max_norm": max_norm, "norm_type": norm_type}
        options["grad_scale"] = (1.0, 3.0, 1024.0)[number]
        info, expected = a.step(grads, **options), b.step(grads, **options)
        assert info == expected
        assert (info.grad_norm is None) == (max_norm is None)
        if max_norm is not None and norm_type == np.inf:
            largest = max(np.nanmax(abs(g), initial=0) for g in grads if g is not None)
            assert info.grad_norm == largest / options["grad_scale"]
        for x, y in zip(params, copies, strict=True):
            assert same_bits(x, y)
        for g, h in zip(grads, before, strict=True):
            assert g is None or same_bits(g, h)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_is_exact_and_does_not_depend_on_the_team(dtype: Any, setting: Setting) -> None:
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n).astype(dtype) for n in (1, 5, 100_003, 64, 70_000)]
    opt = fo.SGD([np.zeros_like(g) for g in grads])
    norm = opt.step(grads, max_norm=1.0).grad_norm
    assert norm == fo.reference.grad_norm(grads)
    true = np.sqrt(sum(np.sum(g.astype(np.longdouble) ** 2) for g in grads))
    assert norm == pytest.approx(float(true), rel=1e-14)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.float32, 1e30), (np.float32, 1e-30), (np.float64, 1e200), (np.float64, 1e-200)],
)
def test_norm_neither_overflows_nor_underflows(dtype: Any, value: float, isa: str) -> None:
    p = np.zeros(3, dtype)
    grads = [np.full(3, value, dtype)]
    info = fo.SGD([p], lr=1.0).step(grads, max_norm=1.0)
    assert info.grad_norm == pytest.approx(value * 3**0.5, rel=1e-6)
    assert info.grad_norm == fo.reference.grad_norm(grads)
    if value > 1:
        assert p == pytest.approx(-(3**-0.5), rel=1e-6)  # torch and optax: zero


def test_clipping_beside_the_formula() -> None:
    p = np.zeros(2, np.float64)
    info = fo.SGD([p], lr=1.0).step([np.array([3.0, 4.0])], max_norm=1.0)
    assert info == (5.0, False)
    assert p == pytest.approx([-3 / (5 + 1e-6), -4 / (5 + 1e-6)], rel=1e-15)
    p[...] = 0
    info = fo.SGD([p], lr=1.0).step([np.array([6.0, 8.0])], max_norm=100.0, grad_scale=2.0)
    assert info.grad_norm == 5.0
    assert list(p) == [-3, -4]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nonfinite_gradients_skip_the_step_whole(case: Case, isa: str) -> None:
    params, copies = [np.ones(70), np.ones(40_000)], [np.ones(70), np.ones(40_000)]
    a, b = case.fused(params), case.reference(copies)
    good = [np.linspace(0, 1, 70), np.linspace(1, 2, 40_000)]
    spoiled = [[good[0], good[1].copy()] for _ in range(3)]
    for (_, grad), bad in zip(spoiled, (np.nan, np.inf, -np.inf), strict=True):
        grad[12_345] = bad
    for opt in (a, b):
        for grads in (spoiled[0], good, spoiled[1], good, spoiled[2]):  # also in the first step
            states = {n: {k: np.copy(v) for k, v in s.items()} for n, s in opt.state.items()}
            before = [p.copy() for p in (params if opt is a else copies)]
            info = opt.step(grads, skip_nonfinite=True, zero_grads=False)
            assert info.skipped == (grads is not good)
            if info.skipped:
                assert all(
                    same_bits(p, q)
                    for p, q in zip(params if opt is a else copies, before, strict=True)
                )
                for name, state in opt.state.items():
                    assert state.keys() == states[name].keys()
                    assert all(same_bits(np.asarray(v), states[name][k]) for k, v in state.items())
    assert all(same_bits(p, q) for p, q in zip(params, copies, strict=True))


@pytest.mark.parametrize("norm_type", [2.0, np.inf])
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_steps_of_parts_with_the_norm_of_all_equal_the_whole_step(
    case: Case, norm_type: float, setting: Setting
) -> None:
    rng = np.random.default_rng(4)
    cuts = {"a": [0, 5, 40_001, 50_000], "b": [0, 0, 7, 7], "c": [0, 100, 101, 300]}
    whole = {n: rng.standard_normal(c[-1]).astype(np.float32) for n, c in cuts.items()}
    copies = {n: x.copy() for n, x in whole.items()}

    def part(arrays: dict[str, Any], rank: int) -> dict[str, Any]:
        return {n: x[cuts[n][rank] : cuts[n][rank + 1]] for n, x in arrays.items()}

    a = case.fused(whole)
    makers = (case.fused, case.reference, case.fused)
    ranks = [make(part(copies, rank)) for rank, make in enumerate(makers)]
    for scale, max_norm in ((1.0, 0.5), (3.0, 1e9), (1024.0, 1e-3)):
        grads = {n: rng.standard_normal(x.size).astype(np.float32) for n, x in whole.items()}
        norm = fo.grad_norm(grads, norm_type)
        info = a.step(grads, max_norm=max_norm, norm_type=norm_type, grad_scale=scale)
        assert info == (norm / scale, False)
        for rank, opt in enumerate(ranks):
            given = opt.step(
                part(grads, rank), max_norm=max_norm, grad_scale=scale, total_norm=norm
            )
            assert given == info
    for name, x in whole.items():
        assert same_bits(x, copies[name])
        for key, value in a.state[name].items():
            if key != "step":
                joined = np.concatenate([opt.state[name][key] for opt in ranks])
                assert same_bits(value, joined)


@pytest.mark.parametrize("largest", [0.0, 3.0, 1e-310, 1e300, np.nan, np.inf])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.0, 1.0, np.inf])
def test_a_given_norm_is_as_if_it_had_been_measured(
    max_norm: float | None, skip: bool, largest: float, isa: str
) -> None:
    if max_norm is None and not skip:
        return
    grads = [np.array([0.0, largest, -largest / 2])]
    norm = fo.grad_norm(grads)
    results = []
    for module in (fo, fo.reference):
        for total_norm in (None, norm, np.float64(norm)):
            p = np.ones(3)
            opt = module.Adam([p])
            info = opt.step(
                grads, max_norm=max_norm, skip_nonfinite=skip, grad_scale=2, total_norm=total_norm
            )
            assert info.skipped == (skip and not np.isfinite(largest))
            assert opt.state["0"]["step"] == (not info.skipped)
            results.append([p, np.float64(info.grad_norm)])
    for result in results[1:]:
        assert all(same_bits(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_a_part_without_gradients_follows_the_norm(module: Any) -> None:
    p = np.ones(3)
    opt = module.SGD([p])
    assert opt.step([None], max_norm=1.0, total_norm=6, grad_scale=2.0) == (3.0, False)
    assert opt.step([None], skip_nonfinite=True, total_norm=np.inf) == (np.inf, True)
    assert opt.state["0"]["step"] == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"total_norm": 1.0}, ValueError, ["total_norm", "max_norm or skip_nonfinite"]),
        ({"total_norm": 1.0, "skip_nonfinite": False}, ValueError, ["has no effect without"]),
        ({"total_norm": -0.5, "max_norm": 1.0}, ValueError, ["total_norm must be >= 0", "-0.5"]),
        ({"total_norm": -np.inf, "skip_nonfinite": True}, ValueError, ["total_norm", "-inf"]),
        ({"total_norm": 10**400, "max_norm": 1.0}, ValueError, ["total_norm"]),
        ({"total_norm": "1", "max_norm": 1.0}, TypeError, ["total_norm must be a number", "'1'"]),
        ({"total_norm": True, "max_norm": 1.0}, TypeError, ["total_norm must be a number"]),
        ({"total_norm": 1j, "max_norm": 1.0}, TypeError, ["total_norm must be a number", "1j"]),
        ({"total_norm": [1.0], "max_norm": 1.0}, TypeError, ["total_norm must be a number"]),
    ],
)
@pytest.mark.parametrize("module", [fo, fo.reference])
def test_norms_that_are_refused(
    module: Any, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    p = np.ones(2)
    opt = module.Adam([p])
    opt.step([np.ones(2)])
    with refused(error, *words, arrays=[p], optimizer=opt):
        opt.step([np.ones(2)], **options)


def test_huge_but_finite_gradients_are_not_skipped() -> None:
    p = np.zeros(4)
    info = fo.SGD([p], lr=1e-300).step([np.full(4, 1.7e308)], skip_nonfinite=True)
    assert not info.skipped
    assert np.all(p < 0)


def test_without_options_nothing_is_asked() -> None:
    info = fo.SGD([np.zeros(2)]).step([np.array([np.nan, 1.0])])
    assert info == (None, False)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"skip_nonfinite": True}])
def test_zero_grads(options: dict[str, Any], threads: int) -> None:
    rng = np.random.default_rng(1)
    big = rng.standard_normal((400, 300, 2)).astype(np.float32)
    grads = [big[:, :, 0].T, rng.standard_normal(100_000).astype(np.float32)]
    params = [np.ones(g.shape, np.float32) for g in grads]
    copies = [p.copy() for p in params]
    other = big[:, :, 1].copy()
    a, b = fo.AdamW(params), fo.reference.AdamW(copies)
    b.step([g.copy() for g in grads], **options)
    a.step(grads, zero_grads=True, **options)
    assert all(same_bits(p, q) for p, q in zip(params, copies, strict=True))
    assert all(not g.any() for g in grads)
    assert same_bits(big[:, :, 1], other)


def test_zero_grads_needs_gradients_of_its_own() -> None:
    p, q = np.ones(4), np.ones(4)
    opt = fo.SGD([p, q])
    shared, fixed = np.ones(4), np.ones(4)
    fixed.flags.writeable = False
    opt.step([shared, shared])
    spread = np.lib.stride_tricks.as_strided(np.ones(1), (4,), (0,))
    for grads, word in (
        ([shared, shared], "share memory"),
        ([shared, fixed], "read-only"),
        ([shared, spread], "elements that share memory"),
    ):
        before = [p.copy(), q.copy()]
        with pytest.raises(ValueError, match=word):
            opt.step(grads, zero_grads=True)
        assert same_bits(p, before[0])
        assert same_bits(q, before[1])
        assert np.all(shared == 1)
    assert opt.state["0"]["step"] == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_norm": -1.0}, "max_norm"),
        ({"max_norm": float("nan")}, "max_norm"),
        ({"grad_scale": 0.0}, "grad_scale"),
        ({"grad_scale": float("inf")}, "grad_scale"),
    ],
)
def test_bad_options(options: dict[str, Any], word: str) -> None:
    p = np.ones(2)
    with pytest.raises(ValueError, match=word):
        fo.SGD([p]).step([np.ones(2)], **options)
    assert np.all(p == 1)


def test_the_plan_follows_what_changes(isa: str) -> None:
    """Gradients that move, come and go, and options that change, step by step."""
    rng = np.random.default_rng(2)
    shapes = [(30, 4), (50,), (2, 3, 4, 5), (2, 2, 2, 2, 2)]
    params = [rng.standard_normal(s) for s in shapes]
    copies = [p.copy() for p in params]
    a, b = fo.Adam(params), fo.reference.Adam(copies)
    kept: list[Any] = [rng.standard_normal(s) for s in shapes]
    for step in range(12):
        grads = list(kept)
        if step in (2, 3):
            grads[1] = rng.standard_normal(50)  # another array
        if step == 4:
            grads[0] = np.asfortranarray(grads[0])
        if step in (5, 6):
            grads[2] = None
        if step == 7:
            for opt in (a, b):
                opt.param_groups[0]["amsgrad"] = True
        if step == 8:
            grads[3] = np.broadcast_to(np.float64(0.5), shapes[3])
        if step > 8:
            kept[1] *= 0.5  # the same memory, other numbers
            for opt in (a, b):
                opt.param_groups[0]["lr"] *= 0.9
        if step == 10:
            a.load_state_dict(a.state_dict())
        options: dict[str, Any] = {"max_norm": 1.0} if step % 2 else {}
        assert a.step(grads, **options) == b.step(grads, **options)
        for p, q in zip(params, copies, strict=True):
            assert same_bits(p, q)


def test_the_plan_does_not_keep_gradients_alive() -> None:
    import weakref

    class Gradient(np.ndarray):
        pass

    p = np.ones(10)
    opt = fo.SGD([p])
    grad: Any = np.ones(10).view(Gradient)
    watch = weakref.ref(grad)
    opt.step([grad])
    del grad
    assert watch() is None


def test_gradients_that_move_are_checked_against_what_is_written() -> None:
    memory = np.ones(100, np.float32)
    opt = fo.SGD([memory[:10]], momentum=0.9)
    for start in (10, 20, 90):
        opt.step([memory[start : start + 10]])
    with pytest.raises(ValueError, match="share memory"):
        opt.step([memory[5:15]])
    with pytest.raises(ValueError, match="share memory"):
        opt.step([opt.state["0"]["momentum_buffer"]])
    assert opt.state["0"]["step"] == 3


# -- outside a step ------------------------------------------------------------------------------


def mixed() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    big = rng.standard_normal((300, 400, 2)).astype(np.float32)
    return {
        "a": rng.standard_normal(100_001),
        "b": big[::2, ::-1, 1],
        "c": np.asfortranarray(rng.standard_normal((7, 5))),
        "none": None,
        "empty": np.ones((0, 3), np.float32),
        "scalar": np.array(2.0),
    }


def test_standalone_norm_equals_the_reference(isa: str, threads: int) -> None:
    grads = mixed()
    arrays = [g for g in grads.values() if g is not None]
    assert fo.grad_norm(grads) == fo.grad_norm(list(grads.values()))
    assert fo.grad_norm(grads) == fo.reference.grad_norm(arrays)
    assert fo.grad_norm([]) == 0
    assert fo.grad_norm(np.full(3, 1e200)) == pytest.approx(3**0.5 * 1e200)
    assert np.isnan(fo.grad_norm([np.array([1, np.nan])]))


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_standalone_clipping(max_norm: float, isa: str, threads: int) -> None:
    grads, copies = mixed(), mixed()
    norm = fo.clip_grad_norm_(grads, max_norm)
    assert norm == fo.grad_norm(copies)
    factor = min(1.0, max_norm / (norm + 1e-6))
    for name, grad in grads.items():
        if grad is not None:
            assert same_bits(grad, np.asarray(copies[name] * grad.dtype.type(factor)))
    assert fo.grad_norm(grads) <= max_norm or max_norm == 0


def test_clipping_by_value(isa: str, threads: int) -> None:
    grads, copies = mixed(), mixed()
    grads["a"][5] = copies["a"][5] = np.nan
    fo.clip_grad_value_(grads, 0.25)
    for name, grad in grads.items():
        if grad is not None:
            assert same_bits(grad, np.asarray(np.clip(copies[name], -0.25, 0.25)))


def test_standalone_clipping_refuses_before_it_writes() -> None:
    good = np.full(3, 2.0)
    fixed = np.ones(3)
    fixed.flags.writeable = False
    bad: list[tuple[Any, type[Exception], str]] = [
        ([good, fixed], ValueError, "'1' is read-only"),
        ([good, good], ValueError, "share memory"),
        ({"g": good, "h": [1.0]}, TypeError, "'h'"),
        ([good, np.ones(3, int)], TypeError, "int64"),
        ([good, np.lib.stride_tricks.as_strided(np.ones(1), (2,), (0,))], ValueError, "elements"),
    ]
    for grads, error, word in bad:
        with pytest.raises(error, match=word):
            fo.clip_grad_norm_(grads, 1.0)
        with pytest.raises(error, match=word):
            fo.clip_grad_value_(grads, 1.0)
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="max_norm"):
            fo.clip_grad_norm_(good, value)
        with pytest.raises(ValueError, match="clip_value"):
            fo.clip_grad_value_(good, value)
    assert np.all(good == 2)
    good[0] = np.inf
    with pytest.raises(RuntimeError, match="inf"):
        fo.clip_grad_norm_(good, 1.0, error_if_nonfinite=True)
    assert list(good) == [np.inf, 2, 2]
    fo.clip_grad_norm_(good, 1.0)
    assert np.isnan(good[0])  # inf * 0, as torch
    assert list(good[1:]) == [0, 0]


def test_largest_magnitude_equals_the_reference(isa: str, threads: int) -> None:
    grads = mixed()
    arrays = [g for g in grads.values() if g is not None]
    norm = fo.grad_norm(grads, np.inf)
    assert norm == fo.reference.grad_norm(arrays, np.inf)
    assert norm == max(float(np.max(np.abs(g))) for g in arrays if g.size)
    assert fo.grad_norm([], norm_type=float("inf")) == 0
    for dtype in DTYPES:
        for place in (0, 4999, 99_999):  # the largest number or NaN at any place
            x = np.full(100_000, -1.0, dtype)
            x[place] = -3
            assert fo.grad_norm(x, np.inf) == 3
            x[place] = -np.inf
            assert fo.grad_norm(x, np.inf) == np.inf
            x[place] = np.nan
            assert np.isnan(fo.grad_norm(x, np.inf))
            assert np.isnan(fo.grad_norm(x[::-1], np.inf))
            assert np.isnan(fo.reference.grad_norm([x], np.inf))


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9])
def test_clipping_to_the_largest_magnitude(max_norm: float) -> None:
    grads, copies = mixed(), mixed()
    norm = fo.clip_grad_norm_(grads, max_norm, np.inf)
    assert norm == fo.grad_norm(copies, np.inf)
    factor = min(1.0, max_norm / (norm + 1e-6))
    for name, grad in grads.items():
        if grad is not None:
            assert same_bits(grad, np.asarray(copies[name] * grad.dtype.type(factor)))


def test_other_types_of_norms_are_refused() -> None:
    for norm_type in (1, 0, -np.inf, np.nan, 3.0):
        grads = np.full(3, 7.0)
        with pytest.raises(ValueError, match="norm_type must be 2 or inf, not"):
            fo.clip_grad_norm_(grads, 1.0, norm_type)
        with pytest.raises(ValueError, match="norm_type must be 2 or inf, not"):
            fo.grad_norm(grads, norm_type)
        with pytest.raises(ValueError, match="norm_type must be 2 or inf, not"):
            fo.SGD([grads.copy()]).step([grads], max_norm=1.0, norm_type=norm_type)
        assert (grads == 7).all()


@pytest.mark.parametrize("norm_type", [2.0, float("inf")])
def test_clipping_as_torch(norm_type: float) -> None:
    torch = pytest.importorskip("torch")
    grads = {n: np.ascontiguousarray(g) for n, g in mixed().items() if g is not None and g.size}
    parameters = [torch.nn.Parameter(torch.from_numpy(g.copy())) for g in grads.values()]
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, 0.5, norm_type)
    assert fo.clip_grad_norm_(grads, 0.5, norm_type) == pytest.approx(float(expected), rel=1e-5)
    for grad, parameter in zip(grads.values(), parameters, strict=True):
        np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-5)
