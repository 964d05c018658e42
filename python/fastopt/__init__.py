"""fastopt: optimizer and loss kernels for NumPy arrays.

The optimizers update NumPy arrays in place with vectorized C++ kernels; the losses return a value
and the gradient. The same bits come out for any instruction set and any number of threads, and
they equal those of the plain NumPy versions in `fastopt.reference`.
"""

from __future__ import annotations

from fastopt import checkpoint, functional, reference, testing
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
    HuberLoss,
    KLDivLoss,
    L1Loss,
    LinearCrossEntropyLoss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from fastopt.optim import SGD, Adam, AdamW, Optimizer, RMSprop, StepInfo, decay_groups

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BCELoss",
    "BCEWithLogitsLoss",
    "Checkpoint",
    "CheckpointError",
    "CrossEntropyLoss",
    "GradAccumulator",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "MSELoss",
    "NLLLoss",
    "Optimizer",
    "RMSprop",
    "SmoothL1Loss",
    "StepInfo",
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
    "set_num_threads",
    "show_config",
    "testing",
]
