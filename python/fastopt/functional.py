"""Functions: activations, losses without an object, and updates on state that the caller owns.

Arrays are float32 or float64, of any shape and strides, and those of one call have one dtype.
`out` is passed by name: the array for the result, or for the gradient of a loss. It has their shape
and dtype, is C-contiguous, and may be an operand itself, which the result then replaces; otherwise
it shares memory with no operand. It is also what the function returns. Where a function takes more,
it says so.

A loss returns ``(loss, grad)``, the gradient with respect to the first argument, as
``value_and_grad`` of its class does. An update writes into the parameter and its state, and returns
nothing.

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
