"""fastopt: optimizers and losses for NumPy arrays.

The optimizers update NumPy arrays in place with vectorized C++ kernels. The losses return a value
and its gradient. The results have the same bits for any instruction set and number of threads. The
updates have the bits of `fastopt.reference`, which is plain NumPy.

These rules hold for every function and method, except that `fastopt.reference` does not check
options and arrays. The page of a function describes only what differs:

- An argument of the wrong type raises TypeError. A value that cannot be used raises ValueError.
  Names that do not match raise KeyError. The message contains the argument, its value, and the
  allowed values.
- All checks come before the first write. After such an error, all arrays, states and files are as
  before the call.
- Only one thread may use an optimizer, a `WeightEMA` or a `GradAccumulator` at a time. A second
  thread gets a RuntimeError. A schedule is for one thread too, but this is not checked. Threads may
  share a loss, and may use different objects at the same time.
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

# The modules in this list are public. The names of optim, losses, schedules and the settings are
# also names of this package; those of the other modules are used as `fo.functional.softmax`. A name
# that begins with an underscore is private. So are the modules within the public ones: they may
# move. `train` is public too, but it needs an extra, so `import *` leaves it out.
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
        """Import `train` when it is first used.

        Without its extra this raises ModuleNotFoundError, which says what to install. So does
        ``hasattr(fastopt, "train")``: False would hide the reason.
        """
        import importlib

        if name == "train":
            return importlib.import_module("fastopt.train")
        if name == "experiments":  # its name in the preview
            return importlib.import_module("fastopt.train.experiments")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
