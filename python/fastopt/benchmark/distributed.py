"""The sharded step on the ranks of MPI, beside the plain step in one process.

The bytes are counted, and the parts timed, where `Sharded` calls its communicator and its
optimizer. This module imports mpi4py; of the others, none does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.util import find_spec
from math import ceil, log2
from pathlib import Path
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any

import numpy as np
from mpi4py import MPI

import fastopt as fo
from fastopt.benchmark.report import facts_of_run, markdown, three_digits
from fastopt.benchmark.scaling import MOVED, Machine, Times, bytes_sent, step_time
from fastopt.distributed import Sharded
from fastopt.distributed._exchange import piece_bytes

ROUNDS = 5  # sharded and plain steps take turns
PARTS = ("reduce", "own step", "gather", "agree")
RANKS = (8, 64, 256, 1024)  # of the table of the model
BANDWIDTH, LATENCY = 12.5e9, 2e-6  # of the network in this table: 100 Gbit/s for each rank


@dataclass(frozen=True)
class Case:
    """AdamW over float32 arrays of the same size."""

    label: str
    elements: int
    arrays: int = 1
    grad_dtype: str | None = None

    @property
    def grad_bytes(self) -> int:
        """The bytes of a gradient on its way."""
        return 4 if self.grad_dtype is None else 2

    def make(self) -> list[Any]:
        """Return new arrays."""
        return [np.ones(self.elements // self.arrays, np.float32) for _ in range(self.arrays)]

    def __str__(self) -> str:
        return self.label


CASES = [
    Case("64 K", 64 << 10),
    Case("1 M", 1 << 20),
    Case("16 M", 16 << 20),
    Case("16 M in 128 arrays", 16 << 20, arrays=128),
]
if find_spec("ml_dtypes"):
    CASES.append(Case("16 M, bfloat16 sent", 16 << 20, grad_dtype="bfloat16"))


@dataclass(frozen=True)
class Result:
    """The medians of one case over its steps. Times and bytes are means over the ranks."""

    case: Case
    machine: Machine
    seconds: float  # of a step
    measured: Times
    model: Times
    plain: float  # seconds of a step of the plain optimizer
    plain_threads: int
    grads_sent: float  # bytes that a rank sends in a step, as counted
    params_sent: float
    state_bytes: int  # of the rank with the most


class _Comm(MPI.Intracomm):
    """A communicator that counts the bytes of large messages, and notes when all agree."""

    sent = 0
    agreed = before = 0.0

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> Any:  # noqa: N802
        """Count and send."""
        counts = sendbuf[1][0] if isinstance(sendbuf[1], tuple) else sendbuf[1]
        self.sent += sum(counts)  # all messages are of bytes
        return super().Ialltoallv(sendbuf, recvbuf)

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:  # noqa: N802
        """Gather, and note the time; `before` is from the end of the call before to this one."""
        self.before = perf_counter() - self.agreed
        super().Allgather(sendbuf, recvbuf)
        self.agreed = perf_counter()


class _Steps:
    """Sharded steps, with the time and the bytes of their parts."""

    def __init__(self, comm: Any, case: Case) -> None:
        self._comm = _Comm(comm)
        self._grads = case.make()
        self._marks: list[float] = []

        def mark() -> None:
            self._marks += [perf_counter(), self._comm.agreed, self._comm.sent]

        class Timed(fo.AdamW):
            def step(self, *args: Any, **options: Any) -> fo.StepInfo:
                mark()
                info = super().step(*args, **options)
                mark()
                return info

        self.optimizer = Sharded(Timed, case.make(), self._comm, grad_dtype=case.grad_dtype)

    def run(self) -> list[float]:
        """Step; return the seconds of the parts of `Times`, and the bytes sent before and after."""
        self._comm.sent = 0
        self._marks.clear()
        start = perf_counter()
        self.optimizer.step(self._grads)
        end = perf_counter()
        begun, agreed, sent, ended, *_ = self._marks
        # After the gathering, the ranks agree once more: that no interrupt has come.
        parts = [begun - agreed, ended - begun, self._comm.before]
        return [*parts, end - start - sum(parts), sent, self._comm.sent - sent]


def all_ranks() -> Any:
    """Return the communicator of all ranks."""
    return MPI.COMM_WORLD


def measure_machine(comm: Any) -> Machine:
    """Measure what a rank has while all do the same; the means over the ranks."""
    size, rank = comm.Get_size(), comm.Get_rank()
    x, y, z = (np.ones(16 << 20, np.float32) for _ in range(3))
    optimizer = fo.AdamW([z])
    small, gathered = np.zeros(2, np.int64), np.zeros((size, 2), np.int64)
    # As in a step, the messages of two pieces are on their way at the same time.
    part = piece_bytes(size) // size
    data, received = (a.view(np.uint8)[: 2 * size * part].reshape(2 * size, part) for a in (x, z))
    to, source = (rank + 1) % size, (rank - 1) % size

    def shift() -> None:
        requests = [comm.Irecv(message, source) for message in received]
        requests += [comm.Isend(message, to) for message in data]
        MPI.Request.Waitall(requests)

    def time(call: Callable[[], object], calls: int) -> float:
        comm.Barrier()
        seconds = []
        for _ in range(calls):
            begin = perf_counter()
            call()
            seconds.append(perf_counter() - begin)
        every: list[float] = comm.allgather(median(seconds))
        return mean(every)

    return Machine(
        copy=2 * x.nbytes / time(lambda: np.copyto(y, x), 9),
        add=3 * x.nbytes / time(lambda: np.add(x, y, out=z), 9),
        step=MOVED * x.size / time(lambda: optimizer.step([x]), 9),
        bandwidth=data.nbytes / time(shift, 15),
        latency=time(lambda: comm.Allgather(small, gathered), 200) / max(1, ceil(log2(size))),
    )


def typical(machines: Sequence[Machine]) -> Machine:
    """Return the medians of several measurements."""
    return Machine(*map(median, zip(*map(astuple, machines), strict=True)))


def measure(comm: Any, case: Case, seconds: float) -> Result:
    """Time the steps of a case on all ranks, and plain ones on rank 0, for about `seconds`."""
    machine = measure_machine(comm)  # for each case, because it may vary
    size, threads = comm.Get_size(), fo.get_num_threads()
    steps = _Steps(comm, case)
    plain = fo.AdamW(case.make()) if comm.Get_rank() == 0 else None
    grads = case.make()
    # The plain step has the threads of all ranks of this host, on the cores that it may use.
    here = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()
    together = min(here * threads, len(os.sched_getaffinity(0)))
    turn = seconds / 2 / ROUNDS
    steps.run()  # it makes the states and the buffers
    count = comm.bcast(max(1, ceil(turn / sum(steps.run()[:4]))))
    rows: list[list[float]] = []
    alone: list[float] = []
    for _ in range(ROUNDS):
        steps.run()
        rows += [steps.run() for _ in range(count)]
        if plain is not None:
            fo.set_num_threads(together)
            alone += _time_plain(plain, grads, turn)
            fo.set_num_threads(threads)
        _sleep_until_all(comm)
    means = np.mean(comm.allgather(rows), axis=0)
    reduce, own, gather, agree, grads_sent, params_sent = np.median(means, axis=0).tolist()
    held = sum(
        value.nbytes
        for state in steps.optimizer.state.values()
        for value in state.values()
        if isinstance(value, np.ndarray)
    )
    return Result(
        case,
        machine,
        seconds=float(np.median(means[:, :4].sum(axis=1))),
        measured=Times(reduce, own, gather, agree),
        model=step_time(
            machine,
            case.elements,
            size,
            grad_bytes=case.grad_bytes,
            one_array=case.arrays == 1,
        ),
        plain=comm.bcast(median(alone) if alone else 0.0),
        plain_threads=comm.bcast(together),
        grads_sent=grads_sent,
        params_sent=params_sent,
        state_bytes=max(comm.allgather(held)),
    )


def _time_plain(optimizer: fo.Optimizer, grads: list[Any], seconds: float) -> list[float]:
    optimizer.step(grads)  # the threads wake up
    times: list[float] = []
    while sum(times) < seconds:
        begin = perf_counter()
        optimizer.step(grads)
        times.append(perf_counter() - begin)
    return times


def _sleep_until_all(comm: Any) -> None:
    """Wait for all ranks without the spinning of a barrier, which takes the cores from them."""
    request = comm.Ibarrier()
    while not request.Test():
        sleep(1e-3)


def table_head() -> list[str]:
    """Return the heads of the columns; times are in ms."""
    return ["case", "step", *PARTS, "model", "plain", "step / plain", "MB sent", "formula",
            "MB of states"]  # fmt: skip


def table_row(result: Result, ranks: int) -> list[str]:
    """Return the row of one case."""
    times = [result.seconds, *astuple(result.measured), result.model.total, result.plain]
    sent = result.grads_sent + result.params_sent
    formula = sum(bytes_sent(result.case.elements, ranks, result.case.grad_bytes))
    return [
        str(result.case),
        *(three_digits(value * 1e3) for value in times),
        three_digits(result.seconds / result.plain),
        *(f"{value / 1e6:,.1f}" for value in (sent, formula, result.state_bytes)),
    ]


def model_head() -> list[str]:
    """Return the heads of the columns of the table of the model; times are in ms."""
    return ["parameters, ranks", "step", *PARTS, "plain", "MB sent", "MB of states"]


def model_rows(machine: Machine) -> list[list[str]]:
    """Return the table of the model for some sizes and `RANKS`."""
    rows = []
    for label, parameters in (("16 M", 16 << 20), ("7 B", 7_000_000_000)):
        plain = step_time(machine, parameters, 1).total
        for ranks in RANKS:
            times = step_time(machine, parameters, ranks)
            held = 8 * parameters / ranks
            rows.append(
                [
                    f"{label}, {ranks:,}",
                    *(three_digits(t * 1e3) for t in (times.total, *astuple(times), plain)),
                    *(f"{n / 1e6:,.1f}" for n in (sum(bytes_sent(parameters, ranks)), held)),
                ]
            )
    return rows


def write_results(
    folder: Path, ranks: int, network: Machine, results: Sequence[Result]
) -> list[Path]:
    """Write the results and the table of the model as JSON and in Markdown; return the paths."""
    library = MPI.Get_library_version().strip("\0 \n").partition("\n")[0]
    facts = facts_of_run() | {
        "mpi": library,
        "ranks": ranks,
        "network_of_the_model": asdict(network),
        "results": [asdict(result) for result in results],
    }
    data, table = folder / "bench-distributed.json", folder / "bench-distributed.md"
    data.write_text(json.dumps(facts, indent=2) + "\n")
    measured = markdown(table_head(), [table_row(result, ranks) for result in results])
    table.write_text(f"{measured}\n{markdown(model_head(), model_rows(network))}")
    return [data, table]
