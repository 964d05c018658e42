"""The base class of the optimizers in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import fastopt._core as _core
from fastopt._storage import check_options
from fastopt._types import FloatArray, Group, Params
from fastopt.optim._base import Optimizer, StepInfo

_WITHOUT_NORM = StepInfo(None, False)


class FusedOptimizer(Optimizer):
    """Base class of the optimizers in C++: each step is one call."""

    _kernel: ClassVar[str]  # the name of the row in the table of updates

    def __init__(self, params: Params, defaults: Group) -> None:
        self._core = _core.Updater(self._kernel, StepInfo)
        self._core.check_options(defaults | check_options(defaults))
        super().__init__(params, defaults)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied; save its state_dict(), and load "
            "that into a new one over the copied parameters"
        )

    def _add_group(
        self, names: list[str], arrays: list[FloatArray], group: Group, starts: list[int]
    ) -> None:
        self._core.add_group(names, arrays, group, self.param_groups, starts)

    def _remove_group(self, index: int) -> None:
        self._core.remove_group(index, self.param_groups)

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
        info: StepInfo | None = self._core.step(
            self._param_groups,
            grads,
            max_norm,
            norm_type,
            grad_scale,
            skip_nonfinite,
            zero_grads,
            out,
            total_norm,
        )
        return _WITHOUT_NORM if info is None else info

    def _state(self, index: int) -> dict[str, Any]:
        return self._core.state(index)

    def _load(self, states: list[dict[str, Any] | None], groups: list[Group]) -> None:
        self._core.load(states, self.param_groups, groups)
