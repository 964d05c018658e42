"""Checks of what a caller gives: each returns the value in plain form, or names what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import wraps
from math import inf
from operator import index
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from fastopt._checks import short_repr
from fastopt._checks import to_float as as_number
from fastopt._core import as_flag

__all__ = [
    "as_flag",
    "choice",
    "counted",
    "from_extra",
    "ieee",
    "kind",
    "number",
    "path",
    "pip_name",
    "plain_array",
    "seed",
    "short_repr",
    "text",
    "whole",
    "widths",
]

P = ParamSpec("P")
T = TypeVar("T")


def ieee(function: Callable[P, T]) -> Callable[P, T]:
    """Let NaN and infinity come out of `function` as IEEE has them, whatever `np.seterr` says."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


def pip_name(package: str) -> str:
    """Return the name under which pip installs a package that Python imports as `package`."""
    return {"sklearn": "scikit-learn", "PIL": "pillow"}.get(package, package)


@contextmanager
def from_extra(what: str) -> Iterator[None]:
    """Say how to install what an import in the block lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(
            f"{what} needs {pip_name(package)}; install it with: pip install 'fastopt[train]'",
            name=package,
        ) from error


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number and its noun: 1 epoch, 2 epochs."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def text(name: str, value: object) -> str:
    """Return a string as it is."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {short_repr(value)}")
    return str(value)


def path(name: str, value: Any) -> Path:
    """Return a path as a `Path`."""
    try:
        return Path(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, not {short_repr(value)}") from None


def choice(name: str, value: object, choices: Iterable[str], where: str = "") -> str:
    """Return one of `choices`; `where` says for what they are."""
    choices = list(choices)
    if text(name, value) not in choices:
        found = short_repr(value)
        raise ValueError(f"{name} must be one of {', '.join(choices)}{where}, not {found}")
    return str(value)


def whole(name: str, value: Any, least: int = 1, most: float = inf, taken: str = "") -> int:
    """Return a whole number from `least` to `most` as an int; `taken` says it in other words."""
    result = _index(value)
    if result is None:
        raise TypeError(f"{name} must be a whole number, not {short_repr(value)}")
    if not least <= result <= most:
        if not taken:
            taken = f"from {least} to {most}" if result > most else f"at least {least}"
        raise ValueError(f"{name} must be {taken}, not {short_repr(result)}")
    return result


def kind(name: str, value: object, wanted: type) -> None:
    """Raise unless `value` is an instance of `wanted`."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be a {wanted.__name__}, not {short_repr(value)}")


def widths(name: str, values: Any) -> tuple[int, ...]:
    """Return the widths of layers, whole numbers of at least 1, as a tuple."""
    one_axis = isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1
    if not one_axis or isinstance(values, str | bytes | Mapping | Set):
        raise TypeError(f"{name} must be a sequence of widths, not {short_repr(values)}")
    result = []
    for value in values:
        width = _index(value)
        if width is None:
            raise TypeError(f"{name} must hold whole numbers, not {short_repr(value)}")
        if width < 1:
            raise ValueError(f"{name} must hold widths of at least 1, not {short_repr(width)}")
        result.append(width)
    return tuple(result)


def _index(value: Any) -> int | None:
    """Return a whole number as an int, None for what is none."""
    try:
        return None if isinstance(value, bool | np.bool_) else index(value)
    except TypeError:
        return None


def number(name: str, value: object, taken: str, allows: Callable[[float], bool]) -> float:
    """Return a number that `allows` as a float; `taken` says which these are."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        result = as_number(name, value)
    except ValueError:  # beyond float64
        result = inf
    if not allows(result):  # NaN too
        raise ValueError(f"{name} must be {taken}, not {short_repr(value)}")
    return result


def seed(name: str, value: Any) -> int | list[int]:
    """Return what seeds a generator: a whole number of at least 0, or a sequence of them."""
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return [whole(f"{name}[{i}]", part, 0) for i, part in enumerate(value)]
    return whole(name, value, 0)


def plain_array(name: str, value: Any, taken: str, kinds: str = "fiub") -> npt.NDArray[Any]:
    """Return an array, or what NumPy makes one of, as a plain one whose dtype is of `kinds`."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not have a mask; fill it: {name}.filled(...)")
    array: npt.NDArray[Any] = value
    if type(value) is not np.ndarray:
        try:
            array = np.asarray(value)
        except MemoryError:
            raise
        except Exception as error:
            raise TypeError(
                f"{name} must be an array of {taken}; NumPy cannot make one of {short_repr(value)}"
            ) from error
    if array.dtype.kind not in kinds:
        plain = value is None or isinstance(value, str | bytes | int | list | tuple)
        shown = short_repr(value) if plain else f"{type(value).__name__} of {array.dtype}"
        hint = f"; convert it: {name}.toarray()" if hasattr(value, "toarray") else ""
        raise TypeError(f"{name} must be an array of {taken}, not {shown}{hint}")
    return array
