"""The command ``fastopt bench distributed``, and the model of the time of a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastopt.benchmark.scaling import Machine, Times, bytes_sent, step_time
from helpers import fastopt
from mpi import needs_mpi, run_ranks

MACHINE = Machine(copy=24e6, add=36e6, step=28e6, bandwidth=12e6, latency=0.5)


def test_the_model_on_four_ranks() -> None:
    assert bytes_sent(4_000_000, ranks=4) == (12e6, 12e6)
    assert bytes_sent(4_000_000, ranks=4, grad_bytes=2) == (6e6, 12e6)
    # 4 M elements are copied, 1 M are summed and stepped; 2 pieces of 3 messages each way.
    assert step_time(MACHINE, 4_000_000, 4) == Times(4 / 3 + 1 + 1 + 3, 1, 4 / 3 + 1 + 3, 3)
    one = step_time(MACHINE, 4_000_000, 4, one_array=True)
    assert one == Times(1 + 1 + 1 + 3, 1, 1 + 1 + 3, 3)
    halved = step_time(MACHINE, 4_000_000, 4, grad_bytes=2, one_array=True)
    assert halved.reduce == pytest.approx(1 + 28 / 36 + 1 / 2 + 3 / 2)
    assert halved.total == pytest.approx(halved.reduce + 1 + 5 + 3)


def test_two_ranks_send_one_array_without_a_copy() -> None:
    one = step_time(MACHINE, 4_000_000, 2, one_array=True)
    assert one.reduce == pytest.approx(2e6 * 12 / 36e6 + 8e6 / 12e6 + 2 * 0.5)
    assert one.gather == pytest.approx(2e6 * 8 / 24e6 + 8e6 / 12e6 + 2 * 0.5)


def test_the_model_on_one_rank_is_the_plain_step() -> None:
    assert step_time(MACHINE, 3_000_000, 1) == Times(0, 3, 0, 0)


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_bench_distributed(ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench = ["-m", "fastopt", "bench", "distributed", "--largest", "70000", "--seconds", "0.01"]
    result = run_ranks(ranks, *bench, "--latency", "1e-5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("timing 1/1: 64 K") == 1  # rank 0 prints
    assert "7 B, 1,024" in result.stdout
    facts = json.loads((tmp_path / "fastopt-bench/bench-distributed.json").read_text())
    assert facts["ranks"] == ranks
    assert facts["network_of_the_model"]["latency"] == 1e-5
    (row,) = facts["results"]
    assert (row["grads_sent"], row["params_sent"]) == pytest.approx(bytes_sent(1 << 16, ranks))
    assert row["state_bytes"] == pytest.approx(8 * (1 << 16) / ranks, rel=0.01)
    assert row["seconds"] == pytest.approx(sum(row["measured"].values()), rel=0.9)
    assert all(seconds > 0 for seconds in row["measured"].values())
    table = (tmp_path / "fastopt-bench/bench-distributed.md").read_text()
    assert table.startswith("| case | step | reduce | own step | gather | agree | model | plain |")


@needs_mpi
def test_all_ranks_end_if_the_folder_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    result = run_ranks(2, "-m", "fastopt", "bench", "distributed", "--output", "file", cwd=tmp_path)
    assert result.returncode == 2
    assert "it is not a folder" in result.stderr


def test_the_network_is_for_the_model(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    result = fastopt("bench", "types", "--bandwidth", "1e9", cwd=tmp_path)
    assert result.returncode == 2
    assert "--bandwidth is for bench distributed, not for bench types" in result.stderr


def test_other_suites_do_not_import_mpi() -> None:
    code = "import sys, fastopt.benchmark.scaling; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
