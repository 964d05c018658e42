"""Ctrl-C waits for the end of what several processes do together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(function: Callable[[], T], interrupts: list[BaseException]) -> T:
    """Call a function in a new thread, where Ctrl-C does not reach it, and return its result.

    Parameters
    ----------
    function : callable
        It raises KeyboardInterrupt if the ranks agree that there are `interrupts`.
    interrupts : list of BaseException
        Gets what the handlers of signals raise meanwhile.
    """
    from mpi4py import MPI

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        return function()
    answer: list[tuple[Any, BaseException | None]] = []
    once, end = threading.Lock(), threading.Lock()
    end.acquire()

    def run() -> None:
        if not once.acquire(blocking=False):
            return
        try:
            answer.append((function(), None))
        except BaseException as error:
            answer.append((None, error))
        end.release()

    started = False
    while not answer:
        try:
            if not started:  # an interrupt may come between the start and the next statement
                threading.Thread(target=run, name="fastopt", daemon=True).start()
                started = True
            end.acquire()
        except BaseException as interrupt:
            if isinstance(interrupt, RuntimeError) and not started:  # the system has no thread
                raise
            interrupts.append(interrupt)
    result, error = answer[0]
    if isinstance(error, KeyboardInterrupt):
        if interrupts:
            error = interrupts[0]
            interrupts.clear()
        else:  # it is of another rank, and ours may come a little later
            with suppress(KeyboardInterrupt):
                sleep(0.1)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
