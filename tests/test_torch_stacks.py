"""The optimizers for torch in the stacks that step them: FSDP2, ZeRO, DCP, DeepSpeed; with JAX.

Two processes that torch's gloo connects take the place of two machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import fastopt as fo
from helpers import HANG, check

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint import state_dict as checkpoint  # noqa: E402

OURS: Any = torch.optim.AdamW

Tensors: TypeAlias = list[Any]
RUNS: dict[str, dict[str, Any]] = {
    "float64": {"lr": 0.1, "weight_decay": 0.1},
}


def model(dtype: Any = None) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    return torch.nn.Sequential(*layers).to(dtype or torch.float64)


def train(model: Any, optimizer: Any, steps: Iterable[int], rank: int = 0, ranks: int = 1) -> None:
    """Train on the rows of one process."""
    dtype = next(model.parameters()).dtype
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(8, 7, dtype=dtype)[rank * 8 // ranks : (rank + 1) * 8 // ranks]
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def uninterrupted(steps: int, dtype: Any = None, **options: Any) -> Tensors:
    """Return what torch's AdamW makes of the model in one process."""
    whole = model(dtype)
    train(whole, torch.optim.AdamW(whole.parameters(), **options), range(steps))
    return [p.detach() for p in whole.parameters()]


def save(folder: Path, model: Any, optimizer: Any) -> None:
    parts = dict(zip(("model", "optimizer"), checkpoint.get_state_dict(model, optimizer), strict=True))
    dcp.save(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(folder: Path, model: Any, optimizer: Any) -> None:
    parts = dict(zip(("model", "optimizer"), checkpoint.get_state_dict(model, optimizer), strict=True))
    dcp.load(parts, checkpoint_id=folder, no_dist=not dist.is_initialized())
    checkpoint.set_state_dict(
        model,
        optimizer,
        model_state_dict=parts["model"],
        optim_state_dict=parts["optimizer"],
    )


# -- what each of two processes does -------------------------------------------------------------


def join(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{file}", timedelta(seconds=60), rank=rank, world_size=2
    )


def fsdp2(
    steps: Iterable[int],
    options: dict[str, Any],
    dtype: Any = None,
    before: Path | None = None,
    after: Path | None = None,
) -> tuple[Tensors, list[dict[str, Any]]]:
    """Train shards of the model on shards of the batches; return all parameters and states."""
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    shards = model(dtype)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(shards, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    optimizer = OURS(shards.parameters(), **options)
    if before:
        load(before, shards, optimizer)
    train(shards, optimizer, steps, dist.get_rank(), 2)
    if after:
        save(after, shards, optimizer)
    states = [optimizer.state[p] for p in shards.parameters()]
    return (
        [p.full_tensor().detach() for p in shards.parameters()],
        [{k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in s.items()} for s in states],
    )


def zero(in_buckets: bool) -> Tensors:
    """Train with the states of each parameter in one of the processes; go on from a state dict."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    whole = model()

    def optimizer() -> Any:
        return ZeroRedundancyOptimizer(
            whole.parameters(),
            optimizer_class=OURS,
            parameters_as_bucket_view=in_buckets,
            **RUNS["float64"],
        )

    first = optimizer()
    train(whole, first, range(3))
    states = []
    for rank in range(2):
        first.consolidate_state_dict(to=rank)
        states.append(first.state_dict() if dist.get_rank() == rank else None)
    second = optimizer()
    second.load_state_dict(states[dist.get_rank()])
    train(whole, second, range(3, 6))
    return [p.detach() for p in whole.parameters()]



def deepspeed(stage: int) -> Tensors:
    """Train with DeepSpeed's ZeRO, the states offloaded to the CPU."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    import deepspeed as ds
    import deepspeed.comm.torch

    deepspeed.comm.torch.build_shm_op = lambda: None  # it would be compiled
    whole = model(torch.float32)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}},
    }
    optimizer = OURS(whole.parameters(), **RUNS["float64"])
    engine, *_ = ds.initialize(model=whole, optimizer=optimizer, config=config)
    for step in range(6):
        torch.manual_seed(step)
        x = torch.randn(8,7).chunk(2)[dist.get_rank()]
        engine.backward((engine(x) - x.sum(1, keepdim=True)).square().mean())
        engine.step()
    with ds.zero.GatheredParameters(list(whole.parameters())):
        return [p.detach().clone() for p in whole.parameters()]


Both: TypeAlias = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Return a function that calls another one in two processes and returns both results."""
    file = str(tmp_path_factory.mktemp("gloo") / "file")
    pools = [
        ProcessPoolExecutor(1, get_context("spawn"), join, (rank, file)) for rank in range(2)
    ]

    def call(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        futures = [pool.submit(function, *arguments) for pool in pools]
        return [future.result(HANG) for future in futures]

    yield call
    for pool in pools:
        pool.shutdown()


# -- the tests -----------------------------------------------------------------------------------


def test_fsdp2(both):
    for got, _ in both(fsdp2, range(6), RUNS["float64"]):
        torch.testing.assert_close(got, uninterrupted(6, **RUNS["float64"]), rtol=1e-12, atol=1e-12)


def test_dcp(both, tmp_path):
    opts = RUNS["float64"]
    both(fsdp2, range(3), opts, None, None, tmp_path/"two")
    w = model(); o = OURS(w.parameters(), **opts)
    load(tmp_path/"two", w, o)
    save(tmp_path/"one", w, o)
    train(w, o, range(3,6))
    torch.testing.assert_close([p.detach() for p in w.parameters()], uninterrupted(6, **opts), rtol=1e-12, atol=1e-12)
    for got, _ in both(fsdp2, range(3,6), opts, None, tmp_path/"one"):
        torch.testing.assert_close(got, uninterrupted(6, **opts), rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize("in_buckets", [False, True])
def test_zero(both, in_buckets):
    for got in both(zero, in_buckets):
        torch.testing.assert_close(got, uninterrupted(6, **RUNS["float64"]), rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(both, stage):
    pytest.importorskip("deepspeed")
    for got in both(deepspeed, stage):
        torch.testing.assert_close(got, uninterrupted(6, torch.float32, **RUNS["float64"]), rtol=1e-5, atol=1e-5)
