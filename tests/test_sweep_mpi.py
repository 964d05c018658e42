"""The command ``fastopt sweep --workers mpi`` and `run_mpi`, on real ranks."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from helpers import check, fastopt
from mpi import needs_mpi, run_ranks, run_ranks_until

# Twelve short runs.
LONG = [
    "--data", "iris", "--lr", "1e-4,3e-4,0.001,0.003", "--batch-size", "16,32,64",
    "--epochs", "2", "--hidden", "8", "--output", "here",
]  # fmt: skip
MPI = ["-m", "fastopt", "sweep", "--workers", "mpi"]

# The command, with `act` before each run.
COMMAND = """
import os, signal
from fastopt.train.experiments import mpi
def run(config, data, callbacks, run=mpi.run):
    act(config)
    return run(config, data, callbacks)
mpi.run = run
from fastopt.cli import main
main()
"""

# The command; rank 0 waits for a signal when it has written a text as many times.
WAITS = """
import io, sys, time
text, left = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
class Watched(io.TextIOWrapper):
    def write(self, written):
        global left
        left -= text in written  # first: the signal may come before write() returns
        super().write(written)
        self.flush()
        if text in written and left == 0:
            time.sleep(300)
        return len(written)
sys.stdout = Watched(sys.stdout.buffer, sys.stdout.encoding)
from fastopt.cli import main
main()
"""


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """Return the runs of a sweep without their times."""
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    return [{key: value for key, value in run.items() if key != "seconds"} for run in runs]


def kept_in(folder: Path) -> int:
    """Return the number of runs in the journal."""
    return (folder / "runs.jsonl").read_bytes().count(b"\n") - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The runs of the long sweep in a process, without an interrupt."""
    folder = tmp_path_factory.mktemp("whole")
    result = fastopt("sweep", *LONG, "--jobs", "1", cwd=folder)
    assert result.returncode == 0, result.stderr
    return runs_in(folder / "here")


