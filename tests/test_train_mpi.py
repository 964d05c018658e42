"""Training with several ranks of MPI: the results of one process, and an end for all ranks."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from helpers import fastopt
from mpi import needs_mpi, run_ranks, run_ranks_until

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from fastopt import train as ft
from fastopt.train.ranks import Ranks

# 120 rows of iris in batches of 7 end with a batch of one row; a batch of 2 leaves ranks without.
RUNS: list[dict[str, Any]] = [
    {"batch_size": 7, "dropout": 0.3, "max_norm": 0.5},
    {"batch_size": 7, "dropout": 0.3, "accumulate": 3, "activation": "gelu", "max_norm": 0.5},
    {"batch_size": 2, "ema": 0.9, "schedule": "cosine", "warmup": 3},
    {"data": "diabetes", "schedule": "plateau", "optimizer": "momentum"},
]
RUNS = [{"data": "iris", "hidden": (16, 8), "epochs": 2} | run for run in RUNS]

HISTORIES = f"""
import json
from dataclasses import asdict
from mpi4py.MPI import COMM_WORLD as comm
import fastopt as fo
from fastopt import train
from fastopt.distributed import Sharded
def print_history(history):
    epochs = [asdict(epoch) | {{"samples_per_second": 0}} for epoch in history.epochs]
    everyone = comm.allgather((repr(epochs), history.stop_reason))
    assert len(set(everyone)) == 1, everyone
    if comm.rank == 0:
        print(json.dumps(epochs))
for options in {RUNS}:
    print_history(train.RunConfig(**options).build(comm=comm).fit(2))
"""


def history_of(trainer: ft.Trainer) -> list[dict[str, Any]]:
    return list(map(asdict, trainer.fit(2).epochs))


def close(epochs: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare the numbers of epochs, which differ by rounding only."""
    assert len(epochs) == len(expected)
    for epoch, other in zip(epochs, expected, strict=True):
        for name in epoch.keys() - {"samples_per_second"}:
            np.testing.assert_allclose(
                float(epoch[name]), float(other[name]), rtol=1e-5, atol=1e-6, err_msg=name
            )


def test_the_parts_of_the_ranks_are_the_whole() -> None:
    class Comm:
        def __init__(self, rank: int) -> None:
            self.Get_rank, self.Get_size = (lambda: rank), (lambda: 4)

    for count in (0, 1, 3, 4, 7, 64):
        parts = [range(count)[Ranks(Comm(rank)).share(count)] for rank in range(4)]
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@needs_mpi
@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_train_as_one_process_does(count: int) -> None:
    ran = run_ranks(count, "-W", "error", "-c", HISTORIES)
    assert ran.returncode == 0, ran.stderr
    for options, line in zip(RUNS, ran.stdout.splitlines(), strict=True):
        close(json.loads(line), history_of(ft.RunConfig(**options).build()))


@needs_mpi
def test_the_library_with_ranks() -> None:
    script = f"""{HISTORIES.partition("for options")[0]}
class Stop(train.Callback):
    def __init__(self, rank): self.mine, self.batches = rank == comm.rank, 0
    def on_batch_end(self, trainer, samples, loss):
        self.batches += 1
        if self.mine and self.batches == 10:
            trainer.stop("enough")
    def on_fit_end(self, trainer): assert 10 <= self.batches <= 11
class Interrupt(Stop):
    def on_batch_end(self, trainer, samples, loss):
        self.batches += 1
        if self.mine and self.batches == 10:
            trainer.interrupt()
data = train.load_data("iris")
def build(batch_size=16):
    model = train.MLP([4, 8, 3], dropout=0.5)
    optimizer = Sharded(fo.SGD, model.params, comm, lr=0.1)
    return train.Trainer(model, data, optimizer, batch_size=batch_size, track_norm=True)
print_history(build().fit(2))
print_history(build().fit(9, [Stop(1)]))
trainer = build()
try:
    trainer.fit(9, [Interrupt(1)])
except KeyboardInterrupt:
    assert (len(trainer.history.epochs), trainer.within_epoch) == (1, True)
    print_history(trainer.fit(2))
"""
    ran = run_ranks(2, "-W", "error", "-c", script)
    assert ran.returncode == 0, ran.stderr
    whole, stopped, continued = map(json.loads, ran.stdout.splitlines())
    model = ft.MLP([4, 8, 3], dropout=0.5)
    optimizer = fo.SGD(model.params, lr=0.1)
    data = ft.load_data("iris")
    close(whole, history_of(ft.Trainer(model, data, optimizer, batch_size=16, track_norm=True)))
    assert [len(whole), len(stopped), len(continued)] == [2, 2, 2]


