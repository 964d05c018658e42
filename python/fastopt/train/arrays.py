"""Arrays from files: .npz without pickles, and MNIST's idx files."""

from __future__ import annotations

import gzip
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._checks import counted
from fastopt.train.checks import DataError, printable

# What a packed file may unpack to, beside `FREE` bytes: real data shrink less than this.
RATIO, FREE = 200, 1 << 26


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise DataError for everything that the libraries raise about a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, ModuleNotFoundError):
        raise
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a complete file: {error or 'it is cut short'}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a readable {what}: save it as text in UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # of any type: a damaged file may fail anywhere in a library
        reason = printable(str(error).strip().partition("\n")[0])[:200]
        raise DataError(
            f"{path} is not a readable {what}: {reason or type(error).__name__}"
        ) from error


def check_unpacked(path: Path, size: int, packed: int) -> None:
    """Raise DataError if `packed` bytes of a file unpack to so many bytes."""
    if size > RATIO * packed + FREE:
        raise DataError(
            f"{path} unpacks to more than {RATIO} times its size; if this is right, unpack it first"
        )


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, plain or .gz."""
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    packed = path.stat().st_size
    with gzip.open(path) as file:
        raw = file.read(RATIO * packed + FREE + 1)
    check_unpacked(path, len(raw), packed)
    return raw


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the array X of shape (N, features), and y if it is there: (N,), or one-hot rows."""
    with reading(path, ".npz file of numbers"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if "X" not in members:
            raise DataError(f"{path} holds {', '.join(map(printable, members)) or 'nothing'}; "
                            "it needs X and y")  # fmt: skip
        arrays = {}
        for name in members.keys() & {"X", "y"}:
            if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{path} is packed in another way than by numpy.savez_compressed")
            check_unpacked(path, members[name].file_size, members[name].compress_size)
            with archive.open(members[name]) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    x = arrays["X"]
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: X must hold real numbers, not {x.dtype}")
    if x.ndim < 2 or 0 in x.shape:
        raise DataError(f"{path}: X must have shape (N, ...) and hold numbers, not {x.shape}")
    if x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    arrays["X"] = x.reshape(len(x), -1)
    if "y" in arrays:
        arrays["y"] = _targets(path, arrays["y"], len(x))
    return arrays


def _targets(path: Path, y: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Return targets of shape (N,), or one-hot rows; they may have shape (N, 1)."""
    if y.dtype.kind not in "biufUS" or y.dtype.itemsize == 0:
        raise DataError(f"{path}: y must hold numbers or text, not {y.dtype}")
    if y.ndim not in (1, 2) or len(y) != rows:
        raise DataError(f"{path}: y must have a row for each of the {rows} in X, not {y.shape}")
    if y.ndim == 1 or y.shape[1] == 1:
        return y.reshape(rows)
    if np.isin(y, (0, 1)).all() and (np.count_nonzero(y, axis=1) == 1).all():
        return y
    raise DataError(f"{path}: y must have shape (N,) or (N, 1), or be one-hot rows, not {y.shape}")


def read_idx(folder: Path, stem: str) -> npt.NDArray[np.uint8]:
    """Return the array of shape (N, values) in the idx file whose name begins with `stem`.

    The file may be packed with gzip, or lie in a folder of its own name.
    """
    with reading(folder, "folder"):
        found = sorted(folder.glob(f"{stem}*"), key=lambda path: (path.is_dir(), path.name))
        if found and found[0].is_dir():
            found = sorted(path for path in found[0].glob(f"{stem}*") if path.is_file())
    if not found:
        raise DataError(
            f"{folder} has no {stem}-idx*-ubyte file, plain or .gz; a folder needs MNIST's four"
        )
    path = found[0]
    with reading(path, "idx file"):
        raw = read_bytes(path)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    start = 4 + 4 * raw[3]
    if len(raw) < start or raw[3] == 0:
        raise DataError(f"{path} is cut short: its header is not complete")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    body = np.frombuffer(raw, np.uint8, offset=start)
    if body.size != prod(shape) or body.size == 0:
        size = counted(body.size, "byte")
        raise DataError(f"{path} is cut short or too long: {size} for shape {shape}")
    return body.reshape(shape[0], -1)