@needs_mpi
def test_the_runs_and_the_output_are_those_of_processes(
    tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    result = run_ranks(3, *MPI, *LONG, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert runs_in(tmp_path / "here") == whole
    again = fastopt("sweep", *LONG, "--jobs", "1", cwd=tmp_path)
    assert "runs       12, 12 of them done before; 1 at a time" in again.stdout
    first, last = again.stdout.splitlines(), result.stdout.splitlines()
    assert "runs       12; 2 at a time" in last
    assert sum("/12  lr" in line for line in last) == 12
    # But for the runs, it is the output of the command that has found all of them.
    rest = [line for line in last if "/12  lr" not in line and "at a time" not in line]
    assert rest == [line for line in first if "at a time" not in line]


@needs_mpi
def test_an_interrupted_sweep_goes_on(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    stopped = run_ranks_until(
        "/12  ", signal.SIGINT, 3, "-c", WAITS, "/12  ", "3", "sweep", "--workers", "mpi", *LONG,
        times=3, cwd=tmp_path,
    )  # fmt: skip
    assert "Traceback" not in stopped.stderr
    folder = tmp_path / "here"
    assert kept_in(folder) == 3
    if stopped.returncode != 1:  # Open MPI does not wait for the report of rank 0
        assert stopped.returncode == 130, stopped.stderr
        assert stopped.stdout.endswith(
            "interrupted after 3 of 12 runs; the same command continues\n"
        )
        assert len(runs_in(folder)) == 3
    result = run_ranks(2, *MPI, *LONG, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "runs       12, 3 of them done before; 1 at a time" in result.stdout
    assert runs_in(folder) == whole


@needs_mpi
def test_a_rank_that_is_killed_ends_the_sweep(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    act = """
def act(config):
    if (config.lr, config.batch_size) == (0.001, 64):
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = run_ranks(2, "-c", act + COMMAND, "sweep", "--workers", "mpi", *LONG, cwd=tmp_path)
    assert killed.returncode not in (0, 130)
    # The ninth run has killed its rank, perhaps before rank 0 has kept the eighth.
    assert kept_in(tmp_path / "here") in (7, 8)
    result = fastopt("sweep", *LONG, "--jobs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert runs_in(tmp_path / "here") == whole


@needs_mpi
def test_a_run_that_fails_ends_the_others(tmp_path: Path) -> None:
    act = """
def act(config):
    if config.lr == 0.01:
        raise ValueError("no such run")
"""
    result = run_ranks(
        3, "-c", act + COMMAND, "sweep", "--workers", "mpi", "--data", "iris", "--lr", "0.1,0.01",
        "--epochs", "10000000", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr == (
        "fastopt: error: fastopt train --data iris --lr 0.01 --epochs 10000000: ValueError: no "
        "such run; the finished runs are kept, and the same command continues\n"
    )
    assert list(tmp_path.iterdir()) == []


@needs_mpi
@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (2, ["--workers", "processes"], "2 processes were started; let them train with --workers"),
        (3, ["--jobs", "2"], "--jobs is for --workers processes; with mpi, mpiexec -n sets the"),
        (1, [], "for 4 runs at a time, begin the command with: mpiexec -n 5"),
    ],
)
def test_what_is_refused_takes_one_line(
    count: int, options: list[str], words: str, tmp_path: Path
) -> None:
    result = run_ranks(count, *MPI, *options, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    line, _, rest = result.stderr.partition("\n")
    assert line.startswith("fastopt: error: ")
    assert words in line
    assert "fastopt" not in rest  # the other ranks are silent; Open MPI tells the exit code


def test_without_mpi4py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    result = fastopt("sweep", "--workers", "mpi", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "fastopt: error: --workers mpi: the ranks of MPI need mpi4py; install it with: "
        "pip install 'fastopt[mpi]' (in a checkout: '.[mpi]')\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_workers_that_do_not_exist(tmp_path: Path) -> None:
    result = fastopt("sweep", "--workers", "threads", cwd=tmp_path)
    assert result.returncode == 2
    assert "--workers must be one of processes, mpi, not 'threads'" in result.stderr


def test_the_command_does_not_import_mpi4py() -> None:
    check("import sys, fastopt.cli.app; assert 'mpi4py' not in sys.modules")


LIBRARY = """
import signal
import fastopt as fo
from fastopt import train
from fastopt.train import experiments
from fastopt.train.experiments import mpi
from mpi4py import MPI

class Data(train.Data):
    sent = 0
    def __reduce__(self):
        Data.sent += 1
        return train.RunConfig.load, (base,)

def run(config, data, callbacks, run=mpi.run):
    assert fo.get_num_threads() == 1
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return run(config, data, callbacks)

mpi.run = run
fo._core.set_num_threads(2, beyond=True)
base = train.RunConfig(data="iris", epochs=2, hidden=(4,))
data = object.__new__(Data)
vars(data).update(vars(base.load()))
"""


@needs_mpi
def test_the_library_on_all_ranks(tmp_path: Path) -> None:
    script = """
configs = experiments.Space(base, {"lr": [0.1, 0.01, 0.001, 0.003]}).configs()
runs = [run.config for run in experiments.run_mpi(configs, data)]
if MPI.COMM_WORLD.rank == 0:
    assert sorted(map(configs.index, runs)) == [0, 1, 2, 3]
    assert Data.sent == 1
else:
    assert runs == []

# Rank 0 leaves the loop while the other runs go on.
long = experiments.Space(base, {"lr": [0.1, 0.01, 0.001]}).configs()
long += experiments.Space(
    train.RunConfig(data="iris", epochs=10_000_000), {"lr": [0.1, 0.01, 0.001]}
).configs()
for run in experiments.run_mpi(long, data):
    break

with experiments.MPIWorkers() as workers:
    if workers is not None:
        assert workers.count == 2
        for _ in range(2):
            assert len(list(workers.run(configs, data))) == 4
        assert list(workers.run([], data)) == []
        try:
            list(workers.run(configs, "iris"))
        except TypeError as error:
            assert str(error) == "data must be a Data, not 'iris'"
assert fo.get_num_threads() == 2
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
if (count := MPI.COMM_WORLD.reduce(1)) is not None:
    print(count, "ranks have come here")
"""
    result = run_ranks(3, "-c", LIBRARY + script, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "3 ranks have come here\n", "")


@needs_mpi
def test_a_rank_that_cannot_read_the_data_ends_all(tmp_path: Path) -> None:
    script = """
class Unreadable(train.Data):
    def __reduce__(self):
        return int, ("no data",)
data.__class__ = Unreadable
with experiments.MPIWorkers() as workers:
    if workers is not None:
        list(workers.run([base], data))
"""
    result = run_ranks(3, "-c", LIBRARY + script, cwd=tmp_path)
    assert result.returncode == 1
    assert "ValueError: invalid literal for int() with base 10: 'no data'" in result.stderr
