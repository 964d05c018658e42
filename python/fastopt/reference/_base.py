"""The base class of the reference optimizers: a step is a Python loop over the parameters."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

import numpy as np

from fastopt._types import FloatArray, Group, Params
from fastopt.optim._base import Optimizer, StepInfo
from fastopt.reference.clipping import grad_norm, memory_order


class ReferenceOptimizer(Optimizer):
    """Keeps the states in plain dicts and calls `update` for each parameter with a gradient."""

    @abstractmethod
    def update(
        self, param: FloatArray, grad: FloatArray, state: dict[str, Any], group: Group
    ) -> None:
        """Update `param` and the arrays in `state` by one step.

        ``state["step"]`` is the number of this step, 1 for the first. All scalars are Python
        floats: an operation with a float32 array rounds them to float32 once.
        """

    def __init__(self, params: Params, defaults: Group) -> None:
        self._slots: list[tuple[FloatArray, int, dict[str, Any]]] = []
        super().__init__(params, defaults)

    def _add_group(self, names: list[str], arrays: list[FloatArray], group: Group) -> None:
        number = len(self._param_groups)
        slots = [*self._slots, *((array, number, {"step": 0}) for array in arrays)]
        self._slots, self._param_groups[number:] = slots, [group]

    def _remove_group(self, index: int) -> None:
        slots = [(p, g - (g > index), s) for p, g, s in self._slots if g != index]
        self._slots, self._param_groups[index : index + 1] = slots, []

    def _step(
        self,
        grads: Sequence[FloatArray | None],
        max_norm: float | None,
        norm_type: float,
        grad_scale: float,
        skip_nonfinite: bool,
        zero_grads: bool,
    ) -> StepInfo:
        used = [
            (*slot, grad) for slot, grad in zip(self._slots, grads, strict=True) if grad is not None
        ]
        grad_scale = float(grad_scale)
        norm, factor = None, 1 / grad_scale
        divisor, multiplier = grad_scale, 1.0  # the same in two numbers, for `_scaled`
        if max_norm is not None or skip_nonfinite:
            finite = all(np.isfinite(grad).all() for *_, grad in used)
            plain = grad_norm([_in_order_of(param, grad) for param, *_, grad in used], norm_type)
            norm = plain / grad_scale
            if skip_nonfinite and not finite:
                return StepInfo(norm, True)
            clip = 2.0 if max_norm is None else float(max_norm) / (norm + 1e-6)
            if max_norm is not None and not clip > 1:  # NaN stays
                # A denormal number has lost digits; 0 makes `_scaled` use the two numbers.
                factor = factor * clip if min(factor, clip) >= sys.float_info.min else 0.0
                if plain != 0:
                    divisor, multiplier = plain + 1e-6 * grad_scale, float(max_norm)
        groups = [{key: _plain(group[key]) for key in self.defaults} for group in self.param_groups]
        for param, group, state, grad in used:
            state["step"] += 1
            # NumPy 1 gives an array of 0 dimensions the dtype of a scalar, so use 1 dimension.
            shaped = {k: np.atleast_1d(v) if k != "step" else v for k, v in state.items()}
            with np.errstate(all="ignore"):  # NaN and inf follow IEEE, as in the kernels
                scaled = _scaled(np.atleast_1d(grad), factor, divisor, multiplier)
                self.update(np.atleast_1d(param), scaled, shaped, groups[group])
            for key, value in shaped.items():
                state[key] = value if key == "step" else value.reshape(param.shape)
            if zero_grads:
                grad[...] = 0
        return StepInfo(norm, False)

    def _state(self, index: int) -> dict[str, Any]:
        return dict(self._slots[index][2])

    def _load(self, states: list[dict[str, Any] | None], groups: list[Group]) -> None:
        slots = []
        for (param, group, state), loaded in zip(self._slots, states, strict=True):
            copies = {} if loaded is None else loaded
            copies = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in copies.items()}
            slots.append((param, group, state if loaded is None else copies))
        self._slots, self._param_groups[:] = slots, groups


def _scaled(grad: FloatArray, factor: float, divisor: float, multiplier: float) -> FloatArray:
    """Return ``grad * factor``; in two float64 steps if the dtype cannot hold the factor."""
    info = np.finfo(grad.dtype)
    if float(info.smallest_normal) <= abs(factor) <= float(info.max):
        return np.asarray(grad * factor)
    return np.asarray((grad.astype(np.float64) / divisor * multiplier).astype(grad.dtype))


def _in_order_of(param: FloatArray, grad: FloatArray) -> FloatArray:
    """Return the elements of the gradient in the memory order of the parameter."""
    return np.ascontiguousarray(grad.transpose(memory_order(param)))


def _plain(value: Any) -> Any:
    """Return an option without NumPy scalars, whose dtype would change float32 results."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def one_minus_power(beta: float, step: int) -> float:
    """``1 - beta**step``, computed to 60 digits and rounded once."""
    with localcontext(Context(prec=60)):
        return float(1 - Decimal(beta) ** step)
