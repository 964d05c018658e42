"""Softmax cross-entropy."""

from __future__ import annotations

from operator import index
from typing import Literal, SupportsFloat, SupportsIndex

from fastopt import _core
from fastopt._types import FloatArray, IntArray


class CrossEntropyLoss:
    r"""Softmax cross-entropy of logits with class indices.

    For row :math:`n` with logits :math:`x`, target :math:`y`, class weights :math:`w` and
    :math:`\epsilon` = `label_smoothing` over :math:`C` classes:

    .. math::

        \log p_c &= x_c - \log \sum_k e^{x_k} \\
        \ell_n &= -(1 - \epsilon)\, w_y \log p_y - \frac{\epsilon}{C} \sum_c w_c \log p_c

    "mean" divides the sum of :math:`\ell_n` by the sum of :math:`w_y`, over the targets that are
    not ignored. Sums are kept in float64. The result stays exact when the model is sure: nothing
    is subtracted from 1, so a loss of 1e-13 and its gradient are as accurate as any other. Classes
    further than 109 (float64: 730) below the row's largest logit count as probability 0.

    Parameters
    ----------
    weight : array of shape (C,), optional
        A weight for each class, float32 or float64; rounded to the dtype of the logits.
    ignore_index : int
        Rows with this target give loss 0 and gradient 0, whatever their logits hold.
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of shape (N,).
    label_smoothing : float
        :math:`\epsilon` in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an option cannot be used.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> ce = fo.CrossEntropyLoss()
    >>> loss, grad = ce.value_and_grad(np.array([[30.0, 0.0]]), np.array([0]))
    >>> print(f"{loss:.4e} {grad[0, 0]:.4e}")
    9.3576e-14 -9.3576e-14
    """

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        if not isinstance(reduction, str):
            raise TypeError(f"reduction must be a string, not {reduction!r}")
        if not isinstance(label_smoothing, SupportsFloat):
            raise TypeError(f"label_smoothing must be a number, not {label_smoothing!r}")
        if not isinstance(ignore_index, SupportsIndex):
            raise TypeError(f"ignore_index must be an integer, not {ignore_index!r}")
        if not -(2**63) <= index(ignore_index) < 2**63:
            raise ValueError(f"ignore_index must fit into 64 bits, not {ignore_index}")
        _core.check_cross_entropy(weight, reduction, float(label_smoothing))
        self.weight = weight
        self.ignore_index = index(ignore_index)
        self.reduction = reduction
        self.label_smoothing = float(label_smoothing)

    def __call__(self, logits: FloatArray, targets: IntArray) -> float | FloatArray:
        """Return the loss.

        Parameters
        ----------
        logits : array of shape (N, C)
            float32 or float64, C >= 1; any strides (rows that are not contiguous are copied).
        targets : array of shape (N,)
            Any integer dtype; each in [0, C) or `ignore_index`.

        Returns
        -------
        float, or array of shape (N,) and the dtype of the logits
            With "mean", nan if no target counts.

        Raises
        ------
        TypeError, ValueError
            If an array cannot be used.
        IndexError
            If a target is outside [0, C) and not `ignore_index`.
        """
        return self._run(logits, targets, want_grad=False, out=None)[0]

    def value_and_grad(
        self, logits: FloatArray, targets: IntArray, out: FloatArray | None = None
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss and its gradient with respect to the logits.

        Parameters
        ----------
        logits, targets
            As in `__call__`.
        out : array of shape (N, C), optional
            Where the gradient goes: C-contiguous, of the logits' dtype. May be `logits` itself,
            which the gradient then replaces; otherwise it may share memory with no argument.

        Returns
        -------
        loss : float, or array of shape (N,)
            As in `__call__`.
        grad : array of shape (N, C)
            `out` if it was given. With reduction "none", the gradient of the sum.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `__call__`. Nothing has been written then.
        """
        loss, grad = self._run(logits, targets, want_grad=True, out=out)
        assert grad is not None
        return loss, grad

    def _run(
        self, logits: FloatArray, targets: IntArray, *, want_grad: bool, out: FloatArray | None
    ) -> tuple[float | FloatArray, FloatArray | None]:
        return _core.cross_entropy(
            logits,
            targets,
            self.weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            want_grad,
            out,
        )

    def __repr__(self) -> str:
        weight = "" if self.weight is None else f"weight=array of {len(self.weight)}, "
        return (
            f"CrossEntropyLoss({weight}ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing})"
        )
