"""Whether this process is the command ``fastopt``, which prints a line and no traceback."""

from __future__ import annotations

import signal
import sys

# `python -m fastopt` and the script `fastopt` import the package before they run.
program = "".join(sys.orig_argv[-len(sys.argv) :][:1])
is_command = program.rpartition("/")[2] in ("fastopt", "-mfastopt")
if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports; the command handles it later
