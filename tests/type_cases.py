"""The table of the types that parameters, states and masters may have, and arrays of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from cases import CASES, Case
from fastopt.reference.storage import rounded
from helpers import hostile

BFLOAT16: Any = np.dtype(ml_dtypes.bfloat16)
FLOAT16: Any = np.dtype(np.float16)
FLOAT32: Any = np.dtype(np.float32)
TYPES: list[Any] = [FLOAT32, BFLOAT16, FLOAT16]  # of gradients, in every row


@dataclass(frozen=True, eq=False)
class Kind:
    """The type of the parameters, and the options that choose the other types."""

    param: Any
    options: dict[str, Any] = field(default_factory=dict)

    def fits(self, case: Case) -> bool:
        """Whether the optimizer takes the options: not all have a second moment."""
        rounds = self.param == BFLOAT16 and "master" not in self.options
        has_moment = case.fused([np.zeros(1)])._second_moment is not None
        return has_moment or rounds or "stochastic_rounding" not in self.options

    def of(self, case: Case) -> Case:
        """Return the optimizer with these options."""
        return Case(case.name, case.options | self.options)

    def __str__(self) -> str:
        return "-".join([str(self.param), *(f"{k}={v}" for k, v in self.options.items())])


_STATES: list[dict[str, Any]] = [
    {},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "bfloat16", "stochastic_rounding": True, "seed": 7},
]
KINDS = [
    *(Kind(FLOAT32, states) for states in _STATES),
    *(Kind(BFLOAT16, {"master": "split"} | states) for states in _STATES),
    *(Kind(BFLOAT16, {"master": "float32"} | states) for states in _STATES),
    *(Kind(FLOAT16, {"master": "float32"} | states) for states in _STATES),
    *(Kind(BFLOAT16, states) for states in _STATES),
    Kind(BFLOAT16, {"state_dtype": "float32", "stochastic_rounding": True, "seed": 2**63 - 1}),
]
ROWS = [(kind, case) for kind in KINDS for case in CASES if kind.fits(case)]


def numbers(rng: np.random.Generator, size: int, dtype: Any, odd: float = 0.3) -> Any:
    """Return ordinary numbers, and a share of `odd` of every other kind, also all bit patterns."""
    dtype = np.dtype(dtype)
    ordinary = rng.standard_normal(size).astype(np.float32)
    with np.errstate(all="ignore"):
        strange = hostile(rng, size, np.float32)
        values = rounded(np.where(rng.random(size) < odd, strange, ordinary), dtype)
    if dtype != FLOAT32:
        bits = rng.integers(0, 2**16, size, np.uint16).view(dtype)
        values = np.where(rng.random(size) < odd / 2, bits, values)
    return values
