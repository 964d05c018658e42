"""Negative log-likelihood."""

from __future__ import annotations

from typing import Any

import fastopt._core as _core
from fastopt._checks import int64, reduction_of
from fastopt._types import FloatArray, IntArray, Reduction


class NLLLoss:
    r"""Negative log-likelihood of class indices, from log-probabilities.

    With log-probabilities :math:`\ell`, class weights :math:`w` and class indices :math:`y`, the
    loss of a row is :math:`-w_y \ell_y`. "mean" divides the sum by the sum of :math:`w_y` over the
    targets that are not ignored. Sums are in float64, in a fixed order. The gradient at the target
    is :math:`-w_y` (with "mean" divided by the same sum), and 0 elsewhere.

    `CrossEntropyLoss` of logits equals this loss of their log-softmax, in one pass, and is accurate
    even if the model is sure.

    Parameters
    ----------
    weight : array of shape (C,), optional
        A weight for each class, of any dtype of log-probabilities, rounded to theirs (float32 for
        16 bits).
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, even if they hold NaN.
    reduction : {"mean", "sum", "none"}
        The loss is a float, or an array in the shape of the class indices.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> log_probs = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    >>> loss, grad = fo.NLLLoss().value_and_grad(log_probs, np.array([0, 2]))
    >>> print(f"{loss:.4f}", grad.tolist())
    0.4581 [[-0.5, 0.0, 0.0], [0.0, 0.0, -0.5]]
    """

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        self.weight = weight
        self.ignore_index = int64("ignore_index", ignore_index)
        self.reduction = reduction_of("reduction", reduction)
        _core.check_nll_loss(weight, reduction)

    def __call__(self, log_probs: FloatArray, targets: IntArray | int) -> float | FloatArray:
        """Return the loss.

        Parameters
        ----------
        log_probs : array of shape (N, C), (C,) or (N, C, d1, ...)
            float32, float64, bfloat16 or float16, C >= 1, of any strides. Those of 16 bits are
            computed in float32, and the results rounded once.
        targets : array of shape (N,), () or (N, d1, ...)
            Class indices of any integer dtype, each in [0, C) or `ignore_index`.

        Returns
        -------
        loss : float, or array in the shape of the targets and the dtype of the log-probabilities
            With "mean", nan if no target counts.

        Raises
        ------
        IndexError
            If a target is outside [0, C) and not `ignore_index`.
        """
        loss: float | FloatArray = self._run(log_probs, targets, want_grad=False, out=None)
        return loss

    def value_and_grad(
        self, log_probs: FloatArray, targets: IntArray | int, out: FloatArray | None = None
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss of `__call__` and its gradient for the log-probabilities.

        Parameters
        ----------
        out : array of the log-probabilities' shape, optional
            The array for the gradient, of the same dtype. It may have any strides, but the axes
            after the class axis must be in C order. It may be `log_probs`, which the gradient then
            replaces. Otherwise it must not share memory with an argument. A new array is faster,
            because it is zero already.

        Returns
        -------
        loss : float or array
        grad : array of the log-probabilities' shape
            `out` if there is one. With reduction "none", the gradient of the sum.
        """
        result: tuple[float | FloatArray, FloatArray]
        result = self._run(log_probs, targets, want_grad=True, out=out)
        return result

    def _run(
        self,
        log_probs: FloatArray,
        targets: IntArray | int,
        *,
        want_grad: bool,
        out: FloatArray | None,
    ) -> Any:
        return _core.nll_loss(
            log_probs, targets, self.weight, self.ignore_index, self.reduction, want_grad, out
        )

    def __repr__(self) -> str:
        weight = "" if self.weight is None else f"weight=array of {len(self.weight)}, "
        return (
            f"{type(self).__name__}({weight}ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r})"
        )
