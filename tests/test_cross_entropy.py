"""Cross-entropy: float64 truth in ULP, the same bits everywhere, the corners of its semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt._types import FloatArray, IntArray
from helpers import LOWEST, Setting, at_offset, infinite_rows, same_bits

ULP = 2.0**-23
CLASSES = [1, 2, 3, 10, 63, 64, 65, 127, 128, 129, 1000, 2047, 2048, 2049, 4097, 10_000]
# "weight" and "soft" ask `losses` for class weights, `targets_for` for probabilities.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.3, "reduction": "sum"},
    {"z_loss": 1e-2},
    {"logit_softcap": 20.0},
    {"soft": True},
    {"soft": True, "weight": True, "label_smoothing": 0.1, "z_loss": 1e-3, "logit_softcap": 30.0},
    {"weight": True, "label_smoothing": 0.2, "z_loss": 1e-3, "logit_softcap": 10.0},
]


def batch(
    rows: int, classes: int, dtype: Any = np.float32, seed: int = 0
) -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng([rows, classes, seed])
    logits = rng.uniform(-50, 50, (rows, classes)).astype(dtype)
    targets = rng.integers(0, classes, rows)
    sure = rng.random(rows) < 0.4  # the model is right, and more or less sure
    at = np.flatnonzero(sure)
    logits[at, targets[at]] = logits[at].max(axis=1) + rng.uniform(0, 30, at.size).astype(dtype)
    return logits, targets


def targets_for(options: dict[str, Any], logits: FloatArray, targets: IntArray) -> Any:
    """Return the class indices, or probabilities that favour them: for each third row alone."""
    if not options.get("soft"):
        return targets
    rows, classes = logits.shape
    some = np.random.default_rng(rows).random(logits.shape) ** 8 + 1e-3
    some[np.arange(rows), targets] += classes
    some[::3] = np.arange(classes) == targets[::3, None]
    return (some / some.sum(axis=1, keepdims=True)).astype(logits.dtype)


def losses(options: dict[str, Any], classes: int) -> tuple[Any, Any]:
    options = {key: value for key, value in options.items() if key != "soft"}
    if options.pop("weight", False):
        options["weight"] = np.random.default_rng(classes).uniform(0.1, 3, classes)
        options["weight"] = options["weight"].astype(np.float32)
    return fo.CrossEntropyLoss(**options), fo.reference.CrossEntropyLoss(**options)


def row_truth(logits: FloatArray, targets: IntArray) -> tuple[Any, FloatArray]:
    truth = fo.reference.CrossEntropyLoss(reduction="none").value_and_grad(logits, targets)
    return truth[0], truth[1]


def spread(logits: FloatArray) -> FloatArray:
    difference: FloatArray = logits.max(axis=1).astype(np.float64) - logits.min(axis=1)
    return difference


def check_against_truth(logits: FloatArray, indices: IntArray, options: dict[str, Any]) -> None:
    targets = targets_for(options, logits, indices)
    ours, truth = losses(options, logits.shape[1])
    loss, grad, lse, *counts = ours.value_and_stats(logits, targets)
    true_loss, true_grad, true_lse, *true_counts = truth.value_and_stats(logits, targets)
    # The capped logits are within 4 ULP of their own size, the cap at most.
    allowed = (4 + 4 * ours.logit_softcap) * ULP
    assert abs(loss - true_loss) <= allowed * abs(true_loss)
    assert ours(logits, targets) == loss
    x = logits.astype(np.float64)
    if ours.logit_softcap:
        x = ours.logit_softcap * np.tanh(x / ours.logit_softcap)
    assert np.all(abs(lse - true_lse) <= allowed * np.maximum(abs(true_lse), 1))
    assert counts == true_counts
    # The largest probability, times what the row's gradient is multiplied by.
    largest = np.exp(x.max(axis=1) - lse)
    classes = logits.shape[1]
    weight = np.ones(classes) if ours.weight is None else ours.weight.astype(np.float64)
    t = targets if options.get("soft") else np.arange(classes) == targets[:, None]
    smooth = ours.label_smoothing / classes
    mass = (weight * ((1 - ours.label_smoothing) * t + smooth)).sum(axis=1)
    mass += 2 * ours.z_loss * abs(lse)
    total = weight[indices].sum() if "soft" not in options else float(len(logits))
    # An entry may be far from 0 where no probability is: there its own size counts.
    size = np.maximum((largest * mass)[:, None], abs(weight * t))
    size /= total if ours.reduction == "mean" else 1.0
    assert np.all(abs(grad - true_grad) <= allowed * np.maximum(size, abs(true_grad)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_within_4_ulp_of_float64(classes: int, options: dict[str, Any]) -> None:
    check_against_truth(*batch(40, classes), options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_within_4_ulp_with_200_000_classes(options: dict[str, Any]) -> None:
    check_against_truth(*batch(6, 200_000), options)
    rng = np.random.default_rng(9)  # a flat row adds up the most rounding errors
    flat = rng.uniform(-1, 1, (4, 200_000)).astype(np.float32)
    check_against_truth(flat, rng.integers(0, 200_000, 4), options)


@pytest.mark.parametrize("classes", CLASSES)
def test_relative_accuracy_where_the_model_is_sure(classes: int) -> None:
    logits, targets = batch(60, classes)
    rows = np.arange(60)
    sure = logits.argmax(axis=1) == targets
    ours = fo.CrossEntropyLoss(reduction="none")
    loss, grad = ours.value_and_grad(logits, targets)
    true_loss, true_grad = row_truth(logits, targets)
    assert np.any(sure)
    allowed = (4 + spread(logits)) * ULP
    denormal = np.finfo(np.float32).smallest_subnormal
    error = abs(loss - true_loss)
    assert np.all(error <= allowed * abs(true_loss) + denormal)
    error = abs(grad - true_grad)[rows, targets]
    assert np.all((error <= allowed * abs(true_grad[rows, targets]) + denormal)[sure])


def test_tiny_losses_keep_their_digits(isa: str) -> None:
    for dtype in (np.float32, np.float64):
        for gap in (1.0, 17.0, 30.0, 80.0, 87.5, 95.0, 100.0):
            logits = np.array([[gap, 0.0]], dtype)
            loss, grad = fo.CrossEntropyLoss().value_and_grad(logits, np.array([0]))
            true = np.log1p(np.exp(-gap))
            assert loss == pytest.approx(true, rel=1e-5 if dtype is np.float32 else 1e-14)
            if gap < 87:  # the result itself is a normal float32
                true_grad = -np.exp(-gap) / (1 + np.exp(-gap))
                assert grad[0, 0] == pytest.approx(true_grad, rel=1e-5)
    loss, grad = fo.CrossEntropyLoss().value_and_grad(
        np.array([[30, 0]], np.float32), np.array([0])
    )
    assert f"{loss:.4e}" == "9.3576e-14"
    assert f"{grad[0, 0]:.4e}" == "-9.3576e-14"
    # Many small terms: each would be a denormal with few digits left.
    logits = np.zeros((1, 200_001), np.float32)
    logits[0, 0] = 100
    loss = fo.CrossEntropyLoss()(logits, np.array([0]))
    assert loss == pytest.approx(200_000 * np.exp(-100.0), rel=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000, 200_000])
def test_float64_within_16_ulp(classes: int) -> None:
    logits, targets = batch(12, classes, np.float64)
    loss, grad = fo.CrossEntropyLoss(reduction="none").value_and_grad(logits, targets)
    true_loss, true_grad = row_truth(logits, targets)
    allowed = (16 + spread(logits)) * 2.0**-52  # the reference has its own rounding errors
    assert np.all(abs(loss - true_loss) <= allowed * abs(true_loss))
    assert np.all(abs(grad - true_grad) <= 16 * 2.0**-52)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bits_for_every_instruction_set_and_team(
    options: dict[str, Any], dtype: Any, setting: Setting
) -> None:
    LOWEST.use()
    cases = [(1, 1), (3, 2), (5000, 10), (67, 64), (300, 129), (50, 1000), (9, 2049), (5, 20_000)]
    cases += [(4, 63), (4, 65), (5, 127), (6, 2047), (3, 4097)]
    expected, all_targets = [], []
    for rows, classes in cases:
        logits, indices = batch(rows, classes, dtype)
        all_targets.append(targets_for(options, logits, indices))
        logits[0, 0] = -np.inf
        expected.append(losses(options, classes)[0].value_and_grad(logits, all_targets[-1]))
    setting.use()
    for (rows, classes), targets, (true_loss, true_grad) in zip(
        cases, all_targets, expected, strict=True
    ):
        logits, _ = batch(rows, classes, dtype)
        logits[0, 0] = -np.inf
        ours, _ = losses(options, classes)
        moved = at_offset(logits.ravel(), 3).reshape(logits.shape)
        loss, grad = ours.value_and_grad(moved, targets)
        assert same_bits(loss, true_loss)
        assert same_bits(grad, true_grad)
        assert same_bits(moved, logits)
        assert same_bits(ours(logits, targets), true_loss)
        if rows <= 300:  # columns have a kernel of their own
            columns = ours.value_and_grad(np.asfortranarray(logits), targets)
            assert same_bits(columns[0], true_loss)
            assert same_bits(columns[1], true_grad)
        total, _ = losses({**options, "reduction": "sum"}, classes)
        whole = total.value_and_grad(logits, targets)[1]
        for i in range(min(rows, 5)):  # a row's gradient does not depend on the others
            _, row = total.value_and_grad(logits[i : i + 1], targets[i : i + 1])
            assert same_bits(row[0], whole[i])
        in_place, out = ours.value_and_grad(logits, targets, out=logits)
        assert out is logits
        assert same_bits(in_place, true_loss)
        assert same_bits(logits, true_grad)


def test_offsets_change_nothing(isa: str) -> None:
    rng = np.random.default_rng(10)
    logits = rng.integers(-30, 30, (20, 50)).astype(np.float32)  # exact after the shift too
    targets = rng.integers(0, 50, 20)
    ce = fo.CrossEntropyLoss()
    loss, grad = ce.value_and_grad(logits, targets)
    for offset in (1e7, -1e7):
        shifted_loss, shifted_grad = ce.value_and_grad(logits + np.float32(offset), targets)
        assert same_bits(shifted_loss, loss)
        assert same_bits(shifted_grad, grad)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3, 255, -1, 2**40])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_rows_give_exactly_zero(weighted: bool, ignore_index: int, isa: str) -> None:
    logits, targets = batch(30, 7)
    targets[targets == ignore_index] = 1
    ignored = np.arange(30) % 3 == 0
    logits[ignored] = np.array([np.nan, np.inf, -np.inf, 0, 1e38, -1e38, 1], np.float32)
    marked = np.where(ignored, ignore_index, targets)
    weight = np.linspace(0.5, 2, 7) if weighted else None
    ce = fo.CrossEntropyLoss(weight, ignore_index=ignore_index)
    loss, grad = ce.value_and_grad(logits, marked)
    kept_loss, kept_grad = ce.value_and_grad(logits[~ignored], targets[~ignored])
    assert loss == pytest.approx(kept_loss, rel=1e-15)  # the sum has another order
    assert same_bits(grad[~ignored], kept_grad)
    assert same_bits(grad[ignored], np.zeros_like(grad[ignored]))
    rows = fo.CrossEntropyLoss(ignore_index=ignore_index, reduction="none")(logits, marked)
    assert isinstance(rows, np.ndarray)
    assert np.all(rows[ignored] == 0)


@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_counts(rows: int, isa: str) -> None:
    logits = np.ones((rows, 4), np.float32)
    targets = np.full(rows, -100)
    for reduction, expected in (("mean", np.nan), ("sum", 0.0)):
        loss, grad = fo.CrossEntropyLoss(reduction=reduction).value_and_grad(  # type: ignore[arg-type]
            logits, targets
        )
        assert same_bits(loss, expected)
        assert same_bits(grad, np.zeros_like(logits))
    none = fo.CrossEntropyLoss(reduction="none")(logits, targets)
    assert same_bits(none, np.zeros(rows, np.float32))


def test_infinities_and_nan(isa: str) -> None:
    ce = fo.CrossEntropyLoss(reduction="none")
    inf, nan = np.inf, np.nan
    logits = np.array(
        [[1, -inf, 0], [-inf, 0, 1], [-inf, -inf, -inf], [inf, 0, 1], [0, inf, 1], [0, nan, 1]],
        np.float32,
    )
    loss, grad = ce.value_and_grad(logits, np.zeros(6, np.int64))
    assert isinstance(loss, np.ndarray)
    assert loss[0] == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)
    assert grad[0, 1] == 0
    assert loss[1] == inf
    assert grad[1, 0] == -1
    assert np.all(np.isfinite(grad[:2]))
    assert np.all(np.isnan(loss[2:]))
    assert np.all(np.isnan(grad[2:]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_infinities_and_nan_in_some_tiles(options: dict[str, Any], dtype: Any, isa: str) -> None:
    logits, indices = infinite_rows(dtype)
    targets = targets_for(options, logits, indices)
    options = options | {"reduction": "none"}
    ours, truth = losses(options, logits.shape[1])
    loss, grad, lse, *counts = ours.value_and_stats(logits, targets)
    true_loss, true_grad, true_lse, *true_counts = truth.value_and_stats(logits, targets)
    few = (16 + 4 * ours.logit_softcap) * np.finfo(dtype).eps
    np.testing.assert_allclose(loss, true_loss, rtol=few, atol=1e-40)
    np.testing.assert_allclose(grad, true_grad, rtol=few, atol=few)
    np.testing.assert_allclose(lse, true_lse, rtol=few)
    assert counts == true_counts
    columns = ours.value_and_stats(np.asfortranarray(logits), targets)
    for got, expected in zip(columns, (loss, grad, lse), strict=False):
        assert same_bits(got, expected)
    assert [*columns[3:]] == counts


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"])
def test_targets_of_any_integer_type_and_stride(kind: str) -> None:
    logits, targets = batch(9, 5)
    expected = fo.CrossEntropyLoss()(logits, targets)
    assert fo.CrossEntropyLoss()(logits, targets.astype(kind)) == expected
    spaced = np.repeat(targets, 2).astype(kind)[::2]
    assert fo.CrossEntropyLoss()(logits, spaced) == expected


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(9, 5), (70, 128), (65, 129), (40, 2049), (3, 4200)])
def test_any_strides_give_the_same_bits(rows: int, classes: int, options: dict[str, Any]) -> None:
    """Rows of many classes and columns are two regimes of the kernel: they agree to the bit."""
    logits, indices = batch(rows, classes)
    targets = targets_for(options, logits, indices)
    ours, _ = losses(options, classes)
    loss, grad, lse, *counts = ours.value_and_stats(logits, targets)
    padded = np.full((rows, classes + 3), np.nan, np.float32)
    padded[:, :classes] = logits
    views = [
        np.asfortranarray(logits),
        padded[:, :classes],
        np.repeat(logits, 3, axis=1)[:, ::3],
        logits[::-1, ::-1].copy()[::-1, ::-1],
    ]
    for view in views:
        view.flags.writeable = False
        again = ours.value_and_stats(view, targets)
        assert same_bits(again[0], loss)
        assert same_bits(again[1], grad)
        assert same_bits(again.logsumexp, lse)
        assert [*again[3:]] == counts
        out = np.full_like(view, np.nan)  # of the same layout
        ours.value_and_grad(logits, targets, out=out)
        assert same_bits(out, grad)
        again = ours.value_and_grad(out := view.copy(order="K"), targets, out=out)
        assert same_bits(again[0], loss)
        assert same_bits(out, grad)
    padded.flags.writeable = True
    ours.value_and_grad(padded[:, :classes], targets, out=padded[:, :classes])
    assert same_bits(padded[:, :classes], grad)
    assert np.all(np.isnan(padded[:, classes:]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 3, 1), (3, 4, 50), (2, 150, 6, 7), (5, 2, 1, 3, 2), (1, 9, 100), (37, 10, 5)]
)
def test_class_axis_1(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    positions, classes = np.prod(shape) // shape[1], shape[1]
    rows, indices = batch(positions, classes)
    soft = targets_for(options, rows, indices)
    expected = losses(options, classes)[0].value_and_stats(rows, soft)

    def to_shape(array: FloatArray) -> FloatArray:
        return np.moveaxis(array.reshape(shape[0], *shape[2:], classes), -1, 1)

    flat = indices.reshape(shape[0], *shape[2:])
    targets = to_shape(soft) if options.get("soft") else flat
    logits = to_shape(rows)
    broken = np.repeat(logits, 2, axis=-1)[..., ::2].swapaxes(0, -1).copy().swapaxes(0, -1)
    outermost = np.moveaxis(np.moveaxis(logits, 1, 0).copy(), 0, 1)  # neighbours over all runs
    out = np.full_like(outermost, np.nan)  # of the same layout
    losses(options, classes)[0].value_and_grad(outermost, targets, out=out)
    assert same_bits(out, to_shape(expected[1]))
    for view in (logits, np.ascontiguousarray(logits), broken, outermost):
        loss, grad, lse, *counts = losses(options, classes)[0].value_and_stats(view, targets)
        assert same_bits(loss, expected[0])
        assert grad.shape == shape
        assert same_bits(grad, to_shape(expected[1]))
        assert same_bits(lse, expected.logsumexp.reshape(flat.shape))
        assert counts == [*expected[3:]]
    none = losses({**options, "reduction": "none"}, classes)[0](logits, targets)
    assert none.shape == flat.shape
    truth = losses({**options, "reduction": "none"}, classes)[1](logits, targets)
    np.testing.assert_allclose(none, truth, rtol=1e-4, atol=1e-30)


def test_one_row_without_a_batch() -> None:
    logits, _ = batch(1, 7)
    for reduction in ("mean", "sum", "none"):
        ce = fo.CrossEntropyLoss(reduction=reduction)
        expected = ce.value_and_grad(logits, np.array([3]))
        for target in (3, np.int32(3), np.array(3)):
            loss, grad = ce.value_and_grad(logits[0], target)
            assert np.shape(loss) == ()
            assert loss == np.ravel(expected[0])[0]
            assert same_bits(grad, expected[1][0])


def test_stats(isa: str) -> None:
    logits = np.array([[1, 3, 3], [1, 3, 3], [0, 0, 0], [np.nan, 1, 0], [5, 1, 0]], np.float32)
    targets = np.array([1, 2, 0, 0, -100])
    for x in (logits, np.repeat(logits, 100, axis=1)[:, ::1]):
        if x is not logits:  # classes 100 c to 100 c + 99 are equal: the first counts
            targets = np.where(targets < 0, -100, 100 * targets)
        ce = fo.CrossEntropyLoss()
        _, _, lse, *counts = ce.value_and_stats(x, targets)
        assert counts == [2, 4]
        expected = np.log(np.exp(x.astype(np.float64)).sum(axis=1))
        expected[4] = 0  # ignored
        np.testing.assert_allclose(lse, expected, rtol=1e-6)
        assert ce.value_and_stats(x, targets, grad=False)[3:] == (2, 4)
        assert ce.value_and_stats(x, targets, grad=False).grad is None


def test_probabilities_of_zero_and_masked_logits(isa: str) -> None:
    logits = np.array([[1, -np.inf, 0, 2]], np.float32)
    probabilities = np.array([[0.5, 0, 0.5, 0]], np.float32)
    for classes in (4, 200):
        x = np.full((1, classes), -np.inf, np.float32)
        x[:, :4] = logits
        t = np.zeros((1, classes), np.float32)
        t[:, :4] = probabilities
        loss, grad = fo.CrossEntropyLoss().value_and_grad(x, t)
        p = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert loss == pytest.approx(-0.5 * np.log(p[0]) - 0.5 * np.log(p[2]), rel=1e-6)
        np.testing.assert_allclose(grad[0, :4], p - probabilities[0], rtol=1e-5, atol=1e-7)
        assert np.all(grad[0, 4:] == 0)


def test_probabilities_that_are_sure_keep_their_digits(isa: str) -> None:
    for classes in (2, 300):
        logits = np.full((1, classes), -100.0)
        logits[0, :2] = [30, 0]
        sure = np.zeros((1, classes))
        sure[0, 0] = 1
        loss, grad = fo.CrossEntropyLoss().value_and_grad(logits, sure)
        by_index = fo.CrossEntropyLoss().value_and_grad(logits, np.array([0]))
        assert loss == pytest.approx(9.3576229688393e-14, rel=1e-13)
        assert (loss, *grad[0, :2]) == pytest.approx((by_index[0], *by_index[1][0, :2]), rel=1e-14)


def test_what_does_not_count_may_be_infinite(isa: str) -> None:
    lowest = np.finfo(np.float64).min
    for classes in (3, 300):
        masked = np.full((2, classes), lowest)  # their squares are beyond float64
        masked[1, 0] = 1e155
        loss = fo.CrossEntropyLoss(reduction="none")(masked, np.array([0, 0]))
        assert np.asarray(loss) == pytest.approx([np.log(classes), 0.0], abs=1e-15)
        x = np.zeros((1, classes))
        x[0, 0] = -np.inf
        weight = np.ones(classes)
        weight[0] = 0
        hot = np.zeros((1, classes))
        hot[0, 0] = 1
        for targets in (np.array([0]), hot):
            assert fo.CrossEntropyLoss(weight, reduction="sum")(x, targets) == 0
        assert fo.CrossEntropyLoss(label_smoothing=1.0)(x, np.array([0])) == np.inf


def test_empty_views_and_axes_of_size_1() -> None:
    empty = np.zeros((2, 3, 4, 5), np.float32)[..., :0]
    ce, f = fo.CrossEntropyLoss(reduction="sum"), fo.functional
    assert ce.value_and_grad(empty, np.zeros((2, 4, 0), int), out=empty)[0] == 0
    assert ce(empty, empty) == 0
    assert fo.NLLLoss(reduction="sum")(empty, np.zeros((2, 4, 0), int)) == 0
    assert f.softmax(empty, 1, out=empty) is empty
    a = np.arange(10.0)
    expected = ce.value_and_grad(a[None].copy(), np.array([3]))[1]
    assert same_bits(ce.value_and_grad(a[None], np.array([3]), out=a.reshape(1, 10))[1], expected)


def test_infinite_logits_under_a_cap(isa: str) -> None:
    logits = np.array([[np.inf, -np.inf, 0, 1e30]], np.float32)
    loss, grad = fo.CrossEntropyLoss(logit_softcap=5.0).value_and_grad(logits, np.array([0]))
    expected = fo.CrossEntropyLoss()(np.array([[5, -5, 0, 5]], np.float32), np.array([0]))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert np.all(grad[0, [0, 1, 3]] == 0)
    assert grad[0, 2] > 0


def test_out_is_used_and_returned() -> None:
    logits, targets = batch(9, 5)
    expected = fo.CrossEntropyLoss().value_and_grad(logits, targets)[1]
    out = np.full_like(logits, np.nan)
    assert fo.CrossEntropyLoss().value_and_grad(logits, targets, out=out)[1] is out
    assert same_bits(out, expected)


def test_class_weights_of_zero_and_float64_weights() -> None:
    logits, targets = batch(30, 4)
    weight = np.array([0.0, 1.0, 2.0, 0.5])
    ce, truth = fo.CrossEntropyLoss(weight), fo.reference.CrossEntropyLoss(weight)
    loss, grad = ce.value_and_grad(logits, targets)
    true_loss, true_grad = truth.value_and_grad(logits, targets)
    assert loss == pytest.approx(true_loss, rel=1e-6)
    np.testing.assert_allclose(grad, true_grad, rtol=0, atol=1e-7)
    assert np.all(grad[targets == 0] == 0)


def test_gradient_is_the_derivative() -> None:
    logits, indices = batch(4, 6, np.float64)
    logits /= 10
    for options in OPTIONS:
        ce, _ = losses(options, 6)
        targets = targets_for(options, logits, indices)
        _, grad = ce.value_and_grad(logits, targets)
        for i in np.ndindex(logits.shape):
            up, down = logits.copy(), logits.copy()
            up[i] += 1e-6
            down[i] -= 1e-6
            slope = (ce(up, targets) - ce(down, targets)) / 2e-6
            assert grad[i] == pytest.approx(slope, abs=1e-8)


def test_no_warning_and_no_error_after_writing() -> None:
    logits = np.array([[3e38, -3e38], [100, 0]], np.float32)
    with np.errstate(all="raise"):
        loss, _ = fo.CrossEntropyLoss(reduction="none").value_and_grad(
            logits, np.array([1, 0]), out=logits
        )
    assert isinstance(loss, np.ndarray)
    assert loss[0] == np.inf
    assert 0 < loss[1] < 1e-43


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000, 5000])
def test_each_entry_is_within_its_bound(classes: int, dtype: Any) -> None:
    rng = np.random.default_rng(classes)
    rows = np.arange(60)
    for spread_of_row in (1, 30, 80):
        offset = rng.uniform(-spread_of_row, 0, (60, 1))
        logits = (rng.uniform(0, spread_of_row, (60, classes)) + offset).astype(dtype)
        targets = rng.integers(0, classes, 60)
        below = logits.max(axis=1, keepdims=True).astype(np.longdouble) - logits
        true = np.exp(-below)
        true /= true.sum(axis=1, keepdims=True)
        _, grad = fo.CrossEntropyLoss(reduction="none").value_and_grad(logits, targets)
        for result in (grad, fo.functional.softmax(logits)):
            error = abs(result - true) / true / np.finfo(dtype).eps
            if result is grad:
                error[rows, targets] = 0
            assert np.all(error <= 4 + below / 2)


@pytest.mark.parametrize("scale", [1e-25, 1e-30, 1e-36])
def test_tiny_class_weights_keep_the_gradients_digits(scale: float) -> None:
    logits, targets = batch(40, 10)
    weight = np.full(10, scale)
    options: dict[str, Any] = {"weight": weight.astype(np.float32), "reduction": "sum"}
    _, grad = fo.CrossEntropyLoss(**options).value_and_grad(logits, targets)
    _, true = fo.reference.CrossEntropyLoss(**options).value_and_grad(logits, targets)
    largest = abs(true).max(axis=1, keepdims=True)
    assert np.all(abs(grad - true) <= 4 * ULP * largest + 2.0**-149)


def test_repr() -> None:
    assert repr(fo.CrossEntropyLoss()) == (
        "CrossEntropyLoss(ignore_index=-100, reduction='mean', label_smoothing=0.0)"
    )
    assert "weight=array of 3" in repr(fo.CrossEntropyLoss(weight=np.ones(3)))
    assert repr(fo.CrossEntropyLoss(z_loss=1e-4)).endswith("label_smoothing=0.0, z_loss=0.0001)")
