"""Checks of what the experiments are given."""

from __future__ import annotations

from collections.abc import Collection
from operator import index
from typing import Any

from fastopt._options import as_number


def as_count(name: str, value: Any) -> int:
    """Return `value` if it is a whole number of at least 1."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


def as_finite(name: str, value: Any) -> float:
    """Return `value` if it is a finite number."""
    try:
        number = as_number(name, value)
    except OverflowError:
        number = float("inf")
    if not abs(number) < float("inf"):
        raise ValueError(f"{name} must be a finite number, not {value}")
    return number


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
