"""Ctrl-C waits for the end of what several processes do together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any, TypeVar

T = TypeVar("T")


class _Call:
    """A call of a function in a new thread, where Ctrl-C does not reach it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._once = threading.Lock()
        self.end = threading.Lock()
        self.end.acquire()
        self.answer: tuple[Any, BaseException | None] | None = None

    def start(self) -> None:
        """Begin the call; a second start does nothing."""
        threading.Thread(target=self._run, name="fastopt", daemon=True).start()

    def _run(self) -> None:
        if not self._once.acquire(blocking=False):
            return
        try:
            self.answer = self._function(), None
        except BaseException as error:
            self.answer = None, error
        self.end.release()


def uninterrupted(function: Callable[[], T], interrupts: list[BaseException]) -> T:
    """Call a function in a new thread, and return its result.

    Parameters
    ----------
    function : callable
        It raises KeyboardInterrupt if the ranks agree that there are `interrupts`.
    interrupts : list of BaseException
        Gets what the handlers of signals raise meanwhile.
    """
    call, started = None, False
    while call is None or call.answer is None:
        try:  # an interrupt may come between any two operations
            call = call or _Call(function)
            if not started:
                call.start()
                started = True
            call.end.acquire()
        except BaseException as interrupt:
            if isinstance(interrupt, RuntimeError) and not started:  # the system has no thread
                raise
            interrupts.append(interrupt)
    result, error = call.answer
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
