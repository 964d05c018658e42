"""The optimizers for torch in the stacks that step them: FSDP2, ZeRO, checkpoints, DeepSpeed; JAX.

Two processes that gloo connects take the place of two machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from helpers import HANG, check

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import fastopt.torch as ft  # noqa: E402

OURS: Any = ft.AdamW
OPTIONS = {"lr": 0.03, "weight_decay": 0.1}
IN_16_BITS = {
    **OPTIONS,
    "master_weights": True,
    "store_param_remainders": True,
    "exp_avg_dtype": torch.bfloat16,
}

Tensors: TypeAlias = list[Any]


def new_model(dtype: Any) -> Any:
    """Return a model whose last layer has one row, so that the second of two shards is empty."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
    return torch.nn.Sequential(*layers).to(dtype)


def losses(
    model: Any, steps: Iterable[int], dtype: Any, rank: int = 0, ranks: int = 1
) -> Iterator[Any]:
    """Yield the loss of a step over the rows of one process."""
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(8, 7, dtype=dtype).chunk(ranks)[rank]
        yield (model(x) - x.sum(1, keepdim=True)).square().mean()


def train(model: Any, optimizer: Any, steps: Iterable[int], dtype: Any, *place: int) -> None:
    for loss in losses(model, steps, dtype, *place):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def whole(tensor: Any) -> Any:
    """Return a tensor or all shards of it in float64; gloo has no int16."""
    tensor = tensor.detach().double()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def values(model: Any) -> Tensors:
    return [whole(p) for p in model.parameters()]


