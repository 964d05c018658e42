"""fastopt: optimizer and loss kernels for NumPy arrays.

The optimizers update NumPy arrays in place with vectorized C++ kernels; the losses return a value
and the gradient. The same bits come out for any instruction set and any number of threads, and
they equal those of the plain NumPy versions in `fastopt.reference`.
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

from fastopt import checkpoint, functional, reference, schedules, testing
from fastopt._config import (
    active_isa,
    available_isas,
    get_num_threads,
    set_num_threads,
    show_config,
)
from fastopt.accumulate import GradAccumulator
from fastopt.checkpoint import Checkpoint, CheckpointError, load, save
from fastopt.clipping import clip_grad_norm_, clip_grad_value_, grad_norm
from fastopt.ema import WeightEMA
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
    IncompatibleKeys,
    Optimizer,
    RMSprop,
    StepInfo,
    decay_groups,
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
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "show_config",
    "testing",
]


if not TYPE_CHECKING:  # mypy would take any name for one of this module

    def __getattr__(name):
        """Import what needs more than NumPy when it is first used."""
        if name == "train":
            import importlib

            return importlib.import_module(f"fastopt.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
