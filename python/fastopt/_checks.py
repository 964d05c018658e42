"""Checks of options and arguments in Python; the compiled half checks arrays and its own options.

A `Check` takes a name and a value. It returns the value in plain form, or raises TypeError or
ValueError with the name and the value. `number`, `integer`, `choice` and `list_of` make checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from operator import index
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from fastopt._core import as_flag, as_number, short_repr

__all__ = [
    "Check",
    "NamesError",
    "as_path",
    "below_one",
    "choice",
    "counted",
    "finite",
    "flag",
    "for_each_group",
    "fraction",
    "int64",
    "integer",
    "list_of",
    "mapping",
    "non_negative",
    "number",
    "one_or_each",
    "positive",
    "positive_fraction",
    "reduction_of",
    "short_repr",
    "to_float",
    "to_int",
]

Check: TypeAlias = Callable[[str, Any], Any]


class NamesError(KeyError):
    """Missing or unknown names; str() gives the message, not its repr as with KeyError."""

    def __str__(self) -> str:
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a number and its noun: 1 epoch, 2 epochs."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def digits(value: float, count: int) -> str:
    """Return a number with `count` digits: 0.1235, 1235, and 123457 instead of 1.235e+05."""
    whole = 10**count <= abs(value) < 1e15
    return f"{value:.0f}" if whole else f"{value:.{count}g}"


def flag(name: str, value: object) -> bool:
    """Check that `value` is True or False."""
    return as_flag(value, name)


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """Check that `value` is a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {short_repr(value)}")
    return value


def to_float(name: str, value: object) -> float:
    """Check that `value` is a number within float64; it may be NaN or infinite."""
    return value if type(value) is float else as_number(value, name)


def to_int(name: str, value: Any) -> int:
    """Check that `value` is an integer, of any size."""
    try:
        if not isinstance(value, bool | np.bool_):
            return index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, not {short_repr(value)}")


def number(taken: str, allows: Callable[[float], bool]) -> Callable[[str, object], float]:
    """Return a check for a number that `allows`; `taken` describes these numbers in messages."""

    def check(name: str, value: object) -> float:
        result = to_float(name, value)
        if not allows(result):
            raise ValueError(f"{name} must be {taken}, not {short_repr(value)}")
        return result

    return check


finite = number("finite", isfinite)
non_negative = number("finite and >= 0", lambda x: 0 <= x < inf)
positive = number("finite and > 0", lambda x: 0 < x < inf)
fraction = number("in [0, 1]", lambda x: 0 <= x <= 1)
positive_fraction = number("in (0, 1]", lambda x: 0 < x <= 1)
below_one = number("in [0, 1)", lambda x: 0 <= x < 1)


def integer(least: int, most: float = 2**63 - 1, taken: str = "") -> Callable[[str, object], int]:
    """Return a check for an integer from `least` to `most`; `taken` describes it in messages."""
    if most < 2**63 - 1:
        taken = taken or f"in [{least}, {most}]"

    def check(name: str, value: Any) -> int:
        result = to_int(name, value)
        if least <= result <= most:
            return result
        wanted = taken or (f">= {least}" if result < least else "an integer of 64 bits")
        raise ValueError(f"{name} must be {wanted}, not {short_repr(value)}")

    return check


int64 = integer(-(2**63), taken="an integer of 64 bits")


def choice(*names: str) -> Callable[[str, object], str]:
    """Return a check for one of the `names`."""
    *others, last = map(repr, names)
    taken = " or ".join(filter(None, [", ".join(others), last]))

    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in names:
            error = ValueError if isinstance(value, str) else TypeError
            raise error(f"{name} must be {taken}, not {short_repr(value)}")
        return str(value)

    return check


reduction_of: Check = choice("mean", "sum", "none")


def list_of(item: Check, least: int = 0, most: int | None = None) -> Check:
    """Return a check for a sequence of `least` to `most` values that pass `item`."""

    def check(name: str, value: Any) -> list[Any]:
        if not _is_list(value):
            raise TypeError(f"{name} must be a sequence, not {short_repr(value)}")
        if len(value) < least or (most is not None and len(value) > most):
            more = "or more" if most is None else f"to {most}"
            taken = counted(least, "value") if least == most else f"{least} {more} values"
            raise ValueError(f"{name} must have {taken}, not {len(value)}")
        return [item(f"{name}[{i}]", entry) for i, entry in enumerate(value)]

    return check


def one_or_each(item: Check) -> Check:
    """Return a check for one value for all groups, or a list with a value for each group."""

    def check(name: str, value: Any) -> Any:
        return list_of(item)(name, value) if _is_list(value) else item(name, value)

    return check


def for_each_group(name: str, value: Any, count: int) -> list[Any]:
    """Return a value for each of `count` groups, from one value or a list."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} has {counted(len(value), 'value')} but the optimizer has "
            f"{counted(count, 'parameter group')}; pass one value for each group, or one for all"
        )
    return list(value)


def is_array(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """Whether this is an array, of NumPy or of another library."""
    return hasattr(type(value), "__dlpack__")


def _is_list(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Check that `value` can be the path of a file."""
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a string or a pathlib.Path, not {short_repr(value)}"
        ) from None
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoding = "characters that the encoding of the file system lacks"
        raise ValueError(f"{name} must not hold {encoding}: {short_repr(str(path))}") from None
    if b"\0" in encoded:
        raise ValueError(f"{name} must not hold a null character: {short_repr(str(path))}")
    return path
