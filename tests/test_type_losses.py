"""Losses and functions of bfloat16 and float16: the results of float32, rounded to nearest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
import linear_cases
import test_cross_entropy as cross_entropy
from cases import CHUNK
from fastopt import functional
from fastopt._types import FloatArray
from fastopt.reference.storage import rounded, widen
from helpers import ISAS, LOWEST, Setting, infinite_rows, refused, same_bits
from pointwise_cases import FUNCTIONS, LOSSES, Function, Loss
from type_cases import BFLOAT16, FLOAT16, FLOAT32

DTYPES = pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
BOTH = [LOWEST, Setting(ISAS[-1], 2)]
OTHER = {BFLOAT16: FLOAT16, FLOAT16: BFLOAT16}


def spread(array: FloatArray) -> FloatArray:
    """Return the same numbers with gaps along the last axis."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def class_last(array: FloatArray) -> FloatArray:
    """Return the same numbers with axis 1 contiguous in memory, in padded rows."""
    moved = np.moveaxis(array, 1, -1)
    padded = np.zeros((*moved.shape[:-1], moved.shape[-1] + 3), array.dtype)
    padded[..., :-3] = moved
    return np.moveaxis(padded[..., :-3], -1, 1)


def backwards(array: FloatArray) -> FloatArray:
    """Return the same numbers with negative strides."""
    reverse = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[reverse])[reverse]


LAYOUTS: list[Callable[[FloatArray], FloatArray]] = [
    np.ascontiguousarray,
    np.asfortranarray,
    spread,
    backwards,
]


def is_rounded(results: Any, wide: Any, dtype: Any) -> bool:
    """Whether arrays are those of float32, rounded to `dtype`, and numbers are the same."""
    return all(
        same_bits(a, rounded(b, dtype) if isinstance(b, np.ndarray) else b)
        for a, b in zip(results, wide, strict=True)
    )


# -- pointwise -----------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("row", LOSSES, ids=str)
def test_pointwise_losses(row: Loss, dtype: Any) -> None:
    for shape in ((0,), (7,), (3, 40, 5), (260, 129)):
        x, y = (rounded(a, dtype) for a in row.data(shape, FLOAT32))
        for reduction in ("mean", "none"):
            loss = row.make(shape, reduction)
            LOWEST.use()
            wide = loss.value_and_grad(widen(x), widen(y))
            for setting in BOTH:
                setting.use()
                for layout in LAYOUTS:
                    a, b = layout(x), layout(y)
                    assert is_rounded(loss.value_and_grad(a, b), wide, dtype)
                    assert is_rounded([loss(a, b)], wide[:1], dtype)
                out = x.copy()
                result = loss.value_and_grad(out, y, out)
                assert result[1] is out
                assert is_rounded(result, wide, dtype)
                out = np.full_like(x, np.nan)
                assert is_rounded(loss.value_and_grad(x, y, out), wide, dtype)


@DTYPES
@pytest.mark.parametrize("row", FUNCTIONS, ids=str)
def test_pointwise_functions(row: Function, dtype: Any) -> None:
    for shape in ((0,), (7,), (260, 129)):
        arrays = [rounded(a, dtype) for a in row.data(shape, FLOAT32)]
        LOWEST.use()
        wide = [row.fused(*map(widen, arrays), **row.options)]
        for setting in BOTH:
            setting.use()
            for layout in LAYOUTS:
                assert is_rounded([row.fused(*map(layout, arrays), **row.options)], wide, dtype)
            for i in range(len(arrays)):
                copies = [a.copy() for a in arrays]
                assert row.fused(*copies, **row.options, out=copies[i]) is copies[i]
                assert is_rounded([copies[i]], wide, dtype)


@DTYPES
def test_dropout(dtype: Any) -> None:
    x = np.ones(3 * CHUNK, dtype)
    wide = functional.dropout(widen(x), 0.3, seed=5)
    assert is_rounded([functional.dropout(x, 0.3, seed=5)], [wide], dtype)
    assert same_bits(wide, fo.reference.dropout(x, 0.3, seed=5))


