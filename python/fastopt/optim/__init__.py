"""The optimizers, with the names, arguments and defaults of ``torch.optim``.

With them: groups for weight decay, accumulation and clipping of gradients, averages of parameters.
"""

from __future__ import annotations

from fastopt._structure import IncompatibleKeys
from fastopt.optim._base import Optimizer, StepInfo
from fastopt.optim.accumulate import GradAccumulator
from fastopt.optim.adam import Adam, AdamW
from fastopt.optim.clipping import clip_grad_norm_, clip_grad_value_, grad_norm
from fastopt.optim.ema import WeightEMA
from fastopt.optim.rmsprop import RMSprop
from fastopt.optim.sgd import SGD
from fastopt.optim.weight_decay import decay_groups

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "GradAccumulator",
    "IncompatibleKeys",
    "Optimizer",
    "RMSprop",
    "StepInfo",
    "WeightEMA",
    "clip_grad_norm_",
    "clip_grad_value_",
    "decay_groups",
    "grad_norm",
]
