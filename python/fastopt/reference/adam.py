"""Adam and AdamW, in plain NumPy."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._storage import Master
from fastopt._types import FloatArray, Group, Params
from fastopt.reference._base import ReferenceOptimizer, one_minus_power


class Adam(ReferenceOptimizer):
    """`fastopt.Adam` in plain NumPy."""

    _second_moment = "exp_avg_sq"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
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
        """Apply one step of Adam or AdamW."""
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        weight_decay = group["weight_decay"]
        zeros = np.zeros_like(param)
        if group["maximize"]:
            grad = -grad
        if group["decoupled_weight_decay"]:
            param *= 1 - lr * weight_decay
        elif weight_decay != 0:
            grad = grad + weight_decay * param

        before = state.get("exp_avg", zeros) if beta1 != 0 else zeros
        exp_avg = beta1 * before + (1 - beta1) * grad
        exp_avg_sq = beta2 * state.get("exp_avg_sq", zeros) + (1 - beta2) * grad * grad
        if beta1 != 0:
            state["exp_avg"] = exp_avg
        state["exp_avg_sq"] = exp_avg_sq

        second = exp_avg_sq
        if group["amsgrad"]:
            second = np.maximum(state.get("max_exp_avg_sq", zeros), exp_avg_sq)  # NaN stays
            state["max_exp_avg_sq"] = second

        correction1 = one_minus_power(beta1, state["step"])
        correction2 = one_minus_power(beta2, state["step"])
        denom = np.sqrt(second) * (1 / sqrt(correction2)) + eps
        param -= lr / correction1 * exp_avg / denom


class AdamW(Adam):
    """`fastopt.AdamW` in plain NumPy."""

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            state_dtype=state_dtype,
            master=master,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
        )
