"""Activations and their backward forms: the contract and the public names are `functional`'s."""

from __future__ import annotations

import fastopt._core as _core
from fastopt._checks import below_one, finite, int64, integer
from fastopt._types import FloatArray

__all__ = [
    "dropout",
    "log_softmax",
    "log_softmax_backward",
    "logistic",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
]

_seed = integer(0, 2**64 - 1, "in [0, 2^64)")


def sigmoid(x: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """Return 1 / (1 + exp(-x)), as accurate near 0 as near 1.

    Parameters
    ----------
    x : array
        float32 or float64, any shape and strides.
    out : array of the shape and dtype of `x`, optional

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.sigmoid(np.array([-80.0, 0.0])))
    [1.80485139e-35 5.00000000e-01]
    """
    return _core.pointwise_function("sigmoid", [("x", x)], (), out)


def sigmoid_backward(
    grad: FloatArray, y: FloatArray, *, out: FloatArray | None = None
) -> FloatArray:
    """Return the gradient with respect to the input of `sigmoid`: ``grad * y * (1 - y)``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result; float32 or float64, any shape and strides.
    y : array of the shape and dtype of `grad`
        The result of `sigmoid`.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("sigmoid_backward", [("grad", grad), ("y", y)], (), out)


def relu(x: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """Return max(x, 0); NaN stays.

    Parameters
    ----------
    x : array
        float32 or float64, any shape and strides.
    out : array of the shape and dtype of `x`, optional

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.relu(np.array([-2.0, 3.0])))
    [0. 3.]
    """
    return _core.pointwise_function("relu", [("x", x)], (), out)


def relu_backward(
    grad: FloatArray, x_or_y: FloatArray, *, out: FloatArray | None = None
) -> FloatArray:
    """Return the gradient with respect to the input of `relu`: `grad`, or 0 where ``x <= 0``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result; float32 or float64, any shape and strides.
    x_or_y : array of the shape and dtype of `grad`
        The input of `relu` or its result, which serves as well.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("relu_backward", [("grad", grad), ("x_or_y", x_or_y)], (), out)


def logistic(
    x: FloatArray,
    L: float = 1.0,
    k: float = 1.0,
    x0: float = 0.0,
    *,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return the general logistic function, ``L / (1 + exp(-k * (x - x0)))``.

    Computed in float64.

    Parameters
    ----------
    x : array
        float32 or float64, any shape and strides.
    L, k, x0 : float
        The limit, the steepness and the middle; finite.
    out : array of the shape and dtype of `x`, optional

    References
    ----------
    Verhulst, "Notice sur la loi que la population suit dans son accroissement", 1838.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.logistic(np.array([5.0, 500.0]), L=10.0, k=2.0, x0=5.0))
    [ 5. 10.]
    """
    options = tuple(finite(name, value) for name, value in (("L", L), ("k", k), ("x0", x0)))
    return _core.pointwise_function("logistic", [("x", x)], options, out)


def dropout(
    x: FloatArray, p: float = 0.5, *, seed: int, out: FloatArray | None = None
) -> FloatArray:
    """Return `x` with each element set to 0 with probability `p`, the others divided by 1 - p.

    For training only. Whether an element stays is a hash of `seed` and of its number in C order:
    the same for any layout, instruction set and number of threads. So the backward form is the
    function itself: ``dropout(grad, p, seed=seed)``. Take another seed for each call.

    Parameters
    ----------
    x : array
        float32 or float64, any shape and strides.
    p : float
        In [0, 1), taken to the nearest 2^-32.
    seed : int
        In [0, 2^64).
    out : array of the shape and dtype of `x`, optional

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR
    2014.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.dropout(np.ones(8), 0.5, seed=0))
    [0. 0. 0. 0. 2. 0. 0. 2.]
    """
    p = below_one("p", p)
    key = _seed("seed", seed)
    # SplitMix64 (Steele, Lea and Flood 2014): seeds that are neighbours have nothing in common.
    key = (key + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    threshold = min(round(p * 2**32), 2**32 - 1)
    scale = 2**32 / (2**32 - threshold)
    return _core.pointwise_function(
        "dropout", [("x", x)], (threshold, scale, key % 2**32, key >> 32), out
    )


class _Default(int):
    """A default that is known from the same number of the caller's."""


_LAST: int = _Default(-1)


def _axis(axis: int, dim: int | None) -> int:
    if dim is None:
        return axis
    if axis is not _LAST:
        raise TypeError("axis and dim are two names of one argument; pass one of them")
    return int64("dim", dim)


def softmax(
    x: FloatArray, axis: int = _LAST, *, out: FloatArray | None = None, dim: int | None = None
) -> FloatArray:
    """Return exp(x) divided by its sum along `axis`; large x do no harm.

    Parameters
    ----------
    x : array of at least one axis
        float32 or float64. At full speed if the axes before `axis` lie as one in memory, and so do
        those after it; otherwise it is copied first.
    axis : int
        The axis along which the results add up to 1.
    out : array of the shape and dtype of `x`, optional
        Its rows may be a stride apart.
    dim : int, optional
        Another name of `axis`, torch's.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.softmax(np.array([1000.0, 1000.0, 0.0])))
    [0.5 0.5 0. ]
    """
    return _core.softmax(x, None, _axis(axis, dim), False, out)


def log_softmax(
    x: FloatArray, axis: int = _LAST, *, out: FloatArray | None = None, dim: int | None = None
) -> FloatArray:
    """Return the logarithm of `softmax`, exact also where that is close to 1.

    The arguments are those of `softmax`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.log_softmax(np.array([30.0, 0.0])))
    [-9.35762297e-14 -3.00000000e+01]
    """
    return _core.softmax(x, None, _axis(axis, dim), True, out)


def softmax_backward(
    grad: FloatArray,
    y: FloatArray,
    axis: int = _LAST,
    *,
    out: FloatArray | None = None,
    dim: int | None = None,
) -> FloatArray:
    """Return the gradient for the input of `softmax`: ``y * (grad - sum(grad * y))``.

    Parameters
    ----------
    grad : array of at least one axis
        The gradient with respect to the result; float32 or float64.
    y : array of the shape and dtype of `grad`
        The result of `softmax`.
    axis : int
        The axis that `softmax` was given.
    out : array of the shape and dtype of `grad`, optional
        Its rows may be a stride apart.
    dim : int, optional
        Another name of `axis`, torch's.
    """
    return _core.softmax(y, grad, _axis(axis, dim), False, out)


def log_softmax_backward(
    grad: FloatArray,
    y: FloatArray,
    axis: int = _LAST,
    *,
    out: FloatArray | None = None,
    dim: int | None = None,
) -> FloatArray:
    """Return the gradient for the input of `log_softmax`: ``grad - exp(y) * sum(grad)``.

    The arguments are those of `softmax_backward`; `y` is the result of `log_softmax`.
    """
    return _core.softmax(y, grad, _axis(axis, dim), True, out)
