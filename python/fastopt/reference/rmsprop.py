"""RMSprop, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._storage import Master
from fastopt._types import FloatArray, Group, Params
from fastopt.reference._base import ReferenceOptimizer


class RMSprop(ReferenceOptimizer):
    """`fastopt.RMSprop` in plain NumPy."""

    _second_moment = "square_avg"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
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
        """Apply one step of RMSprop."""
        lr, alpha, eps, momentum = (group[k] for k in ("lr", "alpha", "eps", "momentum"))
        zeros = np.zeros_like(param)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] != 0:
            grad = grad + group["weight_decay"] * param

        square_avg = state.get("square_avg", zeros)
        square_avg = alpha * square_avg + (1 - alpha) * grad * grad
        state["square_avg"] = square_avg

        variance = square_avg
        if group["centered"]:
            grad_avg = alpha * state.get("grad_avg", zeros) + (1 - alpha) * grad
            variance = square_avg - grad_avg * grad_avg
            variance = np.where(variance < 0, zeros, variance)  # rounding; NaN stays
            state["grad_avg"] = grad_avg

        denom = np.sqrt(variance) + eps
        if momentum != 0:
            momentum_buffer = momentum * state.get("momentum_buffer", zeros) + grad / denom
            param -= lr * momentum_buffer
            state["momentum_buffer"] = momentum_buffer
        else:
            param -= lr * grad / denom
