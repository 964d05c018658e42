"""torch 2.13 as an outside witness of the pointwise losses; skipped where it is not installed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from pointwise_cases import FUNCTIONS, LOSSES, Function, Loss

torch = pytest.importorskip("torch")

SHAPES = [(), (0,), (3, 0), (1,), (5, 3), (2, 3, 40), (1001,)]


def grid() -> list[Any]:
    rows = []
    for row, shape in itertools.product(LOSSES, SHAPES):
        if {"weight", "pos_weight"} & set(row.options) and not shape:
            continue
        for reduction in ("mean", "sum", "none", "batchmean"):
            if reduction != "batchmean" or (row.name == "KLDivLoss" and shape):
                rows.append(pytest.param(row, shape, reduction, id=f"{row}-{shape}-{reduction}"))
    return rows


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("row", "shape", "reduction"), grid())
def test_losses_beside_torch(row: Loss, shape: tuple[int, ...], reduction: str, dtype: str) -> None:
    x, y = row.data(shape, dtype)
    ours = row.make(shape, reduction)
    options = dict(row.options, reduction=reduction)
    for name in ("weight", "pos_weight"):
        if name in options:
            options[name] = torch.tensor(getattr(ours, name).astype(dtype))
    witness = getattr(torch.nn, row.name)(**options)
    theirs = torch.tensor(x, requires_grad=True)
    expected = witness(theirs, torch.tensor(y))
    expected.sum().backward()
    loss, grad = ours.value_and_grad(x, y)
    true_loss, true_grad = expected.detach().numpy(), theirs.grad.numpy()
    assert np.shape(loss) == true_loss.shape
    # The witness's own errors: float32 throughout, and cancellation in the tails of the logits.
    unit = 2.0**-23 if dtype == "float32" else 2.0**-52
    _, element_grad = row.reference(shape, "none").value_and_grad(x, y)
    losses, _ = row.reference(shape, "none").value_and_grad(x, y)
    size = 1 + abs(x) if row.kind != "numbers" else abs(x) + abs(y)
    divisor = {"mean": max(1, x.size), "batchmean": max(1, shape[0] if shape else 1)}
    count = divisor.get(reduction, 1)
    slack = 40 * unit * (abs(losses) + 10 * size)
    if reduction == "none":
        assert np.all(abs(loss - true_loss) <= slack)
    elif x.size == 0:
        assert np.isnan(loss) == np.isnan(true_loss)
        assert np.isnan(loss) or loss == true_loss == 0
    else:
        assert abs(loss - true_loss) <= slack.sum() / count
    allowed = 10 * unit * (abs(element_grad) + 1)
    if row.kind == "probabilities":  # x (1 - x) is rounded there, and 1e-12 is a float32
        allowed = np.where(x * (1 - x) < 2e-12, max(1e-7, 100 * unit), 100 * unit) * (
            abs(element_grad) + 1
        )
    assert np.all(abs(grad - true_grad) <= allowed / count)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "row", [r for r in FUNCTIONS if r.operands == 1 and r.name != "logistic"], ids=str
)
def test_functions_beside_torch(row: Function, shape: tuple[int, ...], dtype: str) -> None:
    (x,) = row.data(shape, dtype)
    theirs = torch.tensor(x, requires_grad=True)
    expected = getattr(torch.nn.functional, row.name)(theirs, **row.options)
    grad = np.linspace(-2, 3, x.size).reshape(shape).astype(dtype)
    expected.backward(torch.tensor(grad))
    y = row.fused(x, **row.options)
    true, slope = expected.detach().numpy(), theirs.grad.numpy()
    from_result = row.name in ("sigmoid", "relu", "tanh")
    backward = getattr(fo.functional, f"{row.name}_backward")(
        grad, y if from_result else x, **row.options
    )
    unit, gated = 2.0**-23 if dtype == "float32" else 2.0**-52, not from_result
    # torch computes x * (1 + erf(x)): in the negative tail, this has an error of the size of x.
    slack = 8 * unit * (1 + gated * abs(x))
    assert np.all(abs(y - true) <= 8 * unit * abs(true) + np.where(gated, slack, 2e-38))
    assert np.all(abs(backward - slope) <= 16 * unit * abs(slope) + slack * (1 + gated * abs(grad)))