def states(optimizer: Any) -> list[dict[str, Any]]:
    """Return the types and values of the states of all parameters."""
    return [
        {name: (value.dtype, whole(value)) for name, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def uninterrupted(dtype: Any = torch.float64) -> Tensors:
    """Return the parameters after six steps of torch's AdamW in one process."""
    model = new_model(dtype)
    train(model, torch.optim.AdamW(model.parameters(), **OPTIONS), range(6), dtype)
    return values(model)


def assert_close(got: Tensors, expected: Tensors, bound: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the results of `states` for a parameter."""
    assert got.keys() == expected.keys()
    for name, (dtype, value) in got.items():
        assert dtype == expected[name][0]
        assert torch.equal(value, expected[name][1])


def save(folder: Path, model: Any, optimizer: Any) -> None:
    dcp.save(dict(enumerate(get_state_dict(model, optimizer))), checkpoint_id=folder)


def load(folder: Path, model: Any, optimizer: Any) -> None:
    parts = dict(enumerate(get_state_dict(model, optimizer)))
    dcp.load(parts, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=parts[0], optim_state_dict=parts[1])


# -- what each of the two processes does ---------------------------------------------------------


def join(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", timedelta(seconds=60), 2, rank)


def fsdp2(
    steps: Iterable[int],
    dtype: Any = torch.float64,
    options: dict[str, Any] = OPTIONS,
    before: Path | None = None,
    after: Path | None = None,
) -> tuple[Tensors, list[dict[str, Any]]]:
    """Train the shards of this process, from and to a checkpoint."""
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    model = new_model(dtype)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    optimizer = OURS(model.parameters(), **options)
    if before:
        load(before, model, optimizer)
    train(model, optimizer, steps, dtype, dist.get_rank(), 2)
    if after:
        save(after, model, optimizer)
    return values(model), states(optimizer)


def full_state_dict() -> list[list[dict[str, Any]]]:
    """Gather the states of a model in one state dict, and load it."""
    from torch.distributed.fsdp import fully_shard

    found = []
    whole_dict = StateDictOptions(full_state_dict=True)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    loaded: Any = None
    for steps in (range(2), range(0)):
        model = fully_shard(new_model(torch.bfloat16), mesh=mesh)
        optimizer = OURS(model.parameters(), exp_avg_dtype=torch.bfloat16)
        if loaded:
            set_optimizer_state_dict(model, optimizer, loaded, options=whole_dict)
        train(model, optimizer, steps, torch.bfloat16, dist.get_rank(), 2)
        loaded = get_optimizer_state_dict(model, optimizer, options=whole_dict)
        found.append(states(optimizer))
    return found


def zero_redundancy(in_buckets: bool) -> Tensors:
    """Train with the states of each parameter in one process; go on from their state dict."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = new_model(torch.float64)

    def new_optimizer() -> Any:
        options = {"parameters_as_bucket_view": in_buckets, **OPTIONS}
        return ZeroRedundancyOptimizer(model.parameters(), OURS, **options)

    first = new_optimizer()
    train(model, first, range(3), torch.float64)
    first.consolidate_state_dict(to=0)
    shared = [first.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared)
    second = new_optimizer()
    second.load_state_dict(shared[0])
    train(model, second, range(3, 6), torch.float64)
    return values(model)


def deepspeed(stage: int) -> Tensors:
    """Train with DeepSpeed, the states on the CPU."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    deepspeed: Any = import_module("deepspeed")
    deepspeed.comm.torch.build_shm_op = lambda: None  # it would be compiled
    model = new_model(torch.float32)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}},
    }
    optimizer = OURS(model.parameters(), **OPTIONS)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for loss in losses(engine, range(6), torch.float32, dist.get_rank(), 2):
        engine.backward(loss)
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return values(model)


Both: TypeAlias = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Return a function that calls another one in two processes and returns both results."""
    file = str(tmp_path_factory.mktemp("gloo") / "file")
    pools = [ProcessPoolExecutor(1, get_context("spawn"), join, (rank, file)) for rank in range(2)]

    def call(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        futures = [pool.submit(function, *arguments) for pool in pools]
        return [future.result(HANG) for future in futures]

    yield call
    for pool in pools:
        pool.shutdown()


# -- the tests -----------------------------------------------------------------------------------


def test_fsdp2_with_offload_is_beside_torch_in_one_process(both: Both) -> None:
    for got, _ in both(fsdp2, range(6)):
        assert_close(got, uninterrupted())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_goes_from_two_processes_to_one_and_back(both: Both, tmp_path: Path) -> None:
    both(fsdp2, range(3), torch.float64, OPTIONS, None, tmp_path / "two")
    model = new_model(torch.float64)
    optimizer = OURS(model.parameters(), **OPTIONS)
    load(tmp_path / "two", model, optimizer)
    save(tmp_path / "one", model, optimizer)
    train(model, optimizer, range(3, 6), torch.float64)
    assert_close(values(model), uninterrupted())
    for got, _ in both(fsdp2, range(3, 6), torch.float64, OPTIONS, tmp_path / "one"):
        assert_close(got, uninterrupted())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_keeps_the_types_and_bits_of_states(both: Both, tmp_path: Path) -> None:
    half = torch.bfloat16
    expected, _ = both(fsdp2, range(3), half, IN_16_BITS, None, tmp_path / "two")
    assert {name: dtype for name, (dtype, _) in expected[1][0].items()} == {
        "step": torch.float32,
        "exp_avg": half,
        "exp_avg_sq": torch.float32,
        "master_param": torch.int16,
    }
    model = new_model(half)
    optimizer = OURS(model.parameters(), **IN_16_BITS)
    load(tmp_path / "two", model, optimizer)
    save(tmp_path / "one", model, optimizer)
    got = both(fsdp2, range(0), half, IN_16_BITS, tmp_path / "one")
    for loaded in [(values(model), states(optimizer)), *got]:
        torch.testing.assert_close(loaded[0], expected[0], rtol=0, atol=0)
        for ours, theirs in zip(loaded[1], expected[1], strict=True):
            assert_same(ours, theirs)


def test_a_full_state_dict_keeps_the_types_and_bits_of_states(both: Both) -> None:
    for expected, loaded in both(full_state_dict):
        for ours, theirs in zip(loaded, expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("in_buckets", [False, True])
def test_zero_redundancy_optimizer(both: Both, in_buckets: bool) -> None:
    for got in both(zero_redundancy, in_buckets):
        assert_close(got, uninterrupted())


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_with_offload(both: Both, stage: int) -> None:
    for got in both(deepspeed, stage):
        assert_close(got, uninterrupted(torch.float32), 1e-5)


USES = {
    "torch": """
import torch
t = torch.nn.Parameter(torch.ones(300, 300))
(t @ t).sum().backward()
""",
    "sklearn": """
from sklearn.cluster import KMeans
import numpy as np
KMeans(2, n_init=1, random_state=0).fit(np.random.default_rng(0).random((5000, 4)))
""",
    "jax": """
import jax
j = jax.grad(lambda x: (x @ x).sum())(jax.numpy.ones((300, 300)))
""",
    "fastopt": """
import fastopt as fo, numpy as np
a = np.ones((300, 300), np.float32)
fo.AdamW([a], lr=0.5).step([a.copy()])
""",
}
ALL = """
import fastopt.torch
fastopt.torch.AdamW([t], lr=0.5, weight_decay=0.01).step()
fo.AdamW([a], lr=0.5).step([j])
assert abs(t.detach().numpy() - 0.495).max() < 1e-6
assert abs(a + 0.007475).max() < 1e-6
"""


# Each one comes first once, and once directly after each other one.
@pytest.mark.parametrize("order", ["0132", "1203", "2310", "3021"])
def test_imports_in_any_order(order: str) -> None:
    if missing := [package for package in USES if find_spec(package) is None]:
        pytest.skip(f"needs {missing}")
    uses = list(USES.values())
    check("".join(uses[int(number)] for number in order) + ALL)
