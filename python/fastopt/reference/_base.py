"""The base class of the reference optimizers: a step is a Python loop over the parameters."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt._storage import bfloat16, is_16_bit, is_bfloat16
from fastopt._types import FloatArray, Group, Params
from fastopt.optim._base import Optimizer, StepInfo
from fastopt.reference.clipping import grad_norm, memory_order
from fastopt.reference.storage import join, noise, rounded, split, widen


class _Slot(NamedTuple):
    """A parameter with its name, the number of its group, its state, and where it starts."""

    name: str
    param: FloatArray
    group: int
    state: dict[str, Any]
    start: int


class ReferenceOptimizer(Optimizer):
    """Keeps the states in plain dicts and calls `update` for each parameter with a gradient.

    `update` computes in float32, or in float64 for float64 parameters. What has another type in
    memory is widened before it and rounded after it.
    """

    @abstractmethod
    def update(
        self, param: FloatArray, grad: FloatArray, state: dict[str, Any], group: Group
    ) -> None:
        """Update `param` and the arrays in `state` by one step, all of one dtype.

        ``state["step"]`` is the number of this step, 1 for the first. All scalars are Python
        floats: an operation with a float32 array rounds them to float32 once.
        """

    def __init__(self, params: Params, defaults: Group) -> None:
        self._slots: list[_Slot] = []
        super().__init__(params, defaults)

    def _add_group(
        self, names: list[str], arrays: list[FloatArray], group: Group, starts: list[int]
    ) -> None:
        number = len(self._param_groups)
        each = zip(names, arrays, starts, strict=True)
        added = (_Slot(name, array, number, {"step": 0}, start) for name, array, start in each)
        self._slots, self._param_groups[number:] = [*self._slots, *added], [group]

    def _remove_group(self, index: int) -> None:
        kept = (slot for slot in self._slots if slot.group != index)
        slots = [slot._replace(group=slot.group - (slot.group > index)) for slot in kept]
        self._slots, self._param_groups[index : index + 1] = slots, []

    def _step(
        self,
        grads: Sequence[FloatArray | None],
        max_norm: float | None,
        norm_type: float,
        grad_scale: float,
        skip_nonfinite: bool,
        zero_grads: bool,
        out: Sequence[FloatArray | None] | None,
        total_norm: float | None,
    ) -> StepInfo:
        copies = [None] * len(self._slots) if out is None else out
        used = [
            (slot, grad, copy)
            for slot, grad, copy in zip(self._slots, grads, copies, strict=True)
            if grad is not None
        ]
        grad_scale = float(grad_scale)
        norm, factor = None, 1 / grad_scale
        divisor, multiplier = grad_scale, 1.0  # the same in two numbers, for `_scaled`
        if max_norm is not None or skip_nonfinite:
            if total_norm is None:
                finite = all(np.isfinite(widen(grad)).all() for _, grad, _ in used)
                ordered = [_in_order_of(slot.param, grad) for slot, grad, _ in used]
                total_norm = grad_norm(ordered, norm_type)
            else:
                finite = isfinite(total_norm)
            norm = total_norm / grad_scale
            if skip_nonfinite and not finite:
                return StepInfo(norm, True)
            clip = 2.0 if max_norm is None else float(max_norm) / (norm + 1e-6)
            if max_norm is not None and not clip > 1:  # NaN stays
                # A denormal number has lost digits; 0 makes `_scaled` use the two numbers.
                factor = factor * clip if min(factor, clip) >= sys.float_info.min else 0.0
                if total_norm != 0:
                    divisor, multiplier = total_norm + 1e-6 * grad_scale, float(max_norm)
        groups = [{key: _plain(group[key]) for key in self.defaults} for group in self.param_groups]
        for slot, grad, copy in used:
            with np.errstate(all="ignore"):  # NaN and inf follow IEEE, as in the kernels
                # NumPy 1 gives an array of 0 dimensions the dtype of a scalar, so use 1 dimension.
                scaled = _scaled(np.atleast_1d(widen(grad)), factor, divisor, multiplier)
                new = self._update(slot, scaled, groups[slot.group])
                if copy is not None:
                    copy[...] = rounded(new, copy.dtype)
            if zero_grads:
                grad[...] = 0
        return StepInfo(norm, False)

    def _update(self, slot: _Slot, grad: FloatArray, group: Group) -> FloatArray:
        """Do one step of one parameter, and return its new values before they are rounded."""
        param, state = slot.param, slot.state
        state_dtype = bfloat16() if group["state_dtype"] == "bfloat16" else grad.dtype
        state["step"] += 1
        # The float32 parameter that the rule updates.
        master = group["master"] if is_16_bit(param.dtype) else None
        if master == "split":
            values = join(param, state.get("master_param", np.zeros_like(param, np.int16)))
        elif master == "float32":
            written = widen(param)
            values = state.get("master_param", written)
            same = rounded(values, param.dtype).view(np.uint16) == param.view(np.uint16)
            values = np.where(same, values, written)
        else:
            values = widen(param)
        values = np.atleast_1d(values)
        wide = {
            key: value if key == "step" else np.atleast_1d(widen(value))
            for key, value in state.items()
            if key != "master_param"
        }
        self.update(values, grad, wide, group)
        values = values.reshape(param.shape)

        del wide["step"]
        for key, value in wide.items():
            bits = _noise(slot, group, state_dtype, 1) if key == self._second_moment else None
            state[key] = rounded(value.reshape(param.shape), state_dtype, bits)
        if master == "split":
            param[...], state["master_param"] = split(values, param.dtype)
        elif master == "float32":
            state["master_param"] = values
            param[...] = rounded(values, param.dtype)
        else:
            param[...] = rounded(values, param.dtype, _noise(slot, group, param.dtype, 0))
        return values

    def _state(self, index: int) -> dict[str, Any]:
        return dict(self._slots[index].state)

    def _load(self, states: list[dict[str, Any] | None], groups: list[Group]) -> None:
        slots = []
        for slot, loaded in zip(self._slots, states, strict=True):
            if loaded is not None:
                copies = {k: v.copy() if k != "step" else v for k, v in loaded.items()}
                slot = slot._replace(state=copies)
            slots.append(slot)
        self._slots, self._param_groups[:] = slots, groups


def _noise(
    slot: _Slot, group: Group, dtype: np.dtype[Any], stream: int
) -> npt.NDArray[np.uint16] | None:
    """Return the noise for each element of a parameter; None where rounding is to nearest."""
    if not (group["stochastic_rounding"] and is_bfloat16(dtype)):
        return None
    step, size = slot.state["step"], slot.param.size
    flat = noise(group["seed"], step, slot.name, stream, size, slot.start)
    axes = memory_order(slot.param)  # elements are numbered in the order of the memory
    in_memory = flat.reshape([slot.param.shape[axis] for axis in axes])
    return np.asarray(in_memory.transpose(np.argsort(axes).tolist()))


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
