"""The command ``fastopt``."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import signal
import sys
import unicodedata
from typing import Any, NoReturn

from fastopt.cli import ranks

__all__ = ["main"]

PRINTS_ONLY = {"info", "--version", "--help", "-h"}  # these only print


def main() -> None:
    """Run the command line; without the extra ``train``, print how to install it."""
    _guard_streams()
    if ranks.launched()[0] > 0:
        ranks.hold_output()
    try:
        app = _import_app()
        for number in ranks.SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:  # SIGINT: see `fastopt._command`
                signal.signal(number, signal.default_int_handler)
        app(prog_name="fastopt")
    except KeyboardInterrupt:  # a running command handles it
        sys.exit(130)
    finally:
        if PRINTS_ONLY & set(sys.argv[1:]):
            sys.stdout.flush()
            if _Stream.error is not None:
                if _Stream.error.errno == errno.EPIPE:
                    sys.exit(128 + signal.SIGPIPE)  # as of a program that the signal has ended
                _refuse(f"cannot write to standard output: {_Stream.error.strerror}", 1)


def _refuse(message: str, code: int = 2) -> NoReturn:
    print(f"fastopt: error: {message}", file=sys.stderr)
    sys.exit(code)


def _import_app() -> Any:
    try:
        from fastopt.cli.app import app
    except (ImportError, ValueError) as error:
        if not isinstance(error, ModuleNotFoundError):
            _refuse(str(error))
        if error.name is None or error.name.partition(".")[0] == "fastopt":
            raise
        _refuse(
            f"the command needs {error.name}; install it with: pip install 'fastopt[train]' "
            "(in a checkout: '.[train]')"
        )
    return app


class _Stream(io.FileIO):
    """Standard output or error: text that cannot be written is dropped, and the work continues."""

    error: OSError | None = None  # the first of standard output

    def write(self, data: Any) -> int:
        """Write some of `data`; if this fails, return as if all were written."""
        try:
            while (written := super().write(data)) is None:  # full, in non-blocking mode
                select.select([], [self], [])
        except OSError as error:  # a closed pipe, a closed terminal, or a full disk
            if self.name == 1:
                _Stream.error = _Stream.error or error
            return len(data)
        return written


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """Return a replacement for characters that an encoding does not have: 2 for ², otherwise ?."""
    assert isinstance(error, UnicodeEncodeError)
    text = unicodedata.normalize("NFKC", error.object[error.start : error.end])
    return "".join(char if char.isascii() else "?" for char in text), error.end


def _guard_streams() -> None:
    """Replace the standard streams by streams whose printing never fails."""
    # A file that is opened later, here or in a worker, must not get the number of a closed stream.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)
    os.close(spare)
    codecs.register_error("fastopt", _nearest)
    for number, name, errors in ((1, "stdout", "fastopt"), (2, "stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(_Stream(number, "w", closefd=False))
            encoding = stream.encoding if stream else "utf-8"
            setattr(sys, name, io.TextIOWrapper(raw, encoding, errors, line_buffering=True))
