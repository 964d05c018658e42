"""Printing never ends a command: closed pipes, full disks, missing streams, narrow encodings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helpers import HANG

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from fastopt.cli import _Stream


def run(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a shell, which can close its streams."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -W error -m fastopt {line}'],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_a_stream_drops_what_nobody_reads() -> None:
    reading, writing = os.pipe()
    with _Stream(writing, "w") as stream:
        assert stream.write(b"abc") == 3
        assert os.read(reading, 9) == b"abc"
        os.close(reading)
        assert stream.write(b"defg") == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stream_drops_what_has_no_room() -> None:
    with _Stream(os.open("/dev/full", os.O_WRONLY), "w") as stream:
        assert stream.write(b"abc") == 3


def test_a_stream_waits_where_writing_does_not_block() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = os.urandom(1 << 20)
    got = bytearray()

    def read() -> None:
        while part := os.read(reading, 1 << 16):
            got.extend(part)

    reader = threading.Thread(target=read)
    with _Stream(writing, "w") as stream:
        rest = memoryview(text)
        rest = rest[stream.write(rest) :]  # the pipe is full now
        assert rest
        reader.start()
        while rest:
            rest = rest[stream.write(rest) :]
    reader.join()
    os.close(reading)
    assert got == text


def test_a_training_that_cannot_print_writes_its_files(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastopt", "train", "--data", "diabetes",
         "--epochs", "2", "--hidden", "4", "--output", "out"],
        cwd=tmp_path, stdout=writing, stderr=writing, timeout=HANG, check=False,
    )  # fmt: skip
    os.close(writing)
    assert process.returncode == 0
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert facts["results"]["final"]["epoch"] == 2


@pytest.mark.parametrize("word", ["info", "--help"])
def test_a_closed_pipe_ends_what_only_prints_as_it_ends_other_tools(word: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "fastopt", word],
        stdout=writing, stderr=subprocess.PIPE, timeout=HANG, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_ascii_terminal_shows_what_it_can(tmp_path: Path) -> None:
    result = run(
        "train --data diabetes --epochs 1 --hidden 4 --output Größe",
        tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert result.returncode == 0, result.stderr
    assert "final R2 on held-out data" in result.stdout
    assert "wrote into Gr??e" in result.stdout
    assert (tmp_path / "Größe/run.json").exists()


def test_a_command_without_streams(tmp_path: Path) -> None:
    result = run(
        "landscape --function bowl --optimizer sgd --steps 3 --lr 0.1 --no-animation <&- >&- 2>&-",
        tmp_path,
    )
    assert (result.returncode, result.stderr) == (0, "")
    names = {"bowl.png", "bowl-lr.png", "landscape.csv", "landscape.json"}
    assert {path.name for path in (tmp_path / "fastopt-landscape").iterdir()} == names


@pytest.mark.parametrize(
    ("line", "code"), [("info >&-", 0), ("--help | true", 0), ("bench foo 2>&-", 2)]
)
def test_short_commands_without_streams(line: str, code: int, tmp_path: Path) -> None:
    result = run(line, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("line", ["info", "--help", "--version", "train -h"])
def test_what_only_prints_fails_on_a_full_disk(line: str, tmp_path: Path) -> None:
    result = run(f"{line} >/dev/full", tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "fastopt: error: cannot write to standard output: No space left on device\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_also_writes_files_does_not(tmp_path: Path) -> None:
    line = "landscape --function bowl --optimizer sgd --steps 3 --lr 0.1 --no-animation"
    result = run(f"{line} >/dev/full", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "fastopt-landscape/landscape.json").exists()


@pytest.mark.parametrize("module", ["numpy", "rich.console"])
def test_ctrl_c_during_the_imports_prints_nothing(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    result = run("info", tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
