"""Negative log-likelihood: the reference, any layout, rows that are ignored, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from bad_cases import BAD_LOSS
from cases import DTYPES
from fastopt import _core
from fastopt._types import FloatArray, IntArray
from helpers import TEAMS, ones, read_only, refused, same_bits

SHAPES = [
    *[(1, 1), (5, 3), (700, 10), (3, 2000), (7,), (2, 3, 4), (2, 11, 3, 5), (0, 3), (2, 3, 0)],
    *[(9000, 10), (40, 3000), (5, 10, 3000)],  # several blocks, for several threads
]
REDUCTIONS: list[Any] = ["mean", "sum", "none"]


def batch(shape: tuple[int, ...], dtype: Any = np.float32) -> tuple[FloatArray, IntArray, int]:
    """Return log-probabilities, targets, and the number of classes."""
    rng = np.random.default_rng(5)
    classes = shape[min(1, len(shape) - 1)]
    log_probs = np.log(rng.uniform(1e-3, 1, shape)).astype(dtype)
    targets = rng.integers(0, classes, shape[:1] + shape[2:] if len(shape) > 1 else ())
    return log_probs, np.where(rng.random(targets.shape) < 0.2, -100, targets), classes


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounds_the_reference_once_for_any_team(
    shape: tuple[int, ...], dtype: Any, weighted: bool, reduction: Any
) -> None:
    log_probs, targets, classes = batch(shape, dtype)
    weight = np.random.default_rng(6).uniform(0.1, 3, classes) if weighted else None
    ours = fo.NLLLoss(weight, reduction=reduction)
    loss, grad = ours.value_and_grad(log_probs, targets)
    true_loss, true_grad = fo.reference.NLLLoss(weight, reduction=reduction).value_and_grad(
        log_probs, targets
    )
    if reduction == "none":
        assert same_bits(loss, np.asarray(true_loss).astype(dtype))
    else:  # the sum has another order
        np.testing.assert_allclose(loss, true_loss, rtol=1e-13)
    allowed = 1e-13 + np.finfo(dtype).eps if reduction == "mean" else 0.0
    np.testing.assert_allclose(grad, true_grad.astype(dtype), rtol=allowed, atol=0)
    assert same_bits(ours(log_probs, targets), loss)
    for team in TEAMS:
        _core.set_num_threads(team, beyond=True)
        again = ours.value_and_grad(log_probs, targets, out=np.full_like(log_probs, np.nan))
        assert same_bits(again[0], loss)
        assert same_bits(again[1], grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_strides_and_in_place(shape: tuple[int, ...]) -> None:
    log_probs, targets, _ = batch(shape)
    ours = fo.NLLLoss()
    loss, grad = ours.value_and_grad(log_probs, targets)
    views = [log_probs.copy(order="F"), np.repeat(log_probs, 3, axis=-1)[..., ::3]]
    if len(shape) == 2:
        padded = np.full((shape[0], shape[1] + 3), np.nan, np.float32)
        padded[:, : shape[1]] = log_probs
        views += [padded[:, : shape[1]], log_probs[::-1, ::-1].copy()[::-1, ::-1]]
    for view in views:
        again = ours.value_and_grad(view, targets)
        assert same_bits(again[0], loss)
        assert same_bits(again[1], grad)
        if len(shape) > 2:
            continue  # may not be written in such an order
        out = np.full_like(view, np.nan)
        assert ours.value_and_grad(log_probs, targets, out=out)[1] is out
        assert same_bits(out, grad)
        again = ours.value_and_grad(view, targets, out=view)
        assert same_bits(again[0], loss)
        assert same_bits(view, grad)
    if len(shape) == 2:
        assert np.all(np.isnan(padded[:, shape[1] :]))
    in_place = log_probs.copy()
    assert same_bits(ours.value_and_grad(in_place, targets, out=in_place)[0], loss)
    assert same_bits(in_place, grad)


@pytest.mark.parametrize("ignore_index", [-100, 0, 3, 2**40])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_give_exactly_zero(reduction: Any, ignore_index: int) -> None:
    log_probs, targets, _ = batch((30, 7))
    targets = np.where((targets == ignore_index) | (targets < 0), 1, targets)
    ignored = np.arange(30) % 3 == 0
    log_probs[ignored] = [np.nan, np.inf, -np.inf, 0, 1e38, -1e38, 1]
    marked = np.where(ignored, ignore_index, targets)
    ours = fo.NLLLoss(ignore_index=ignore_index, reduction=reduction)
    loss, grad = ours.value_and_grad(log_probs, marked)
    kept_loss, kept_grad = ours.value_and_grad(log_probs[~ignored], targets[~ignored])
    assert np.sum(loss) == pytest.approx(np.sum(kept_loss), rel=1e-6)
    assert same_bits(grad[~ignored], kept_grad)
    assert same_bits(grad[ignored], np.zeros_like(grad[ignored]))


@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_counts(rows: int) -> None:
    log_probs, targets = -ones(rows, 4), np.full(rows, -100)
    for reduction, expected in (("mean", np.nan), ("sum", 0.0), ("none", np.zeros(rows, "f4"))):
        ours = fo.NLLLoss(reduction=reduction)  # type: ignore[arg-type]
        loss, grad = ours.value_and_grad(log_probs, targets)
        assert same_bits(loss, expected)
        assert same_bits(grad, np.zeros_like(log_probs))


def test_one_row_without_a_batch_and_infinities() -> None:
    log_probs = np.array([0.0, -np.inf, -2.0], np.float32)
    for target in (1, np.int8(1), np.array(1)):
        loss, grad = fo.NLLLoss().value_and_grad(log_probs, target)
        assert loss == np.inf
        assert grad.tolist() == [0, -1, 0]


def test_after_log_softmax_it_is_cross_entropy() -> None:
    rng = np.random.default_rng(8)
    logits, targets = rng.standard_normal((9, 6)), rng.integers(0, 6, 9)
    logsumexp = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weight = rng.uniform(0.5, 2, 6)
    loss, grad = fo.NLLLoss(weight).value_and_grad(logits - logsumexp, targets)
    true_loss, true_grad = fo.CrossEntropyLoss(weight).value_and_grad(logits, targets)
    assert loss == pytest.approx(true_loss, rel=1e-14)
    through = grad - np.exp(logits - logsumexp) * grad.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(through, true_grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5, 3), (7,), (2, 3, 4)], ids=str)
def test_gradcheck(shape: tuple[int, ...], reduction: Any) -> None:
    log_probs, targets, classes = batch(shape, np.float64)
    targets = targets if targets.shape else np.array(3)
    ours = fo.NLLLoss(np.linspace(0.5, 2, classes), reduction=reduction)
    assert fo.testing.gradcheck(lambda x: ours.value_and_grad(x, targets), log_probs)


# Probabilities are not allowed as targets here.
ROWS = [r for r in BAD_LOSS if r[0] not in ("wrong probabilities", "half probabilities", "one hot")]


@pytest.mark.parametrize(
    ("log_probs", "targets", "error", "words"), [pytest.param(*r[1:], id=r[0]) for r in ROWS]
)
def test_bad_arrays(log_probs: Any, targets: Any, error: type[Exception], words: list[str]) -> None:
    words = [word.replace("logits", "log_probs") for word in words]
    out = np.full((3, 4), 7, np.float32)
    with refused(error, *words, arrays=[out]):
        fo.NLLLoss().value_and_grad(log_probs, targets, out=out)
    with refused(error, *words):
        fo.NLLLoss()(log_probs, targets)


def test_bad_out_and_probabilities() -> None:
    memory = np.arange(24, dtype=np.float32)
    log_probs, targets = memory[:12].reshape(3, 4), np.array([0, 3, 1])
    bad: list[tuple[Any, type[Exception], str]] = [
        (np.ones((3, 4)), TypeError, "float64"),
        (ones(4, 3), ValueError, "(4, 3)"),
        (read_only(ones(3, 4)), ValueError, "read-only"),
        (memory[4:16].reshape(3, 4), ValueError, "share memory"),
        (np.lib.stride_tricks.as_strided(memory[12:], (3, 4), (0, 4)), ValueError, "share memory"),
    ]
    for out, error, word in bad:
        with refused(error, "out", word, arrays=[memory]):
            fo.NLLLoss().value_and_grad(log_probs, targets, out=out)
    with refused(TypeError, "targets must have an integer dtype; they have float32"):
        fo.NLLLoss()(log_probs, ones(3, 4))
    raw = np.zeros(8, np.int64)
    places = raw.view(np.float32)[:4].reshape(2, 2)
    with refused(ValueError, "out", "targets", arrays=[raw]):
        fo.NLLLoss().value_and_grad(ones(2, 2), raw[:2], out=places)
    weight = ones(4)
    with refused(ValueError, "out", "weight", arrays=[weight]):
        fo.NLLLoss(weight[:2]).value_and_grad(ones(2, 2), raw[:2], out=weight.reshape(2, 2))


def test_bad_options() -> None:
    for name, bad in (("reduction", None), ("ignore_index", 1.5), ("ignore_index", "a")):
        with refused(TypeError, name, repr(bad)):
            fo.NLLLoss(**{name: bad})  # type: ignore[arg-type]
    with refused(ValueError, "reduction", "average"):
        fo.NLLLoss(reduction="average")  # type: ignore[arg-type]
    with refused(ValueError, "ignore_index", str(2**70)):
        fo.NLLLoss(ignore_index=2**70)
    with refused(TypeError, "weight", "list"):
        fo.NLLLoss(weight=[1.0, 2.0])  # type: ignore[arg-type]
    with refused(ValueError, "weight", "(2, 2)"):
        fo.NLLLoss(weight=np.ones((2, 2)))
    with refused(ValueError, "weight", "(4,)", "(3,)"):
        fo.NLLLoss(weight=np.ones(3))(-ones(2, 4), np.array([0, 1]))


def test_repr() -> None:
    assert repr(fo.NLLLoss(np.ones(3), reduction="sum")) == (
        "NLLLoss(weight=array of 3, ignore_index=-100, reduction='sum')"
    )
