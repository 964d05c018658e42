"""Cross-entropy: float64 truth in ULP, the same bits everywhere, the corners of its semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import at_offset, same_bits
from fastopt import _core
from fastopt._types import FloatArray, IntArray

ULP = 2.0**-23
CLASSES = [1, 2, 3, 10, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 2049, 5000]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.3, "reduction": "sum"},
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


def losses(options: dict[str, Any], classes: int) -> tuple[Any, Any]:
    options = dict(options)
    if options.pop("weight", False):
        options["weight"] = np.random.default_rng(classes).uniform(0.1, 3, classes)
        options["weight"] = options["weight"].astype(np.float32)
    return fo.CrossEntropyLoss(**options), fo.reference.CrossEntropyLoss(**options)


def row_truth(logits: FloatArray, targets: IntArray) -> tuple[Any, FloatArray]:
    return fo.reference.CrossEntropyLoss(reduction="none").value_and_grad(logits, targets)


def spread(logits: FloatArray) -> FloatArray:
    difference: FloatArray = logits.max(axis=1).astype(np.float64) - logits.min(axis=1)
    return difference


def check_against_truth(logits: FloatArray, targets: IntArray, options: dict[str, Any]) -> None:
    ours, truth = losses(options, logits.shape[1])
    loss, grad = ours.value_and_grad(logits, targets)
    true_loss, true_grad = truth.value_and_grad(logits, targets)
    assert abs(loss - true_loss) <= 4 * ULP * abs(true_loss)
    assert ours(logits, targets) == loss
    x = logits.astype(np.float64)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    # The largest probability, times what the row's gradient is multiplied by.
    weight = np.ones(logits.shape[1]) if ours.weight is None else ours.weight.astype(np.float64)
    mass = (1 - ours.label_smoothing) * weight[targets] + ours.label_smoothing * weight.mean()
    total = weight[targets].sum() if ours.reduction == "mean" else 1.0
    # The target's entry may be near -1 where no probability is: there its own size counts.
    size = np.maximum((p.max(axis=1) * mass / total)[:, None], abs(true_grad))
    assert np.all(abs(grad - true_grad) <= 4 * ULP * size)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_within_4_ulp_of_float64(classes: int, options: dict[str, Any], isa: str) -> None:
    check_against_truth(*batch(40, classes), options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_within_4_ulp_with_200_000_classes(options: dict[str, Any], isa: str) -> None:
    check_against_truth(*batch(6, 200_000), options)
    rng = np.random.default_rng(9)  # a flat row adds up the most rounding errors
    flat = rng.uniform(-1, 1, (4, 200_000)).astype(np.float32)
    check_against_truth(flat, rng.integers(0, 200_000, 4), options)


@pytest.mark.parametrize("classes", CLASSES)
def test_relative_accuracy_where_the_model_is_sure(classes: int, isa: str) -> None:
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
def test_float64_within_16_ulp(classes: int, isa: str) -> None:
    logits, targets = batch(12, classes, np.float64)
    loss, grad = fo.CrossEntropyLoss(reduction="none").value_and_grad(logits, targets)
    true_loss, true_grad = row_truth(logits, targets)
    allowed = (16 + spread(logits)) * 2.0**-52  # the reference has its own rounding errors
    assert np.all(abs(loss - true_loss) <= allowed * abs(true_loss))
    assert np.all(abs(grad - true_grad) <= 16 * 2.0**-52)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bits_for_every_instruction_set_and_team(
    options: dict[str, Any], dtype: Any, isa: str, threads: int
) -> None:
    _core.use_isa("baseline" if "baseline" in fo.available_isas() else "generic")
    _core.set_num_threads(1, beyond=True)
    cases = [(1, 1), (3, 2), (700, 10), (67, 64), (50, 1000), (9, 1025), (5, 20_000)]
    expected = []
    for rows, classes in cases:
        logits, targets = batch(rows, classes, dtype)
        logits[0, 0] = -np.inf
        expected.append(losses(options, classes)[0].value_and_grad(logits, targets))
    _core.use_isa(isa)
    _core.set_num_threads(threads, beyond=True)
    for (rows, classes), (true_loss, true_grad) in zip(cases, expected, strict=True):
        logits, targets = batch(rows, classes, dtype)
        logits[0, 0] = -np.inf
        ours, _ = losses(options, classes)
        moved = at_offset(logits.ravel(), 3).reshape(logits.shape)
        loss, grad = ours.value_and_grad(moved, targets)
        assert same_bits(loss, true_loss)
        assert same_bits(grad, true_grad)
        assert same_bits(moved, logits)
        assert same_bits(ours(logits, targets), true_loss)
        per_row = [losses(options, classes)[0].value_and_grad(logits[i : i + 1], targets[i : i + 1])
                   for i in range(min(rows, 5))]  # fmt: skip
        if ours.reduction == "sum":
            assert all(same_bits(g[0], true_grad[i]) for i, (_, g) in enumerate(per_row))
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
def test_ignored_rows_give_exactly_zero(ignore_index: int, isa: str) -> None:
    logits, targets = batch(30, 7)
    targets[targets == ignore_index] = 1
    ignored = np.arange(30) % 3 == 0
    logits[ignored] = np.array([np.nan, np.inf, -np.inf, 0, 1e38, -1e38, 1], np.float32)
    marked = np.where(ignored, ignore_index, targets)
    ce = fo.CrossEntropyLoss(ignore_index=ignore_index)
    loss, grad = ce.value_and_grad(logits, marked)
    kept_loss, kept_grad = ce.value_and_grad(logits[~ignored], targets[~ignored])
    assert same_bits(loss, kept_loss)
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


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4"])
def test_targets_of_any_integer_type_and_stride(kind: str) -> None:
    logits, targets = batch(9, 5)
    expected = fo.CrossEntropyLoss()(logits, targets)
    assert fo.CrossEntropyLoss()(logits, targets.astype(kind)) == expected
    spaced = np.repeat(targets, 2).astype(kind)[::2]
    assert fo.CrossEntropyLoss()(logits, spaced) == expected


def test_any_strides_of_logits() -> None:
    logits, targets = batch(9, 5)
    expected = fo.CrossEntropyLoss().value_and_grad(logits, targets)
    for view in (np.asfortranarray(logits), np.repeat(logits, 3, axis=1)[:, ::3],
                 logits[::-1, ::-1].copy()[::-1, ::-1]):  # fmt: skip
        view.flags.writeable = False
        loss, grad = fo.CrossEntropyLoss().value_and_grad(view, targets)
        assert same_bits(loss, expected[0])
        assert same_bits(grad, expected[1])


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
    logits, targets = batch(4, 6, np.float64)
    logits /= 10
    for options in OPTIONS:
        ce, _ = losses(options, 6)
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
