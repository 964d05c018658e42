"""Linear cross-entropy: the reference, chunks of any size, memory, rows that are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import DTYPES
from fastopt._types import FloatArray, IntArray
from helpers import (
    PEAK,
    PEAK_NEEDS,
    SEES_PEAKS,
    check,
    misaligned,
    ones,
    read_only,
    refused,
    same_bits,
    swapped,
)
from linear_cases import CLASSES, OPTIONS, ROWS, WIDTH, data, losses


@pytest.mark.parametrize(
    ("rows_at_once", "bias"), [("all", True), ("some", False), ("some", True), ("one", True)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_reference(
    options: dict[str, Any], dtype: Any, bias: bool, rows_at_once: str
) -> None:
    *arrays, b = data(options, dtype)
    arrays += [b] if bias else []
    ours, truth = losses(options)
    if rows_at_once != "all":
        ours, _ = losses(options, 20_000 if rows_at_once == "some" else 1)
    loss, grads, lse, *counts = ours.value_and_stats(*arrays)
    true_loss, true_grads, true_lse, *true_counts = truth.value_and_stats(*arrays)
    assert len(grads) == 2 + bias
    assert all(g.dtype == dtype for g in grads)
    # The products round each term and each partial sum, by one unit of the sum of absolute values
    # at most. A logit that is off by d changes a probability by the factor exp(2 d), and what the
    # options make of it by a few times that.
    unit = float(np.finfo(dtype).eps)
    hidden, w = abs(arrays[0]).astype(np.float64), abs(arrays[1]).astype(np.float64)
    x = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64).T + (b if bias else 0)
    logit_error = (WIDTH + 4) * unit * (hidden @ w.T + abs(b)).max()
    plain = fo.reference.CrossEntropyLoss(**vars(truth.cross_entropy))
    _, g = plain.value_and_grad(x, arrays[2])
    entry = abs(g) + abs(g).max(axis=1, keepdims=True) * np.exp(x - x.max(axis=1, keepdims=True))
    relative = 8 * logit_error + (ROWS + CLASSES) * unit
    allowed = [entry @ w, entry.T @ hidden, entry.sum(axis=0)]
    for ours_is, truth_is, size in zip(grads, true_grads, allowed, strict=False):
        assert np.all(abs(ours_is - truth_is) <= relative * size)
    np.testing.assert_allclose(loss, true_loss, rtol=8 * logit_error, atol=8 * logit_error)
    np.testing.assert_allclose(lse, true_lse, rtol=0, atol=8 * logit_error)
    assert counts == true_counts
    value, grad, again, *_ = ours.value_and_stats(*arrays, grad=False)
    assert grad is None
    assert same_bits(value, loss)
    assert same_bits(again, lse)
    assert same_bits(ours(*arrays), loss)
    again = ours.value_and_grad(*arrays)[1]
    assert all(same_bits(a, g) for a, g in zip(again, grads, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[6], OPTIONS[8]], ids=str)
def test_one_chunk_is_cross_entropy_of_the_logits(options: dict[str, Any], dtype: Any) -> None:
    hidden, w, targets, b = data(options, dtype)
    ours, truth = losses(options)
    loss, (dhidden, dw, db), lse, *counts = ours.value_and_stats(hidden, w, targets, b)
    ce = fo.CrossEntropyLoss(**vars(truth.cross_entropy))
    logits = hidden @ w.T
    logits += b
    true_loss, g, true_lse, *true_counts = ce.value_and_stats(logits, targets)
    assert same_bits(loss, true_loss)
    assert same_bits(lse, true_lse)
    assert counts == true_counts
    assert same_bits(dhidden, g @ w)
    assert same_bits(dw, g.T @ hidden)
    assert same_bits(db, np.ones(ROWS, dtype) @ g)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict[str, Any]) -> None:
    hidden, w, targets, b = data(options, rows=6, classes=9)
    ours, _ = losses(options, 200, 9)
    assert fo.testing.gradcheck(
        lambda h, w, b: ours.value_and_grad(h, w, targets, b), [hidden, w, b]
    )


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignored"])
def test_any_limit(ignore: bool) -> None:
    hidden, w, targets, b = data({"ignore_index": -100} if ignore else {})
    out = [np.full_like(a, 7) for a in (hidden, w, b)]
    expected, grads = fo.LinearCrossEntropyLoss().value_and_grad(hidden, w, targets, b)
    row = w.shape[0] * w.itemsize
    for limit in (1, row - 1, row, 2 * row, 17 * row, 33 * row, 10**9, 10**30):
        ours = fo.LinearCrossEntropyLoss(memory_limit=limit)
        loss, got = ours.value_and_grad(hidden, w, targets, b, out=out)
        assert loss == pytest.approx(expected, rel=1e-13)
        for mine, theirs in zip(got, grads, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-14)


@SEES_PEAKS
def test_memory_by_default_is_a_tenth_of_the_logits() -> None:
    check(
        PEAK
        + """
