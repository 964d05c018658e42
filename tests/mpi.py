"""Programs that tests run on several ranks of MPI."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import HANG

# Open MPI refuses root, and more ranks than cores; each version has its own name of the latter. It
# gives rank 0 a terminal, in which rich would write progress and break lines.
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "TTY_COMPATIBLE": "0",
    "COLUMNS": "65536",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpiexec() -> str | None:
    """Return the launcher beside the interpreter, as of a wheel of MPICH, or the one on PATH."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which("mpiexec", path=os.pathsep.join(folders))


def command(count: int, *arguments: str) -> list[str]:
    """Return the command that runs Python with `arguments` on `count` ranks."""
    return [mpiexec() or "mpiexec", "-n", str(count), sys.executable, *arguments]


def run_ranks(count: int, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` on `count` ranks; return the code and output of the launcher.

    The keyword arguments are those of subprocess.run.
    """
    return subprocess.run(
        command(count, *arguments),
        env=os.environ | ENVIRONMENT | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        start_new_session=True,
        **options,
    )


def run_ranks_until(
    text: str, number: signal.Signals, count: int, *arguments: str, times: int = 1, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run Python on ranks until a line with `text` has come as many `times`; send a signal.

    The launcher and the processes of its group get it, as from a terminal.
    """
    with (
        subprocess.Popen(
            command(count, *arguments),
            env=os.environ | ENVIRONMENT | options.pop("env", {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        ) as process,
        _ends(process),
    ):
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            times -= text in line
            if text in line and times == 0:
                os.killpg(process.pid, number)
        _, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, "".join(lines), errors)


@contextmanager
def _ends(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process that hangs."""
    timer = threading.Timer(HANG, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def missing() -> str:
    """Return why no ranks can be started here, or an empty text."""
    if importlib.util.find_spec("mpi4py") is None:
        return "needs mpi4py"
    if mpiexec() is None:
        return "needs mpiexec"
    size = "from mpi4py.MPI import COMM_WORLD as c; c.Get_rank() or print(c.Get_size())"
    ran = run_ranks(2, "-c", size)
    if ran.stdout != "2\n":
        return f"mpiexec and mpi4py do not work together: {ran.stdout}{ran.stderr}"
    return ""


# CI sets the variable: without MPI, these tests fail there.
needs_mpi = pytest.mark.skipif(
    "FASTOPT_TEST_MPI" not in os.environ and bool(missing()), reason=missing() or "MPI is here"
)
