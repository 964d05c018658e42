"""The table of optimizers and configurations, and the data that every row runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt import _core
from fastopt._types import FloatArray
from helpers import at_offset, hostile

DTYPES: list[type[np.floating[Any]]] = [np.float32, np.float64]


@dataclass(frozen=True)
class Case:
    """One optimizer in one configuration."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def fused(self, params: Any) -> fo.Optimizer:
        optimizer: fo.Optimizer = getattr(fo, self.name)(params, **self.options)
        return optimizer

    def reference(self, params: Any) -> fo.Optimizer:
        optimizer: fo.Optimizer = getattr(fo.reference, self.name)(params, **self.options)
        return optimizer

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({options})"


CASES = [
    Case("SGD", {"lr": 0.1}),
    Case("SGD", {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.9, "momentum_init": "zero"}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "momentum_init": "zero"}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "maximize": True}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    Case("RMSprop", {}),
    Case("RMSprop", {"weight_decay": 0.01, "maximize": True}),
    Case("RMSprop", {"centered": True}),
    Case("RMSprop", {"momentum": 0.9}),
    Case("RMSprop", {"momentum": 0.9, "centered": True, "alpha": 0.9}),
    Case("RMSprop", {"momentum": 0.9, "weight_decay": 0.01, "eps": 1e-3}),
    Case("RMSprop", {"centered": True, "weight_decay": 0.01}),
    Case("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.01, "maximize": True}),
    Case("Adam", {}),
    Case("Adam", {"weight_decay": 0.01, "lr": 0.01}),
    Case("Adam", {"amsgrad": True, "betas": (0.5, 0.6)}),
    Case("Adam", {"amsgrad": True, "weight_decay": 0.01, "maximize": True}),
    Case("Adam", {"betas": (0.0, 0.0)}),
    Case("Adam", {"eps": 0.0}),
    Case("AdamW", {}),
    Case("AdamW", {"weight_decay": 0.0, "maximize": True}),
    Case("AdamW", {"weight_decay": 0.1, "lr": 0.01, "amsgrad": True}),
    Case("AdamW", {"betas": (0.95, 0.98), "eps": 1e-6}),
]

# The functional form and the names of its states, for the optimizers that have one.
FUNCTIONS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "SGD": (fo.functional.sgd_, ["momentum_buffer"]),
    "RMSprop": (fo.functional.rmsprop_, ["square_avg", "momentum_buffer", "grad_avg"]),
    "Adam": (fo.functional.adam_, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    "AdamW": (fo.functional.adamw_, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
}

CHUNK = _core.tuning.chunk_size
SIZES = [*range(71), CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]


def make_params(dtype: npt.DTypeLike) -> list[FloatArray]:
    """Return an array of each size, at changing offsets, and one of hostile numbers."""
    rng = np.random.default_rng(1)
    arrays = [at_offset(rng.standard_normal(n).astype(dtype), n % 17) for n in SIZES]
    return [*arrays, hostile(rng, 2000, dtype), np.ones((), dtype), np.empty((3, 0), dtype)]


def make_grads(params: Sequence[FloatArray], steps: int) -> list[list[FloatArray | None]]:
    """Return gradients for each step; some are None on one step, and one is None at first."""
    rng = np.random.default_rng(2)
    result: list[list[FloatArray | None]] = []
    for step in range(steps):
        grads: list[FloatArray | None] = []
        for i, p in enumerate(params):
            scale = 10.0 ** rng.integers(-3, 3)
            grad = (scale * rng.standard_normal(p.shape)).astype(p.dtype)
            if p.size == 2000:
                grad = hostile(rng, 2000, p.dtype)
            late = i % 7 == 3 and step < 2  # the first gradient comes on the third step
            skipped = i % 5 == 1 and step == 1
            grads.append(
                None if late or skipped else at_offset(grad.ravel(), i % 13).reshape(p.shape)
            )
        result.append(grads)
    return result
