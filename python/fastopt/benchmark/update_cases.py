"""The optimizers that are timed, each over a list of float32 tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastopt as fo

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class UpdateCase:
    """One optimizer over one list of tensors."""

    optimizer: str  # a class of fastopt
    label: str
    shapes: Shapes = field(repr=False)
    max_norm: float | None = None  # clip the gradients to it
    transposed: bool = False  # gradients in Fortran order
    between: str | None = None  # a matmul of "torch" or "NumPy" runs before each step
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def states(self) -> int:
        """The number of arrays that the optimizer keeps for a parameter."""
        one = np.ones(1, np.float32)
        optimizer = getattr(fo, self.optimizer)([one], **self.options)
        optimizer.step([one.copy()])
        return sum(isinstance(value, np.ndarray) for value in optimizer.state["0"].values())

    @property
    def bytes_moved(self) -> int:
        """The bytes that a step must read and write if nothing stays in cache."""
        # Parameter and states are read and written. The gradient is read once, with a norm twice.
        arrays = 2 + 2 * self.states + 1 + (self.max_norm is not None)
        return 4 * arrays * self.elements

    @property
    def is_plain(self) -> bool:
        """Whether it is one tensor, without clipping, transposition or matmul."""
        special = self.max_norm is not None or self.transposed or self.between is not None
        return len(self.shapes) == 1 and not special

    def __str__(self) -> str:
        clip = "" if self.max_norm is None else ", clipped"
        between = "" if self.between is None else f", between {self.between} matmuls"
        layout = ", transposed gradient" if self.transposed else ""
        return f"{self.optimizer}, {self.label}{layout}{clip}{between}"


SIZES = {
    "4 K": 4 << 10,
    "64 K": 64 << 10,
    "1 M": 1 << 20,
    "16 M": 16 << 20,
    "64 M": 64 << 20,
}
NAMES = [
    name
    for name, item in vars(fo).items()
    if isinstance(item, type) and issubclass(item, fo.Optimizer) and item is not fo.Optimizer
]
# The options of an optimizer that differ from its defaults.
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 1e-3, "momentum": 0.9}}
MLP: Shapes = [(256, 784), (256,), (128, 256), (128,), (10, 128), (10,)]

CASES = [
    *(
        UpdateCase(name, label, [(size,)], options=OPTIONS.get(name, {}))
        for name in NAMES
        for label, size in SIZES.items()
    ),
    UpdateCase("AdamW", "MLP 784-256-128-10", MLP),
    UpdateCase("AdamW", "200 tensors of 64", [(64,)] * 200),
    UpdateCase("AdamW", "64 M and 1000 of 64", [(64 << 20,), *[(64,)] * 1000]),
    UpdateCase("AdamW", "16 M", [(16 << 20,)], max_norm=1.0),
    UpdateCase("AdamW", "4096 x 4096", [(4096, 4096)], transposed=True),
    *([UpdateCase("AdamW", "1 M", [(1 << 20,)], between="torch")] if find_spec("torch") else []),
    UpdateCase("AdamW", "1 M", [(1 << 20,)], between="NumPy"),
]
