"""The rows of types that are timed: AdamW over one tensor, in arrays of 16 and 32 bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt.benchmark.update_cases import SIZES

Type: TypeAlias = Literal["float32", "bfloat16", "float16"]

BYTES: dict[Type | None, int] = {None: 0, "float32": 4, "bfloat16": 2, "float16": 2}
# bfloat16 keeps 8 bits of a number: with this rate, a step changes nearly all parameters.
LR = 0.1


@dataclass(frozen=True)
class TypeCase:
    """The types of the arrays of one step of AdamW."""

    label: str
    size: int
    param: Type = "float32"
    grad: Type = "bfloat16"
    out: Type | None = None  # of the copy of the parameters
    options: dict[str, Any] = field(default_factory=dict)  # of the optimizer, beside lr

    @property
    def elements(self) -> int:
        """The number of parameters."""
        return self.size

    @property
    def state(self) -> Type:
        """The type of both states."""
        return "bfloat16" if self.options.get("state_dtype") == "bfloat16" else "float32"

    @property
    def model(self) -> Type:
        """The type of the parameters that the model reads."""
        return self.out or self.param

    @property
    def bytes_per_param(self) -> int:
        """The bytes that a step must read and write for each parameter."""
        master = self.options.get("master")
        # A parameter with a float32 master is written only.
        param = {None: 2 * BYTES[self.param], "split": 4 + 4, "float32": 8 + BYTES[self.param]}
        return param[master] + BYTES[self.grad] + 4 * BYTES[self.state] + BYTES[self.out]

    @property
    def bytes_held(self) -> int:
        """The bytes of memory for each parameter: it, its gradient, states, master and copy."""
        master = {None: 0, "split": 2, "float32": 4}[self.options.get("master")]
        arrays = BYTES[self.param] + BYTES[self.grad] + 2 * BYTES[self.state] + BYTES[self.out]
        return arrays + master

    @property
    def bytes_moved(self) -> int:
        """The bytes that a step must read and write if nothing stays in cache."""
        return self.bytes_per_param * self.size

    @property
    def between(self) -> str | None:
        """Nothing runs between two steps."""
        return None

    def draw(self, seed: int, dtype: Type) -> npt.NDArray[Any]:
        """Return normal numbers, the same ones in every call."""
        import_module("ml_dtypes")  # then NumPy knows the name bfloat16
        numbers = np.random.default_rng(seed).standard_normal(self.size, np.float32)
        return numbers.astype(dtype, copy=False)

    def __str__(self) -> str:
        size = next((name for name, size in SIZES.items() if size == self.size), self.size)
        return f"{self.label}, {size}"


def _cases(size: int) -> list[TypeCase]:
    bf16: Type = "bfloat16"
    states: dict[str, Any] = {"state_dtype": "bfloat16"}
    stochastic: dict[str, Any] = states | {"stochastic_rounding": True}
    split: dict[str, Any] = {"master": "split"}
    return [
        TypeCase("float32", size, grad="float32"),
        TypeCase("bf16 gradients", size),
        TypeCase("bf16 gradients and copy", size, out=bf16),
        TypeCase("fp16 gradients and copy", size, grad="float16", out="float16"),
        TypeCase("split master", size, bf16, options=split),
        TypeCase("float32 master", size, bf16, options={"master": "float32"}),
        TypeCase("bf16 parameters", size, bf16),
        TypeCase("bf16 states", size, options=states),
        TypeCase("split master, bf16 states, stochastic", size, bf16, options=split | stochastic),
        TypeCase("all bf16", size, bf16, options=states),
        TypeCase("all bf16, stochastic", size, bf16, options=stochastic),
    ]


CASES = [case for label in ("64 K", "1 M", "16 M", "64 M") for case in _cases(SIZES[label])]
