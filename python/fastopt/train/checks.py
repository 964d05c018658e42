"""Checks for the training tools; the checks of options are in `fastopt._checks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from math import inf
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from fastopt._checks import integer, one_or_each, short_repr

P = ParamSpec("P")
T = TypeVar("T")


class DataError(ValueError):
    """Data that cannot be used; the message says what to do."""


any_count = integer(1, inf)
seed32 = integer(0, 2**32 - 1, "in [0, 2**32)")  # the largest of scikit-learn
seed_of = one_or_each(integer(0, inf))  # the largest of NumPy generators


def ieee(function: Callable[P, T]) -> Callable[P, T]:
    """Make `function` return NaN and infinity as in IEEE 754, for any `np.seterr`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return call


def pip_name(package: str) -> str:
    """Return the name for pip of a package that Python imports as `package`."""
    return {"sklearn": "scikit-learn", "PIL": "pillow"}.get(package, package)


@contextmanager
def from_extra(what: str) -> Iterator[None]:
    """Raise an error with the pip command if an import in the block fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(
            f"{what} needs {pip_name(package)}; install it with: pip install 'fastopt[train]'",
            name=package,
        ) from error


def printable(text: str) -> str:
    """Return `text` with escapes for characters that would command a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def text(name: str, value: object) -> str:
    """Check that `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {short_repr(value)}")
    return str(value)


def kind(name: str, value: object, wanted: type) -> None:
    """Raise unless `value` is an instance of `wanted`."""
    if not isinstance(value, wanted):
        article = "an" if wanted.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {wanted.__name__}, not {short_repr(value)}")


def plain_array(name: str, value: Any, taken: str, kinds: str = "fiub") -> npt.NDArray[Any]:
    """Return a plain array with a dtype of `kinds`, from an array or a sequence."""
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
