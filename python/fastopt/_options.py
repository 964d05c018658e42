"""Checks of options that several losses and functions share."""

from __future__ import annotations

from operator import index
from typing import Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(reduction: object) -> None:
    """Raise unless `reduction` is a string; which one, others check."""
    if not isinstance(reduction, str):
        raise TypeError(f"reduction must be a string, not {reduction!r}")


def as_number(name: str, value: object) -> float:
    """Return `value` if it is one number."""
    if not isinstance(value, SupportsFloat) or np.ndim(value) > 0:  # type: ignore[arg-type]
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def as_ignore_index(ignore_index: object) -> int:
    """Return `ignore_index` if it is an integer of 64 bits."""
    if not isinstance(ignore_index, SupportsIndex):
        raise TypeError(f"ignore_index must be an integer, not {ignore_index!r}")
    if not -(2**63) <= index(ignore_index) < 2**63:
        raise ValueError(f"ignore_index must fit into 64 bits, not {ignore_index}")
    return index(ignore_index)
