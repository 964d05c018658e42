"""Training runs in several processes, each with one thread."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from threadpoolctl import threadpool_limits

import fastopt as fo
from fastopt._checks import integer
from fastopt.train.checks import kind
from fastopt.train.config import RunConfig
from fastopt.train.data import Data
from fastopt.train.experiments.runs import Run, run


class RunError(RuntimeError):
    """A run that failed, or whose process ended; the message names it."""


def run_parallel(configs: Iterable[RunConfig], data: Data, jobs: int) -> Generator[Run, None, None]:
    """Train configurations in `jobs` processes; yield each run when it has ended, in any order.

    The processes are new ("spawn"), so a script that calls this needs
    ``if __name__ == "__main__":``. They ignore Ctrl-C. Closing the iterator ends them. If this
    process is killed, they end after their run.

    Parameters
    ----------
    configs : iterable of RunConfig
    data : Data
        Sent to each process once.
    jobs : int
        At least 1.

    Raises
    ------
    RunError
        If a run fails, or a process ends or cannot be started. Earlier runs are not affected.

    Examples
    --------
    >>> from fastopt import train
    >>> from fastopt.train import experiments
    >>> base = train.RunConfig(data="iris", epochs=3)
    >>> configs = experiments.Space(base, {"lr": [0.001, 0.01]}).configs()
    >>> runs = list(experiments.run_parallel(configs, base.load(), jobs=2))
    >>> sorted(run.config.lr for run in runs)
    [0.001, 0.01]
    """
    configs, jobs = list(configs), integer(1)("jobs", jobs)
    kind("data", data, Data)
    for config in configs:
        kind("each of configs", config, RunConfig)
    waiting = deque(configs)
    # The data go through the pipe, not as an argument of the process: what start() writes waits for
    # ever if the process dies before it has read it.
    packed = ForkingPickler.dumps(data)
    context = get_context("spawn")
    workers: dict[Any, tuple[BaseProcess, RunConfig]] = {}  # by the end of its pipe
    process: BaseProcess
    try:
        # The tracker is a process of multiprocessing, whose start would unblock the signal below.
        resource_tracker.ensure_running()
        try:
            for _ in range(min(jobs, len(waiting))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                with interrupts_wait():
                    process.start()
                    workers[ours] = process, waiting.popleft()
                theirs.close()
        except OSError as error:
            raise RunError(
                f"the system starts {len(workers)} processes, not {jobs}: {error.strerror}; "
                "use fewer jobs"
            ) from None
        for connection, (process, config) in workers.items():
            _send(connection, process, config, packed)
        del packed
        while workers:
            ready: list[Any] = wait(list(workers))
            for connection in ready:
                process, config = workers[connection]
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    raise _lost(process, config) from None
                if isinstance(answer, str):
                    raise RunError(f"{config.command()}: {answer}")
                if waiting:  # the next run begins before the caller gets this one
                    workers[connection] = process, waiting.popleft()
                    _send(connection, *workers[connection])
                else:
                    del workers[connection]
                    connection.close()
                    process.join()
                yield Run(config, answer)
    finally:
        for process, _ in workers.values():
            process.kill()
        for connection, (process, _) in workers.items():
            process.join()
            connection.close()


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C until a process has started; block it in that process.

    A terminal sends Ctrl-C to all processes, and the new process inherits the block. In this
    process another thread may still receive the signal; the handler is for that case. An incomplete
    start would print a traceback.
    """
    seen: list[Any] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for number in handlers:
            signal.signal(number, lambda *arguments: seen.append(arguments))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for arguments in seen:
            handlers[arguments[0]](*arguments)


def _send(connection: Any, process: BaseProcess, config: RunConfig, packed: Any = None) -> None:
    """Send a configuration, and the data before the first."""
    try:
        if packed is not None:
            connection.send_bytes(packed)
        connection.send(config)
    except OSError:
        raise _lost(process, config) from None


def _lost(process: BaseProcess, config: RunConfig) -> RunError:
    process.join()
    hints = {
        -signal.SIGKILL: " (for want of memory?)",
        1: ' (does the script have `if __name__ == "__main__":`?)',
    }
    hint = hints.get(process.exitcode or 0, "")
    return RunError(
        f"the process of a run ended with exit code {process.exitcode}{hint}: {config.command()}"
    )


def _work(connection: Any) -> None:
    """Receive the data; answer each configuration with its history or its error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    fo.set_num_threads(1)
    with threadpool_limits(1):
        try:
            data = None
            while True:
                try:
                    data = connection.recv() if data is None else data
                    answer = ForkingPickler.dumps(run(connection.recv(), data).history)
                except (EOFError, ConnectionError):
                    raise
                except Exception as error:  # the parent raises it
                    answer = ForkingPickler.dumps(f"{type(error).__name__}: {error}")
                connection.send_bytes(answer)
        except (EOFError, ConnectionError):
            pass  # all is done, or the parent has ended
