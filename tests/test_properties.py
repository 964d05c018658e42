"""Properties that hold for all examples of hypothesis."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from cases import CASES, Case
from helpers import same_bits

floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
finite32 = st.floats(-50, 50, width=32)
cases = st.sampled_from(CASES)


@st.composite
def problems(draw: Any) -> tuple[list[Any], list[list[Any]]]:
    """Parameters of any shape and gradients, or None, for a few steps."""
    shapes = draw(
        st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=9), min_size=1, max_size=4)
    )
    params = [draw(hnp.arrays(np.float32, s, elements=floats32)) for s in shapes]
    steps = draw(st.integers(1, 3))
    grads = [
        [draw(st.none() | hnp.arrays(np.float32, s, elements=floats32)) for s in shapes]
        for _ in range(steps)
    ]
    return params, grads


@given(cases, problems())
def test_kernels_equal_the_reference(
    case: Case, problem: tuple[list[Any], list[list[Any]]]
) -> None:
    params, grads = problem
    fused, reference = [p.copy() for p in params], [p.copy() for p in params]
    a, b = case.fused(fused), case.reference(reference)
    for step in grads:
        a.step(step)
        b.step(step)
    assert all(same_bits(x, y) for x, y in zip(fused, reference, strict=True))


@given(cases, problems())
def test_splitting_the_arrays_changes_nothing(
    case: Case, problem: tuple[list[Any], list[list[Any]]]
) -> None:
    params, grads = problem
    whole = [p.ravel().copy() for p in params]
    parts = [p.ravel().copy() for p in params]
    halves = [h for p in parts for h in (p[: p.size // 3], p[p.size // 3 :])]
    a, b = case.fused(whole), case.fused(halves)
    for step in grads:
        flat = [None if g is None else g.ravel() for g in step]
        a.step(flat)
        cut = [(None, None) if g is None else (g[: g.size // 3], g[g.size // 3 :]) for g in flat]
        b.step([h for pair in cut for h in pair])
    assert all(same_bits(x, y) for x, y in zip(whole, parts, strict=True))


@st.composite
def logits_and_targets(draw: Any) -> tuple[Any, Any]:
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 80))
    logits = draw(hnp.arrays(np.float32, (rows, classes), elements=finite32))
    targets = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    return logits, targets


@given(logits_and_targets(), st.floats(0, 1))
def test_gradient_rows_sum_to_zero(batch: tuple[Any, Any], smoothing: float) -> None:
    ce = fo.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
    loss, grad = ce.value_and_grad(*batch)
    assert loss >= 0
    np.testing.assert_allclose(grad.astype(np.float64).sum(axis=1), 0, atol=1e-5)


@given(logits_and_targets(), st.randoms())
def test_permuted_classes_permute_the_gradient(batch: tuple[Any, Any], random: Any) -> None:
    logits, targets = batch
    order = np.array(random.sample(range(logits.shape[1]), logits.shape[1]))
    ce = fo.CrossEntropyLoss()
    loss, grad = ce.value_and_grad(logits, targets)
    moved_loss, moved_grad = ce.value_and_grad(
        np.ascontiguousarray(logits[:, order]), np.argsort(order)[targets]
    )
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(moved_grad, grad[:, order], rtol=1e-5, atol=1e-30)


@given(logits_and_targets(), st.integers(0, 5))
def test_reductions_agree(batch: tuple[Any, Any], ignore: int) -> None:
    logits, targets = batch
    targets = np.where(targets == ignore, -100, targets)
    mean, total, rows = (
        fo.CrossEntropyLoss(reduction=r)(logits, targets) for r in ("mean", "sum", "none")
    )
    count = np.count_nonzero(targets != -100)
    np.testing.assert_allclose(np.asarray(rows, np.float64).sum(), total, rtol=1e-6)
    if count:
        np.testing.assert_allclose(mean, total / count, rtol=1e-12)
    else:
        assert np.isnan(mean)
