"""The processes of a sweep may end or fail at any moment: the parent reports it and ends."""

from __future__ import annotations

import _thread
import multiprocessing
import multiprocessing.context
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastopt import train as ft
from fastopt.train import experiments as fx

BASE = ft.RunConfig(data="iris", epochs=1, hidden=(4,))


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    """End a test that hangs; nothing else depends on the time."""

    def stop(*_: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not multiprocessing.active_children()


class Data(ft.Data):
    """Data that run code when a worker reads them."""

    def __reduce__(self) -> Any:
        return _act, (self.name,)


def _act(name: str) -> ft.Data:
    from fastopt.train.experiments import parallel

    if name == "raise":
        raise ValueError("these cannot be read")

    def run(config: ft.RunConfig, data: ft.Data) -> Any:
        if name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "part":  # only the beginning of a message
            for fd in filter(_is_socket, range(3, 64)):
                os.write(fd, b"\0\0\1\0some")
            os._exit(4)
        if name == "mask":
            raise ValueError(f"blocked: {signal.SIGINT in signal.pthread_sigmask(0, [])}")
        return fx.Run(config, lambda: "not a history")  # type: ignore[arg-type]

    parallel.__dict__["run"] = run
    return BASE.load()


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def fail(name: str, jobs: int = 1) -> str:
    """Return the error if workers get such data."""
    data = object.__new__(Data)
    object.__setattr__(data, "name", name)
    configs = fx.Space(BASE, {"lr": [0.1, 0.01]}).configs()
    with pytest.raises(fx.RunError) as caught:
        list(fx.run_parallel(configs, data, jobs))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kill", "ended with exit code -9 (for want of memory?): fastopt train --data iris"),
        ("part", "ended with exit code 4: fastopt train --data iris"),
        ("raise", "--lr 0.1 --epochs 1 --hidden 4: ValueError: these cannot be read"),
        ("answer", "pickle"),
        # A Ctrl-C in the first moments of a process must not print its traceback.
        ("mask", "ValueError: blocked: True"),
    ],
)
def test_workers_that_fail(name: str, words: str) -> None:
    assert words in fail(name)


def test_a_worker_that_dies_before_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than fits into a pipe: the parent must not wait for a reader that has ended.
    rows = np.zeros((100_000, 4), np.float32)
    data = ft.Data("zeros", "regression", rows, rows[:, :1], rows[:10], rows[:10, :1], [])
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif '--multiprocessing-fork' in sys.orig_argv: os._exit(5)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    configs = fx.Space(BASE, {"lr": [0.1, 0.01]}).configs()
    with pytest.raises(fx.RunError, match="exit code 5"):
        list(fx.run_parallel(configs, data, 2))


def test_an_error_of_the_caller_ends_the_workers() -> None:
    configs = fx.Space(BASE, {"lr": [0.1, 0.01, 0.001]}).configs()
    runs = fx.run_parallel(configs, BASE.load(), np.int64(2))
    assert next(runs).config in configs
    assert multiprocessing.active_children()
    with pytest.raises(ZeroDivisionError):
        runs.throw(ZeroDivisionError)
    assert not multiprocessing.active_children()


def test_ctrl_c_waits_until_a_process_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start = multiprocessing.context.SpawnProcess.start
    started = []

    def interrupted(self: multiprocessing.context.SpawnProcess) -> None:
        _thread.interrupt_main()  # as if another thread received the signal
        start(self)
        started.append(self)

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", interrupted)
    configs = fx.Space(BASE, {"lr": [0.1, 0.01]}).configs()
    with pytest.raises(KeyboardInterrupt):
        list(fx.run_parallel(configs, BASE.load(), 2))
    assert [process.is_alive() for process in started] == [False]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", start)
    configs = fx.Space(BASE, {"lr": [0.1, 0.01]}).configs()
    with pytest.raises(fx.RunError, match=r"the system starts 0 processes, not 2: .*; use fewer"):
        list(fx.run_parallel(configs, BASE.load(), 2))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"jobs": 0}, ValueError, "jobs must be >= 1, not 0"),
        ({"jobs": 1.0}, TypeError, "jobs must be an integer, not 1.0"),
        ({"jobs": True}, TypeError, "jobs must be an integer, not True"),
        ({"data": "iris"}, TypeError, "data must be a Data, not 'iris'"),
        ({"configs": ["iris"]}, TypeError, "each of configs must be a RunConfig, not 'iris'"),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], error: type, words: str) -> None:
    arguments: dict[str, Any] = {"configs": [BASE], "data": BASE.load(), "jobs": 1} | changes
    with pytest.raises(error, match=words):
        list(fx.run_parallel(**arguments))