@needs_mpi
def test_ranks_that_disagree_are_refused() -> None:
    script = """
from mpi4py.MPI import COMM_WORLD as comm
from fastopt import train
data = train.load_data("iris")
def build(data=data, **options):
    return train.RunConfig(data="iris", **options).build(data, comm)
trainer = build()
for act in (
    lambda: build(batch_size=16 + comm.rank),
    lambda: build(lr=0.5 + comm.rank),
    lambda: build(train.load_data("iris", seed=comm.rank)),
    lambda: build(epochs=2 + comm.rank, schedule="linear"),
    lambda: trainer.fit(2 + comm.rank),
):
    try:
        act()
    except ValueError as error:
        first, second = comm.allgather(f"{type(error).__name__}: {error}")
    assert first == second
    if comm.rank == 0:
        print(first)
"""
    ran = run_ranks(2, "-W", "error", "-m", "mpi4py", "-c", script)
    assert ran.returncode == 0, ran.stderr
    batch, rate, values, schedule, epochs = ran.stdout.splitlines()
    same = "ValueError: all ranks must have the same "
    assert batch == same + "batch_size, not 16 on rank 0, 17 on rank 1"
    assert rate.startswith("ValueError: 'lr' of group 0 differs between the ranks: 0.5 on rank 0, ")
    seeds = [repr(ft.load_data("iris", seed=seed).digest()[:16]) for seed in (0, 1)]
    assert values == same + "values of the data, not {} on rank 0, {} on rank 1".format(*seeds)
    assert schedule.startswith(same + "state of the scheduler, not ...")
    assert "'total_iters': 4, " in schedule
    assert epochs == same + "epochs, not 2 on rank 0, 3 on rank 1"


@needs_mpi
def test_an_error_in_a_callback_of_one_rank_does_not_wait_for_the_others(tmp_path: Path) -> None:
    script = """
import sys
from mpi4py.MPI import COMM_WORLD as comm
from fastopt import train
class Fail(train.Callback):
    def on_epoch_end(self, trainer, epoch):
        if (epoch.epoch, comm.rank) == (2, 1):
            raise OSError("on rank 1 only")
trainer = train.RunConfig(data="iris").build(comm=comm)
trainer.fit(9, [Fail(), train.Checkpointer(sys.argv[1], every=5)])
"""
    path = tmp_path / "run.safetensors"
    ran = run_ranks(2, "-m", "mpi4py", "-c", script, str(path))
    assert ran.returncode != 0
    assert "OSError: on rank 1 only" in ran.stderr
    assert fo.load(path).extra["history"]["epochs"] == []


