"""fastopt: optimizer and loss kernels for NumPy arrays.

The optimizers update NumPy arrays in place with vectorized C++ kernels; the losses return a value
and the gradient. The same bits come out for any instruction set and any number of threads, and
they equal those of the plain NumPy versions in `fastopt.reference`.

Every function and method keeps this contract; its own page names only what differs:

- An argument of the wrong kind raises TypeError, a value that cannot be used ValueError, and names
  that do not match KeyError. The message names the argument, what it is, and what is taken.
- All checks come before the first write: after such an error every array, state and file is as it
  was before the call.
- One object is for one thread at a time; a second thread gets a RuntimeError. Different objects may
  work at the same time.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fastopt._command import is_command

try:
    from fastopt import _core as _core
except ImportError as error:
    if is_command:
        print(f"fastopt: error: {error}", file=sys.stderr)
        sys.exit(2)
    raise

from fastopt import (
    _settings,
    checkpoint,
    functional,
    losses,
    optim,
    reference,
    schedules,
    testing,
)
from fastopt._settings import *  # noqa: F403
from fastopt.checkpoint import Checkpoint, CheckpointError, load, save
from fastopt.losses import *  # noqa: F403
from fastopt.optim import *  # noqa: F403
from fastopt.schedules import *  # noqa: F403

__version__ = "0.1.0"

# Public are these modules, and here too all names of optim, losses, schedules and the settings, and
# what saves and loads. The others are used as `fo.functional.softmax`. A name that begins with an
# underscore is private, and so is a module below these: it may move. `train` is public too, but
# needs an extra, so `import *` leaves it out.
__all__ = [
    "Checkpoint",
    "CheckpointError",
    "__version__",
    "checkpoint",
    "functional",
    "load",
    "losses",
    "optim",
    "reference",
    "save",
    "schedules",
    "testing",
]
__all__ += losses.__all__
__all__ += optim.__all__
__all__ += schedules.__all__
__all__ += _settings.__all__


if TYPE_CHECKING:
    from fastopt import train as train
else:

    def __getattr__(name):
        """Import `train` when it is first used; it says how to install what is missing."""
        if name == "train":
            import importlib

            return importlib.import_module("fastopt.train")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
