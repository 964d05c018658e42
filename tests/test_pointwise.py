"""Pointwise losses and activations: bounds in ULP, the same bits everywhere, special cases."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from cases import CHUNK, DTYPES
from fastopt._types import FloatArray
from helpers import LOWEST, Setting, at_offset, in_ulp, same_bits
from pointwise_cases import FUNCTIONS, LANES, LOSSES, SIZES, Function, Loss

LOSS_ROWS = pytest.mark.parametrize("row", LOSSES, ids=str)
FUNCTION_ROWS = pytest.mark.parametrize("row", FUNCTIONS, ids=str)
SHAPE = (700, 53)


# -- truth ---------------------------------------------------------------------------------------


def check_gradient(
    row: Loss, y: FloatArray, grad: FloatArray, true: FloatArray, ulp: float
) -> None:
    error = in_ulp(grad, true, np.float32)
    cancels = (row.kind == "logits") & (y != 0) & (y != 1)  # sigmoid(x) - y does
    assert np.max(error, initial=0, where=~cancels) <= ulp
    largest = np.max(abs(true), initial=0, where=cancels)
    assert np.max(abs(grad - true), initial=0, where=cancels) <= ulp * 2.0**-23 * largest


@LOSS_ROWS
def test_float32_within_the_rows_bound_of_float64(row: Loss) -> None:
    x, y = row.data(SHAPE, np.float32)
    loss, grad = row.make(SHAPE, "none").value_and_grad(x, y)
    true_loss, true_grad = row.reference(SHAPE, "none").value_and_grad(x, y)
    assert loss.dtype == grad.dtype == np.float32
    assert np.max(in_ulp(loss, true_loss, np.float32)) <= row.loss_ulp
    check_gradient(row, y, grad, true_grad, row.grad_ulp)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@LOSS_ROWS
def test_reductions_and_their_gradient(row: Loss, reduction: str) -> None:
    x, y = row.data(SHAPE, np.float32)
    loss, grad = row.make(SHAPE, reduction).value_and_grad(x, y)
    true_losses, true_grad = row.reference(SHAPE, "none").value_and_grad(x, y)
    count = x.size if reduction == "mean" else 1
    # The sum is in float64: its error is at most that of the elements.
    allowed = 1e-13 if row.loss_ulp < 1 else row.loss_ulp * 2.0**-23
    assert abs(loss - math.fsum(true_losses.ravel()) / count) <= allowed * abs(true_losses).sum()
    assert row.make(SHAPE, reduction)(x, y) == loss
    # If the row computes in float32, 1 / count and the product are rounded.
    check_gradient(row, y, grad, true_grad / count, row.grad_ulp + (row.grad_ulp > 1))


@LOSS_ROWS
def test_float64_beside_the_reference(row: Loss) -> None:
    x, y = row.data(SHAPE, np.float64)
    loss, grad = row.make(SHAPE, "none").value_and_grad(x, y)
    true_loss, true_grad = row.reference(SHAPE, "none").value_and_grad(x, y)
    # log y - x and sigmoid(x) - y may cancel, for the reference as well.
    size = abs(true_loss) + (abs(true_grad * x) if "probabilities" in row.kind else 0)
    assert np.all(abs(loss - true_loss) <= 8 * 2.0**-52 * size)
    assert np.all(abs(grad - true_grad) <= 16 * 2.0**-52 * np.maximum(abs(true_grad), abs(y)))


def test_float64_within_2_ulp_of_more_digits(isa: str) -> None:
    """The elementary functions, through losses that contain nothing else."""
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no longer format than float64")
    rng = np.random.default_rng(5)
    wide = np.concatenate([rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 2, 4000),
                           rng.uniform(-745, 709, 4000)])  # fmt: skip
    long = wide.astype(np.longdouble)
    zeros, ones = np.zeros_like(wide), np.ones_like(wide)
    true = 1 / (1 + np.exp(-long))
    assert np.max(in_ulp(fo.functional.sigmoid(wide), true, np.float64)) <= 2
    bce = fo.BCEWithLogitsLoss(reduction="none")
    loss, grad = bce.value_and_grad(wide, zeros)
    assert np.max(in_ulp(loss, np.logaddexp(np.longdouble(0), long), np.float64)) <= 2
    assert np.max(in_ulp(grad, true, np.float64)) <= 2
    loss, grad = bce.value_and_grad(wide, ones)
    assert np.max(in_ulp(loss, np.logaddexp(np.longdouble(0), -long), np.float64)) <= 2
    assert np.max(in_ulp(grad, -1 / (1 + np.exp(long)), np.float64)) <= 2
    exp = -fo.KLDivLoss("none", log_target=True).value_and_grad(zeros, wide)[1]
    assert np.max(in_ulp(exp, np.exp(long), np.float64)) <= 1

    near_1 = 1 + rng.standard_normal(4000) * 10.0 ** rng.uniform(-16, -1, 4000)
    numbers = np.concatenate([10.0 ** rng.uniform(-323, 300, 4000), rng.random(4000), near_1])
    long = numbers.astype(np.longdouble)
    loss = fo.KLDivLoss("none")(np.zeros_like(numbers), numbers)
    assert np.max(in_ulp(loss, long * np.log(long), np.float64)) <= 1.5
    unit = numbers[numbers < 1]
    long = unit.astype(np.longdouble)
    for target, true in ((0.0, -np.log1p(-long)), (1.0, -np.log(long))):
        loss = fo.BCELoss(reduction="none")(unit, np.full_like(unit, target))
        assert np.max(in_ulp(loss, np.minimum(true, 100), np.float64)) <= 1.5


def test_bce_with_logits_keeps_its_digits_where_the_model_is_sure(isa: str) -> None:
    for dtype, bound in ((np.float32, 3), (np.float64, 3)):
        x = np.array([15, 30, 31.5, 60, 80, 87, 100, 103], dtype)
        bce = fo.BCEWithLogitsLoss(reduction="none")
        true_loss, true_grad = np.log1p(np.exp(-x.astype(float))), 1 / (1 + np.exp(x.astype(float)))
        for sign, target in ((1, 1), (-1, 0)):
            loss, grad = bce.value_and_grad(x * sign, np.full_like(x, target))
            assert np.all(loss > 0)
            assert np.max(in_ulp(loss, true_loss, dtype)) <= bound
            assert np.max(in_ulp(grad, -sign * true_grad, dtype)) <= bound
            # A sum keeps values that float32 cannot hold.
            value = fo.BCEWithLogitsLoss(reduction="sum")(x * sign, np.full_like(x, target))
            assert value == pytest.approx(true_loss.sum(), rel=1e-6)


@FUNCTION_ROWS
def test_functions_within_their_bound(row: Function) -> None:
    arrays = row.data(SHAPE, np.float32)
    truth = row.reference(*arrays, **row.options)
    row.check(row.fused(*arrays, **row.options), truth, arrays, row.ulp)
    arrays = row.data(SHAPE, np.float64)
    truth = row.reference(*arrays, **row.options)
    # The reference has errors too: x / sqrt(2) is rounded, and that grows in the exponential.
    row.check(row.fused(*arrays, **row.options), truth, arrays, 5000)


# -- the same bits -------------------------------------------------------------------------------


@cache
def on_one_thread(row: Loss, reduction: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """Return input, target, loss and gradient of the lowest instruction set."""
    before = Setting(fo.active_isa(), fo.get_num_threads())
    LOWEST.use()
    x, y = row.data(shape, dtype)
    result = row.make(shape, reduction).value_and_grad(x, y)
    before.use()
    return x, y, *result


def views(array: FloatArray) -> list[FloatArray]:
    """Return the same numbers at other addresses and in other layouts."""
    spread = np.full((*array.shape[:-1], 3 * array.shape[-1]), np.nan, array.dtype)
    spread[..., 1::3] = array
    reverse = (slice(None, None, -1),) * array.ndim
    return [
        at_offset(array.ravel(), 5).reshape(array.shape),
        np.asfortranarray(array),
        spread[..., 1::3],
        array[reverse].copy()[reverse],
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@LOSS_ROWS
def test_losses_have_the_same_bits_everywhere(row: Loss, dtype: Any, setting: Setting) -> None:
    shapes: list[tuple[int, ...]] = [*((n,) for n in SIZES), (3, 40, 5), (260, 129)]
    for reduction, shape in itertools.product(("mean", "none"), shapes):
        x, y, true_loss, true_grad = on_one_thread(row, reduction, shape, dtype)
        x = x.copy()
        loss = row.make(shape, reduction)
        value, grad = loss.value_and_grad(x, y)
        assert same_bits(value, true_loss)
        assert same_bits(grad, true_grad)
        assert same_bits(loss(x, y), true_loss)
        if len(shape) > 1:
            for a, b in zip(views(x), reversed(views(y)), strict=True):
                value, grad = loss.value_and_grad(a, b)
                assert same_bits(value, true_loss)
                assert same_bits(grad, true_grad)
                assert grad.flags.c_contiguous
        out = np.full_like(x, np.nan)
        assert loss.value_and_grad(x, y, out=out)[1] is out
        assert same_bits(out, true_grad)
        value, grad = loss.value_and_grad(x, y, out=x)
        assert grad is x
        assert same_bits(value, true_loss)
        assert same_bits(x, true_grad)


@pytest.mark.parametrize("dtype", DTYPES)
@FUNCTION_ROWS
def test_functions_have_the_same_bits_everywhere(
    row: Function, dtype: Any, setting: Setting
) -> None:
    for shape in [*((n,) for n in SIZES), (260, 129)]:
        arrays = row.data(shape, dtype)
        LOWEST.use()
        expected = row.fused(*arrays, **row.options)
        setting.use()
        assert same_bits(row.fused(*arrays, **row.options), expected)
        if len(shape) > 1:
            for moved in zip(*map(views, arrays), strict=True):
                assert same_bits(row.fused(*moved, **row.options), expected)
        for i in range(len(arrays)):  # in place of each operand; the other one has other strides
            copies = [a.copy("C" if k == i else "F") for k, a in enumerate(arrays)]
            assert row.fused(*copies, **row.options, out=copies[i]) is copies[i]
            assert same_bits(copies[i], expected)
            assert all(
                same_bits(c, a)
                for k, (c, a) in enumerate(zip(copies, arrays, strict=True))
                if k != i
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [*LOSSES, *FUNCTIONS], ids=str)
def test_any_size_up_to_two_blocks(row: Loss | Function, dtype: Any) -> None:
    most = 2 * LANES + 2
    arrays = row.data((most,), dtype)
    memory = np.empty(most + 2, dtype)
    for size in range(1, most + 1):
        memory[...] = 7
        parts, out = [a[:size] for a in arrays], memory[1 : 1 + size]
        if isinstance(row, Loss):
            losses, expected = row.make((most,), "none").value_and_grad(*arrays)
            loss, _ = row.make((size,), "none").value_and_grad(*parts, out=out)
            assert same_bits(loss, losses[:size])
            loss, _ = row.make((size,), "sum").value_and_grad(*parts, out=out)
            terms = losses[:size].astype(np.float64)
            assert abs(loss - terms.sum()) <= 2e-7 * abs(terms).sum()
        else:
            expected = row.fused(*arrays, **row.options)
            row.fused(*parts, **row.options, out=out)
        assert same_bits(out, expected[:size])
        assert memory[0] == 7
        assert np.all(memory[1 + size :] == 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_arrays_of_many_chunks(dtype: Any, threads: int) -> None:
    """Each operand is read in pieces of several chunks, which have separate buffers."""
    row = Loss("BCEWithLogitsLoss", {"weight": True, "pos_weight": True}, "logits")
    x, y = row.data((900, 1111), dtype)
    expected = row.make(x.shape).value_and_grad(x, y)
    for a, b in ((x, np.asfortranarray(y)), (np.asfortranarray(x), np.asfortranarray(y))):
        value, grad = row.make(x.shape).value_and_grad(a, b)
        assert same_bits(value, expected[0])
        assert same_bits(grad, expected[1])


def test_large_arrays_leave_what_lies_around_them_alone(setting: Setting) -> None:
    """Large outputs are stored past the caches, at any alignment."""
    size = (1 << 22) + 2 * LANES + 7
    memory = np.full(size + 40, 7, np.float32)
    x = np.linspace(-3, 3, size, dtype=np.float32)
    y = np.zeros_like(x)
    expected = 2 * x.astype(np.float64)
    for offset in (4, 5, 16):
        memory[...] = 7
        out = memory[offset : offset + size]
        fo.MSELoss("sum").value_and_grad(x, y, out=out)
        assert np.array_equal(out, expected.astype(np.float32))
        assert np.all(memory[:offset] == 7)
        assert np.all(memory[offset + size :] == 7)


@given(
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    order=st.randoms(use_true_random=False),
    row=st.sampled_from(LOSSES),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_any_layout_of_both(shape: tuple[int, ...], order: Any, row: Loss, reduction: str) -> None:
    def relaid(a: FloatArray) -> FloatArray:
        axes = list(range(a.ndim))
        order.shuffle(axes)
        wide = np.empty([a.shape[i] * 2 for i in axes], a.dtype)
        every_other: Any = (..., *([slice(None, None, 2)] * a.ndim))
        moved: FloatArray = wide[every_other].transpose(np.argsort(axes).tolist())
        moved[...] = a
        return moved

    weighted = {"weight", "pos_weight"} & set(row.options)
    if weighted and (not shape or 0 in shape):
        return
    x, y = row.data(shape, np.float32)
    loss = row.make(shape, reduction)
    value, grad = loss.value_and_grad(x, y)
    other_value, other_grad = loss.value_and_grad(relaid(x), relaid(y))
    assert same_bits(other_value, value)
    assert same_bits(other_grad, grad)


# -- what they mean ------------------------------------------------------------------------------


@LOSS_ROWS
def test_gradient_is_the_derivative(row: Loss) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0.2, 0.8, (3, 4)), rng.uniform(0.05, 0.95, (3, 4))
    for reduction in ("mean", "sum", "none"):
        loss = row.make(x.shape, reduction)
        grad = loss.value_and_grad(x, y)[1]
        for i in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[i] += 1e-6
            down[i] -= 1e-6
            slope = (np.sum(loss(up, y)) - np.sum(loss(down, y))) / 2e-6
            assert grad[i] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@LOSS_ROWS
def test_no_elements_and_no_axes(row: Loss, dtype: Any) -> None:
    if not {"weight", "pos_weight"} & set(row.options):
        x, y = np.array(0.5, dtype), np.array(0.25, dtype)
        for reduction in ("mean", "sum"):
            value, grad = row.make((), reduction).value_and_grad(x, y)
            assert type(value) is float
            assert grad.shape == ()
            assert value == pytest.approx(row.reference((), reduction)(x, y), rel=1e-6)
        value, _ = row.make((), "none").value_and_grad(x, y)
        assert isinstance(value, np.ndarray)
        assert value.shape == ()
    for shape in ((0,), (0, 3), (3, 0, 2)):
        x = np.empty(shape, dtype)
        for reduction, expected in (("mean", np.nan), ("sum", 0.0)):
            value, grad = row.make(shape, reduction).value_and_grad(x, x.copy())
            assert same_bits(value, expected)
            assert grad.shape == shape
        value, grad = row.make(shape, "none").value_and_grad(x, x.copy())
        assert value.shape == grad.shape == shape
        assert value.dtype == grad.dtype == dtype


def element(loss: Any, x: float, y: float, dtype: Any = np.float64) -> tuple[float, float]:
    value, grad = loss.value_and_grad(np.array([x], dtype), np.array([y], dtype))
    return float(value), float(grad[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_corners(dtype: Any, isa: str) -> None:
    inf, nan = np.inf, np.nan
    corners: list[tuple[Any, float, float, float, float]] = [
        (fo.L1Loss(), 2, 2, 0, 0),
        (fo.L1Loss(), -inf, 0, inf, -1),
        (fo.MSELoss(), inf, 0, inf, inf),
        (fo.SmoothL1Loss(beta=0), 3, 3, 0, 0),
        (fo.SmoothL1Loss(beta=0), 3, 1, 2, 1),
        (fo.SmoothL1Loss(beta=2), 2, 0, 1, 1),  # at beta both pieces agree
        (fo.SmoothL1Loss(beta=5e-324), 3, 3, 0, 0),
        (fo.SmoothL1Loss(), inf, 0, inf, 1),
        (fo.HuberLoss(delta=2), 2, 0, 2, 2),
        (fo.HuberLoss(delta=2), -5, 0, 8, -2),
        (fo.HuberLoss(), -inf, 0, inf, -1),
        (fo.BCELoss(), 0, 1, 100, -1e12),
        (fo.BCELoss(), 1, 0, 100, 1e12),
        (fo.BCELoss(), 0, 0, 0, 0),
        (fo.BCELoss(), 1, 1, 0, 0),
        (fo.BCEWithLogitsLoss(), 0, 0.5, np.log(2), 0),
        (fo.BCEWithLogitsLoss(), -inf, 1, inf, -1),
        (fo.BCEWithLogitsLoss(), inf, 0, inf, 1),
        (fo.KLDivLoss(), -1, 0, 0, 0),
        (fo.KLDivLoss(), -inf, 0, 0, 0),  # 0 log 0
        (fo.KLDivLoss(), -inf, 1, inf, -1),
        (fo.KLDivLoss(), 0, -1, nan, 1),
        (fo.KLDivLoss(log_target=True), -3, -inf, 0, 0),
        (fo.KLDivLoss(log_target=True), -inf, -inf, 0, 0),
    ]
    for loss, x, y, true_value, true_grad in corners:
        value, grad = element(loss, x, y, dtype)
        assert value == pytest.approx(true_value, rel=1e-6, nan_ok=True), (loss, x, y)
        assert grad == pytest.approx(true_grad, rel=1e-6), (loss, x, y)
    for row in LOSSES:
        if row.name != "BCELoss" and "pos_weight" not in row.options:
            for pair in ((nan, 0.5), (0.5, nan), (nan, 0.0)):
                assert np.isnan(element(row.make(), *pair, dtype)[0]), (row, pair)


def test_float32_sums_neither_overflow_nor_lose_small_terms(isa: str) -> None:
    x = np.full(1000, 1e30, np.float32)
    zeros = np.zeros_like(x)
    assert fo.MSELoss()(x, zeros) == pytest.approx(1e60, rel=1e-6)
    assert fo.MSELoss()(-x, x) == pytest.approx(4e60, rel=1e-6)
    assert fo.L1Loss("sum")(x, zeros) == pytest.approx(1e33, rel=1e-6)
    x = np.ones(3_000_000, np.float32)
    x[0] = 1e8
    assert fo.L1Loss("sum")(x, np.zeros_like(x)) == 1e8 + 2_999_999


def test_huber_is_delta_times_smooth_l1() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 5000))
    for delta in (0.1, 1.0, 2.5):
        a = fo.HuberLoss("none", delta).value_and_grad(x, y)
        b = fo.SmoothL1Loss("none", delta).value_and_grad(x, y)
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, delta * q, rtol=1e-14)


def test_weights_are_broadcast_and_rounded_to_the_dtype() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.random((2, 6, 70)).astype(np.float32)
    per_row, full = rng.uniform(0.5, 2, (6, 1)), rng.uniform(0.5, 2, (6, 70)).astype(np.float32)
    for weight in (per_row, full, np.array(1.5), full[:1], full[:, ::-1], np.array([3.0])):
        rounded = np.broadcast_to(weight.astype(np.float32), x.shape).copy()
        for loss, expected in (
            (fo.BCELoss(weight), fo.BCELoss(rounded)),
            (fo.BCEWithLogitsLoss(weight), fo.BCEWithLogitsLoss(rounded)),
            (fo.BCEWithLogitsLoss(pos_weight=weight), fo.BCEWithLogitsLoss(pos_weight=rounded)),
        ):
            a, b = loss.value_and_grad(x, y), expected.value_and_grad(x, y)
            assert same_bits(a[0], b[0])
            assert same_bits(a[1], b[1])
    one = np.ones((), np.float32)
    assert fo.BCEWithLogitsLoss(one, pos_weight=one)(x, y) == fo.BCEWithLogitsLoss()(x, y)


def test_batchmean() -> None:
    rng = np.random.default_rng(6)
    x, y = np.log(rng.random((8, 5))), rng.random((8, 5))
    value, grad = fo.KLDivLoss("batchmean").value_and_grad(x, y)
    total, sum_grad = fo.KLDivLoss("sum").value_and_grad(x, y)
    assert value == total / 8
    np.testing.assert_allclose(grad, sum_grad / 8, rtol=1e-15)
    assert np.isnan(fo.KLDivLoss("batchmean")(x[:0], y[:0]))


def test_relu_at_zero_and_nan() -> None:
    x = np.array([-1.0, -0.0, 0.0, 5e-324, np.inf, -np.inf, np.nan])
    functions = fo.functional
    assert same_bits(functions.relu(x), np.array([0, 0, 0, 5e-324, np.inf, 0, np.nan]))
    grad = np.arange(1.0, 8)
    expected = np.array([0, 0, 0, 4, 5, 0, 7.0])
    assert same_bits(functions.relu_backward(grad, x), expected)
    assert same_bits(functions.relu_backward(grad, functions.relu(x)), expected)


def test_ends_of_the_logistic_function(isa: str) -> None:
    for dtype in DTYPES:
        x = np.array([-np.inf, -1000, 0, 1000, np.inf, np.nan], dtype)
        assert same_bits(fo.functional.sigmoid(x), np.array([0, 0, 0.5, 1, 1, np.nan], dtype))
        logistic = fo.functional.logistic(x, 4, 0.5, 0)
        assert same_bits(logistic[[0, 2, 3, 4, 5]], np.array([0, 2, 4, 4, np.nan], dtype))
        assert logistic[1] == pytest.approx(
            0 if dtype is np.float32 else 4 * np.exp(-500), rel=1e-12
        )


def test_the_hosts_floating_point_state_does_not_matter() -> None:
    x = np.full(100, 1e38, np.float32)
    with np.errstate(all="raise"):
        losses, _ = fo.MSELoss("none").value_and_grad(x, -x)
        fo.BCEWithLogitsLoss().value_and_grad(x, np.zeros_like(x))
        fo.functional.sigmoid(-x)
    assert np.all(np.isinf(losses))


def test_repr() -> None:
    assert repr(fo.MSELoss()) == "MSELoss(reduction='mean')"
    assert repr(fo.HuberLoss("sum", 2)) == "HuberLoss(reduction='sum', delta=2.0)"
    assert repr(fo.KLDivLoss("batchmean", True)) == (
        "KLDivLoss(reduction='batchmean', log_target=True)"
    )
    assert (
        repr(fo.BCELoss(np.ones((2, 3))))
        == "BCELoss(reduction='mean', weight=array of shape (2, 3))"
    )
    assert repr(fo.BCEWithLogitsLoss(pos_weight=np.ones(3))) == (
        "BCEWithLogitsLoss(reduction='mean', pos_weight=array of shape (3,))"
    )


def test_chunks_are_whole_blocks_of_lanes() -> None:
    assert CHUNK % LANES == 0  # a lane is the index within the chunk, whatever the runs


def test_errors_grow_with_nothing_but_the_elements(isa: str) -> None:
    """A mean over many elements is as exact as one, where the loss is computed in double."""
    x = np.full(1 << 20, 0.1, np.float32)
    y = np.full_like(x, 0.3)
    for row in LOSSES:
        if row.loss_ulp < 1 and not row.options.get("weight"):
            one = row.make()(x[:1], y[:1])
            assert row.make()(x, y) == pytest.approx(one, rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout_equals_the_reference(p: float, dtype: Any, isa: str, threads: int) -> None:
    rng = np.random.default_rng(0)
    for seed, shape in enumerate([(0,), (3,), (70_001,), (300, 400), (5, 6, 7)]):
        x = rng.standard_normal(shape).astype(dtype)
        seed = seed * 0x1234_5678_9ABC_DEF1 % 2**64
        expected = fo.reference.dropout(x, p, seed=seed)
        assert same_bits(fo.functional.dropout(x, p, seed=seed), expected)
        assert same_bits(fo.functional.dropout(np.asfortranarray(x), p, seed=seed), expected)
        assert fo.functional.dropout(x, p, seed=seed, out=x) is x
        assert same_bits(x, expected)


@pytest.mark.parametrize("first", [1, 700, 2**31 - 5, 2**32 - 1000])
def test_dropout_of_a_part_is_that_of_the_whole(first: int) -> None:
    x = np.random.default_rng(0).standard_normal((10, 100)).astype(np.float32)
    expected = fo.reference.dropout(x, 0.5, seed=2**63, first=first)
    assert same_bits(fo.functional.dropout(x, 0.5, seed=2**63, first=first), expected)
    rest = fo.functional.dropout(x[3:], 0.5, seed=2**63, first=first + 300)
    assert same_bits(rest, expected[3:])
    if first == 700:
        whole = fo.functional.dropout(np.ones(1700), 0.5, seed=2**63)
        assert same_bits(whole[first:].reshape(x.shape) == 0, expected == 0)


def test_dropout_keeps_the_share_and_the_mean_and_seeds_are_independent() -> None:
    size, p = 1 << 20, 0.3
    kept = np.array(
        [fo.functional.dropout(np.ones(size), p, seed=s) > 0 for s in (0, 1, 2, 2**32, 2**63)]
    )
    # Six standard deviations of a binomial share, and of a correlation of independent bits.
    assert np.all(abs(kept.mean(axis=1) - (1 - p)) < 6 * (p * (1 - p) / size) ** 0.5)
    assert np.all(abs(np.corrcoef(kept) - np.eye(len(kept))) < 6 / size**0.5)
    for lag in (1, 2, 64, 16384):
        assert abs(np.corrcoef(kept[0][:-lag], kept[0][lag:])[0, 1]) < 6 / size**0.5
    runs = np.bincount(np.packbits(kept[0]), minlength=256)  # of eight neighbours
    ones = np.array([bin(i).count("1") for i in range(256)])
    expected = (size / 8) * 0.7**ones * 0.3 ** (8 - ones)
    chi_square = float(np.sum((runs - expected) ** 2 / expected))
    assert chi_square < 255 + 6 * (2 * 255) ** 0.5


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"p": 1.0, "seed": 0}, ValueError),
        ({"p": -0.1, "seed": 0}, ValueError),
        ({"p": float("nan"), "seed": 0}, ValueError),
        ({"p": "x", "seed": 0}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**64}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"seed": 0, "first": -1}, ValueError),
        ({"seed": 0, "first": 2**32 - 2}, ValueError),
        ({"seed": 0, "first": 0.5}, TypeError),
    ],
)
def test_dropout_refuses_bad_options(options: Any, error: type[Exception]) -> None:
    x = np.ones(3)
    with pytest.raises(error):
        fo.functional.dropout(x, out=x, **options)
    assert same_bits(x, np.ones(3))
