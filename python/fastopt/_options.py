"""Checks of options that several losses and functions share."""

from __future__ import annotations

from operator import index
from typing import Literal, TypeAlias

from fastopt import _core
from fastopt._core import as_flag as as_flag
from fastopt._core import short_repr as short_repr

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(reduction: object) -> None:
    """Raise unless `reduction` is a string; which one, others check."""
    _core.as_text(reduction, "reduction")


def as_number(name: str, value: object) -> float:
    """Return `value` if it is one number."""
    return _core.as_number(value, name)


def as_index(name: str, value: object) -> int:
    """Return `value` if it is an integer, of any size."""
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {_core.short_repr(value)}") from None


def as_ignore_index(ignore_index: object) -> int:
    """Return `ignore_index` if it is an integer of 64 bits."""
    return _core.as_integer(ignore_index, "ignore_index")
