"""The optimizers, losses and functions in plain NumPy, which define the results of the kernels.

Constructors and methods are those of `fastopt`. The updates have the same bits as the kernels, for
any types of arrays; the losses and activations compute in float64. Arrays and most options are not
checked here.
"""

from __future__ import annotations

from fastopt.reference.accumulate import GradAccumulator
from fastopt.reference.adam import Adam, AdamW
from fastopt.reference.clipping import grad_norm
from fastopt.reference.cross_entropy import CrossEntropyLoss
from fastopt.reference.ema import WeightEMA
from fastopt.reference.linear_cross_entropy import LinearCrossEntropyLoss
from fastopt.reference.nll import NLLLoss
from fastopt.reference.pointwise import (
    BCELoss,
    BCEWithLogitsLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
    dropout,
    gelu,
    gelu_backward,
    logistic,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    silu,
    silu_backward,
    tanh,
    tanh_backward,
)
from fastopt.reference.rmsprop import RMSprop
from fastopt.reference.sgd import SGD
from fastopt.reference.softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "GradAccumulator",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "MSELoss",
    "NLLLoss",
    "RMSprop",
    "SmoothL1Loss",
    "WeightEMA",
    "dropout",
    "gelu",
    "gelu_backward",
    "grad_norm",
    "log_softmax",
    "log_softmax_backward",
    "logistic",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]