@DTYPES
def test_weights_of_elements_have_any_dtype(dtype: Any) -> None:
    x, y = (rounded(a, dtype) for a in LOSSES[-3].data((50, 70), FLOAT32))
    weight = rounded(np.linspace(0, 3, 70, dtype=np.float32), dtype)
    # Too small for float32: everything is computed in float64.
    tiny = np.full((50, 1), 1e-42)
    for w in (weight, rounded(widen(weight), OTHER[dtype]), widen(weight), tiny):
        wide = fo.BCEWithLogitsLoss(widen(w), pos_weight=w.astype(np.float64))
        result = fo.BCEWithLogitsLoss(w, pos_weight=widen(w)).value_and_grad(x, y)
        assert is_rounded(result, wide.value_and_grad(widen(x), widen(y)), dtype)
        double = x.astype(np.float64), y.astype(np.float64)
        same = fo.BCEWithLogitsLoss(w.astype(np.float64)).value_and_grad(*double)
        assert is_rounded(fo.BCEWithLogitsLoss(w).value_and_grad(*double), same, np.float64)
    huge = fo.BCELoss(np.full(70, 1e39))
    words = f"weight[0] is 1e+39, too large for float32, which computes input of {dtype}"
    with refused(ValueError, words):
        huge(np.zeros((50, 70), dtype), y)


@DTYPES
def test_probabilities_outside_of_the_unit_interval(dtype: Any) -> None:
    x, out = np.zeros((300, 129), dtype), np.ones((300, 129), dtype)
    for array in (x, spread(x)):
        array[200, 100], array[299, 128] = 1.5, np.nan
        with refused(ValueError, "input[200, 100] is 1.5, outside [0, 1]", arrays=[out]):
            fo.BCELoss().value_and_grad(array, x * 0, out)


# -- cross-entropy -------------------------------------------------------------------------------

OPTIONS = [*cross_entropy.OPTIONS, {"reduction": "none", "weight": True, "ignore_index": 2}]


@DTYPES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy(options: dict[str, Any], dtype: Any) -> None:
    for rows, classes in ((5, 1), (33, 3), (500, 10), (33, 193), (5, 4097)):
        logits, targets = cross_entropy.batch(rows, classes)
        x = rounded(logits, dtype)
        t = cross_entropy.targets_for(options, widen(x), targets)
        t, wide_t = (rounded(t, dtype),) * 2 if options.get("soft") else (t, t)
        wide_t = widen(wide_t)
        loss, _ = cross_entropy.losses(options, classes)
        for layout in (*LAYOUTS, class_last):
            LOWEST.use()
            y = layout(t) if options.get("soft") else t
            wide = loss.value_and_stats(layout(widen(x)), wide_t)
            for setting in BOTH:
                setting.use()
                a = layout(x.copy())
                stats = loss.value_and_stats(a, y)
                assert is_rounded(stats[:2], wide[:2], dtype)
                assert stats.logsumexp.dtype == np.float32
                assert same_bits(stats.logsumexp, wide.logsumexp)
                assert stats[3:] == wide[3:]
                assert is_rounded([loss(a, y)], wide[:1], dtype)
                # `out` along rows, along columns, and in place.
                for out in (np.full_like(x, np.nan), np.full_like(x.T, np.nan, order="C").T, a):
                    result = loss.value_and_grad(a, y, out=out)
                    assert result[1] is out
                    assert is_rounded(result, wide[:2], dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 300, 3, 5), (3, 10, 300), (5,), (900,), (0, 3)])
