"""Negative log-likelihood, in plain NumPy and float64."""

from __future__ import annotations

import numpy as np

from fastopt._types import FloatArray, IntArray, Reduction
from fastopt.reference.storage import widen


class NLLLoss:
    """`fastopt.NLLLoss` in plain NumPy; everything is computed in float64."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction = reduction

    def __call__(self, log_probs: FloatArray, targets: IntArray | int) -> float | FloatArray:
        """Return the loss."""
        return self.value_and_grad(log_probs, targets)[0]

    def value_and_grad(
        self, log_probs: FloatArray, targets: IntArray | int, out: FloatArray | None = None
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss and its gradient, which is written into `out` if there is one."""
        log_probs = widen(log_probs)
        axis = min(1, log_probs.ndim - 1)
        classes = log_probs.shape[axis]
        w = np.ones(classes) if self.weight is None else self.weight.astype(log_probs.dtype)
        y = np.asarray(targets)
        kept = y != self.ignore_index
        at = np.expand_dims(np.where(kept, y, 0).astype(np.int64), axis)
        w_y = np.where(kept, w.astype(np.float64)[at.squeeze(axis)], 0.0)
        picked = np.take_along_axis(log_probs, at, axis).squeeze(axis).astype(np.float64)
        with np.errstate(all="ignore"):
            losses = np.where(kept, -w_y * picked, 0.0)
            total = w_y[kept].sum() if self.reduction == "mean" else np.float64(1)
            pulls = np.where(kept, -w_y / total, 0.0)
            loss: float | FloatArray = (
                losses if self.reduction == "none" else float(losses.sum() / total)
            )
        grad: FloatArray = np.zeros(log_probs.shape)
        np.put_along_axis(grad, at, np.expand_dims(pulls, axis), axis)
        if out is not None:
            out[...] = grad
            grad = out
        return loss, grad
