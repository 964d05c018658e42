"""The command ``fastopt``."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the extra ``train``, say how to get it."""
    _guard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):  # they keep what is finished, as Ctrl-C does
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        _import_app()(prog_name="fastopt")
    except KeyboardInterrupt:  # the commands answer it themselves while they run
        sys.exit(130)


def _import_app() -> Any:
    try:
        from fastopt.cli.app import app
    except (ImportError, ValueError) as error:
        if not isinstance(error, ModuleNotFoundError):
            print(f"fastopt: error: {error}", file=sys.stderr)
            sys.exit(2)
        if error.name is None or error.name.partition(".")[0] == "fastopt":
            raise
        print(
            f"fastopt: error: the command needs {error.name}; install it with: "
            "pip install 'fastopt[train]' (in a checkout: '.[train]')",
            file=sys.stderr,
        )
        sys.exit(2)
    return app


class _Stream(io.FileIO):
    """Standard output or error: what cannot be written is dropped, and the work goes on."""

    def write(self, data: Any) -> int:
        """Write some of `data`; say that all is written if there is nowhere to write to."""
        try:
            while (written := super().write(data)) is None:  # full, in non-blocking mode
                select.select([], [self], [])
        except OSError:  # the reader has gone, or the terminal; or the disk is full
            return len(data)
        return written


def _guard_streams() -> None:
    """Make it impossible for printing to fail, whatever is done with the streams and whenever."""
    # A file that is opened later, here or in a worker, must not take the place of a closed stream.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)
    os.close(spare)
    for number, name, errors in ((1, "stdout", "replace"), (2, "stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(_Stream(number, "w", closefd=False))
            encoding = stream.encoding if stream else "utf-8"
            setattr(sys, name, io.TextIOWrapper(raw, encoding, errors, line_buffering=True))
