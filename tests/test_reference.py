"""The float64 reference of the losses, which defines the errors, against 100 digits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

import fastopt as fo

OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"weight": np.array([0.5, 2, 1, 3, 0.25], np.float32), "label_smoothing": 0.3},
]


@pytest.fixture(autouse=True)
def a_hundred_digits() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 100
        yield


def rows() -> tuple[Any, Any]:
    """Rows of models that guess, that are right or wrong and more or less sure; rows far from 0."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((60, 5))
    targets = rng.integers(0, 5, 60)
    logits[np.arange(60), targets] += np.repeat([0, 10, 30, 80, -10, -80], 10)
    logits[::7] += 10_000
    return logits.astype(np.float32), targets


def exact(x: Any, y: int, options: dict[str, Any]) -> tuple[Decimal, list[Decimal]]:
    smoothing = Decimal(options.get("label_smoothing", 0.0))
    w = [Decimal(float(v)) for v in options.get("weight", np.ones(5))]
    logits = [Decimal(float(v)) for v in x]
    total = sum((v.exp() for v in logits), Decimal(0))
    share = [smoothing / 5 * w[c] + (1 - smoothing) * w[y] * (c == y) for c in range(5)]
    loss = sum((s * (total.ln() - v) for s, v in zip(share, logits, strict=True)), Decimal(0))
    grad = [v.exp() / total * sum(share) - s for s, v in zip(share, logits, strict=True)]
    return loss, grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy(options: dict[str, Any]) -> None:
    logits, targets = rows()
    ce = fo.reference.CrossEntropyLoss(**options, reduction="none")
    losses, grads = ce.value_and_grad(logits, targets)
    for x, y, loss, grad in zip(logits, targets, np.asarray(losses), grads, strict=True):
        true_loss, true_grad = exact(x, y, options)
        assert abs(Decimal(float(loss)) - true_loss) <= Decimal("1e-14") * true_loss
        largest = max(map(abs, true_grad))
        for got, true in zip(grad, true_grad, strict=True):
            assert abs(Decimal(float(got)) - true) <= Decimal("1e-14") * largest


@pytest.mark.parametrize("name", [n for n in fo.reference.__all__ if hasattr(fo, n)])
def test_signatures_are_those_of_fastopt(name: str) -> None:
    ours, theirs = getattr(fo.reference, name), getattr(fo, name)
    if not isinstance(ours, type):
        assert [*inspect.signature(ours).parameters] == [*inspect.signature(theirs).parameters]
        return
    methods = ("__call__", "value_and_grad", "value_and_stats", "step", "add", "update")
    for method in ("__init__", *(m for m in methods if hasattr(theirs, m))):
        mine, other = (
            inspect.signature(getattr(c, method), eval_str=True).parameters for c in (ours, theirs)
        )
        assert mine == other, method
