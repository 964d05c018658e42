"""softmax, log_softmax and their backward forms: truth, layouts, the same bits, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import DTYPES
from fastopt._types import FloatArray
from helpers import LOWEST, Setting, infinite_rows, same_bits

SHAPES = [
    ((7,), 0),
    ((40, 10), 1),
    ((33, 128), 1),
    ((9, 129), 1),
    ((5, 2100), -1),
    ((5, 4097), -1),
    ((300, 5), 0),
    ((3, 4, 50), 1),
    ((2, 150, 6, 7), 1),
    ((4, 5, 6), 2),
    ((1, 1), 0),
    ((70, 3, 1), -2),
    # Several blocks, for several threads.
    ((5000, 10), 1),
    ((300, 129), 1),
    ((3, 10, 3000), 1),
]


def data(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng([*shape, seed])
    x: FloatArray = rng.uniform(-40, 40, shape).astype(dtype)
    return x


def all_four(x: FloatArray, axis: int, **options: Any) -> list[FloatArray]:
    f = fo.functional
    grad = data(x.shape, x.dtype, 1)
    y, log_y = f.softmax(x, axis), f.log_softmax(x, axis)
    return [y, log_y, f.softmax_backward(grad, y, axis), f.log_softmax_backward(grad, log_y, axis)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_against_float64(shape: tuple[int, ...], axis: int, dtype: Any) -> None:
    x, grad = data(shape, dtype), data(shape, dtype, 1)
    # The true value is a float64 too.
    ulp = np.finfo(dtype).eps * (1 if dtype is np.float32 else 4)
    y, log_y, dx, log_dx = all_four(x, axis)
    true = fo.reference.softmax(x, axis)
    # e^x is as accurate as x is: 1 ULP for each unit that x is away from the largest.
    distance = x.max(axis=axis, keepdims=True).astype(np.float64) - x
    assert np.all(abs(y - true) <= (4 + distance) * ulp * true + np.finfo(dtype).smallest_subnormal)
    assert np.all(abs(y - true) <= 4 * ulp * true.max(axis=axis, keepdims=True))
    true = fo.reference.log_softmax(x, axis)
    # The largest one's is what the others add up to, which is as accurate as the nearest's e^x.
    largest = distance == 0
    gap = np.where(largest, np.inf, distance).min(axis=axis, keepdims=True)
    units = np.where(largest, 4 + np.where(np.isfinite(gap), gap, 0), 2)
    assert np.all(abs(log_y - true) <= units * ulp * abs(true) + np.finfo(dtype).smallest_subnormal)
    true = fo.reference.softmax_backward(grad, y, axis)
    size = y * (abs(grad) + (abs(grad) * y).sum(axis=axis, keepdims=True))
    assert np.all(abs(dx - true) <= 4 * ulp * size + np.finfo(dtype).smallest_normal)
    true = fo.reference.log_softmax_backward(grad, log_y, axis)
    size = abs(grad) + np.exp(log_y.astype(np.float64)) * abs(grad).sum(axis=axis, keepdims=True)
    assert np.all(abs(log_dx - true) <= 4 * ulp * size)


def test_sure_entries_keep_their_digits(isa: str) -> None:
    for classes in (2, 300):
        x = np.full((1, classes), -200.0)
        x[0, :2] = [30, 0]
        log_y = fo.functional.log_softmax(x)
        assert log_y[0, 0] == pytest.approx(-9.3576229688393e-14, rel=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_same_bits_for_layouts_sets_and_teams(
    shape: tuple[int, ...], axis: int, dtype: Any, setting: Setting
) -> None:
    x = data(shape, dtype)
    x.flat[0] = -np.inf
    LOWEST.use()
    expected = all_four(x, axis)
    setting.use()
    views = [x, np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2]]
    padded = np.zeros((*shape[:-1], shape[-1] + 3), dtype)
    padded[..., :-3] = x
    views.append(padded[..., :-3])
    for view in views:
        for got, true in zip(all_four(view, axis), expected, strict=True):
            assert same_bits(got, true)
    moved = np.moveaxis(x, axis, 0).copy()
    assert same_bits(np.moveaxis(fo.functional.softmax(moved, 0), 0, axis), expected[0])


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_out(shape: tuple[int, ...], axis: int) -> None:
    f = fo.functional
    x, grad = data(shape), data(shape, seed=1)
    y, log_y, dx, log_dx = all_four(x, axis)
    for forward, true in ((f.softmax, y), (f.log_softmax, log_y)):
        for out in (np.full_like(x, np.nan), x.copy()):
            np.copyto(out, x)
            assert forward(out, axis, out=out) is out
            assert same_bits(out, true)
    for backward, result, true in (
        (f.softmax_backward, y, dx),
        (f.log_softmax_backward, log_y, log_dx),
    ):
        g, r = grad.copy(), result.copy()
        assert backward(g, r, axis, out=g) is g
        assert same_bits(g, true)
        assert backward(grad, r, axis, out=r) is r
        assert same_bits(r, true)


def test_nan_and_infinities(isa: str) -> None:
    for classes in (3, 200):
        x = np.zeros((4, classes), np.float32)
        x[0, 1] = np.nan
        x[1] = -np.inf
        x[2, 2] = np.inf
        x[3, :2] = -np.inf
        y, log_y = fo.functional.softmax(x), fo.functional.log_softmax(x)
        assert np.all(np.isnan(y[:2]))
        assert np.all(np.isnan(log_y[:2]))
        assert np.isnan(y[2, 2])
        assert np.all(y[3, :2] == 0)
        assert np.all(log_y[3, :2] == -np.inf)
        assert y[3].sum() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinities_in_some_tiles(dtype: Any, isa: str) -> None:
    x, _ = infinite_rows(dtype)
    for ours, truth in (
        (fo.functional.softmax, fo.reference.softmax),
        (fo.functional.log_softmax, fo.reference.log_softmax),
    ):
        y = ours(x)
        # e^x is as accurate as x is, and x is up to 318 away from the largest, or beyond float32.
        np.testing.assert_allclose(y, truth(x), rtol=322 * np.finfo(dtype).eps, atol=1e-40)
        assert same_bits(ours(np.asfortranarray(x)), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [40, 80, 95, 300, 650, 690, 700, 707])
def test_tiles_far_apart_keep_their_digits(gap: int, dtype: Any, isa: str) -> None:
    rng = np.random.default_rng(gap)
    x = np.concatenate([rng.uniform(-9, 0, 2048) - gap, rng.uniform(-9, 0, 2048)])
    x = np.stack([x, x[::-1], rng.permutation(x)]).astype(dtype)
    grad = fo.CrossEntropyLoss(reduction="sum").value_and_grad(x, np.array([3000, 5, 7]))[1]
    true = fo.reference.softmax(x)
    distance = x.max(axis=1, keepdims=True).astype(np.float64) - x
    info = np.finfo(dtype)
    allowed = (4 + distance) * info.eps * true + info.smallest_subnormal
    assert np.all(abs(fo.functional.softmax(x) - true) <= allowed)
    grad[[0, 1, 2], [3000, 5, 7]] = true[[0, 1, 2], [3000, 5, 7]]  # not what is tested here
    assert np.all(abs(grad - true) <= allowed)


def test_nothing_to_do() -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
        x = np.zeros(shape, np.float32)
        for result in all_four(x, 0) + all_four(x, -1):
            assert result.shape == shape


def test_bad_input() -> None:
    f = fo.functional
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    bad: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "x must be a NumPy array.*list", lambda: f.softmax([1.0])),  # type: ignore[arg-type]
        (TypeError, "x must have dtype.*int64", lambda: f.softmax(x.astype(int))),
        (ValueError, "axis 2 is out of range", lambda: f.softmax(x, 2)),
        (ValueError, "axis -1 is out of range", lambda: f.log_softmax(x[0, 0, ...])),
        (TypeError, "axis must be an integer, not 1.5", lambda: f.softmax(x, 1.5)),  # type: ignore[arg-type]
        (TypeError, "axis must be an integer, not array", lambda: f.log_softmax(x, x)),  # type: ignore[arg-type]
        (TypeError, r"axis .* not \(0, 1\)", lambda: f.softmax_backward(x, x, (0, 1))),  # type: ignore[arg-type]
        (
            TypeError,
            r"out has dtype.*np.empty\(x.shape, x.dtype\)$",
            lambda: f.softmax(x, out=x.astype(np.float64)),
        ),
        (ValueError, "out has shape", lambda: f.softmax(x, out=x.T.copy())),
        (ValueError, "share .*allocate out", lambda: f.softmax(x[:1, :2], out=x[:1, 1:])),
        (ValueError, "share memory", lambda: f.softmax(x.T[:2, :2], out=x[:2, :2])),
        (TypeError, "y has dtype", lambda: f.softmax_backward(x, x.astype(np.float64))),
        (ValueError, "y has shape", lambda: f.log_softmax_backward(x, x[:1])),
    ]
    before = x.copy()
    for error, words, call in bad:
        with pytest.raises(error, match=words):
            call()
        assert same_bits(x, before)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        f.softmax(x, out=x)


def test_backward_is_the_derivative() -> None:
    x, c = data((4, 7), np.float64) / 20, data((4, 7), np.float64, 1) / 20
    f = fo.functional
    for axis in (0, 1):
        fo.testing.gradcheck(
            lambda x, axis=axis: (
                (c * (y := f.softmax(x, axis))).sum(), f.softmax_backward(c, y, axis)
            ), x)  # fmt: skip
        fo.testing.gradcheck(
            lambda x, axis=axis: (
                (c * (y := f.log_softmax(x, axis))).sum(), f.log_softmax_backward(c, y, axis)
            ), x)  # fmt: skip


def test_beside_torch() -> None:
    torch = pytest.importorskip("torch")
    for shape, axis in SHAPES:
        x = data(shape) / 10
        t = torch.tensor(x, requires_grad=True)
        grad = data(shape, seed=1) / 10
        for ours, backward, theirs in (
            (fo.functional.softmax, fo.functional.softmax_backward, torch.softmax),
            (fo.functional.log_softmax, fo.functional.log_softmax_backward, torch.log_softmax),
        ):
            t.grad = None
            expected = theirs(t, axis)
            expected.backward(torch.tensor(grad))
            y = ours(x, axis)
            np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
            dx = backward(grad, y, axis)
            np.testing.assert_allclose(dx, t.grad.numpy(), rtol=1e-4, atol=1e-5)
