"""`fastopt.distributed`: parts of arrays, and an optimizer over several ranks of MPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.distributed import shard
from mpi import needs_mpi, run_ranks

CHECKS = str(Path(__file__).with_name("sharded_ranks.py"))
CHAIN = """
import sys
import numpy as np
import fastopt as fo

path, first, last, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rng = np.random.default_rng(1)
params = {"w": rng.standard_normal((300, 70), np.float32), "b": rng.standard_normal(70)}
rank = 0
if kind == "sharded":
    from fastopt.distributed import Sharded
    optimizer = Sharded(fo.AdamW, params, lr=0.1)
    rank = optimizer.comm.rank
else:
    optimizer = fo.AdamW(params, lr=0.1)
schedule = fo.StepLR(optimizer, 2, 0.5)
if first:
    fo.load(path, params=params, optimizer=optimizer, scheduler=schedule)
for step in range(first, last):
    rng = np.random.default_rng(step)
    grads = {name: rng.standard_normal(array.shape).astype(array.dtype)
             for name, array in params.items()}
    # Only rank 0 has a gradient, so that any number of ranks has the same sum.
    optimizer.step(grads if rank == 0 else {name: 0 * grad for name, grad in grads.items()})
    schedule.step()
fo.save(path, params=params, optimizer=optimizer, scheduler=schedule, extra=last)
"""

INTERRUPTED = """
import os, random, signal, threading, time
from contextlib import suppress
import numpy as np
import fastopt as fo
from fastopt.distributed import Sharded

params = {"w": np.zeros(200_000, np.float32)}
optimizer = Sharded(fo.SGD, params, lr=1.0)
comm, ones = optimizer.comm, {"w": np.ones(200_000, np.float32)}
processes = comm.allgather(os.getpid())

def interrupt():
    for process in processes:
        os.kill(process, signal.SIGINT)

for trial in range(10):
    timer = threading.Timer(random.uniform(0.02, 0.04), interrupt)
    try:
        optimizer.step(ones)  # both ranks are in this round
        if comm.rank == 0:
            timer.start()
        while True:
            optimizer.step(ones)
    except KeyboardInterrupt:
        with suppress(ValueError):  # the other is in a step, and hears that this one is not
            optimizer.together(lambda: None)
    except ValueError as error:
        assert "the method differs" in str(error), error
    for wait in range(2):
        with suppress(KeyboardInterrupt):  # of a slow signal
            time.sleep(0.1)
    w, step = params["w"], optimizer.state["w"]["step"]
    assert w.min() == w.max() == -comm.size * step, (w.min(), w.max(), step)
    assert len(set(comm.allgather(step))) == 1
"""


@given(sizes=st.lists(st.integers(0, 3000), max_size=12), ranks=st.integers(1, 9))
def test_the_parts_of_all_ranks_are_the_whole(sizes: list[int], ranks: int) -> None:
    parts = [shard(sizes, ranks, rank) for rank in range(ranks)]
    for number, size in enumerate(sizes):
        numbers = [np.arange(size)[part[number]] for part in parts]
        assert np.array_equal(np.concatenate(numbers), np.arange(size))
        assert all(part[number].start % 256 == 0 for part in parts)
    for part in parts:
        assert abs(sum(s.stop - s.start for s in part) - sum(sizes) / ranks) <= 256


def test_parts_are_of_almost_the_same_size() -> None:
    assert shard([1000, 10], 2, 0) == [slice(0, 512), slice(0, 0)]
    assert shard([1000, 10], 2, 1) == [slice(512, 1000), slice(0, 10)]
    assert shard([], 3, 1) == []
    for sizes, ranks, rank in (([-1], 1, 0), ([1], 0, 0), ([1], 2, 2), ([1], 2, -1)):
        with pytest.raises(ValueError, match=r"sizes\[0\]|ranks|rank"):
            shard(sizes, ranks, rank)
    with pytest.raises(TypeError, match="ranks"):
        shard([1], 1.5, 0)  # type: ignore[arg-type]


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_on_ranks(ranks: int, tmp_path: Path) -> None:
    ran = run_ranks(ranks, CHECKS, str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(ran.stdout.split()) == 15, ran.stdout


@needs_mpi
def test_checkpoints_do_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    for step, ranks in enumerate((4, 1, 3, 2)):
        run = ("-c", CHAIN, str(tmp_path / "ranks"), str(3 * step), str(3 * step + 3))
        ran = run_ranks(ranks, *run, "sharded")
        assert ran.returncode == 0, ran.stderr
    plain = [sys.executable, "-c", CHAIN, str(tmp_path / "plain"), "0", "12", "plain"]
    subprocess.run(plain, check=True)
    assert (tmp_path / "ranks").read_bytes() == (tmp_path / "plain").read_bytes()


@needs_mpi
def test_after_an_interrupt_all_ranks_have_done_the_same_steps() -> None:
    ran = run_ranks(2, "-m", "mpi4py", "-c", INTERRUPTED)
    assert ran.returncode == 0, ran.stderr
