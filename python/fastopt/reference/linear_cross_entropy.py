"""Softmax cross-entropy of a linear layer, in plain NumPy and float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastopt._types import FloatArray, IntArray, Reduction
from fastopt.losses.cross_entropy import CrossEntropyStats
from fastopt.reference.cross_entropy import CrossEntropyLoss
from fastopt.reference.storage import widen


class LinearCrossEntropyLoss:
    """`fastopt.LinearCrossEntropyLoss` in plain NumPy: all logits at once, in float64."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_softcap: float = 0.0,
        memory_limit: int | None = None,
    ) -> None:
        self.cross_entropy = CrossEntropyLoss(
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
        )

    def __call__(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
    ) -> float | FloatArray:
        """Return the loss."""
        return self.value_and_stats(hidden, linear_weight, targets, linear_bias).loss

    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
    ) -> tuple[float | FloatArray, tuple[FloatArray, ...]]:
        """Return the loss and its gradients (into `out`, if it is given)."""
        return self.value_and_stats(hidden, linear_weight, targets, linear_bias, out=out)[:2]

    def value_and_stats(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        *,
        grad: bool = True,
        out: Sequence[FloatArray] | None = None,
    ) -> CrossEntropyStats:
        """Return the loss, its gradients (into `out`, if it is given) and the statistics."""
        shape = hidden.shape[:-1]
        classes, width = linear_weight.shape
        x = hidden.reshape(-1, width).astype(np.float64)
        w = linear_weight.astype(np.float64)
        y = widen(np.asarray(targets))
        if y.dtype.kind == "f":
            y = y.reshape(-1, classes)
        else:
            y = y.reshape(-1)
            x[y == self.cross_entropy.ignore_index] = 0  # 0 times NaN is not 0
        logits = x @ w.T
        if linear_bias is not None:
            logits += widen(linear_bias)
        loss, g, lse, correct, total = self.cross_entropy.value_and_stats(logits, y)
        grads = [(g @ w).reshape(hidden.shape), g.T @ x]
        if linear_bias is not None:
            grads.append(g.sum(axis=0))
        if out is not None:
            for given, computed in zip(out, grads, strict=True):
                given[...] = computed
            grads = list(out)
        if self.cross_entropy.reduction == "none":
            loss = np.reshape(loss, shape)
        return CrossEntropyStats(
            loss, tuple(grads) if grad else None, lse.reshape(shape), correct, total
        )
