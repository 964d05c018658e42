"""Files that are written whole or not at all, files that move together, and strict JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO
from zlib import crc32

from fastopt._checks import as_path

__all__ = [
    "compact_json",
    "parse_json",
    "remove_leftovers",
    "require_regular",
    "write_together",
    "write_whole",
]

TEMPORARY = ".fastopt-"  # the beginning of the names of temporary files and folders


def write_whole(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write the file `path` with `write`; until it is complete, `path` is not changed.

    `write` gets an empty file in the same folder, with a short random name. This file is flushed to
    the disk and renamed to `path`. After an exception it is removed. A symbolic link at `path` is
    replaced itself. A folder, a pipe or a device is never replaced. The mode follows the umask.

    The rename is the last operation that can fail. The folder is flushed to the disk after it; an
    error of this is ignored, because `path` is complete.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a folder, a pipe or a device. The error names
        `path`, not the temporary file.
    """
    path = Path(path)
    part = path.parent / f"{_prefix(path)}{token_hex(8)}"
    name = os.fsencode(part)
    with contextlib.suppress(FileNotFoundError):  # errors of `path` come before any work
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
            pass  # it has been renamed or was never made
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def write_together(folder: str | Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Provide a temporary folder whose files move into `folder` after the block.

    None moves if the block raises an exception, or if a folder has the name of one of them. All of
    them move if Ctrl-C comes during this. They are flushed to the disk first: each file is whole.
    If a move fails or the process is killed, only some of them may have moved. A killed process
    leaves a folder ``.fastopt-...``, which you may remove.

    Parameters
    ----------
    folder : path
        Must exist.
    stale : iterable of str
        Names of files that are removed from `folder` at the same time, unless they are written.

    Raises
    ------
    OSError
        If a file cannot be flushed or moved.
    """
    folder = as_path("folder", folder)
    parts = folder / f"{TEMPORARY}{token_hex(8)}"
    try:
        parts.mkdir()
        yield parts
        written = {file.name for file in parts.iterdir()}
        for name in sorted(written):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder", str(folder / name))
            if (parts / name).is_file():
                with (parts / name).open("rb") as file:
                    os.fsync(file.fileno())
        unwritten = set(stale) - written
        try:
            _put_in_place(parts, folder, unwritten)
        except KeyboardInterrupt:  # a late Ctrl-C is better than half of the files
            _put_in_place(parts, folder, unwritten)
            raise
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _put_in_place(parts: Path, folder: Path, stale: Iterable[str]) -> None:
    """Move the remaining files of `parts`, and remove the stale files."""
    for file in sorted(parts.iterdir()):
        file.replace(folder / file.name)
    for name in stale:
        if (folder / name).is_file():
            (folder / name).unlink()


def require_regular(path: Path, mode: int) -> None:
    """Raise OSError unless `mode` is that of a regular file; the error names `path`."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        what = "Not a regular file, but a pipe, a socket or a device; pass the path of a file"
        raise OSError(errno.EINVAL, what, str(path))


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove temporary files of `path` from killed processes; no process may be writing `path`."""
    path = Path(path)
    for part in path.parent.glob(_prefix(path) + "*"):
        with contextlib.suppress(OSError):
            part.unlink()


def _prefix(path: Path) -> str:
    """Return the beginning of the names of the temporary files of `path`."""
    return f"{TEMPORARY}{crc32(os.fsencode(path.name)):08x}-"


def parse_json(text: str) -> Any:
    """Return the value of `text`; ValueError for NaN, infinities and repeated names."""
    try:
        value = json.loads(text)
        if compact_json(value) == text:  # as this package writes it: no name is repeated
            return value
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def compact_json(value: Any) -> str:
    """Return `value` as JSON without spaces; ValueError if it holds NaN or an infinity."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return found
