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

from fastopt import checkpoint, functional, losses, optim, reference, schedules, testing
from fastopt._settings import (
    active_isa,
    available_isas,
    get_num_threads,
    set_num_threads,
    show_config,
)
from fastopt.checkpoint import Checkpoint, CheckpointError, load, save
from fastopt.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    CrossEntropyStats,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LinearCrossEntropyLoss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from fastopt.optim import (
    SGD,
    Adam,
    AdamW,
    GradAccumulator,
    IncompatibleKeys,
    Optimizer,
    RMSprop,
    StepInfo,
    WeightEMA,
    clip_grad_norm_,
    clip_grad_value_,
    decay_groups,
    grad_norm,
)
from fastopt.schedules import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

__version__ = "0.1.0"

# Public are the modules of the core, and of their names all of optim, losses, schedules and the
# settings, and what saves and loads. The others are used as `fo.functional.softmax`. A module or
# name that begins with an underscore is private, and so is a module below those that are named
# here: it may move. `train` is public too, but stands for an extra, so `import *` leaves it out.
__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BCELoss",
    "BCEWithLogitsLoss",
    "ChainedScheduler",
    "Checkpoint",
    "CheckpointError",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CrossEntropyLoss",
    "CrossEntropyStats",
    "ExponentialLR",
    "GradAccumulator",
    "HuberLoss",
    "IncompatibleKeys",
    "KLDivLoss",
    "L1Loss",
    "LRScheduler",
    "LambdaLR",
    "LinearCrossEntropyLoss",
    "LinearLR",
    "MSELoss",
    "MultiStepLR",
    "NLLLoss",
    "OneCycleLR",
    "Optimizer",
    "PolynomialLR",
    "RMSprop",
    "ReduceLROnPlateau",
    "SequentialLR",
    "SmoothL1Loss",
    "StepInfo",
    "StepLR",
    "WeightEMA",
    "__version__",
    "active_isa",
    "available_isas",
    "checkpoint",
    "clip_grad_norm_",
    "clip_grad_value_",
    "decay_groups",
    "functional",
    "get_num_threads",
    "grad_norm",
    "load",
    "losses",
    "optim",
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "show_config",
    "testing",
]


if TYPE_CHECKING:
    from fastopt import train as train
else:

    def __getattr__(name):
        """Import `train` when it is first used; it says how to install what is missing."""
        if name == "train":
            import importlib

            return importlib.import_module("fastopt.train")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