def test_an_interrupt_that_comes_late_does_not_end_the_next_fit() -> None:
    trainer = ft.RunConfig(data="iris").build()
    trainer.interrupt()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(1)
    assert not trainer.failed
    trainer.interrupt()  # as the handler of another rank, whose signal came after the batch
    assert len(trainer.fit(1).epochs) == 1


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def train(count: int, *options: str, cwd: Path) -> str:
    ran = run_ranks(count, "-m", "fastopt", "train", *options, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


@needs_mpi
def test_a_run_continues_with_any_number_of_ranks(tmp_path: Path) -> None:
    options = ["--data", "iris", "--ema", "0.9", "--batch-size", "16", "--hidden", "16"]
    first = train(2, *options, "--epochs", "2", "--checkpoint", "--output", "o", cwd=tmp_path)
    assert [first.count(text) for text in ("model  ", "epoch    1/2", "wrote into o")] == [1, 1, 1]
    second = train(3, "--resume", "--epochs", "3", "--output", "o", cwd=tmp_path)
    assert second.count("resumed    after epoch 2 of 3") == 1
    run = json.loads((tmp_path / "o/run.json").read_text())
    assert (run["ranks"], run["threads"]) == (3, max(1, fo.get_num_threads() // 3))
    assert run["optimizer"]["class"] == "AdamW"
    last = fastopt("train", "--resume", "--epochs", "4", "--output", "o", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert fastopt("train", *options, "--epochs", "4", cwd=tmp_path).returncode == 0
    close(read_metrics(tmp_path / "o"), read_metrics(tmp_path / "fastopt-run"))


@needs_mpi
def test_ctrl_c_ends_all_ranks_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    ran = run_ranks_until(
        "epoch  ", signal.SIGINT, 2, "-m", "fastopt", "train", "--data", "iris", "--epochs", "5000",
        "--checkpoint", "--output", str(tmp_path),
    )  # fmt: skip
    assert ran.returncode == 130, ran.stderr
    found = re.search(r"interrupted after epoch (\d+) of 5000; continue with --resume", ran.stdout)
    assert found is not None
    done = int(found[1])
    assert len(fo.load(tmp_path / "checkpoint.safetensors").extra["history"]["epochs"]) == done
    assert len(read_metrics(tmp_path)) == done


ON_RANK_1 = """
import os, sys
from mpi4py.MPI import COMM_WORLD as comm
from fastopt import train as ft
from fastopt.cli import main, ranks
ranks._PATIENCE = 0.1
def end(*_):
    {end}
if comm.rank == 1:
    {patched} = end
sys.argv = ["fastopt", "train", "--data", "iris", "--epochs", "3", "--checkpoint", *sys.argv[1:]]
main()
"""


@needs_mpi
def test_a_killed_rank_ends_all_and_the_checkpoint_stays(tmp_path: Path) -> None:
    script = ON_RANK_1.format(
        end="if _[2].epoch == 2: os.kill(os.getpid(), 9)", patched="ft.Divergence.on_epoch_end"
    )
    ran = run_ranks(2, "-c", script, "--output", str(tmp_path))
    assert ran.returncode != 0
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"]  # noqa: PTH208
    saved = fo.load(tmp_path / "checkpoint.safetensors")
    assert len(saved.extra["history"]["epochs"]) == 1


@needs_mpi
def test_an_error_on_one_rank_ends_all(tmp_path: Path) -> None:
    script = ON_RANK_1.format(end="raise MemoryError", patched="ft.MLP.backward")
    ran = run_ranks(2, "-c", script, "--output", str(tmp_path))
    assert ran.returncode != 0
    assert "fastopt: error: there is not enough memory" in ran.stderr
    assert "rank 1 of 2 has failed; the others are ended" in ran.stderr


@needs_mpi
def test_what_all_ranks_refuse_is_printed_once(tmp_path: Path) -> None:
    fastopt("train", "--data", "iris", "--epochs", "1", "--checkpoint", cwd=tmp_path)
    for options, words in (
        (["--data", "none.csv"], "cannot read none.csv: No such file or directory"),
        (["--resume", "--data", "wine"], "the shapes of the model in"),
    ):
        ran = run_ranks(2, "-m", "fastopt", "train", *options, cwd=tmp_path)
        assert ran.returncode == 2
        assert ran.stderr.count("fastopt: error: ") == 1
        assert words in ran.stderr
        assert ran.stdout == ""


def launched_as(
    rank: int, launcher: tuple[str, str], *command: str, hidden: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command as a launcher does that starts two ranks, without a launcher."""
    code = f"import sys; sys.modules[{hidden!r}] = None; from fastopt.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *command],
        env=os.environ | dict(zip(launcher, ("2", str(rank)), strict=True)),
        capture_output=True,
        text=True,
        check=False,
    )


OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")


@pytest.mark.parametrize("rank", [0, 1])
def test_what_ranks_cannot_do_is_printed_once(rank: int) -> None:
    for hidden, command, words in (
        (
            "mpi4py",
            "train",
            "the ranks of MPI need mpi4py; install it with: pip install 'fastopt[mpi]'",
        ),
        (
            "mpi4py",
            "bench distributed",
            "the ranks of MPI need mpi4py; install it with: pip install 'fastopt[mpi]'",
        ),
        (
            "",
            "landscape",
            "in one process, not in 2; train, sweep, bench distributed and info take mpiexec",
        ),
        ("", "train --lr x", "--lr must be a number, not 'x'"),
    ):
        ran = launched_as(rank, OPEN_MPI, *command.split(), hidden=hidden)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1 - rank
        assert (words in ran.stderr) is (rank == 0)


@needs_mpi
def test_processes_that_are_no_ranks_for_mpi4py_are_refused() -> None:
    ran = launched_as(0, ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "train")
    assert ran.returncode == 2
    assert "2 processes were started, but not as ranks of the MPI library of mpi4py" in ran.stderr
