"""Cross-entropy with its gradient: in place, into a reused buffer, into a fresh array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt._types import FloatArray, IntArray
from peers import PEERS, timed, torch

SHAPES = [(128, 10), (32768, 10), (8192, 1000), (2048, 32000)]
BUFFERS = ["reused buffer", "fresh array"]


def make_call(
    peer: str, logits: FloatArray, targets: IntArray, buffer: str
) -> Callable[[], tuple[Any, FloatArray]]:
    if peer == "torch":
        x = torch.from_numpy(logits).requires_grad_()
        y = torch.from_numpy(targets)
        loss = torch.nn.CrossEntropyLoss()

        def run() -> tuple[Any, FloatArray]:
            x.grad = None  # torch writes its gradient into a fresh tensor
            value = loss(x, y)
            value.backward()
            return value.item(), x.grad.numpy()

        return run
    ce = fo.CrossEntropyLoss() if peer == "fastopt" else fo.reference.CrossEntropyLoss()
    out = np.empty_like(logits) if buffer == "reused buffer" else None
    return lambda: ce.value_and_grad(logits, targets, out=out)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=pytest.mark.slow if s[0] * s[1] > 1 << 24 else []) for s in SHAPES],
    ids=str,
)
def test_value_and_grad(shape: tuple[int, int], buffer: str, peer: str, benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal(shape, dtype=np.float32)
    targets = rng.integers(0, shape[1], shape[0])
    call = make_call(peer, logits, targets, buffer)
    loss, grad = call()
    true_loss, true_grad = fo.reference.CrossEntropyLoss().value_and_grad(logits[:64], targets[:64])
    part = fo.CrossEntropyLoss()(logits[:64], targets[:64])
    assert part == pytest.approx(true_loss, rel=1e-6)
    assert loss == pytest.approx(fo.CrossEntropyLoss()(logits, targets), rel=1e-5)
    np.testing.assert_allclose(grad[:64] * shape[0] / min(64, shape[0]), true_grad, atol=1e-7)
    timed(benchmark, call, f"cross-entropy {shape[0]} x {shape[1]}, {buffer}", 8 * logits.size)
