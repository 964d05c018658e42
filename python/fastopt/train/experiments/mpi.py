"""Training runs on the ranks of MPI, each with one thread."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import Any, NamedTuple

from threadpoolctl import threadpool_limits

import fastopt as fo
from fastopt.train.checks import kind
from fastopt.train.config import RunConfig
from fastopt.train.data import Data
from fastopt.train.experiments.parallel import RunError, interrupts_wait
from fastopt.train.experiments.runs import Run, run
from fastopt.train.history import History
from fastopt.train.loop import Callback, Trainer


def run_mpi(
    configs: Iterable[RunConfig], data: Data, comm: Any = None
) -> Generator[Run, None, None]:
    """Train configurations on the ranks of MPI; yield each run when it has ended, in any order.

    All ranks call it. Rank 0 hands out the runs, over `mpi4py.futures`, and gets all of them. The
    other ranks train, each with one thread, until rank 0 closes the iterator; they get none. They
    ignore Ctrl-C, but a run ends after its batch if rank 0 closes the iterator.

    Start the script with one rank more than runs at a time: ``mpiexec -n 5 python script.py``. No
    process is started later, and ``-m mpi4py.futures`` is not needed. Needs the extra
    ``fastopt[mpi]``.

    Parameters
    ----------
    configs : iterable of RunConfig
        Those of rank 0 are used.
    data : Data
        Those of rank 0 are used: they are sent to each rank once.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks. By default ``MPI.COMM_WORLD``.

    Raises
    ------
    RunError
        If a run fails. Earlier runs are not affected. Also if there is only one rank.
    ModuleNotFoundError, RuntimeError
        Without mpi4py, or without the MPI library.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> base = train.RunConfig(data="iris", epochs=3)
    >>> configs = experiments.Space(base, {"lr": [0.001, 0.01]}).configs()
    >>> for run in experiments.run_mpi(configs, base.load()):  # doctest: +SKIP
    ...     print(run.config.lr, run.final.val_score)  # on rank 0
    """
    with MPIWorkers(comm) as workers:
        if workers is not None:
            yield from workers.run(configs, data)


class _Task(NamedTuple):
    """What a rank needs besides the configuration of a run."""

    data: Data
    end: Any  # a request, complete when rank 0 wants no more runs


_task: _Task | None = None


class MPIWorkers:
    """A context in which all ranks but rank 0 train for rank 0 until it leaves the block.

    Rank 0 enters the block with this object. The other ranks enter it with None, after rank 0 has
    left it. So rank 0 alone may read files and options, and may fail.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        The ranks. By default ``MPI.COMM_WORLD``.

    Attributes
    ----------
    count : int
        The number of the ranks that train.

    Raises
    ------
    RunError
        If there is only one rank.
    ModuleNotFoundError, RuntimeError
        Without mpi4py, or without the MPI library.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> with experiments.MPIWorkers() as workers:  # doctest: +SKIP
    ...     if workers is not None:
    ...         base = train.RunConfig(data="table.csv", epochs=3)
    ...         space = experiments.Space(base, {"lr": [0.001, 0.01]})
    ...         runs = list(workers.run(space.configs(), base.load()))
    """

    def __init__(self, comm: Any = None) -> None:
        from fastopt.distributed._mpi import import_mpi

        MPI = import_mpi()
        self._comm = MPI.COMM_WORLD if comm is None else comm
        self._own: Any = None
        self.count = self._comm.Get_size() - 1
        if "mpi4py.futures" in sys.orig_argv:
            raise RunError("leave out -m mpi4py.futures: all ranks begin the same program")
        if self.count == 0:
            raise RunError(
                "there is only rank 0, which hands out the runs; for 4 runs at a time, begin the "
                "command with: mpiexec -n 5 (of the MPI library that mpi4py uses)"
            )
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise RunError("the MPI has no MPI_THREAD_MULTIPLE, which rank 0 needs")

    def __enter__(self) -> MPIWorkers | None:
        if self._comm.Get_rank() == 0:
            return self
        with self._all_or_none():
            self._work()
        return None

    def __exit__(self, *error: object) -> None:
        if self._comm.Get_rank() == 0:
            with interrupts_wait(), self._all_or_none():
                self._share(None)

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """If this rank fails in the block, end all ranks, which would wait for it."""
        try:
            yield
        except KeyboardInterrupt:
            self._comm.Abort(130)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            time.sleep(0.5)  # the launcher drops what it has not yet read
            self._comm.Abort(1)

    def _share(self, data: Data | None) -> Data | None:
        """Return the data of rank 0, on each rank; None ends the work."""
        from mpi4py.util import pkl5

        if self._own is None:
            own, request = self._comm.Idup()  # mpi4py.futures has the other
            _wait(request)
            self._own = pkl5.Intracomm(own)
        _wait(self._own.Ibarrier())
        shared: Data | None = self._own.bcast(data)
        if shared is None:
            self._own.Free()
            self._own = None
        return shared

    def _end(self) -> Any:
        """Return a request that is complete when rank 0 has called this too."""
        return self._own.Ibcast(bytearray(1))

    def _work(self) -> None:
        """Train what rank 0 hands out, with one thread and without Ctrl-C."""
        global _task
        handlers = {
            signal.SIGINT: signal.SIG_IGN,
            signal.SIGHUP: signal.SIG_IGN,
            signal.SIGTERM: signal.SIG_DFL,
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        threads = fo.get_num_threads()
        from mpi4py.futures import MPICommExecutor

        fo.set_num_threads(1)
        with threadpool_limits(1):
            while (data := self._share(None)) is not None:
                _task = _Task(data, self._end())
                with MPICommExecutor(self._comm):
                    pass  # rank 0 has shut it down
                _task.end.Wait()
                _task = None
        fo.set_num_threads(threads)
        for number, handler in before.items():
            signal.signal(number, handler)

    def run(self, configs: Iterable[RunConfig], data: Data) -> Generator[Run, None, None]:
        """Train configurations, as `run_mpi` does. Rank 0 calls it, also several times.

        Parameters
        ----------
        configs : iterable of RunConfig
        data : Data
        """
        from mpi4py.futures import MPICommExecutor

        configs = list(configs)
        kind("data", data, Data)
        for config in configs:
            kind("each of configs", config, RunConfig)
        if not configs:
            return
        executor: Any = None
        try:
            with interrupts_wait(), self._all_or_none():
                self._share(data)
                executor = MPICommExecutor(self._comm).__enter__()
            futures = {executor.submit(_train, config): config for config in configs}
            for future in as_completed(futures):
                error = future.exception()
                if error is not None:
                    command = futures[future].command()
                    raise RunError(f"{command}: {type(error).__name__}: {error}") from None
                yield Run(futures[future], future.result())
        finally:
            if executor is not None:
                with interrupts_wait(), self._all_or_none():
                    executor.shutdown(wait=False, cancel_futures=True)
                    end = self._end()
                    executor.shutdown()
                    end.Wait()


def _wait(request: Any) -> None:
    """Wait without the use of a core, unlike MPI: the other ranks may need it for a long time."""
    while not request.Test():
        time.sleep(0.001)


class _EndedError(Exception):
    """Rank 0 does not want this run any more."""


class _UntilEnd(Callback):
    def on_batch_end(self, trainer: Trainer, samples: int, loss: float) -> None:
        assert _task is not None
        if _task.end.Test():
            raise _EndedError


def _train(config: RunConfig) -> History:
    assert _task is not None
    return run(config, _task.data, [_UntilEnd()]).history
