"""Exponential moving averages of parameters, in plain NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastopt._structure import IncompatibleKeys, as_groups, new_params, require_same_names
from fastopt._types import FloatArray, Params
from fastopt.reference.storage import rounded, widen


class WeightEMA:
    """`fastopt.WeightEMA` in plain NumPy."""

    def __init__(self, params: Params, decay: float = 0.999, *, warmup: bool = False) -> None:
        self.decay = decay
        self.warmup = warmup
        self.averages: dict[str, FloatArray] = {}
        self._params: dict[str, FloatArray] = {}
        self._steps: dict[str, int] = {}
        for group in as_groups(params)[0]:
            self.add_param_group(group)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters."""
        names, params, _ = new_params(param_group, self._params)
        for name, param in zip(names, params, strict=True):
            self._params[name] = param
            self.averages[name] = np.array(widen(param), order="K")
            self._steps[name] = 0

    @property
    def num_updates(self) -> int:
        """The number of updates."""
        return max(self._steps.values())

    def update(self) -> None:
        """Update the averages with the present parameters."""
        for name, stored in self._params.items():
            param = widen(stored)
            average, step = self.averages[name], self._steps[name]
            if step == 0:
                average[...] = param
            else:
                decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
                weight = param.dtype.type(1 - decay)
                with np.errstate(all="ignore"):  # NaN and inf follow IEEE, as in the kernels
                    average[...] = average + weight * (param - average)
            self._steps[name] = step + 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters during a ``with`` block."""
        before = {name: param.copy() for name, param in self._params.items()}
        try:
            for name, param in self._params.items():
                param[...] = rounded(self.averages[name], param.dtype)
            yield
        finally:
            for name, param in self._params.items():
                param[...] = before[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the options, and the average and the number of updates of each parameter."""
        state = {
            name: {"step": self._steps[name], "average": average}
            for name, average in self.averages.items()
        }
        return {"decay": self.decay, "warmup": self.warmup, "state": state}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Load a result of `state_dict`."""
        state = state_dict["state"]
        if strict:
            require_same_names(self._params, state, "state dict")
        for name in self._params.keys() & state.keys():
            self.averages[name][...] = state[name]["average"]
            self._steps[name] = state[name]["step"]
        self.decay, self.warmup = state_dict["decay"], state_dict["warmup"]
        return IncompatibleKeys(
            [name for name in self._params if name not in state],
            [name for name in state if name not in self._params],
        )
