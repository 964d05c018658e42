"""The optimizers, with the names, arguments and defaults of ``torch.optim``."""

from __future__ import annotations

from fastopt._structure import IncompatibleKeys
from fastopt.optim._base import Optimizer, StepInfo
from fastopt.optim.adam import Adam, AdamW
from fastopt.optim.groups import decay_groups
from fastopt.optim.rmsprop import RMSprop
from fastopt.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "IncompatibleKeys",
    "Optimizer",
    "RMSprop",
    "StepInfo",
    "decay_groups",
]
