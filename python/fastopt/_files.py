"""Files that are whole or not there, and JSON in which everything has one meaning."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO
from zlib import crc32

__all__ = ["parse_json", "remove_leftovers", "require_regular", "to_json", "write_whole"]


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Make `path` the file that `write` fills; until it is complete, `path` stays what it was.

    `write` gets an empty file beside `path`, with a random name that is no longer for a long name
    of the caller's. It is removed whatever is raised. Then it is brought to the disk and renamed.
    A symbolic link at `path` is replaced itself. A folder, a pipe or a device is never replaced.
    The mode is what the umask leaves.

    The rename is the last thing that can fail. After it the names of the folder are brought to the
    disk too, as far as the system allows it: an error of that is ignored, since `path` is whole.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a folder, a pipe or a device. It names `path`,
        not the file beside it.
    """
    path = Path(path)
    part = path.parent / f"{_prefix(path)}{token_hex(8)}"
    name = os.fsencode(part)
    with contextlib.suppress(FileNotFoundError):  # what is wrong with `path` comes before any work
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            require_regular(path, mode)
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, part, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        try:  # noqa: SIM105  # this needs no memory
            os.unlink(name)  # noqa: PTH108
        except OSError:
            pass  # it has been renamed, or was never made
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def require_regular(path: Path, mode: int) -> None:
    """Raise OSError unless `mode` is that of a regular file; the error names `path`."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        what = "Not a regular file, but a pipe, a socket or a device; pass the path of a file"
        raise OSError(errno.EINVAL, what, str(path))


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed have left of `path`; none may be writing it now."""
    path = Path(path)
    for part in path.parent.glob(_prefix(path) + "*"):
        with contextlib.suppress(OSError):
            part.unlink()


def _prefix(path: Path) -> str:
    """Return how the names of the temporary files of `path` begin."""
    return f".fastopt-{crc32(os.fsencode(path.name)):08x}-"


def parse_json(text: str) -> Any:
    """Return what `text` says; ValueError for NaN, infinities and a name that comes twice."""
    try:
        value = json.loads(text)
        if to_json(value) == text:  # as this package writes it: nothing comes twice
            return value
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def to_json(value: Any) -> str:
    """Return `value` as JSON without spaces; ValueError if it holds NaN or an infinity."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return found
