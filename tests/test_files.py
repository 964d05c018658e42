"""A file is written whole or not at all, for any name, error or moment."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import fastopt as fo
from fastopt._files import parse_json, remove_leftovers, write_whole


def _fill(file: BinaryIO, content: bytes) -> None:
    file.write(content)


@pytest.mark.parametrize("name", ["a", "x" * 242, "x" * 255, "\u7532" * 85, "a b\n'\udcff"])
def test_any_name_that_the_system_takes(name: str, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_whole(tmp_path / name, partial(_fill, content=content))
        assert (tmp_path / name).read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_names_what_the_caller_gave(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cases: list[tuple[Path, int]] = [
        (tmp_path / ("x" * 256), errno.ENAMETOOLONG),
        (tmp_path / "nowhere" / "a", errno.ENOENT),
        (tmp_path / "file" / "a", errno.ENOTDIR),
        (tmp_path, errno.EISDIR),
        (Path(), errno.EISDIR),
    ]
    for path, number in cases:
        with pytest.raises(OSError, match="Errno") as caught:
            write_whole(path, lambda file: file.write(b"x"))
        assert caught.value.errno == number
        assert caught.value.filename == str(path)
        assert caught.value.filename2 is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError, full])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_whatever_is_raised_the_old_file_stays_alone(
    where: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fails(*_: Any) -> None:
        if error is full:
            full()
        raise error

    if where != "write":
        monkeypatch.setattr({"fsync": os, "replace": Path}[where], where, fails)
    kind = OSError if error is full else error
    with pytest.raises(kind) as caught:
        write_whole(path, fails if where == "write" else lambda file: file.write(b"new"))
    if error is full:
        assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_after_the_rename_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fails_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_for_folders)
        write_whole(tmp_path / "a", lambda file: file.write(b"one"))
    assert (tmp_path / "a").read_bytes() == b"one"

    def no_descriptor(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", no_descriptor)
    write_whole(tmp_path / "a", lambda file: file.write(b"two"))
    assert (tmp_path / "a").read_bytes() == b"two"


def test_links_are_replaced_and_never_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    write_whole(link, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def _sockets(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, _sockets], ids=["pipe", "socket"])
def test_a_pipe_or_a_socket_is_refused_by_name(
    make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make(Path("a"))
    before = os.lstat("a")
    with pytest.raises(OSError, match=r"Not a regular file.*'a'"):
        write_whole("a", lambda file: file.write(b"new"))
    with pytest.raises(OSError, match=r"Not a regular file.*'a'"):
        fo.save("a", extra=1)
    with pytest.raises(OSError, match=r"Not a regular file.*'a'"):
        fo.load("a")  # and does not wait for a writer
    assert os.lstat("a") == before
    assert list(Path().iterdir()) == [Path("a")]


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match=r"Not a regular file.*'/dev/null'"):
        fo.save("/dev/null", extra=1)
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


@pytest.mark.parametrize("path", [b"x", None, 3, 0.5, ["x"]], ids=repr)
@pytest.mark.parametrize("function", [fo.save, fo.load])
def test_what_is_no_path(function: Callable[[Any], object], path: Any) -> None:
    with pytest.raises(TypeError) as caught:
        function(path)
    assert str(caught.value) == f"path must be a string or a pathlib.Path, not {path!r}"


@pytest.mark.parametrize(
    ("path", "words"), [("a\0b", "a null character"), ("a\ud800b", "characters that the encoding")]
)
@pytest.mark.parametrize("function", [fo.save, fo.load])
def test_a_path_that_no_file_can_have(
    function: Callable[[Any], object], path: str, words: str
) -> None:
    for value in (path, Path(path)):
        with pytest.raises(ValueError, match=f"path must not hold {words}") as caught:
            function(value)
        assert repr(path) in str(caught.value)


def test_the_mode_is_what_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", lambda file: file.write(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_leftovers_are_those_of_one_file(tmp_path: Path) -> None:
    names: list[str] = []

    def leave(file: Any) -> None:
        names.append(Path(file.name).name)
        assert Path(file.name).parent == tmp_path

    for name in ("a", "b", "a"):
        write_whole(tmp_path / name, leave)
    assert len(set(names)) == 3
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", names[1]}


@pytest.mark.parametrize(
    "text",
    ["", "NaN", "[Infinity]", '{"a": 1, "a": 1}', "[" * 100_000, "1 2", "9" * 5000, "\ufeff1"],
)
def test_json_with_more_than_one_meaning_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)
