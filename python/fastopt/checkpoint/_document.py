"""The contents of a checkpoint except its tensors, as JSON.

A value that JSON does not have is an object with one name that begins with "$". A name of the
caller that begins with "$" gets a second "$".

=================================  ==============================================================
``{"$array": "params/w"}``         the array that is the tensor of this name
``{"$numpy": "float32 0000803f"}`` a NumPy scalar: its dtype, and its bytes, the lowest first
``{"$scalar": "extra/x"}``         in format 1: a NumPy scalar that is the tensor of this name
``{"$tuple": [1, 2]}``             a tuple
``{"$float": "nan"}``              NaN, inf or -inf
``{"$int": "-0x..."}``             an integer of more than 600 digits, which JSON readers may refuse
=================================  ==============================================================
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._storage import bfloat16

DEPTH = 200  # of nested containers
DTYPES = {  # NumPy's names and those of safetensors
    "bfloat16": "BF16",
    "bool": "BOOL",
    "complex64": "C64",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_SCALARS = {*DTYPES, "complex128"}
_NAMES = {np.dtype(name).type: name for name in _SCALARS - {"bfloat16"}}  # dtype.name takes a while
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HEXADECIMAL = re.compile("-?0x[0-9a-f]+")


def itemsize(name: str) -> int:
    """Return the bytes of an element of the dtype of this name."""
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the dtype of this name; ModuleNotFoundError if its package is not installed."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def pack(value: Any, where: str, tensors: dict[str, npt.NDArray[Any]], depth: int = 0) -> Any:
    """Return `value` as JSON, and put its arrays into `tensors`; errors name the place `where`."""
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, np.generic):
        return {"$numpy": _scalar(value, where)}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, int):
        return int(value) if value.bit_length() < 2000 else {"$int": hex(value)}
    if isinstance(value, np.ndarray):
        name = _free_name(where, tensors)
        tensors[name] = _tensor(value, where)
        return {"$array": name}
    if depth == DEPTH:
        raise ValueError(f"{_short(where)} is nested more than {DEPTH} deep, or contains itself")
    if isinstance(value, Mapping):
        packed = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{_short(where)} has the key {key!r}; keys must be strings")
            place = f"{where}/{key}"
            packed["$" * key.startswith("$") + _text(key, place)] = pack(
                item, place, tensors, depth + 1
            )
        return packed
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{where}/{i}", tensors, depth + 1) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise TypeError(
        f"{_short(where)} is {type(value).__name__}, which a checkpoint cannot hold: only "
        "mappings, lists, tuples, numbers, strings, None and arrays"
    )


def unpack(value: Any, tensors: dict[str, npt.NDArray[Any]]) -> Any:
    """Return the value for a result of `pack`; each array is removed from `tensors`.

    What `pack` has not made raises KeyError, TypeError, ValueError or RecursionError.
    """
    if value.__class__ is list:
        return [unpack(item, tensors) for item in value]
    if value.__class__ is not dict:
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if key == "$array":
            return tensors.pop(item)
        if key == "$numpy" and item.__class__ is str:
            return _scalar_of(item)
        if key == "$scalar":
            return tensors.pop(item).reshape(())[()]
        if key == "$float" and item in ("nan", "inf", "-inf"):
            return float(item)
        if key == "$int" and _HEXADECIMAL.fullmatch(item):
            return int(item, 16)
        if key == "$tuple" and item.__class__ is list:
            return tuple([unpack(part, tensors) for part in item])
    plain = {}
    for key, item in value.items():
        if key[:1] == "$":
            if key[:2] != "$$":
                raise ValueError(f"there is no {key!r} in this format")
            key = key[1:]
        plain[key] = unpack(item, tensors)
    return plain


def largest_place(packed: Any, where: str) -> str:
    """Return the innermost place that contains more than half of the packed value."""
    while isinstance(packed, (dict, list)):
        items = packed.items() if isinstance(packed, dict) else enumerate(packed)
        sizes = {key: len(json.dumps(item)) for key, item in items}
        largest = max(sizes, key=lambda key: sizes[key], default=None)
        if largest is None or 2 * sizes[largest] < sum(sizes.values()):
            break
        packed = packed[largest]
        if largest != "$tuple":
            where = f"{where}/{largest}" if where else str(largest)
    return _short(where)


def _short(where: str) -> str:
    return where if len(where) <= 120 else f"{where[:60]}...{where[-40:]}"


def _text(text: str, where: str) -> str:
    if _PAIR.search(text):
        raise ValueError(
            f"{_short(where)} holds both halves of a surrogate pair, which JSON would join; use "
            "the character itself"
        )
    return text


def _free_name(where: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    name = plain = where.encode(errors="backslashreplace").decode()  # UTF-8 has no lone surrogates
    number = 1
    while name in tensors:  # the path "a/b" may be that of two places
        number += 1
        name = f"{plain}#{number}"
    return name


def _tensor(value: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{_short(where)} is a masked array; save its data and its mask")
    if value.dtype.name not in DTYPES:
        raise TypeError(
            f"{_short(where)} is an array of {value.dtype}, which a checkpoint cannot hold: only "
            "bool, integers, bfloat16, float16, float32, float64 and complex64"
        )
    if not value.dtype.isnative:
        raise ValueError(
            f"{_short(where)} is byte-swapped ({value.dtype.str}); use "
            ".astype(array.dtype.newbyteorder('='))"
        )
    return np.require(np.asarray(value), requirements="C")


def _scalar(value: np.generic, where: str) -> str:
    name = _NAMES.get(type(value)) or value.dtype.name
    if name not in _SCALARS:
        raise TypeError(
            f"{_short(where)} is a NumPy scalar of {value.dtype}, which a checkpoint cannot hold; "
            "use float(), int() or str() on it"
        )
    if sys.byteorder == "big":
        value = value.byteswap()
    return f"{name} {value.tobytes().hex()}"


def _scalar_of(text: str) -> Any:
    name, data = text.split(" ")
    raw = bytes.fromhex(data)
    if name not in _SCALARS or len(raw) != itemsize(name) or (name == "bool" and raw > b"\1"):
        raise ValueError(f"{data!r} is not a scalar of {name}")
    return np.frombuffer(raw, dtype_of(name).newbyteorder("<"))[0]
