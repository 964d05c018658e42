"""The 16-bit types by name, and the options of a group that say where they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from fastopt._checks import flag, integer, short_repr
from fastopt._types import Group

Master: TypeAlias = Literal["float32", "split"]

# The options, and their values in a state dict from before they existed.
DEFAULTS: Group = {"state_dtype": None, "master": None, "stochastic_rounding": False, "seed": 0}

_seed = integer(0)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether this is bfloat16, of whatever package."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def is_16_bit(dtype: np.dtype[Any]) -> bool:
    """Whether this is bfloat16 or float16."""
    return is_bfloat16(dtype) or (dtype.kind == "f" and dtype.itemsize == 2)


def bfloat16() -> np.dtype[Any]:
    """Return the dtype bfloat16 of ml_dtypes."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ModuleNotFoundError(
            "arrays of bfloat16 need the package ml_dtypes: pip install ml_dtypes"
        ) from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def check_options(
    options: Mapping[str, Any], params: tuple[Any, ...] | None = None, second_moment: bool = False
) -> Group:
    """Return the four options of types in plain form.

    Parameters
    ----------
    options : mapping
        The options of a group, among others. Those of types that it lacks have their defaults.
    params : tuple of array, optional
        The parameters of the group, one of which must need each option.
    second_moment : bool
        Whether the optimizer keeps one.
    """
    options = DEFAULTS | dict(options)
    result = {
        "state_dtype": _named("state_dtype", options["state_dtype"], "float32", "bfloat16"),
        "master": _named("master", options["master"], "float32", "split"),
        "stochastic_rounding": flag("stochastic_rounding", options["stochastic_rounding"]),
        "seed": _seed("seed", options["seed"]),
    }
    if params is None:
        return result
    # By name: a tensor has another kind of dtype. What is no array is refused elsewhere.
    dtypes = {str(getattr(param, "dtype", "")).removeprefix("torch.") for param in params}
    if result["master"] is not None and dtypes.isdisjoint(("bfloat16", "float16")):
        raise ValueError(
            f"master={result['master']!r} is for parameters of bfloat16 or float16, and this group "
            "has none; use master=None"
        )
    rounded = result["master"] is None and "bfloat16" in dtypes
    if result["stochastic_rounding"] and not (
        rounded or (second_moment and result["state_dtype"] == "bfloat16")
    ):
        raise ValueError(
            "stochastic_rounding is for parameters of bfloat16 without a master"
            + " and for second moments in bfloat16 (state_dtype='bfloat16')" * second_moment
            + ", and this group has none; use stochastic_rounding=False"
        )
    return result


def _named(option: str, value: Any, *names: str) -> str | None:
    """Check that `value` is None, one of the names, or a dtype or scalar type with such a name."""
    if value is None:
        return None
    name = value.name if isinstance(value, np.dtype) else getattr(value, "__name__", value)
    if isinstance(name, str) and name in names:
        return str(name)
    raise (ValueError if isinstance(name, str) else TypeError)(
        f"{option} must be None, {' or '.join(map(repr, names))}, not {short_repr(value)}"
    )
