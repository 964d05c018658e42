"""Weighted sums of gradients, in plain NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt._structure import as_groups, flatten_grads, new_params
from fastopt._types import FloatArray, Grads, Group, Params
from fastopt.reference.storage import widen


class GradAccumulator:
    """`fastopt.GradAccumulator` in plain NumPy."""

    def __init__(self, params: Params) -> None:
        self.grads: dict[str, FloatArray | None] = {}
        self.weight = 0.0
        self._param_groups: list[Group] = []
        self._named: set[str] = set()
        groups, self._by_group = as_groups(params)
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters."""
        names, _, given = new_params(param_group, self.grads)
        self._param_groups.append({"param_names": names})
        self._named.update(given)
        self.grads.update(dict.fromkeys(names))

    def add(self, grads: Grads, weight: float = 1.0) -> None:
        """Add ``weight * grads`` to the sums; the first of a round replaces them."""
        flat = flatten_grads(grads, self.grads, self._param_groups, self._by_group, self._named)
        for (name, before), grad in zip(self.grads.items(), flat, strict=True):
            if grad is None:
                continue
            with np.errstate(all="ignore"):  # NaN and inf follow IEEE, as in the kernels
                wide = widen(grad)
                part = np.asarray(wide.dtype.type(weight) * wide)
                self.grads[name] = part if before is None else np.asarray(before + part)
        self.weight += weight

    def reset(self) -> None:
        """Begin a new round."""
        self.grads = dict.fromkeys(self.grads)
        self.weight = 0.0
