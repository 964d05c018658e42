"""Training runs in several processes, each with one thread."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterable
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from threadpoolctl import threadpool_limits

import fastopt as fo
from fastopt import train as ft
from fastopt.experiments.runs import Run, run


class RunError(RuntimeError):
    """A run that failed, or whose process ended; the message says which."""


def run_parallel(
    configs: Iterable[ft.RunConfig], data: ft.Data, jobs: int
) -> Generator[Run, None, None]:
    """Train configurations in `jobs` processes; yield each run as it ends, in any order.

    The processes are started anew ("spawn"), so a script that calls this needs
    ``if __name__ == "__main__":``. They ignore Ctrl-C, which is for this process to answer: close
    the iterator, and they are ended. If this process is killed, they end after their run.

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
        If a run fails or its process is killed; what was yielded before stays valid.

    Examples
    --------
    >>> from fastopt import experiments, train
    >>> base = train.RunConfig(data="iris", epochs=3)
    >>> configs = experiments.Space(base, {"lr": [0.001, 0.01]}).configs()
    >>> runs = list(experiments.run_parallel(configs, base.load(), jobs=2))
    >>> sorted(run.config.lr for run in runs)
    [0.001, 0.01]
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    waiting = deque(configs)
    context = get_context("spawn")
    workers: dict[Any, tuple[BaseProcess, ft.RunConfig]] = {}  # by the end of a pipe to each
    process: BaseProcess
    try:
        # Ctrl-C goes to all processes of a terminal: those that start inherit that it waits.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(min(jobs, len(waiting))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, data), daemon=True)
                process.start()
                theirs.close()
                workers[ours] = process, waiting.popleft()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for connection, (process, config) in workers.items():
            _send(connection, process, config)
        while workers:
            ready: list[Any] = wait(list(workers))
            for connection in ready:
                process, config = workers[connection]
                try:
                    answer = connection.recv()
                except (EOFError, ConnectionError):
                    raise _lost(process, config) from None
                if isinstance(answer, str):
                    raise RunError(f"{config.command()}: {answer}")
                if waiting:  # the next is under way before the caller sees this one
                    workers[connection] = process, waiting.popleft()
                    _send(connection, *workers[connection])
                else:
                    del workers[connection]
                    connection.close()
                    process.join()
                yield Run(config, answer)
    finally:
        for process, _ in workers.values():
            process.terminate()
        for connection, (process, _) in workers.items():
            process.join()
            connection.close()


def _send(connection: Any, process: BaseProcess, config: ft.RunConfig) -> None:
    try:
        connection.send(config)
    except ConnectionError:
        raise _lost(process, config) from None


def _lost(process: BaseProcess, config: ft.RunConfig) -> RunError:
    process.join()
    return RunError(
        f"the process of a run ended with exit code {process.exitcode} (for want of memory?): "
        f"{config.command()}"
    )


def _work(connection: Any, data: ft.Data) -> None:
    """Answer each configuration with its history, or with what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fo.set_num_threads(1)
    with threadpool_limits(1):
        try:
            while True:
                config = connection.recv()
                answer: ft.History | str
                try:
                    answer = run(config, data).history
                except Exception as error:  # told by the parent
                    answer = f"{type(error).__name__}: {error}"
                connection.send(answer)
        except (EOFError, ConnectionError):
            pass  # all is done, or the parent is gone
