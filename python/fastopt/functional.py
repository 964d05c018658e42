"""Functions: activations, losses without an object, and updates on state that the caller owns.

Arrays are float32 or float64, of any shape and strides, and those of one call have one dtype.
`out` is passed by name: the array for the result, or for the gradient of a loss. It has their shape
and dtype, is C-contiguous, and may be an operand itself, which the result then replaces; otherwise
it shares memory with no operand. It is also what the function returns. Where a function takes more,
it says so.

A loss returns ``(loss, grad)``, the gradient with respect to the first argument, as
``value_and_grad`` of its class does. An update writes into the parameter and its state, and returns
nothing.

If an argument cannot be used, TypeError or ValueError names it, and nothing has been written.
"""

from __future__ import annotations

from fastopt.losses.activations import (
    dropout,
    log_softmax,
    log_softmax_backward,
    logistic,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax,
    softmax_backward,
)
from fastopt.losses.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    linear_cross_entropy,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from fastopt.optim.functional import adam_, adamw_, rmsprop_, sgd_

__all__ = [
    "adam_",
    "adamw_",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "log_softmax",
    "log_softmax_backward",
    "logistic",
    "mse_loss",
    "nll_loss",
    "relu",
    "relu_backward",
    "rmsprop_",
    "sgd_",
    "sigmoid",
    "sigmoid_backward",
    "smooth_l1_loss",
    "softmax",
    "softmax_backward",
]
