"""Activations and their backward functions; `fastopt.functional` documents what they share."""

from __future__ import annotations

from math import prod
from typing import Literal

import fastopt._core as _core
from fastopt._checks import below_one, choice, finite, int64, integer
from fastopt._types import FloatArray

__all__ = [
    "dropout",
    "gelu",
    "gelu_backward",
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

_seed = integer(0, 2**64 - 1, "in [0, 2^64)")
_first = integer(0, 2**32 - 1, "in [0, 2^32)")
_approximate = choice("none", "tanh")


def sigmoid(x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return 1 / (1 + exp(-x)), with the same relative accuracy for small and large results.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    out : array of the shape and dtype of `x`, optional

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.sigmoid(np.array([-80.0, 0.0])))
    [1.80485139e-35 5.00000000e-01]
    """
    return _core.pointwise_function("sigmoid", [("x", x)], (), out)


def sigmoid_backward(grad: FloatArray, y: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return the gradient with respect to the input of `sigmoid`: ``grad * y * (1 - y)``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result, of any shape and strides.
    y : array of the shape and dtype of `grad`
        The result of `sigmoid`.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("sigmoid_backward", [("grad", grad), ("y", y)], (), out)


def relu(x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return max(x, 0); NaN stays.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    out : array of the shape and dtype of `x`, optional

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.relu(np.array([-2.0, 3.0])))
    [0. 3.]
    """
    return _core.pointwise_function("relu", [("x", x)], (), out)


def relu_backward(
    grad: FloatArray, x_or_y: FloatArray, out: FloatArray | None = None
) -> FloatArray:
    """Return the gradient with respect to the input of `relu`: `grad`, or 0 where ``x <= 0``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result, of any shape and strides.
    x_or_y : array of the shape and dtype of `grad`
        The input or the result of `relu`.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("relu_backward", [("grad", grad), ("x_or_y", x_or_y)], (), out)


def tanh(x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return the hyperbolic tangent, with the same relative accuracy for small and large `x`.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    out : array of the shape and dtype of `x`, optional

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.tanh(np.array([-1e-20, 0.5])))
    [-1.00000000e-20  4.62117157e-01]
    """
    return _core.pointwise_function("tanh", [("x", x)], (), out)


def tanh_backward(grad: FloatArray, y: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return the gradient with respect to the input of `tanh`: ``grad * (1 - y**2)``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result, of any shape and strides.
    y : array of the shape and dtype of `grad`
        The result of `tanh`.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("tanh_backward", [("grad", grad), ("y", y)], (), out)


def silu(x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return x * sigmoid(x), also called swish.

    Negative results keep their relative accuracy. That of -inf is the limit, -0.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    out : array of the shape and dtype of `x`, optional

    References
    ----------
    Elfwing et al., "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning", Neural Networks 2018.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.silu(np.array([-80.0, 1.0])))
    [-1.44388111e-33  7.31058579e-01]
    """
    return _core.pointwise_function("silu", [("x", x)], (), out)


def silu_backward(grad: FloatArray, x: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return the gradient with respect to the input of `silu`: ``grad * s * (1 + x * (1 - s))``.

    Here s is ``sigmoid(x)``.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result, of any shape and strides.
    x : array of the shape and dtype of `grad`
        The input of `silu`.
    out : array of the shape and dtype of `grad`, optional
    """
    return _core.pointwise_function("silu_backward", [("grad", grad), ("x", x)], (), out)


def _gelu_kernel(approximate: object) -> str:
    return "gelu_tanh" if _approximate("approximate", approximate) == "tanh" else "gelu"


def gelu(
    x: FloatArray, approximate: Literal["none", "tanh"] = "none", out: FloatArray | None = None
) -> FloatArray:
    """Return x * Phi(x), where Phi is the distribution function of the normal distribution.

    Negative results keep their relative accuracy. That of -inf is the limit, -0.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    approximate : {"none", "tanh"}
        "tanh" replaces Phi(x) by ``(1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``. The
        result differs by up to 5e-4: use it for models that were trained with it. It is computed in
        float64. For float64 arrays, the relative error of a negative result grows with
        ``abs(x)**3``.
    out : array of the shape and dtype of `x`, optional

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units", 2016.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> x = np.array([-10.0, 1.0])
    >>> print(fo.functional.gelu(x))
    [-7.61985302e-23  8.41344746e-01]
    >>> print(fo.functional.gelu(x, "tanh"))
    [-1.20409235e-37  8.41191991e-01]
    """
    kernel = _gelu_kernel(approximate)
    return _core.pointwise_function(kernel, [("x", x)], (), out)


def gelu_backward(
    grad: FloatArray,
    x: FloatArray,
    approximate: Literal["none", "tanh"] = "none",
    out: FloatArray | None = None,
) -> FloatArray:
    """Return the gradient with respect to the input of `gelu`.

    It is ``grad * (Phi(x) + x * phi(x))`` with the normal distribution's density phi, or with the
    approximation of Phi and its derivative.

    Parameters
    ----------
    grad : array
        The gradient with respect to the result, of any shape and strides.
    x : array of the shape and dtype of `grad`
        The input of `gelu`.
    approximate : {"none", "tanh"}
        That of `gelu`.
    out : array of the shape and dtype of `grad`, optional
    """
    kernel = f"{_gelu_kernel(approximate)}_backward"
    return _core.pointwise_function(kernel, [("grad", grad), ("x", x)], (), out)


def logistic(
    x: FloatArray,
    L: float = 1.0,
    k: float = 1.0,
    x0: float = 0.0,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return the general logistic function, ``L / (1 + exp(-k * (x - x0)))``.

    It is computed in float64.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    L, k, x0 : float
        The limit, the steepness and the middle, all finite.
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
    x: FloatArray, p: float = 0.5, *, seed: int, first: int = 0, out: FloatArray | None = None
) -> FloatArray:
    """Return `x` with each element set to 0 with probability `p`, the others divided by 1 - p.

    Use it in training only. A hash of `seed` and the number of the element in C order decides which
    elements become 0. It does not depend on layout, instruction set or number of threads. The
    backward pass is therefore the same function: ``dropout(grad, p, seed=seed)``. Use another seed
    for each call.

    Parameters
    ----------
    x : array
        Of any shape and strides.
    p : float
        In [0, 1), rounded to a multiple of 2^-32.
    seed : int
        In [0, 2^64).
    first : int
        The number of the first element of `x`. It gives a part of a larger array, such as some rows
        of a batch, the zeros that it has in a call for the whole array. In [0, 2^32), and so is the
        number of the last element.
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
    >>> print(fo.functional.dropout(np.ones(5), 0.5, seed=0, first=3))
    [0. 2. 0. 0. 2.]
    """
    p = below_one("p", p)
    key = _seed("seed", seed)
    # SplitMix64 (Steele, Lea and Flood 2014): neighbouring seeds give independent numbers.
    key = (key + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    threshold = min(round(p * 2**32), 2**32 - 1)
    scale = 2**32 / (2**32 - threshold)
    low, high = key % 2**32, key >> 32
    if first or type(first) is not int:
        first = _first("first", first)
        size = prod(getattr(x, "shape", ()))  # of a tensor too
        if first + size > 2**32:
            raise ValueError(
                f"first must be in [0, 2^32 - {size}] for {size} elements, not {first}"
            )
        low = (low + first * 0x9E3779B9) % 2**32  # the hash begins with low + number * this
    return _core.pointwise_function("dropout", [("x", x)], (threshold, scale, low, high), out)


class _Default(int):
    """A default that differs from the same number of a caller."""


_LAST: int = _Default(-1)


def _axis(axis: int, dim: int | None) -> int:
    if dim is None:
        return axis
    if axis is not _LAST:
        raise TypeError("axis and dim are two names of one argument; pass one of them")
    return int64("dim", dim)


def softmax(
    x: FloatArray, axis: int = _LAST, out: FloatArray | None = None, *, dim: int | None = None
) -> FloatArray:
    """Return exp(x) divided by its sum along `axis`, without overflow.

    The relative error of a result is at most 4 + d/2 units of 2^-23 (float64: 2^-52), where its x
    is d below the largest one.

    Parameters
    ----------
    x : array of at least one axis
        A C-contiguous array is read in place. So is any other array whose axes
        before `axis`, and whose axes after it, can each be reshaped into one axis without a copy.
        Other arrays are copied first.
    axis : int
        The axis along which the results have the sum 1.
    out : array of the shape and dtype of `x`, optional
        There may be gaps between its rows.
    dim : int, optional
        The name of `axis` in torch.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> print(fo.functional.softmax(np.array([1000.0, 1000.0, 0.0])))
    [0.5 0.5 0. ]
    """
    return _core.softmax(x, None, _axis(axis, dim), False, out)


def log_softmax(
    x: FloatArray, axis: int = _LAST, out: FloatArray | None = None, *, dim: int | None = None
) -> FloatArray:
    """Return the logarithm of `softmax`, accurate even if `softmax` is close to 1.

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
    out: FloatArray | None = None,
    *,
    dim: int | None = None,
) -> FloatArray:
    """Return the gradient for the input of `softmax`: ``y * (grad - sum(grad * y))``.

    Parameters
    ----------
    grad : array of at least one axis
        The gradient with respect to the result.
    y : array of the shape and dtype of `grad`
        The result of `softmax`.
    axis : int
        The axis of `softmax`.
    out : array of the shape and dtype of `grad`, optional
        There may be gaps between its rows.
    dim : int, optional
        The name of `axis` in torch.
    """
    return _core.softmax(y, grad, _axis(axis, dim), False, out)


def log_softmax_backward(
    grad: FloatArray,
    y: FloatArray,
    axis: int = _LAST,
    out: FloatArray | None = None,
    *,
    dim: int | None = None,
) -> FloatArray:
    """Return the gradient for the input of `log_softmax`: ``grad - exp(y) * sum(grad)``.

    The arguments are those of `softmax_backward`; `y` is the result of `log_softmax`.
    """
    return _core.softmax(y, grad, _axis(axis, dim), True, out)
