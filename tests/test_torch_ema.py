"""torch as an outside witness of averages and sums; skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_averages_stay_beside_torch(decay: float, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    start = rng.standard_normal(1001).astype(dtype)
    ours = start.copy()
    ema = fo.WeightEMA([ours], decay)
    theirs = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(start))])
    witness = torch.optim.swa_utils.AveragedModel(
        theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    largest = abs(start)
    for step in range(50):
        ours += rng.standard_normal(1001).astype(dtype)
        with torch.no_grad():
            theirs[0].copy_(torch.tensor(ours))
        largest = np.maximum(largest, abs(ours))
        ema.update()
        witness.update_parameters(theirs)
        average = witness.module[0].detach().numpy()
        if step == 0:
            np.testing.assert_array_equal(ema.averages["0"], average)
        # An update rounds three times, each at most half a unit of numbers up to twice `largest`:
        # 1 + decay of a difference that both share, 1 of the result. torch fuses or not, and below
        # a decay of 1/2 begins from the other end. What an update leaves is handed on, decayed.
        unit = float(np.finfo(dtype).eps) / 2
        reach = min(step + 1, 1 / (1 - decay))
        assert np.all(abs(ema.averages["0"] - average) <= 8 * reach * unit * largest)
    assert ema.num_updates == int(witness.n_averaged)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_micro_batches_beside_torch(dtype: Any) -> None:
    """In torch the losses are divided by hand before their gradients are added."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((19, 6)).astype(dtype), rng.integers(0, 4, 19)
    w = rng.standard_normal((6, 4)).astype(dtype)
    theirs = torch.tensor(w, requires_grad=True)
    acc, ce = fo.GradAccumulator({"w": w}), fo.CrossEntropyLoss()
    for part in (slice(0, 8), slice(8, 16), slice(16, 19)):
        size = len(y[part])
        _, dlogits = ce.value_and_grad(x[part] @ w, y[part])
        acc.add({"w": x[part].T @ dlogits}, weight=size)
        logits = torch.tensor(x[part]) @ theirs
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y[part]))
        (loss * (size / 19)).backward()
    assert acc.weight == 19
    total = acc.grads["w"]
    assert total is not None
    bound = 100 * float(np.finfo(dtype).eps)  # of numbers of about 1, each a sum of 19
    np.testing.assert_allclose(total / 19, theirs.grad.numpy(), rtol=0, atol=bound)
