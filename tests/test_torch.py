"""torch 2.13 as an outside witness; skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case
from helpers import some

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "case",
    [c for c in CASES if hasattr(torch.optim, c.name) and "momentum_init" not in c.options],
    ids=str,
)
def test_thirty_steps_stay_beside_torch(case: Case, dtype: str) -> None:
    rng = np.random.default_rng(11)
    start = rng.standard_normal(1001).astype(dtype)
    ours, theirs = start.copy(), torch.nn.Parameter(torch.tensor(start))
    opt = case.fused([ours])
    witness = getattr(torch.optim, case.name)([theirs], foreach=False, **case.options)
    travelled = abs(start).astype(np.float64)
    before = start.copy()
    for step in range(30):
        grad = rng.standard_normal(1001).astype(dtype) + 0.1
        opt.step([None if step == 4 else grad])
        theirs.grad = None if step == 4 else torch.tensor(grad)
        witness.step()
        travelled += abs(ours - before)
        before[...] = ours
    # Thirty steps of rounding, each about half a unit in the last place of what moved. In float64
    # torch's own 1 - 0.999**1 is off by 500 units, which are half as many of the first step.
    unit = 2.0**-24 if dtype == "float32" else 2.0**-53
    slack = 8 if dtype == "float32" else 64
    assert np.all(abs(ours - theirs.detach().numpy()) <= slack * unit * travelled)
    state = witness.state[theirs]
    for key, value in opt.state["0"].items():
        if key in state and key != "step":
            np.testing.assert_allclose(
                value, state[key].numpy(), rtol=100 * unit, atol=100 * unit, err_msg=key
            )


DTYPES = ["float32", "float64"]
# weight, smoothing, reduction, ignore_index
OPTIONS: list[list[Any]] = [[False, True], [0.0, 0.2, 1.0], ["mean", "sum", "none"], [-100, 2]]


SHAPES = [(1, 1), (5, 3), (33, 10), (16, 130), (7,), (2, 3, 4), (2, 11, 3, 5), (0, 3), (2, 3, 0)]


@pytest.mark.parametrize(
    ("weight", "smoothing", "reduction", "ignore", "soft", "shape", "dtype"),
    some(200, *OPTIONS, [False, True], SHAPES, DTYPES),
)
def test_cross_entropy_beside_torch(
    weight: bool,
    smoothing: float,
    reduction: Any,
    ignore: int,
    soft: bool,
    shape: tuple[int, ...],
    dtype: str,
) -> None:
    rng = np.random.default_rng(12)
    classes = shape[min(1, len(shape) - 1)]
    logits = (3 * rng.standard_normal(shape)).astype(dtype)
    targets: Any = rng.integers(0, classes, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if soft:
        targets, ignore = rng.random(shape).astype(dtype), -100  # torch has none for probabilities
    weights = rng.uniform(0.5, 2, classes).astype(dtype) if weight else None
    ours = fo.CrossEntropyLoss(weights, ignore, reduction, smoothing)
    loss, grad = ours.value_and_grad(logits, targets)
    x = torch.tensor(logits, requires_grad=True)
    witness = torch.nn.CrossEntropyLoss(
        None if weights is None else torch.tensor(weights),
        ignore_index=ignore,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    expected = witness(x, torch.tensor(targets))
    expected.sum().backward()
    tight: dict[str, Any] = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
    )
    np.testing.assert_allclose(loss, expected.detach().numpy(), **tight)
    np.testing.assert_allclose(grad, x.grad.numpy(), **tight)


@pytest.mark.parametrize(
    ("ignore", "weight", "reduction", "shape", "dtype"),
    some(100, [-100, 0], [False, True], ["mean", "sum", "none"], SHAPES, DTYPES),
)
def test_nll_beside_torch(
    ignore: int, weight: bool, reduction: Any, shape: tuple[int, ...], dtype: str
) -> None:
    rng = np.random.default_rng(13)
    classes = shape[min(1, len(shape) - 1)]
    log_probs = np.log(rng.uniform(1e-3, 1, shape)).astype(dtype)
    targets = np.asarray(rng.integers(0, classes, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    weights = rng.uniform(0.5, 2, classes).astype(dtype) if weight else None
    loss, grad = fo.NLLLoss(weights, ignore, reduction).value_and_grad(log_probs, targets)
    x = torch.tensor(log_probs, requires_grad=True)
    witness = torch.nn.NLLLoss(
        None if weights is None else torch.tensor(weights), ignore_index=ignore, reduction=reduction
    )
    expected = witness(x, torch.tensor(targets))
    expected.sum().backward()
    rtol = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=rtol)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=rtol)


@pytest.mark.parametrize(
    ("weight", "smoothing", "reduction", "ignore", "soft", "bias", "dtype"),
    some(60, *OPTIONS, [False, True], [False, True], DTYPES),
)
def test_linear_cross_entropy_beside_torch(
    weight: bool,
    smoothing: float,
    reduction: Any,
    ignore: int,
    soft: bool,
    bias: bool,
    dtype: str,
) -> None:
    rng = np.random.default_rng(14)
    rows, width, classes = 40, 9, 130
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((rows, width), (classes, width))]
    arrays += [rng.standard_normal(classes).astype(dtype)] if bias else []
    targets: Any = rng.integers(0, classes, rows)
    targets[::4] = 2
    if soft:
        targets, ignore = rng.random((rows, classes)).astype(dtype) / classes, -100
    weights = rng.uniform(0.5, 2, classes).astype(dtype) if weight else None
    loss, grads = fo.functional.linear_cross_entropy(
        arrays[0],
        arrays[1],
        targets,
        arrays[2] if bias else None,
        weight=weights,
        ignore_index=ignore,
        reduction=reduction,
        label_smoothing=smoothing,
        memory_limit=80_000,
    )
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(*tensors),
        torch.tensor(targets),
        None if weights is None else torch.tensor(weights),
        ignore_index=ignore,
        reduction=reduction,
        label_smoothing=smoothing,
    )
    expected.sum().backward()
    # Two BLAS libraries add in different orders: a few units of sums of about 10.
    tight: dict[str, Any] = (
        {"rtol": 1e-5, "atol": 2e-5} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    )
    np.testing.assert_allclose(loss, expected.detach().numpy(), **tight)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), **tight)
