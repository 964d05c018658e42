"""Cross-entropy with its gradient: in place (with a copy of the logits), reused buffer, fresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt._types import FloatArray, IntArray
from fastopt.benchmark.peers import torch

SHAPES = [(128, 10), (32768, 10), (8192, 1000), (2048, 32000)]
PEERS = ["fastopt", "reference", *(["torch"] if torch else [])]
BUFFERS = ["in place", "reused buffer", "fresh array"]


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
    if buffer == "in place":  # the logits are spent: each call needs them again
        fresh = logits.copy()

        def run_in_place() -> tuple[Any, FloatArray]:
            np.copyto(logits, fresh)
            return ce.value_and_grad(logits, targets, out=logits)

        return run_in_place
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
    some = slice(None, None, max(1, shape[0] // 500))  # rows that are checked
    x, y = logits[some].copy(), targets[some].copy()
    call = make_call(peer, logits, targets, buffer)
    loss, grad = call()
    _, true_grad = fo.reference.CrossEntropyLoss(reduction="sum").value_and_grad(x, y)
    np.testing.assert_allclose(grad[some] * shape[0], true_grad, rtol=1e-5, atol=1e-6)
    if buffer != "in place" and logits.size < 1 << 24:
        assert loss == pytest.approx(fo.reference.CrossEntropyLoss()(logits, targets), rel=1e-6)
    benchmark.group = f"cross-entropy {shape[0]} x {shape[1]}, {buffer}"
    benchmark(call)
    if benchmark.stats is not None:
        speed = 8 * logits.size / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GB/s"] = round(speed, 2)
