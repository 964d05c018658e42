"""One step of an optimizer, of fastopt's and of its peers', on arrays of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import fastopt as fo
from fastopt._types import FloatArray
from fastopt.benchmark.cases import Case

torch: Any = import_module("torch") if find_spec("torch") else None

PEERS = ["fastopt", "reference", *(["torch fused", "torch foreach"] if torch else [])]
FUSED = ("SGD", "Adam", "AdamW")  # torch has no fused RMSprop


def make_step(
    peer: str, case: Case, params: Sequence[FloatArray], grads: Sequence[FloatArray]
) -> Callable[[], object] | None:
    """Return a call that takes one step of the peer's optimizer, or None if it has none such.

    `params` are updated in place; torch shares their memory.
    """
    if peer in ("fastopt", "reference"):
        module = fo if peer == "fastopt" else fo.reference
        optimizer = getattr(module, case.optimizer)(list(params), **case.options)
        gradients = list(grads)
        return lambda: optimizer.step(gradients, max_norm=case.max_norm)
    if peer == "torch fused" and case.optimizer not in FUSED:
        return None
    if not hasattr(torch.optim, case.optimizer):
        return None
    torch.set_num_threads(fo.get_num_threads())
    tensors = [torch.nn.Parameter(torch.from_numpy(param)) for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    kind = peer.removeprefix("torch ")
    stepper = getattr(torch.optim, case.optimizer)(tensors, **case.options, **{kind: True})
    if case.max_norm is None:
        step: Callable[[], object] = stepper.step
        return step

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(tensors, case.max_norm)
        stepper.step()

    return clip_and_step
