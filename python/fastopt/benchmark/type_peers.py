"""One step of AdamW over arrays of 16 and 32 bits, of fastopt and of its peers.

"cast" means: the optimizer has float32 parameters and states. Before a step it casts the gradients,
after the step it casts the parameters to the type that the model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt.benchmark.timing import Runner, Suite, torch
from fastopt.benchmark.type_cases import CASES, LR, TypeCase
from fastopt.benchmark.update_peers import cpu_adam

Maker: TypeAlias = Callable[[TypeCase], Runner | None]
# Returns an optimizer of torch, or None if it cannot be built.
Make: TypeAlias = Callable[[TypeCase, list[Any]], Any]

SAMPLE = 200_000  # elements that are compared with the reference, more than a run of the noise
# A peer must only do the same work: two steps move a parameter by 0.2.
PEERS_CLOSE = 2.0**-6


def _fastopt(module: Any, case: TypeCase) -> Runner:
    """Return a step of `fastopt` or of `fastopt.reference`; `read` gives the states too."""
    param, grads = case.draw(0, case.param), [case.draw(1, case.grad)]
    optimizer = module.AdamW([param], lr=LR, **case.options)
    out = None if case.out is None else [case.draw(0, case.out)]

    def read(_: Any) -> list[npt.NDArray[Any]]:
        states = (x for x in optimizer.state["0"].values() if isinstance(x, np.ndarray))
        return [*(out or []), param, *states]

    return Runner(lambda: optimizer.step(grads, out=out), read)


def _float32(case: TypeCase) -> Runner:
    return _fastopt(fo, TypeCase("float32", case.size, grad="float32"))


def _ml_dtypes(case: TypeCase) -> Runner | None:
    """Return a step of fastopt in float32 between casts of NumPy."""
    if case.grad == "float32":
        return None  # nothing to cast
    param, source = case.draw(0, "float32"), case.draw(1, case.grad)
    grad, copy = np.empty_like(param), case.draw(0, case.model)
    optimizer = fo.AdamW([param], lr=LR)

    def step() -> None:
        np.copyto(grad, source)
        optimizer.step([grad])
        if case.model != "float32":
            np.copyto(copy, param, casting="unsafe")

    return Runner(step, lambda _: [param if case.model == "float32" else copy])


def _torch_cast(make: Make, case: TypeCase) -> Runner | None:
    return _on_tensors(make, case, param="float32")


def _torch_bf16(make: Make, case: TypeCase) -> Runner | None:
    """Return a step on bfloat16 parameters, which is rounded to nearest in any case."""
    if case.param != "bfloat16" or case.options.get("master"):
        return None
    return _on_tensors(make, case, param="bfloat16")


def _on_tensors(make: Make, case: TypeCase, param: Any) -> Runner | None:
    torch.set_num_threads(fo.get_num_threads())
    tensor = torch.nn.Parameter(tensor_of(case.draw(0, param)))
    source, copy = tensor_of(case.draw(1, case.grad)), tensor_of(case.draw(0, case.model))
    casts_before, casts_after = source.dtype != tensor.dtype, copy.dtype != tensor.dtype
    tensor.grad = torch.empty_like(tensor) if casts_before else source
    optimizer = make(case, [tensor])

    def step() -> None:
        if casts_before:
            tensor.grad.copy_(source)
        optimizer.step()
        if casts_after:
            copy.copy_(tensor.detach())

    plain = not casts_before and not casts_after
    return optimizer and Runner(
        optimizer.step if plain else step,
        lambda _: [(copy if casts_after else tensor.detach()).float().numpy()],
    )


def tensor_of(array: npt.NDArray[Any]) -> Any:
    """Return a tensor that shares the memory of an array."""
    integers = torch.from_numpy(array.view(f"i{array.itemsize}"))
    return integers.view(getattr(torch, array.dtype.name))


def _fused(case: TypeCase, tensors: list[Any]) -> Any:
    return torch.optim.AdamW(tensors, lr=LR, fused=True)


def _fused_bf16(case: TypeCase) -> Runner | None:
    return _torch_bf16(_fused, case) if case.state == "bfloat16" else None  # as its parameters


def _deepspeed(case: TypeCase, tensors: list[Any]) -> Any:
    optimizer = cpu_adam()
    wide = case.state == "float32" or tensors[0].element_size() == 4
    return optimizer and optimizer(tensors, lr=LR, weight_decay=0.01, fp32_optimizer_states=wide)


def _deepspeed_bf16(case: TypeCase) -> Runner | None:
    # With AVX2, its loop over bfloat16 ends the process.
    return None if fo.available_isas()[-1] == "avx2" else _torch_bf16(_deepspeed, case)


def check(case: TypeCase, runners: Mapping[str, Runner]) -> None:
    """Compare two steps of each peer with the reference; fastopt must have the same bits.

    Only the first elements are compared: their random bits do not depend on those after them.
    """
    truth = _fastopt(fo.reference, replace(case, size=min(case.size, SAMPLE)))
    truth.run()
    truth.run()
    expected = truth.read(None)
    for peer, runner in runners.items():
        for _ in range(2):
            runner.run()
        got = [x[: expected[0].size] for x in runner.read(None)]
        if peer in ("fastopt", "reference"):
            for x, y in zip(got, expected, strict=True):
                bits = f"u{x.itemsize}"
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x.view(bits), y.view(bits), err_msg=peer)
        else:
            x, y = (a[0].astype(np.float32) for a in (got, expected))
            np.testing.assert_allclose(x, y, PEERS_CLOSE, PEERS_CLOSE, err_msg=peer)


PEERS: dict[str, Maker] = {"fastopt": partial(_fastopt, fo), "float32": _float32}
if torch:
    PEERS |= {"torch cast": partial(_torch_cast, _fused), "torch bf16": _fused_bf16}
if torch and find_spec("deepspeed"):
    PEERS |= {"DeepSpeed cast": partial(_torch_cast, _deepspeed), "DeepSpeed bf16": _deepspeed_bf16}
PEERS |= {"ml_dtypes": _ml_dtypes, "reference": partial(_fastopt, fo.reference)}

TYPES = Suite(
    name="types",
    cases=CASES,
    peers=PEERS,
    check=check,
    unit="step",
    columns={"B moved": lambda case: case.bytes_per_param, "B held": lambda case: case.bytes_held},
)
