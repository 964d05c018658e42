"""The table of pointwise losses and functions, and the data that every row runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import fastopt as fo
from cases import CHUNK
from fastopt._types import FloatArray
from helpers import at_offset, in_ulp

LANES = 64
SIZES = [0, 1, 2, 3, 7, 17, LANES - 1, LANES, LANES + 1, 1000, CHUNK, CHUNK + 1, 2 * CHUNK + 77]


@dataclass(frozen=True, eq=False)
class Loss:
    """One loss in one configuration; `weight` and `pos_weight` are shapes to broadcast."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "numbers"  # the kinds of values in input and target
    # The bounds on loss and gradient of an element, in units of the last place of float32.
    loss_ulp: float = 0.51
    grad_ulp: float = 0.51

    def make(self, shape: tuple[int, ...] = (), reduction: str = "mean") -> Any:
        return getattr(fo, self.name)(**self._options(shape), reduction=reduction)

    def reference(self, shape: tuple[int, ...] = (), reduction: str = "mean") -> Any:
        return getattr(fo.reference, self.name)(**self._options(shape), reduction=reduction)

    def _options(self, shape: tuple[int, ...]) -> dict[str, Any]:
        options = dict(self.options)
        for name in ("weight", "pos_weight"):
            if name in options:  # of the last axis
                rng = np.random.default_rng(len(name))
                options[name] = rng.uniform(0.1, 3, shape[-1:]).astype(np.float32)
        return options

    def data(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int = 0
    ) -> tuple[FloatArray, FloatArray]:
        """Return input and target over wide ranges; each begins at an offset in a larger array."""
        rng = np.random.default_rng([seed, *shape])
        wide = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, shape)
        unit = rng.choice([0.0, 1.0, -1.0], shape)
        unit = np.where(unit < 0, rng.random(shape), unit)  # 0 and 1 themselves, and between
        if self.kind == "numbers":
            x, y = wide, wide + rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 2, shape)
        elif self.kind == "logits":
            x, y = wide, unit
        elif self.kind == "probabilities":
            small = 10.0 ** rng.uniform(-40, 0, shape)
            x, y = rng.choice([0.0, 1.0], shape), unit
            x = np.where(rng.random(shape) < 0.1, x, np.where(x == 0, small, 1 - small**0.2))
            x = np.where(rng.random(shape) < 0.4, rng.random(shape), x)
        else:
            x, y = -abs(wide), unit
            if self.options.get("log_target"):
                y = -abs(rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, shape))
        return tuple(
            at_offset(a.astype(dtype).ravel(), k).reshape(shape) for k, a in ((3, x), (1, y))
        )  # type: ignore[return-value]

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{k}={v}' for k, v in self.options.items())})"


LOSSES = [
    Loss("MSELoss"),
    Loss("L1Loss"),
    Loss("SmoothL1Loss"),
    Loss("SmoothL1Loss", {"beta": 0.0}),
    Loss("SmoothL1Loss", {"beta": 3.7}),
    Loss("HuberLoss"),
    Loss("HuberLoss", {"delta": 0.3}),
    Loss("BCELoss", {}, "probabilities"),
    Loss("BCELoss", {"weight": True}, "probabilities"),
    Loss("BCEWithLogitsLoss", {}, "logits", 3, 3),
    Loss("BCEWithLogitsLoss", {"pos_weight": True}, "logits", 4, 4),
    Loss("BCEWithLogitsLoss", {"weight": True, "pos_weight": True}, "logits", 5, 5),
    Loss("KLDivLoss", {}, "log-probabilities"),
    Loss("KLDivLoss", {"log_target": True}, "log-probabilities"),
]


@dataclass(frozen=True)
class Function:
    """One function of `operands` arrays."""

    name: str
    operands: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    ulp: float = 0.51  # of float32
    # The x where a result is 0 because terms cancel. Near it, the bound is 4 ULP of grad / 2.
    zero: float | None = None

    @property
    def fused(self) -> Callable[..., FloatArray]:
        function: Callable[..., FloatArray] = getattr(fo.functional, self.name)
        return function

    @property
    def reference(self) -> Callable[..., FloatArray]:
        function: Callable[..., FloatArray] = getattr(fo.reference, self.name)
        return function

    def check(
        self, result: FloatArray, truth: Any, arrays: list[FloatArray], ulp: float | FloatArray
    ) -> None:
        """Assert that each error is at most `ulp`."""
        cancels = np.zeros(result.shape, bool)
        if self.zero is not None:
            info, grad = np.finfo(result.dtype), abs(arrays[0])
            cancels = abs(arrays[1] - self.zero) < 0.5
            cancels |= abs(truth) < info.tiny * grad  # the derivative itself is denormal
            assert np.all(abs(result - truth) <= 2 * info.eps * grad, where=cancels)
        assert np.all(in_ulp(result, truth, result.dtype) <= ulp, where=~cancels)

    def data(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> list[FloatArray]:
        rng = np.random.default_rng(shape)
        wide = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 2, shape)
        grad = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6, shape)
        second = wide
        if self.name in ("sigmoid_backward", "tanh_backward"):
            second = rng.uniform(-1 if self.name[0] == "t" else 0, 1, shape)
        arrays = [wide] if self.operands == 1 else [grad, second]
        return [
            at_offset(a.astype(dtype).ravel(), 2 * i + 1).reshape(shape)
            for i, a in enumerate(arrays)
        ]

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{k}={v}' for k, v in self.options.items())})"


FUNCTIONS = [
    Function("sigmoid", ulp=3),
    Function("sigmoid_backward", 2, ulp=2),
    Function("relu"),
    Function("relu_backward", 2),
    Function("tanh", ulp=2.5),
    Function("tanh_backward", 2, ulp=2),
    Function("silu", ulp=2.5),
    Function("silu_backward", 2, ulp=5, zero=-1.2784645),
    Function("gelu", ulp=3.5),
    Function("gelu_backward", 2, ulp=5, zero=-0.7517916),
    Function("gelu", 1, {"approximate": "tanh"}),
    Function("gelu_backward", 2, {"approximate": "tanh"}, zero=-0.7524614),
    Function("logistic"),
    Function("logistic", options={"L": 2.5, "k": -1.75, "x0": 3.0}),
]
