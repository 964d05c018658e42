"""Checks of what the experiments are given: each returns the value in plain form."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf
from operator import index
from typing import Any

from fastopt._options import as_number


def shown(value: object) -> str:
    """Return a value for a message: its repr, cut if it is long."""
    try:
        text = repr(value)
    except Exception:  # a whole number of more digits than Python prints, or a faulty class
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: Any, most: float = inf) -> int:
    """Return a whole number from 1 to `most`."""
    try:
        result = index(value)
    except TypeError:
        result = None
    if result is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if not 1 <= result <= most:
        taken = "at least 1" if most == inf else f"in [1, {most}]"
        raise ValueError(f"{name} must be {taken}, not {shown(result)}")
    return result


def number(name: str, value: Any, taken: str, allows: Callable[[float], bool]) -> float:
    """Return a number that `allows`; `taken` says which these are."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value}")
    try:
        result = as_number(name, value)
    except OverflowError:
        result = inf
    if not allows(result):
        raise ValueError(f"{name} must be {taken}, not {shown(value)}")
    return result


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
    return value


def kind(name: str, value: object, wanted: type) -> None:
    """Raise unless `value` is an instance of `wanted`."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be a {wanted.__name__}, not {shown(value)}")
