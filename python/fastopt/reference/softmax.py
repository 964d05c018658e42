"""softmax, log_softmax and their backward forms, in plain NumPy and float64."""

from __future__ import annotations

import numpy as np

from fastopt._types import FloatArray


def softmax(x: FloatArray, axis: int = -1) -> FloatArray:
    """Return exp(x) divided by its sum along `axis`."""
    with np.errstate(all="ignore"):
        e = np.exp(x - np.asarray(x, np.float64).max(axis=axis, keepdims=True))
        return np.asarray(e / e.sum(axis=axis, keepdims=True))


def log_softmax(x: FloatArray, axis: int = -1) -> FloatArray:
    """Return the logarithm of `softmax`.

    The sum under the logarithm leaves out the largest entry, so that small results are exact.
    """
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        top = np.expand_dims(x.argmax(axis=axis), axis)
        shifted = x - np.take_along_axis(x, top, axis)
        e = np.exp(shifted)
        at_top = np.take_along_axis(e, top, axis)  # 1, or NaN
        np.put_along_axis(e, top, 0.0, axis)
        return np.asarray(shifted - np.log1p(e.sum(axis=axis, keepdims=True) / at_top))


def softmax_backward(grad: FloatArray, y: FloatArray, axis: int = -1) -> FloatArray:
    """Return the gradient with respect to the input of `softmax`, from its result."""
    grad, y = np.asarray(grad, np.float64), np.asarray(y, np.float64)
    return np.asarray(y * (grad - (grad * y).sum(axis=axis, keepdims=True)))


def log_softmax_backward(grad: FloatArray, y: FloatArray, axis: int = -1) -> FloatArray:
    """Return the gradient with respect to the input of `log_softmax`, from its result."""
    grad, y = np.asarray(grad, np.float64), np.asarray(y, np.float64)
    return np.asarray(grad - np.exp(y) * grad.sum(axis=axis, keepdims=True))
