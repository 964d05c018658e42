"""What the checks of the caller's values share: an error, words, and values in plain form."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fastopt._core import as_integer as _as_integer
from fastopt._core import as_number as _as_number
from fastopt._core import short_repr

__all__ = ["NamesError", "as_path", "counted", "to_float", "to_int"]


class NamesError(KeyError):
    """Names that are missing or not known; it prints its text, where KeyError prints its repr."""

    def __str__(self) -> str:
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number and its noun: 1 epoch, 2 epochs."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def to_float(name: str, value: object) -> float:
    """Return a number as a float; TypeError if it is none, ValueError if it is beyond float64."""
    if type(value) is float:
        return value
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, not {short_repr(value)}")
    return _as_number(value, name)


def to_int(name: str, value: object) -> int:
    """Return an integer as an int; TypeError if it is none, ValueError if beyond 64 bits."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, not {short_repr(value)}")
    return _as_integer(value, name)


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path as a `Path`; TypeError if it is none, ValueError if no file can have it."""
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
