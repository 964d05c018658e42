"""Softmax cross-entropy, in plain NumPy and float64."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastopt._types import FloatArray, IntArray


class CrossEntropyLoss:
    """`fastopt.CrossEntropyLoss` in plain NumPy; everything is computed in float64."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def __call__(self, logits: FloatArray, targets: IntArray) -> float | FloatArray:
        """Return the loss."""
        return self.value_and_grad(logits, targets)[0]

    def value_and_grad(
        self, logits: FloatArray, targets: IntArray, out: FloatArray | None = None
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss and its gradient (into `out`, if it is given)."""
        x = np.asarray(logits, dtype=np.float64)
        rows, classes = x.shape
        w = np.ones(classes) if self.weight is None else np.asarray(self.weight, np.float64)
        kept = targets != self.ignore_index
        y = np.where(kept, targets, 0).astype(np.int64)
        hot = np.arange(classes) == y[:, None]
        smooth = self.label_smoothing / classes

        with np.errstate(all="ignore"):
            # Relative to the target's logit or the row's largest: nothing is subtracted from 1.
            top = x.max(axis=1, keepdims=True)
            e = np.exp(x - top)
            others = np.where(hot, 0.0, e).sum(axis=1)
            at_target = e[np.arange(rows), y]
            deficit = top[:, 0] - x[np.arange(rows), y]
            log_sum = np.where(
                deficit == 0, np.log1p(others / at_target), np.log(others + at_target)
            )
            share = (1 - self.label_smoothing) * w[y]
            losses = share * (deficit + log_sum)
            p = e / (others + at_target)[:, None]
            p_minus_hot = np.where(hot, -(others / (others + at_target))[:, None], p)
            grad = share[:, None] * p_minus_hot
            if smooth != 0:
                losses += smooth * ((top - x + log_sum[:, None]) * w).sum(axis=1)
                grad += smooth * (w.sum() * p - w)

        losses = np.where(kept, losses, 0.0)
        grad = np.where(kept[:, None], grad, 0.0)
        total = w[y][kept].sum() if self.reduction == "mean" else 1.0
        loss: float | FloatArray = losses
        with np.errstate(all="ignore"):
            if self.reduction != "none":
                loss = float(losses.sum() / total)
            grad[kept] /= total
        if out is None:
            return loss, grad
        out[...] = grad
        return loss, out
