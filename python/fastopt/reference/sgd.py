"""SGD with momentum, in plain NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastopt._storage import Master
from fastopt._types import FloatArray, Group, Params
from fastopt.reference._base import ReferenceOptimizer


class SGD(ReferenceOptimizer):
    """`fastopt.SGD` in plain NumPy."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        momentum_init: Literal["grad", "zero"] = "grad",
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        super().__init__(params, options)

    def update(
        self, param: FloatArray, grad: FloatArray, state: dict[str, Any], group: Group
    ) -> None:
        """Apply one step of SGD."""
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0:
            grad = grad + group["weight_decay"] * param

        momentum = group["momentum"]
        if momentum != 0:
            if "momentum_buffer" not in state and group["momentum_init"] == "grad":
                momentum_buffer = grad.copy()
            else:
                momentum_buffer = state.get("momentum_buffer", np.zeros_like(param))
                momentum_buffer = momentum * momentum_buffer + (1 - group["dampening"]) * grad
            state["momentum_buffer"] = momentum_buffer
            grad = grad + momentum * momentum_buffer if group["nesterov"] else momentum_buffer

        param -= group["lr"] * grad
