"""Functions: activations, losses, and updates on state that the caller owns.

Arrays are float32, float64, bfloat16 or float16, of any shape and strides. All arrays of an
activation or a loss have the same dtype. Those of bfloat16 and float16 are computed in float32: the
result is that of float32 arrays with the same values, rounded to nearest.

`out` is the array for the result or for the gradient of a loss, and is returned. Pass it by
name. It has the shape and dtype of the result, and is C-contiguous unless a function says
otherwise. It may be an operand, which the result then replaces. Otherwise it must not share memory
with an operand.

A loss returns ``(loss, grad)`` like ``value_and_grad`` of its class: the loss and its gradient with
respect to the first argument.

An update writes into the parameter and its state, and returns None. One call is one step of one
array, with the checks and the bits of a step of the class. ``step`` is the number of this step,
counted from 1. The states have the shape and memory order of the parameter, and begin as zeros. The
types of the arrays may differ, unless ``param`` is float64:

- ``param`` is float32, bfloat16 or float16.
- ``grad`` is float32, bfloat16 or float16.
- The states of a call are all float32 or all bfloat16.
- ``master_param`` is the state of that name of the classes, for a ``param`` of 16 bits. As float32,
  it is the exact parameter, and begins as a copy of ``param``. As int16, it makes a float32
  together with a ``param`` of bfloat16, and begins as zeros. A ``param`` of float16 needs float32.

An update rounds to nearest. Only the classes have stochastic rounding.

Examples
--------
>>> import numpy as np, fastopt.functional as F
>>> loss, grad = F.cross_entropy(np.array([[1.0, 1.0]]), np.array([0]), label_smoothing=0.5)
>>> print(f"{loss:.4f}", grad)
0.6931 [[-0.25  0.25]]
>>> loss, grad = F.mse_loss(np.array([1.0, 5.0]), np.array([1.0, 2.0]), reduction="sum")
>>> print(loss, grad)
9.0 [0. 6.]
"""

from __future__ import annotations

import fastopt.losses.activations as _activations
import fastopt.losses.functional as _losses
import fastopt.optim.functional as _updates
from fastopt.losses.activations import *  # noqa: F403
from fastopt.losses.functional import *  # noqa: F403
from fastopt.optim.functional import *  # noqa: F403

__all__: list[str] = []
__all__ += _activations.__all__
__all__ += _losses.__all__
__all__ += _updates.__all__