import numpy as np, fastopt as fo
rng = np.random.default_rng(3)
rows, classes = 2048, 32_000
hidden = rng.standard_normal((rows, 8), np.float32)
w = rng.standard_normal((classes, 8), np.float32)
targets = rng.integers(0, classes, rows)
out = (np.empty_like(hidden), np.empty_like(w))
ours = fo.LinearCrossEntropyLoss()
logits = rows * classes * 4
for call in (lambda: ours.value_and_grad(hidden, w, targets, out=out),
             lambda: ours(hidden, w, targets)):
    used = peak(call)
    assert 0.01 * logits < used < 0.1 * logits, (used, logits)
""",
        **PEAK_NEEDS,
    )


@SEES_PEAKS
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
def test_the_limit_is_that_of_the_logits(dtype: Any) -> None:
    # Beside them: a block of linear_weight's gradient, here all of it, a row for each thread with
    # logit_softcap, and what has a few numbers for each row or class.
    check(
        PEAK
        + f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import numpy as np, fastopt as fo
from linear_cases import OPTIONS, data, losses
fo.set_num_threads(2)
for options in OPTIONS:
    hidden, w, targets, b = data(options, np.{dtype.__name__}, rows=1500, classes=1500)
    beside = w.nbytes + 60_000 + 2 * b.nbytes * ("logit_softcap" in options)
    out = tuple(np.empty_like(a) for a in (hidden, w, b))
    for limit in (1_500_000, 5_000_000):
        ours, _ = losses(options, limit, 1500)
        for call in (lambda: ours.value_and_grad(hidden, w, targets, b, out=out),
                     lambda: ours(hidden, w, targets, b)):
            used = peak(call)
            assert limit / 2 < used <= limit + beside, (options, limit, used)
""",
        **PEAK_NEEDS,
    )


