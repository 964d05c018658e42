"""A command in several processes: ``mpiexec -n 4 fastopt train``. Rank 0 prints and writes."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, TypeVar, cast

T = TypeVar("T")

# In which variables launchers give the number of ranks and the rank: MPICH and its relatives, Open
# MPI, Slurm.
_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 5.0  # seconds to wait for the other ranks after an error
_held = io.StringIO()  # what a rank other than 0 would have printed on standard error


def launched() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks, as the launcher says."""
    for names in _VARIABLES:
        size, rank = (os.environ.get(name, "") for name in names)
        if size.isdecimal() and rank.isdecimal():
            return int(rank), int(size)
    return 0, 1


def hold_output() -> None:
    """Print nothing; errors are kept for the case that no other rank has them."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr = _held


def import_mpi() -> Any:
    """Return ``mpi4py.MPI``; without it, exit."""
    from fastopt.cli.common import fail
    from fastopt.distributed import _mpi

    try:
        return _mpi.import_mpi()
    except (ModuleNotFoundError, RuntimeError) as error:
        fail(error)


def join(threads: int | None) -> Any:
    """Return the communicator of all ranks, or None if there is only this process.

    The ranks of a host share its cores, unless the number of `threads` is given.

    Until `interrupt_on_signals`, Ctrl-C ends a rank at once, also while it waits for another one
    that has ended.
    """
    from fastopt.cli.common import fail

    _, size = launched()
    if size == 1:
        return None
    _handle_signals(signal.SIG_DFL)
    MPI = import_mpi()
    comm = MPI.COMM_WORLD
    if comm.Get_size() == 1:
        library = MPI.Get_library_version().partition("\n")[0].strip("\0 ")
        fail(
            f"{size} processes were started, but not as ranks of the MPI library of mpi4py "
            f"({library}); start them with the mpiexec of this library"
        )
    _divide_threads(comm.Split_type(MPI.COMM_TYPE_SHARED), threads)
    return comm


def _divide_threads(host: Any, threads: int | None) -> None:
    """Set the numbers of threads of the ranks of a `host`."""
    from threadpoolctl import ThreadpoolController

    import fastopt as fo

    masks = host.allgather(os.sched_getaffinity(0))
    own = masks[host.Get_rank()]
    # The launcher may have bound ranks to cores.
    sharing = sum(not own.isdisjoint(mask) for mask in masks)
    if threads is None and not {"FASTOPT_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
        fo.set_num_threads(max(1, fo.get_num_threads() // sharing))
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        library.set_num_threads(min(library.num_threads, fo.get_num_threads()))


def on_first(comm: Any, function: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on all ranks; if it fails, all exit."""
    import typer

    if comm is None:
        return function()
    from mpi4py.util import pkl5

    comm = pkl5.Intracomm(comm)  # arrays are sent as they are
    if comm.Get_rank() == 0:
        try:
            result = (function(),)
        except BaseException:
            comm.bcast(None)
            raise
        comm.bcast(result)
        return result[0]
    received = cast("tuple[T] | None", comm.bcast(None))
    if received is None:
        raise typer.Exit(0)  # rank 0 prints why, and its code is that of the launcher
    return received[0]


@contextmanager
def ending_all(comm: Any) -> Iterator[None]:
    """End all ranks after an exception in the block.

    If all ranks come to an exception, they have the same reason: rank 0 raises its exception, and
    the others exit. Otherwise some wait for this one in vain: it prints its error, and ends all.
    """
    import typer

    if comm is None:
        yield
        return
    failing = comm.Dup()  # its barrier does not meet the messages of the block
    try:
        yield
    except BaseException as error:
        others, end = failing.Ibarrier(), monotonic() + _PATIENCE
        while not others.Test():
            if monotonic() > end:
                if not isinstance(error, typer.Exit):
                    traceback.print_exc()
                print(
                    f"{_held.getvalue()}fastopt: error: rank {comm.Get_rank()} of "
                    f"{comm.Get_size()} has failed; the others are ended",
                    file=sys.__stderr__,
                    flush=True,
                )
                sleep(0.5)  # the launcher drops what it has not yet read
                comm.Abort(getattr(error, "exit_code", 1))
            sleep(0.01)
        if comm.Get_rank() > 0:
            raise typer.Exit(0) from None
        raise


def interrupt_on_signals(interrupt: Callable[[], None]) -> None:
    """Call a function after Ctrl-C and its relatives, which must not end a rank by itself."""
    _handle_signals(lambda *_: interrupt())


def _handle_signals(handler: Any) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as of nohup
            signal.signal(number, handler)