def test_class_axes(shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(shape)
    x = rounded(rng.standard_normal(shape).astype(np.float32) * 4, dtype)
    grad = rounded(rng.standard_normal(shape).astype(np.float32), dtype)
    axis = min(1, x.ndim - 1)
    targets = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    ce, nll = fo.CrossEntropyLoss(reduction="none"), fo.NLLLoss(ignore_index=1)
    for layout in LAYOUTS if x.ndim == 1 else (*LAYOUTS, class_last):
        a, wide = layout(x), layout(widen(x))
        for setting in BOTH:
            setting.use()
            for loss in (ce, nll):
                expected = loss.value_and_grad(wide, targets)
                assert is_rounded(loss.value_and_grad(a, targets), expected, dtype)
                out = layout(np.full_like(x, np.nan))
                if x.ndim > 3 and layout is np.asfortranarray:
                    continue  # `out` may not have this layout
                assert is_rounded(loss.value_and_grad(a, targets, out=out), expected, dtype)
            for name in ("softmax", "log_softmax"):
                function = getattr(functional, name)
                y = function(a, axis)
                truth = [function(wide, axis)]
                assert is_rounded([y], truth, dtype)
                copy = np.copy(a, order="C")
                assert function(copy, axis, out=copy) is copy
                assert is_rounded([copy], truth, dtype)
                backward = getattr(functional, f"{name}_backward")
                results = backward(layout(grad), y, axis)
                assert is_rounded([results], [backward(widen(grad), widen(y), axis)], dtype)


@DTYPES
def test_infinities_and_nan(dtype: Any) -> None:
    logits, targets = infinite_rows()
    x = rounded(logits, dtype)
    loss = fo.CrossEntropyLoss(reduction="none")
    wide = loss.value_and_stats(widen(x), targets)
    stats = loss.value_and_stats(x, targets)
    assert is_rounded(stats[:2], wide[:2], dtype)
    assert same_bits(stats[2], wide[2])
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    mse = fo.MSELoss("none")
    expected = mse.value_and_grad(widen(every), widen(every[::-1]))
    assert is_rounded(mse.value_and_grad(every, every[::-1]), expected, dtype)
    assert is_rounded([functional.relu(every)], [functional.relu(widen(every))], dtype)


@DTYPES
def test_the_gradient_is_accurate_where_the_model_is_sure(dtype: Any) -> None:
    digits, sure = {BFLOAT16: (8, 30), FLOAT16: (11, 8)}[dtype]  # float16 ends at 6e-5
    x = np.array([[sure, 0, 0, 0, 0], [0.25, sure, 0, 1, -1]], dtype)
    targets = np.array([0, 1])
    loss, grad = fo.CrossEntropyLoss().value_and_grad(x, targets)
    truth, slopes = fo.reference.CrossEntropyLoss().value_and_grad(x, targets)
    assert loss == pytest.approx(truth, rel=1e-6)
    half = np.ldexp(0.5, np.frexp(slopes)[1] - digits)  # of a unit in the last place
    bound = half + (4 + sure / 2) * 2.0**-23 * abs(slopes)
    assert np.all(abs(grad.astype(np.float64) - slopes) <= bound)


@DTYPES
def test_class_weights_have_any_dtype(dtype: Any) -> None:
    x, targets = rounded(cross_entropy.batch(30, 10)[0], dtype), np.arange(30) % 10
    weight = rounded(np.linspace(0.1, 2, 10, dtype=np.float32), dtype)
    expected = fo.CrossEntropyLoss(widen(weight)).value_and_grad(widen(x), targets)
    for w in (weight, widen(weight), widen(weight).astype(np.float64)):
        assert is_rounded(fo.CrossEntropyLoss(w).value_and_grad(x, targets), expected, dtype)
        assert fo.NLLLoss(w)(x, targets) == fo.NLLLoss(widen(weight))(widen(x), targets)
    huge = np.full(10, 1e39)
    with refused(ValueError, "weight[0]", f"which computes logits of {dtype}"):
        fo.CrossEntropyLoss(huge)(x, targets)


# -- a linear layer ------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("options", linear_cases.OPTIONS, ids=str)
def test_linear_cross_entropy(options: dict[str, Any], dtype: Any) -> None:
    arrays = linear_cases.data(options, FLOAT32)
    narrow = [a if a.dtype.kind == "i" else rounded(a, dtype) for a in arrays]
    for memory_limit in (None, 20_000):
        loss = linear_cases.losses(options, memory_limit)[0]
        wide = loss.value_and_stats(*map(widen, narrow))
        stats = loss.value_and_stats(*narrow)
        assert is_rounded([stats.loss, *stats.grad], [wide.loss, *wide.grad], dtype)
        assert same_bits(stats.logsumexp, wide.logsumexp)
        assert stats[3:] == wide[3:]
        assert is_rounded([loss(*narrow)], [loss(*map(widen, narrow))], dtype)
        out = [np.full_like(a, np.nan) for a in (narrow[0], np.asfortranarray(narrow[1]))]
        loss.value_and_grad(*narrow[:3], out=out)
        assert is_rounded(out, loss.value_and_grad(*map(widen, narrow[:3]))[1], dtype)


# -- what is refused, and the references ---------------------------------------------------------


@DTYPES
def test_mixtures_are_refused(dtype: Any) -> None:
    x, out = np.ones((3, 4), dtype), np.full((3, 4), 7, dtype)
    first = np.zeros(3, int)
    for other in (np.float32, np.float64, OTHER[dtype]):
        bad, words = np.ones((3, 4), other), f"has dtype {np.dtype(other)} but"
        for call in (
            lambda bad=bad: fo.MSELoss().value_and_grad(x, bad, out),
            lambda bad=bad: fo.CrossEntropyLoss().value_and_grad(x, bad, out),
            lambda bad=bad: functional.relu_backward(x, bad, out),
            lambda bad=bad: functional.softmax_backward(x, bad, out=out),
            lambda bad=bad: functional.linear_cross_entropy(x, bad, first, out=(out, out)),
        ):
            with refused(TypeError, words, str(dtype), arrays=[out]):
                call()
        bad = np.full((3, 4), 7, other)
        for call in (
            lambda bad=bad: fo.MSELoss().value_and_grad(x, x, bad),
            lambda bad=bad: fo.CrossEntropyLoss().value_and_grad(x, first, bad),
            lambda bad=bad: fo.NLLLoss().value_and_grad(x, first, bad),
            lambda bad=bad: functional.relu(x, bad),
            lambda bad=bad: functional.softmax(x, out=bad),
        ):
            with refused(TypeError, f"out {words}", str(dtype), "np.empty", arrays=[bad]):
                call()
    with refused(TypeError, "targets must have an integer dtype", str(dtype)):
        fo.CrossEntropyLoss()(x, np.zeros(3, dtype))
    with refused(TypeError, "were logits and targets swapped?"):
        fo.CrossEntropyLoss()(np.zeros(3, int), x)


@DTYPES
def test_references_take_them(dtype: Any) -> None:
    x, targets = rounded(cross_entropy.batch(30, 10)[0], dtype), np.arange(30) % 10
    soft = rounded(np.full((30, 10), 0.1, np.float32), dtype)
    for name, target in (("CrossEntropyLoss", targets), ("CrossEntropyLoss", soft)):
        ours = getattr(fo, name)().value_and_grad(x, target)
        truth = getattr(fo.reference, name)().value_and_grad(x, target)
        assert ours[0] == pytest.approx(truth[0], rel=1e-5)
        assert np.allclose(np.float64(ours[1]), truth[1], rtol=2.0**-8, atol=1e-7)
    ours = fo.NLLLoss(soft[0]).value_and_grad(x, targets)
    truth = fo.reference.NLLLoss(soft[0]).value_and_grad(x, targets)
    assert ours[0] == pytest.approx(truth[0])
    assert is_rounded([ours[1]], [truth[1].astype(np.float32)], dtype)
    assert fo.MSELoss()(x, soft) == pytest.approx(fo.reference.MSELoss()(x, soft), rel=1e-6)