@pytest.mark.parametrize("memory_limit", [None, 100_000])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_count_nothing_whatever_they_hold(
    reduction: Any, memory_limit: int | None
) -> None:
    hidden, w, targets, b = data({})
    ignored = np.arange(ROWS) % 3 == 0
    ignored[20:40] = True  # whole chunks
    hidden[ignored] = [np.nan, np.inf, -np.inf, 1e300] * 3
    marked = np.where(ignored, -100, targets)
    ours = fo.LinearCrossEntropyLoss(reduction=reduction, memory_limit=memory_limit)
    loss, (dhidden, dw, db), lse, *counts = ours.value_and_stats(hidden, w, marked, b)
    kept = ours.value_and_stats(hidden[~ignored], w, targets[~ignored], b)
    np.testing.assert_allclose(np.sum(loss), np.sum(kept[0]), rtol=1e-14)
    if reduction == "none":
        assert isinstance(loss, np.ndarray)
        assert np.all(loss[ignored] == 0)
    np.testing.assert_allclose(dhidden[~ignored], kept[1][0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(dw, kept[1][1], rtol=0, atol=1e-13)
    np.testing.assert_allclose(db, kept[1][2], rtol=0, atol=1e-13)
    assert same_bits(dhidden[ignored], np.zeros_like(dhidden[ignored]))
    assert np.all(lse[ignored] == 0)
    assert counts == [*kept[3:]]


@pytest.mark.parametrize(("rows", "ignore"), [(0, False), (5, True)])
def test_nothing_counts(rows: int, ignore: bool) -> None:
    hidden, w, _, b = data({}, rows=rows)
    targets: Any = np.full(rows, -100)
    for reduction, expected in (("mean", np.nan), ("sum", 0.0), ("none", np.zeros(rows))):
        ours = fo.LinearCrossEntropyLoss(reduction=reduction)  # type: ignore[arg-type]
        out = tuple(np.full_like(a, np.nan) for a in (hidden, w, b))
        loss, grads, _, *counts = ours.value_and_stats(hidden, w, targets, b, out=out)
        assert same_bits(loss, expected)
        assert all(same_bits(g, np.zeros_like(g)) for g in grads)
        assert counts == [0, 0]
        if not ignore:
            soft = np.empty((0, CLASSES))
            assert same_bits(ours.value_and_grad(hidden, w, soft)[0], expected)


def test_a_layer_without_inputs_has_the_bias_alone() -> None:
    _, _, targets, b = data({})
    hidden, w = np.empty((ROWS, 0)), np.empty((CLASSES, 0))
    loss, grads = fo.LinearCrossEntropyLoss(memory_limit=100_000).value_and_grad(
        hidden, w, targets, b
    )
    logits = np.tile(b, (ROWS, 1))
    true_loss, g = fo.CrossEntropyLoss().value_and_grad(logits, targets)
    assert loss == pytest.approx(true_loss, rel=1e-14)
    assert [a.shape for a in grads] == [(ROWS, 0), (CLASSES, 0), (CLASSES,)]
    np.testing.assert_allclose(grads[2], g.sum(axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(), (4, 3), (2, 3, 2), (0, 3)], ids=str)
def test_any_axes_before_the_last(shape: tuple[int, ...], soft: bool) -> None:
    rows = int(np.prod(shape))
    hidden, w, targets, _ = data({"soft": soft}, rows=rows)
    ours = fo.LinearCrossEntropyLoss(reduction="none", memory_limit=30_000)
    loss, (dhidden, dw), lse, *_ = ours.value_and_stats(hidden, w, targets)
    shaped: Any = targets.reshape(shape + targets.shape[1:])
    if shape == () and not soft:
        shaped = int(targets[0])
    many = ours.value_and_stats(hidden.reshape(*shape, WIDTH), w, shaped)
    assert same_bits(many[0], np.reshape(loss, shape))
    assert same_bits(many[1][0], dhidden.reshape(*shape, WIDTH))
    assert same_bits(many[1][1], dw)
    assert same_bits(many.logsumexp, lse.reshape(shape))


@pytest.mark.parametrize("memory_limit", [None, 40_000])
def test_any_strides(memory_limit: int | None) -> None:
    hidden, w, targets, _ = data({})
    ours = fo.LinearCrossEntropyLoss(memory_limit=memory_limit)
    loss, grads = ours.value_and_grad(hidden, w, targets)

    def layouts(a: FloatArray) -> list[FloatArray]:
        wide = np.full((a.shape[0], a.shape[1] + 5), np.nan)
        wide[:, : a.shape[1]] = a
        return [
            np.asfortranarray(a),
            wide[:, : a.shape[1]],
            np.repeat(a, 2, axis=1)[:, ::2],
            a[::-1].copy()[::-1],
        ]

    for h, v in [(h, w) for h in layouts(hidden)] + [(hidden, v) for v in layouts(w)]:
        for out in (None, (np.empty_like(hidden), np.empty(w.shape, order="F"))):
            value, got = ours.value_and_grad(h, v, targets, out=out)
            assert value == pytest.approx(loss, rel=1e-14)
            for mine, theirs in zip(got, grads, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-14)


def test_out_is_used_and_the_function_is_the_class() -> None:
    for bias in (False, True):
        hidden, w, targets, b = data({})
        arrays: list[Any] = [hidden, w, targets, b][: 3 + bias]
        out = tuple(np.full_like(a, np.nan) for a in (hidden, w, b)[: 2 + bias])
        ours: Any = fo.LinearCrossEntropyLoss(label_smoothing=0.1, memory_limit=100_000)
        loss, grads = ours.value_and_grad(*arrays)
        again, got = ours.value_and_grad(*arrays, out=list(out))
        assert loss == again
        assert all(a is o for a, o in zip(got, out, strict=True))
        assert all(same_bits(a, g) for a, g in zip(got, grads, strict=True))
        loss, got = fo.functional.linear_cross_entropy(
            *arrays, label_smoothing=0.1, memory_limit=100_000
        )
        assert loss == again
        assert all(same_bits(a, g) for a, g in zip(got, grads, strict=True))


def test_numpy_warns_of_nothing() -> None:
    hidden, w, targets, b = data({}, np.float32)
    hidden[1], w[5, 0], b[9] = np.inf, np.nan, 3e38
    loss, grads = fo.LinearCrossEntropyLoss().value_and_grad(hidden, w, targets, b)
    assert np.isnan(loss)
    assert np.isnan(grads[1]).any()


def test_repr() -> None:
    assert repr(fo.LinearCrossEntropyLoss(memory_limit=5)) == (
        "LinearCrossEntropyLoss(ignore_index=-100, reduction='mean', label_smoothing=0.0, "
        "memory_limit=5)"
    )
    assert "memory_limit" not in repr(fo.LinearCrossEntropyLoss())


H, W, Y = ones(3, 2), ones(4, 2), np.array([0, 3, 1])
BAD: list[tuple[str, tuple[Any, ...], type[Exception], list[str]]] = [
    ("list", ([[1.0]], W, Y), TypeError, ["hidden", "list"]),
    ("half", (H.astype(np.float16), W, Y), TypeError, ["hidden", "float16"]),
    ("scalar", (H[0, 0, ...], W, Y), ValueError, ["hidden", "()"]),
    ("mixed", (H, W.astype(float), Y), TypeError, ["linear_weight", "float64", "float32"]),
    ("transposed", (H, W.T.copy(), Y), ValueError, ["linear_weight", "(V, 2)", "(2, 4)"]),
    ("flat", (H, W[0], Y), ValueError, ["linear_weight", "(V, 2)", "(2,)"]),
    ("no classes", (H, W[:0], Y), ValueError, ["linear_weight", "(0, 2)", "V >= 1"]),
    ("swapped", (H, swapped(W), Y), ValueError, ["linear_weight", "byte-swapped"]),
    ("misaligned", (misaligned(H), W, Y), ValueError, ["hidden", "misaligned"]),
    ("bias dtype", (H, W, Y, np.ones(4)), TypeError, ["linear_bias", "float64"]),
    ("bias shape", (H, W, Y, ones(3)), ValueError, ["linear_bias", "(4,)", "(3,)"]),
    ("bias column", (H, W, Y, ones(4, 1)), ValueError, ["linear_bias", "(4,)", "(4, 1)"]),
    ("target list", (H, W, [0, 1, 2]), TypeError, ["targets", "list"]),
    ("too few", (H, W, Y[:2]), ValueError, ["targets", "(3,)", "row of hidden", "(2,)"]),
    ("too large", (H, W, np.array([0, 4, 9])), IndexError, ["targets[1] is 4", "[0, 4)"]),
    ("last is bad", (H, W, np.array([0, 1, -1])), IndexError, ["targets[2] is -1"]),
    (
        "two axes",
        (ones(2, 3, 2), W, np.array([[0, 1, 2], [3, 5, 0]])),
        IndexError,
        ["targets[1, 1] is 5"],
    ),
    ("bool", (H, W, Y > 0), TypeError, ["targets", "bool", "probabilities"]),
    ("soft shape", (H, W, ones(3, 5)), ValueError, ["targets", "(3, 4)", "(3, 5)"]),
    ("soft dtype", (H, W, np.ones((3, 4))), TypeError, ["targets", "float64"]),
]


@pytest.mark.parametrize(
    ("arrays", "error", "words"), [pytest.param(*row[1:], id=row[0]) for row in BAD]
)
def test_bad_arrays(arrays: tuple[Any, ...], error: type[Exception], words: list[str]) -> None:
    ours: Any = fo.LinearCrossEntropyLoss()
    out = [np.full_like(a, 7) for a in (H, W, ones(4))[: len(arrays) - 1]]
    with refused(error, *words, arrays=out):
        ours.value_and_grad(*arrays, out=out)
    with refused(error, *words):
        ours(*arrays)


def test_bad_out() -> None:
    memory = np.arange(64, dtype=np.float32)
    hidden, w, dh, dw = (
        memory[a : a + 8].reshape(4, 2) for a in (0, 8, 16, 24)
    )  # 4 rows and 4 classes
    targets, bias = np.array([0, 3, 1, 2]), ones(4)
    bad: list[tuple[Any, type[Exception], list[str]]] = [
        (dh, TypeError, ["two arrays", "ndarray"]),
        ((dh,), TypeError, ["two arrays", "tuple of 1"]),
        ([dh, dw, ones(4)], TypeError, ["two arrays", "list of 3"]),
        ((dh, None), TypeError, ["out[1]", "NoneType"]),
        ((dh.astype(float), dw), TypeError, ["out[0]", "float64"]),
        ((dh, ones(2, 4)), ValueError, ["out[1]", "(2, 4)", "linear_weight"]),
        ((read_only(dh), dw), ValueError, ["out[0]", "read-only"]),
        ((dh, ones(4, 4)[:, ::2]), ValueError, ["out[1]", "dense"]),
        ((np.asfortranarray(dh), dw), ValueError, ["out[0]", "C order"]),
        ((dh, dh), ValueError, ["out[0]", "out[1]", "share memory"]),
        ((hidden, dw), ValueError, ["hidden", "out[0]", "share memory"]),
        ((dh, w), ValueError, ["linear_weight", "out[1]", "share memory"]),
        ((dh, hidden), ValueError, ["hidden", "out[1]", "share memory"]),
        ((memory[20:28].reshape(4, 2), dw), ValueError, ["out[0]", "out[1]", "share memory"]),
    ]
    ours = fo.LinearCrossEntropyLoss()
    for out, error, words in bad:
        with refused(error, *words, arrays=[memory]):
            ours.value_and_grad(hidden, w, targets, out=out)
    with refused(TypeError, "three arrays", "tuple of 2", arrays=[memory]):
        ours.value_and_grad(hidden, w, targets, bias, out=(dh, dw))
    with refused(ValueError, "linear_bias", "out[2]", arrays=[memory, bias]):
        ours.value_and_grad(hidden, w, targets, bias, out=(dh, dw, bias))
    raw = np.zeros(8, np.int64)
    places = raw.view(np.float32)[:8].reshape(4, 2)
    with refused(ValueError, "targets", "out[0]", arrays=[memory, raw]):
        ours.value_and_grad(hidden, w, raw[:4], out=(places, dw))
    soft = np.full((4, 4), 0.25, np.float32)
    with refused(ValueError, "targets", "out[1]", arrays=[memory, soft]):
        ours.value_and_grad(hidden, w, soft, out=(dh, soft[:2].reshape(4, 2)))
    weights = fo.LinearCrossEntropyLoss(memory[24:28])
    with refused(ValueError, "weight", "out[1]", arrays=[memory]):
        weights.value_and_grad(hidden, w, targets, out=(dh, dw))


def test_bad_options() -> None:
    for name, bad in (("memory_limit", 1.5), ("memory_limit", "1 MB"), ("reduction", None)):
        with refused(TypeError, name, repr(bad)):
            fo.LinearCrossEntropyLoss(**{name: bad})  # type: ignore[arg-type]
    for bad in (0, -5):
        with refused(ValueError, "memory_limit", str(bad)):
            fo.LinearCrossEntropyLoss(memory_limit=bad)
    with refused(ValueError, "label_smoothing", "2.0"):
        fo.LinearCrossEntropyLoss(label_smoothing=2.0)
    with refused(ValueError, "weight", "(4,)", "(3,)"):
        fo.LinearCrossEntropyLoss(np.ones(3))(H, W, Y)
    ours = fo.LinearCrossEntropyLoss()
    ours.weight = [1.0] * 4  # type: ignore[assignment]
    with refused(TypeError, "weight", "list"):
        ours(H, W, Y)


def test_targets_of_any_integer_type() -> None:
    hidden, w, targets, _ = data({}, classes=100)
    expected = fo.LinearCrossEntropyLoss()(hidden, w, targets)
    for kind in ("i1", "u1", "i4", "u8", ">i2"):
        other: IntArray = np.repeat(targets.astype(kind), 2)[::2]
        assert fo.LinearCrossEntropyLoss()(hidden, w, other) == expected
