"""The base class of the reference optimizers: a step is a Python loop over the parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from fastopt._types import FloatArray, Group, Params
from fastopt.optim._base import OptimizerBase


class ReferenceOptimizer(OptimizerBase):
    """Keeps the states in plain dicts and calls `update` for each parameter with a gradient."""

    @abstractmethod
    def update(
        self, param: FloatArray, grad: FloatArray, state: dict[str, Any], group: Group
    ) -> None:
        """Update `param` and the arrays in `state` by one step.

        ``state["step"]`` is the number of this step, 1 for the first. A Python float that meets a
        float32 array is rounded to float32 once: that is the rule for all scalars here.
        """

    def __init__(self, params: Params, defaults: Group) -> None:
        self._slots: list[tuple[FloatArray, int, dict[str, Any]]] = []
        super().__init__(params, defaults)

    def _add_group(self, names: list[str], arrays: Sequence[FloatArray], group: Group) -> None:
        for array in arrays:
            self._slots.append((array, len(self.param_groups), {"step": 0}))

    def _step(self, grads: Sequence[FloatArray | None]) -> None:
        groups = [{key: _plain(group[key]) for key in self.defaults} for group in self.param_groups]
        for (param, group, state), grad in zip(self._slots, grads, strict=True):
            if grad is None:
                continue
            state["step"] += 1
            # As one dimension at least: NumPy 1 would take a scalar's dtype for that of its result.
            shaped = {k: np.atleast_1d(v) if k != "step" else v for k, v in state.items()}
            with np.errstate(all="ignore"):  # NaN and inf follow IEEE, as in the kernels
                self.update(np.atleast_1d(param), np.atleast_1d(grad), shaped, groups[group])
            for key, value in shaped.items():
                state[key] = value if key == "step" else value.reshape(param.shape)

    def _state(self, index: int) -> dict[str, Any]:
        return dict(self._slots[index][2])

    def _load(self, states: list[dict[str, Any]], groups: list[Group]) -> None:
        for (_, _, state), loaded in zip(self._slots, states, strict=True):
            state.clear()
            for key, value in loaded.items():
                state[key] = value.copy() if isinstance(value, np.ndarray) else value


def _plain(value: Any) -> Any:
    """Return an option without NumPy scalars: they would impose their dtype on float32 arrays."""
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def one_minus_power(beta: float, step: int) -> float:
    """``1 - beta**step``, computed to 60 digits and rounded once."""
    with localcontext() as context:
        context.prec = 60
        return float(1 - Decimal(beta) ** step)
