"""Checks of options: each takes a name and a value, and returns the value in plain form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, TypeAlias

import numpy as np

from fastopt._checks import counted, to_float, to_int
from fastopt._core import as_flag, short_repr

Check: TypeAlias = Callable[[str, Any], Any]


def number(taken: str, allows: Callable[[float], bool]) -> Check:
    """Return a check for a finite number that `allows`; `taken` says which in messages."""

    def check(name: str, value: object) -> float:
        result = to_float(name, value)
        if not (isfinite(result) and allows(result)):
            raise ValueError(f"{name} must be {taken}, not {short_repr(value)}")
        return result

    return check


non_negative = number("finite and >= 0", lambda x: x >= 0)
positive = number("finite and > 0", lambda x: x > 0)
fraction = number("in [0, 1]", lambda x: 0 <= x <= 1)
positive_fraction = number("in (0, 1]", lambda x: 0 < x <= 1)
below_one = number("in [0, 1)", lambda x: 0 <= x < 1)


def integer(least: int) -> Check:
    """Return a check for an integer of 64 bits that is at least `least`."""

    def check(name: str, value: object) -> int:
        result = to_int(name, value)
        if result < least:
            raise ValueError(f"{name} must be >= {least}, not {short_repr(value)}")
        return result

    return check


def choice(*names: str) -> Check:
    """Return a check for one of the `names`."""

    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in names:
            error = ValueError if isinstance(value, str) else TypeError
            raise error(f"{name} must be {' or '.join(map(repr, names))}, not {short_repr(value)}")
        return str(value)

    return check


def flag(name: str, value: object) -> bool:
    """Check that `value` is True or False."""
    return as_flag(value, name)


def list_of(item: Check, least: int = 0, most: int | None = None) -> Check:
    """Return a check for a sequence of `least` to `most` values that pass `item`."""

    def check(name: str, value: Any) -> list[Any]:
        if not _is_list(value):
            raise TypeError(f"{name} must be a sequence, not {short_repr(value)}")
        if len(value) < least or (most is not None and len(value) > most):
            taken = counted(least, "value") if least == most else f"{least} to {most} values"
            raise ValueError(f"{name} must have {taken}, not {len(value)}")
        return [item(f"{name}[{i}]", entry) for i, entry in enumerate(value)]

    return check


def one_or_each(item: Check) -> Check:
    """Return a check for one value for all groups, or a list with a value for each group."""

    def check(name: str, value: Any) -> Any:
        return list_of(item)(name, value) if _is_list(value) else item(name, value)

    return check


def for_each_group(name: str, value: Any, count: int) -> list[Any]:
    """Return the value of each of `count` groups, from one for all or a list."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} has {counted(len(value), 'value')} but the optimizer has "
            f"{counted(count, 'parameter group')}; pass one value for each group, or one for all"
        )
    return list(value)


def _is_list(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
