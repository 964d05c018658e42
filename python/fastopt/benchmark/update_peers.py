"""One step of an optimizer of fastopt and of its peers; each has separate arrays."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt.benchmark.timing import Runner, Suite, torch
from fastopt.benchmark.update_cases import CASES, UpdateCase

Tensors: TypeAlias = list[npt.NDArray[np.float32]]
# Takes a case, parameters and gradients. Returns None if the peer does not have the optimizer.
Maker: TypeAlias = Callable[[UpdateCase, Tensors, Tensors], Runner | None]


def make_params(case: UpdateCase) -> Tensors:
    """Return parameters for `case`, the same ones in every call."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in case.shapes]


def make_grads(case: UpdateCase) -> Tensors:
    """Return gradients for `case`, the same ones in every call."""
    rng = np.random.default_rng(1)
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in case.shapes]
    return [np.asfortranarray(grad) for grad in grads] if case.transposed else grads


def _numpy(module: Any) -> Maker:
    """Return the maker for an optimizer of `fastopt` or of `fastopt.reference`."""

    def make(case: UpdateCase, params: Tensors, grads: Tensors) -> Runner:
        optimizer = getattr(module, case.optimizer)(params, **case.options)
        return Runner(lambda: optimizer.step(grads, max_norm=case.max_norm), lambda _: params)

    return make


def _torch(kind: str) -> Maker:
    def make(case: UpdateCase, params: Tensors, grads: Tensors) -> Runner | None:
        optimizer = getattr(torch.optim, case.optimizer, None)
        if optimizer is None or kind not in inspect.signature(optimizer).parameters:
            return None
        options = case.options | {kind: True}
        copies = case.transposed and kind == "fused"
        return step_on_tensors(lambda t: optimizer(t, **options), case, params, grads, copies)

    return make


def _deepspeed(case: UpdateCase, params: Tensors, grads: Tensors) -> Runner | None:
    if case.optimizer not in ("Adam", "AdamW"):
        return None
    decoupled = case.optimizer == "AdamW"
    options = {"adamw_mode": decoupled, "weight_decay": 0.01 * decoupled} | case.options
    optimizer = cpu_adam()
    return optimizer and step_on_tensors(
        lambda t: optimizer(t, **options), case, params, grads, case.transposed
    )


def step_on_tensors(
    make: Callable[[list[Any]], Any],
    case: UpdateCase,
    params: Tensors,
    grads: Tensors,
    copies: bool,
) -> Runner:
    """Return a step of an optimizer on torch tensors, which share the memory of the arrays.

    With `copies` a step first copies the gradients into the memory order of the parameters: the
    fused steps read a gradient as if it had the order of its parameter.
    """
    torch.set_num_threads(fo.get_num_threads())
    tensors = [torch.nn.Parameter(torch.from_numpy(param)) for param in params]
    sources = [torch.from_numpy(grad) for grad in grads]
    for tensor, source in zip(tensors, sources, strict=True):
        tensor.grad = source.contiguous() if copies else source
    optimizer = make(tensors)

    def step() -> None:
        if copies:
            for tensor, source in zip(tensors, sources, strict=True):
                tensor.grad.copy_(source)
        if case.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors, case.max_norm)
        optimizer.step()

    plain = case.max_norm is None and not copies
    return Runner(optimizer.step if plain else step, lambda _: params)


@cache
def cpu_adam() -> Any:
    """Return the CPUAdam of DeepSpeed, which is compiled here; None if that fails."""
    scripts = sysconfig.get_path("scripts")  # ninja is here even if no environment is active
    os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    try:
        with _quiet():
            optimizer = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
            # Each optimizer looks at the processor, which takes a second in another process.
            cpuinfo: Any = import_module("cpuinfo")
            cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
            optimizer([torch.nn.Parameter(torch.zeros(1))])
            from threadpoolctl import threadpool_limits

            # DeepSpeed has a separate OpenMP runtime.
            threadpool_limits(fo.get_num_threads(), user_api="openmp")
    except Exception as error:  # a missing compiler, a missing header ...
        reason = str(error).strip().splitlines()[-1:]
        warnings.warn(f"DeepSpeed's CPUAdam cannot be built: {reason}", stacklevel=2)
        return None
    return optimizer


