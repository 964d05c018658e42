"""Softmax cross-entropy, in plain NumPy and float64."""

from __future__ import annotations

import numpy as np

from fastopt._types import FloatArray, IntArray, Reduction
from fastopt.losses.cross_entropy import CrossEntropyStats
from fastopt.reference.storage import widen


class CrossEntropyLoss:
    """`fastopt.CrossEntropyLoss` in plain NumPy; everything is computed in float64."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_softcap: float = 0.0,
    ) -> None:
        self.weight = weight
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.logit_softcap = logit_softcap

    def __call__(
        self, logits: FloatArray, targets: IntArray | FloatArray | int
    ) -> float | FloatArray:
        """Return the loss."""
        return self.value_and_stats(logits, targets).loss

    def value_and_grad(
        self,
        logits: FloatArray,
        targets: IntArray | FloatArray | int,
        out: FloatArray | None = None,
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss and its gradient (into `out`, if it is given)."""
        return self.value_and_stats(logits, targets, out=out)[:2]

    def value_and_stats(
        self,
        logits: FloatArray,
        targets: IntArray | FloatArray | int,
        *,
        grad: bool = True,
        out: FloatArray | None = None,
    ) -> CrossEntropyStats:
        """Return the loss, its gradient (into `out`, if it is given) and the statistics."""
        logits, given = widen(logits), widen(np.asarray(targets))
        axis = min(1, logits.ndim - 1)
        moved = np.moveaxis(logits, axis, -1)
        classes = moved.shape[-1]
        positions = moved.shape[:-1]
        x = moved.reshape(-1, classes).astype(np.float64)
        rows = np.arange(len(x))
        w = np.ones(classes) if self.weight is None else np.asarray(self.weight, np.float64)
        smooth = self.label_smoothing / classes

        with np.errstate(all="ignore"):
            bend = np.ones_like(x)
            if self.logit_softcap != 0:
                u = x / self.logit_softcap
                x = self.logit_softcap * np.tanh(u)
                e = np.exp(-2 * abs(u))
                bend = 4 * e / (1 + e) ** 2  # 1 - tanh(u)**2, where that is small too
            top = x.max(axis=1, initial=-np.inf)

            # One class of each row, the pivot, is left out of the sums: the target, or the largest
            # logit where there are probabilities. Nothing is subtracted from 1.
            if given.dtype.kind == "f":
                t = np.moveaxis(given, axis, -1).reshape(-1, classes).astype(np.float64)
                kept = np.ones(len(x), bool)
                pivot = x.argmax(axis=1)
                pulls = w * ((1 - self.label_smoothing) * t + smooth)
                share = pulls[rows, pivot]
                rest = np.where(np.arange(classes) == pivot[:, None], 0.0, pulls).sum(axis=1)
                own = np.zeros(len(x))
                correct = t.argmax(axis=1) == pivot
                total = float(len(x))
            else:
                y = given.ravel()
                kept = y != self.ignore_index
                pivot = np.where(kept, y, 0).astype(np.int64)
                pulls = np.broadcast_to(w * smooth, x.shape)
                share = (1 - self.label_smoothing) * w[pivot]
                rest = pulls.sum(axis=1)
                own = pulls[rows, pivot]
                correct = kept & (x.argmax(axis=1) == pivot)
                total = w[pivot][kept].sum()

            hot = np.arange(classes) == pivot[:, None]
            e = np.exp(x - top[:, None])
            others = np.where(hot, 0.0, e).sum(axis=1)
            at_pivot = e[rows, pivot]
            deficit = top - x[rows, pivot]
            log_sum = np.where(deficit == 0, np.log1p(others / at_pivot), np.log(others + at_pivot))
            lse = top + log_sum
            distance = np.where(pulls == 0, 0.0, pulls * (top[:, None] - x)).sum(axis=1)
            # What does not count is not multiplied: its other factor may be infinite.
            losses = np.where(share == 0, 0.0, share * (deficit + log_sum))
            losses += rest * log_sum + distance
            if self.z_loss != 0:
                losses += self.z_loss * lse**2
                rest = rest + 2 * self.z_loss * lse
            p = e / (others + at_pivot)[:, None]
            slopes = (share + rest)[:, None] * p - pulls
            slopes[rows, pivot] = (
                rest * p[rows, pivot] - share * (others / (others + at_pivot)) - own
            )
            slopes *= bend
            correct &= ~np.isnan(lse)

            losses = np.where(kept, losses, 0.0)
            slopes = np.where(kept[:, None], slopes, 0.0)
            loss: float | FloatArray = losses.reshape(positions)
            if self.reduction == "mean":
                slopes[kept] /= total
                loss = float(losses.sum() / total)
            elif self.reduction == "sum":
                loss = float(losses.sum())
        slopes = np.moveaxis(slopes.reshape(moved.shape), -1, axis)
        if out is not None:
            out[...] = slopes
            slopes = out
        lse = np.where(kept, lse, 0.0).reshape(positions)
        return CrossEntropyStats(
            loss, slopes if grad else None, lse, int(correct.sum()), int(kept.sum())
        )
