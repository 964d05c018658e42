"""Ctrl-C waits for the end of what several processes do together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_kept(interrupts: list[int]) -> Iterator[None]:
    """Append Ctrl-C to a list within the block, instead of raising KeyboardInterrupt.

    A handler of the caller stays in force. Python calls handlers in the main thread only.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
