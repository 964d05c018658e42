"""The file of a checkpoint: safetensors with a document in its metadata and hashes of all parts.

A safetensors file has eight bytes with the length of a JSON header, the header, and the bytes of
all tensors. The header gives the dtype, the shape and the offsets of each tensor. Its metadata are
strings; the string named ``fastopt`` is ``<format> <sha256 of the document> <document>``.

The file is read, never mapped, because another program may truncate it meanwhile. A length in the
file is compared with the size of the file before memory is allocated.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._files import compact_json, parse_json, require_regular, write_whole
from fastopt.checkpoint._document import (
    DTYPES,
    dtype_of,
    itemsize,
    largest_place,
    pack,
    unpack,
)

FORMAT = "2"
_READABLE = ("1", FORMAT)  # in format 1 each NumPy scalar is a tensor
_LONGEST_HEADER = 100_000_000  # of other readers of safetensors
_OF_SAFETENSORS = {theirs: ours for ours, theirs in DTYPES.items()}


class CheckpointError(ValueError):
    """A file that is damaged or not a checkpoint; the message says what is wrong."""


def write_file(path: Path, parts: Mapping[str, Any]) -> None:
    """Write the parts of a checkpoint."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    try:
        content = {name: pack(part, name, tensors) for name, part in parts.items()}
        facts = {
            name: {
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape),
                "sha256": _sha256(_bytes_of(tensor)),
            }
            for name, tensor in tensors.items()
        }
        document = compact_json({"content": content, "tensors": facts})
    except RecursionError as error:
        raise ValueError("something to be saved is nested too deep, or contains itself") from error
    # One entry, because other readers may change the order of several.
    header: dict[str, Any] = {
        "__metadata__": {"fastopt": f"{FORMAT} {_sha256(document.encode())} {document}"}
    }
    end = 0
    # The widest types come first, so that each tensor is aligned.
    in_order = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    for name, tensor in in_order:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = compact_json(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _LONGEST_HEADER:
        raise ValueError(
            f"too much to save beside the tensors: {len(encoded):,} bytes of JSON, most of it in "
            f"{largest_place(content, '')}; safetensors takes {_LONGEST_HEADER:,}. Put many "
            "numbers into one array"
        )

    def write(file: BinaryIO) -> None:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, tensor in in_order:
            file.write(_bytes_of(tensor).data)

    write_whole(path, write)


def read_file(path: Path) -> dict[str, Any]:
    """Return the parts of a checkpoint; their arrays are new."""
    require_regular(path, path.stat().st_mode)  # opening a pipe may wait for ever
    with path.open("rb", buffering=0) as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path}: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}") from error.__cause__
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            # The hash of the document matches, so another program has written it.
            reason = _reason(error)
            raise CheckpointError(f"{path} does not hold what save() writes: {reason}") from error


def _read(file: FileIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(_read_bytes(file, min(8, size)).tobytes(), "little")
    if not 0 < length <= size - 8:
        raise CheckpointError("is damaged or not a safetensors file: it ends within its header")
    text = _read_bytes(file, length).tobytes()
    try:
        header = parse_json(text.decode().rstrip(" "))
        metadata = header.pop("__metadata__", None)
        places = _places(header, size - 8 - length)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is damaged or not a safetensors file: {_reason(error)}") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fastopt"), str):
        raise CheckpointError("is a safetensors file, but not a checkpoint of fastopt")
    version, _, rest = metadata["fastopt"].partition(" ")
    if version not in _READABLE:
        raise CheckpointError(
            f"has format {version!r}; this version of fastopt reads {' and '.join(_READABLE)}"
        )
    digest, _, document = rest.partition(" ")
    if _sha256(document.encode(errors="surrogatepass")) != digest:
        raise CheckpointError("is damaged: the hash of its metadata does not match")
    parsed = parse_json(document)
    if not isinstance(parsed, dict) or not all(isinstance(part, dict) for part in parsed.values()):
        raise ValueError("its document has no parts")
    content, facts = parsed["content"], parsed["tensors"]
    if header.keys() != facts.keys():
        raise CheckpointError("is damaged: names of tensors do not match")
    tensors = {}
    for begin, end, name, dtype, shape in places:
        data = _read_bytes(file, end - begin)
        fact = {"dtype": dtype, "shape": shape, "sha256": _sha256(data)}
        if facts[name] != fact:
            raise CheckpointError(f"is damaged: the hash of {name} does not match")
        if dtype == "bool" and data.max(initial=0) > 1:
            raise ValueError(f"{name} holds bytes that are neither True nor False")
        tensors[name] = data.view(dtype_of(dtype)).reshape(shape)
        if sys.byteorder == "big":
            tensors[name].byteswap(inplace=True)
    parts = {name: unpack(part, tensors) for name, part in content.items()}
    if tensors:
        raise ValueError(f"no place has the tensors {', '.join(tensors)}")
    return parts


def _reason(error: Exception) -> str:
    """Return the message of an error of this package, or a message for an error of Python."""
    return str(error) if type(error) is ValueError else "its JSON has another structure"


_Place: TypeAlias = tuple[int, int, str, str, list[int]]  # begin, end, name, dtype, shape


def _places(header: dict[str, Any], size: int) -> list[_Place]:
    """Return the tensors in order; they must fill `size` bytes without gaps or overlaps."""
    places: list[_Place] = []
    for name, entry in header.items():
        if entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entries of {name!r} are not those of a tensor")
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        numbers = [begin, end, *shape]
        if {*map(type, numbers)} != {int} or not 0 <= min(numbers) <= max(numbers) < 2**63:
            raise ValueError(f"the shape or the offsets of {name!r} must be integers in [0, 2^63)")
        dtype = _OF_SAFETENSORS[entry["dtype"]]
        if len(shape) > 64 or end - begin != math.prod(shape) * itemsize(dtype):
            raise ValueError(f"the offsets of {name!r} do not fit its shape")
        places.append((begin, end, name, dtype, shape))
    places.sort()  # names differ
    at = 0
    for begin, end, name, *_ in places:
        if begin != at:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        at = end
    if at != size:
        raise ValueError(f"there are {size} bytes of tensors, not {at}")
    return places


def _read_bytes(file: FileIO, count: int) -> npt.NDArray[np.uint8]:
    data = np.empty(count, np.uint8)
    rest = data.data
    while rest:
        done = file.readinto(rest)
        if not done:
            raise CheckpointError("is damaged: it was cut short while it was read")
        rest = rest[done:]
    return data


def _bytes_of(tensor: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the bytes of a contiguous tensor without a copy, the lowest byte first."""
    if sys.byteorder == "big":
        tensor = tensor.byteswap()
    return tensor.reshape(-1).view(np.uint8)


def _sha256(data: Any) -> str:
    try:
        return hashlib.sha256(data).hexdigest()
    except ValueError as error:  # the error of OpenSSL if memory is missing
        raise MemoryError(f"no memory for a hash: {error}") from error