# The options of optax for the defaults of fastopt. An optimizer without a row is not compared.
OPTAX: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 1e-3},
    "RMSprop": {"learning_rate": 1e-2, "decay": 0.99, "eps_in_sqrt": False},
    "Adam": {"learning_rate": 1e-3},
    "AdamW": {"learning_rate": 1e-3, "weight_decay": 0.01},
}


def _optax(case: UpdateCase, params: Tensors, grads: Tensors) -> Runner | None:
    if case.optimizer not in OPTAX:
        return None
    jax, optax = import_module("jax"), import_module("optax")
    options = OPTAX[case.optimizer] | {k: v for k, v in case.options.items() if k != "lr"}
    transform = getattr(optax, case.optimizer.lower())(**options)
    if case.max_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(case.max_norm), transform)
    cpu = jax.devices("cpu")[0]

    def update(grads: Any, state: Any, params: Any) -> Any:
        if case.transposed:  # arrays of JAX have C order, so the transposes are passed
            grads = [grad.T for grad in grads]
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(1, 2))
    gradients = jax.device_put([grad.T if case.transposed else grad for grad in grads], cpu)
    now = [jax.device_put(params, cpu)]
    now.append(jax.jit(transform.init)(now[0]))

    def step() -> None:
        now[:] = jitted(gradients, now[1], now[0])
        jax.block_until_ready(now)

    return Runner(step, lambda _: [jax.device_get(param) for param in now[0]])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what a library prints to standard error, and ignore its warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def check(case: UpdateCase, runners: Mapping[str, Runner]) -> None:
    """Compare two steps of each peer with the reference; fastopt must have the same bits."""
    expected = _expected(case)
    for peer, runner in runners.items():
        if peer.startswith("torch"):
            # The first call of torch with several threads sometimes gives square roots of 12 bits.
            small = replace(case, shapes=[(1 << 16,)])
            warm = OPTIMIZERS.peers[peer](small)
            assert warm is not None
            warm.run()
        for _ in range(2):
            runner.run()
        got = [p.ravel()[:: _stride(p)] for p in runner.read(None)]
        for x, y in zip(got, expected, strict=True):
            if peer in ("fastopt", "reference"):
                np.testing.assert_array_equal(x, y, err_msg=peer)
            else:
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=peer)


def _expected(case: UpdateCase) -> Tensors:
    """Return a sample of the parameters after two steps of the reference.

    Only the sample is updated; clipping needs all elements.
    """
    params, grads = make_params(case), make_grads(case)
    if case.max_norm is None:
        params = [p.ravel()[:: _stride(p)].copy() for p in params]
        grads = [g.ravel()[:: _stride(g)].copy() for g in grads]
    optimizer = getattr(fo.reference, case.optimizer)(params, **case.options)
    for _ in range(2):
        optimizer.step(grads, max_norm=case.max_norm)
    if case.max_norm is None:
        return params
    return [p.ravel()[:: _stride(p)] for p in params]


def _stride(array: npt.NDArray[np.float32]) -> int:
    return max(1, array.size // 100_000)


PEERS: dict[str, Maker] = {"fastopt": _numpy(fo), "reference": _numpy(fo.reference)}
if torch:
    PEERS |= {"torch fused": _torch("fused"), "torch foreach": _torch("foreach")}
if torch and find_spec("deepspeed"):
    PEERS["DeepSpeed"] = _deepspeed
if find_spec("jax") and find_spec("optax"):
    PEERS["jitted optax"] = _optax


def _on_arrays(make: Maker) -> Callable[[UpdateCase], Runner | None]:
    """Make new arrays for each runner, because most runners update them in place."""
    return lambda case: make(case, make_params(case), make_grads(case))


OPTIMIZERS = Suite(
    name="optimizers",
    cases=CASES,
    peers={peer: _on_arrays(make) for peer, make in PEERS.items()},
    check=check,
    unit="step",
)
