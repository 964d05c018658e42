"""What the benchmarks share: the peers, and the bytes moved as GB/s beside the times."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt._types import FloatArray

torch: Any = import_module("torch") if find_spec("torch") else None
if torch:
    torch.set_num_threads(fo.get_num_threads())

PEERS = ["fastopt", "reference", *(["torch"] if torch else [])]


def timed(benchmark: Any, call: Callable[[], object], group: str, moved: int) -> None:
    """Time a call, in a group, with the bytes it must move."""
    benchmark.group = group
    call()
    benchmark(call)
    if benchmark.stats is not None:
        benchmark.extra_info["GB/s"] = round(moved / benchmark.stats["median"] / 1e9, 2)
    benchmark.extra_info["instruction set"] = fo.active_isa()
    benchmark.extra_info["threads"] = fo.get_num_threads()


def make_arrays(shapes: list[tuple[int, ...]], seed: int) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def make_step(
    peer: str, name: str, options: dict[str, Any], params: list[FloatArray], grads: list[FloatArray]
) -> Callable[[], object]:
    """Return one step of the peer's optimizer over `params`, which it updates in place."""
    if peer == "torch":
        if not hasattr(torch.optim, name):
            pytest.skip(f"torch has no {name}")
        tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]  # shared memory
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        fused = {} if name == "RMSprop" else {"fused": True}  # there is no fused RMSprop
        step: Callable[[], object] = getattr(torch.optim, name)(tensors, **options, **fused).step
        return step
    optimizer = getattr(fo if peer == "fastopt" else fo.reference, name)(params, **options)
    return lambda: optimizer.step(grads)
