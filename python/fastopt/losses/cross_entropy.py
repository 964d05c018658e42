"""Softmax cross-entropy."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import fastopt._core as _core
from fastopt._checks import flag, int64, reduction_of, to_float
from fastopt._types import FloatArray, IntArray, Reduction


class CrossEntropyStats(NamedTuple):
    """The result of ``value_and_stats`` of a cross-entropy.

    Attributes
    ----------
    loss : float or array
        The loss of ``value_and_grad``.
    grad : array, tuple of arrays or None
        The gradient of ``value_and_grad``; None with ``grad=False``.
    logsumexp : array
        ``log(sum(exp(logits)))`` of each row, in the shape of the class indices; 0 where ignored.
        float32 for logits of 16 bits, otherwise of their dtype.
    correct : int
        The number of rows whose largest logit is that of the target, or of the largest probability.
        Of equal logits the first counts. Ignored rows do not count.
    total : int
        The number of rows that are not ignored. ``correct / total`` is the accuracy.
    """

    loss: float | FloatArray
    grad: Any
    logsumexp: FloatArray
    correct: int
    total: int


def checked_grad(grad: object, out: object) -> bool:
    """Return the option `grad` of ``value_and_stats`` after a check."""
    wanted = flag("grad", grad)
    if out is not None and not wanted:
        raise ValueError("out is for the gradient, but grad=False; leave one of them out")
    return wanted


@dataclass(repr=False, eq=False)
class CrossEntropyOptions:
    """The options of cross-entropy, and one call of the kernel with them."""

    weight: FloatArray | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    _: KW_ONLY
    z_loss: float = 0.0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        self.ignore_index = int64("ignore_index", self.ignore_index)
        self.reduction = reduction_of("reduction", self.reduction)
        self.label_smoothing = to_float("label_smoothing", self.label_smoothing)
        self.z_loss = to_float("z_loss", self.z_loss)
        self.logit_softcap = to_float("logit_softcap", self.logit_softcap)
        _core.check_cross_entropy(self)

    def _run(
        self,
        logits: FloatArray,
        targets: IntArray | FloatArray | int,
        *,
        want_grad: bool,
        out: FloatArray | None,
        want_stats: bool = False,
        denominator: float | None = None,
    ) -> Any:
        """Return the loss, the loss and its gradient, or a `CrossEntropyStats`.

        The compiled function makes it before it writes anything.
        """
        stats = CrossEntropyStats if want_stats else None
        return _core.cross_entropy(self, logits, targets, want_grad, out, stats, denominator)

    def __repr__(self) -> str:
        weight = "" if self.weight is None else f"weight=array of {len(self.weight)}, "
        extra = "".join(
            f", {name}={value}"
            for name, value in (("z_loss", self.z_loss), ("logit_softcap", self.logit_softcap))
            if value != 0
        )
        return (
            f"{type(self).__name__}({weight}ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}{extra})"
        )


@dataclass(repr=False, eq=False)
class CrossEntropyLoss(CrossEntropyOptions):
    r"""Softmax cross-entropy of logits with class indices or probabilities.

    For a row with logits :math:`x` over :math:`C` classes, class weights :math:`w`,
    :math:`\epsilon` = `label_smoothing` and a class index :math:`y`:

    .. math::

        \log p_c &= x_c - \log \sum_k e^{x_k} \\
        \ell &= -(1 - \epsilon)\, w_y \log p_y - \frac{\epsilon}{C} \sum_c w_c \log p_c
                + z \Bigl(\log \sum_k e^{x_k}\Bigr)^2

    With probabilities :math:`t` instead of an index, the first two terms are
    :math:`-\sum_c w_c \bigl((1 - \epsilon) t_c + \epsilon / C\bigr) \log p_c`.

    "mean" divides the sum of :math:`\ell` by the sum of :math:`w_y` over the targets that are not
    ignored; for probabilities, by the number of rows. Sums are in float64. Nothing is subtracted
    from 1, so a loss of 1e-13 and its gradient are as accurate as any other. Differences of logits
    are rounded: where a logit is d below the largest of its row, the entry of the gradient has a
    relative error of at most 4 + d/2 units of 2^-23 (float64: 2^-52), for class indices without
    other options. A class whose logit is more than 109 (float64: 730) below the largest one has the
    probability 0.

    Logits of bfloat16 and float16 are widened to float32, block by block. Loss and log-sum-exp are
    those of the float32 logits, bit for bit; the gradient, and the losses of "none", are those of
    the float32 logits rounded to nearest.

    Parameters
    ----------
    weight : array of shape (C,), optional
        A weight for each class, of any dtype of logits, rounded to that of the logits (float32 for
        16 bits).
    ignore_index : int
        Rows with this target have loss 0 and gradient 0, even if their logits are NaN.
    reduction : {"mean", "sum", "none"}
        The loss is a float, or an array in the shape of the class indices.
    label_smoothing : float
        :math:`\epsilon` in [0, 1].
    z_loss : float
        :math:`z \ge 0`. It keeps the log-sum-exp of the logits close to 0 (PaLM, section 5: 1e-4).
    logit_softcap : float
        0 or in [1e-30, 1e30]. If it is not 0, the logits are replaced by
        ``logit_softcap * tanh(x / logit_softcap)``, also in the gradient (Gemma 2: 30).

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> ce = fo.CrossEntropyLoss()
    >>> loss, grad = ce.value_and_grad(np.array([[30.0, 0.0]]), np.array([0]))
    >>> print(f"{loss:.4e} {grad[0, 0]:.4e}")
    9.3576e-14 -9.3576e-14
    """

    def __call__(
        self, logits: FloatArray, targets: IntArray | FloatArray | int
    ) -> float | FloatArray:
        """Return the loss.

        Parameters
        ----------
        logits : array of shape (N, C), (C,) or (N, C, d1, ...)
            float32, float64, bfloat16 or float16, C >= 1. Contiguous rows at a constant distance (a
            padded vocabulary) and contiguous positions d1, ... are read in place. Arrays with other
            strides may be copied.
        targets : array of shape (N,), () or (N, d1, ...), or of the logits' shape
            Class indices of any integer dtype, each in [0, C) or `ignore_index`; or probabilities
            of the logits' dtype.

        Returns
        -------
        float, or array in the shape of the class indices and the dtype of the logits
            With "mean", nan if no target counts.

        Raises
        ------
        IndexError
            If a target is outside [0, C) and not `ignore_index`.
        """
        loss: float | FloatArray
        loss = self._run(logits, targets, want_grad=False, out=None)
        return loss

    def value_and_grad(
        self,
        logits: FloatArray,
        targets: IntArray | FloatArray | int,
        out: FloatArray | None = None,
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss of `__call__` and its gradient with respect to the logits.

        Parameters
        ----------
        out : array of the logits' shape, optional
            The array for the gradient, of the dtype of the logits. It may have any strides, but the
            axes after the class axis must be in C order without gaps. It may be `logits`, which the
            gradient then replaces. Otherwise it must not share memory with an argument.

        Returns
        -------
        loss : float or array
        grad : array of the logits' shape
            `out` if there is one. With reduction "none", the gradient of the sum.
        """
        result: tuple[float | FloatArray, FloatArray]
        result = self._run(logits, targets, want_grad=True, out=out)
        return result

    def value_and_stats(
        self,
        logits: FloatArray,
        targets: IntArray | FloatArray | int,
        *,
        grad: bool = True,
        out: FloatArray | None = None,
    ) -> CrossEntropyStats:
        """Return the results of `value_and_grad` and statistics from the same pass.

        Parameters
        ----------
        grad : bool
            Whether to compute the gradient.
        out : array of the logits' shape, optional
            The array for the gradient, as in `value_and_grad`; not with ``grad=False``.
        """
        result: CrossEntropyStats
        want_grad = checked_grad(grad, out)
        result = self._run(logits, targets, want_grad=want_grad, out=out, want_stats=True)
        return result
