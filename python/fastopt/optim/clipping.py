"""Norms and clipping of gradients, outside a step.

A step with ``max_norm=`` clips in the same pass and does not change the gradients. These functions
change the gradients, or only measure them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import fastopt._core as _core
from fastopt._checks import is_array
from fastopt._types import FloatArray

Gradients = Mapping[str, FloatArray | None] | Iterable[FloatArray | None] | FloatArray

__all__ = ["clip_grad_norm_", "clip_grad_value_", "grad_norm"]


def _named(grads: Gradients) -> list[tuple[str, FloatArray | None]]:
    if isinstance(grads, Mapping):
        return [(str(name), grad) for name, grad in grads.items()]
    if is_array(grads):
        grads = [grads]
    if not isinstance(grads, Iterable) or isinstance(grads, str):
        raise TypeError(
            "grads must be a mapping, a sequence or an array of gradients, not "
            f"{_core.short_repr(grads)}"
        )
    return [(str(i), grad) for i, grad in enumerate(grads)]


def grad_norm(grads: Gradients, norm_type: float = 2.0) -> float:
    """Return the norm over all elements of all arrays.

    The 2-norm is summed in float64 for all dtypes, over a fixed grid, so that its bits do not
    depend on the number of threads. It is infinite only if the true norm or an element is infinite.

    Parameters
    ----------
    grads : mapping, sequence or array
        float32, float64, bfloat16 or float16, of any shapes and strides; None is skipped.
    norm_type : float
        2, or inf for the largest magnitude.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> fo.grad_norm([np.array([3.0]), np.array([4.0])])
    5.0
    >>> fo.grad_norm([np.array([3.0]), np.array([-4.0])], norm_type=np.inf)
    4.0
    """
    return _core.grad_norm(_named(grads), norm_type)


def clip_grad_norm_(
    grads: Gradients,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale the gradients in place so that the norm over all of them is at most `max_norm`.

    They are multiplied by ``min(1, max_norm / (norm + 1e-6))``, as in torch. Gradients of 16 bits
    are multiplied in float32 and rounded once, to nearest.

    Parameters
    ----------
    grads : mapping, sequence or array
        float32, float64, bfloat16 or float16, writeable, of any shapes and strides, without shared
        memory; None is skipped.
    max_norm : float
        At least 0.
    norm_type : float
        2, or inf for the largest magnitude.
    error_if_nonfinite : bool
        Raise instead of scaling by a norm that is NaN or infinite.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    RuntimeError
        With `error_if_nonfinite`, if the norm is NaN or infinite.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML
    2013.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> g = np.array([3.0, 4.0])
    >>> fo.clip_grad_norm_(g, 1.0)
    5.0
    >>> print(g.round(3))
    [0.6 0.8]
    """
    return _core.clip_grad_norm(_named(grads), max_norm, norm_type, error_if_nonfinite)


def clip_grad_value_(grads: Gradients, clip_value: float) -> None:
    """Clamp every element of the gradients to [-clip_value, clip_value], in place; NaN stays.

    The limit is rounded to nearest in the dtype of each array.

    Parameters
    ----------
    grads : mapping, sequence or array
        float32, float64, bfloat16 or float16, writeable, of any shapes and strides, without shared
        memory; None is skipped.
    clip_value : float
        At least 0.
    """
    _core.clip_grad_value(_named(grads), clip_value)
