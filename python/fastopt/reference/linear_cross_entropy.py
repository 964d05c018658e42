"""Softmax cross-entropy of a linear layer, in plain NumPy and float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fastopt._types import FloatArray, IntArray
from fastopt.reference.cross_entropy import CrossEntropyLoss


class LinearCrossEntropyLoss:
    """`fastopt.LinearCrossEntropyLoss` in plain NumPy: all logits at once, in float64."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum", "none"] = "mean",
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
        *,
        stats: bool = False,
    ) -> Any:
        """Return the loss, and the statistics if asked for."""
        loss, _, summary = self.value_and_grad(
            hidden, linear_weight, targets, linear_bias, stats=True
        )
        return (loss, summary) if stats else loss

    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
        *,
        stats: bool = False,
    ) -> Any:
        """Return the loss and its gradients (into `out`, if it is given)."""
        shape = hidden.shape[:-1]
        classes, width = linear_weight.shape
        x = hidden.reshape(-1, width).astype(np.float64)
        w = linear_weight.astype(np.float64)
        y = np.asarray(targets)
        if y.dtype.kind == "f":
            y = y.reshape(-1, classes)
        else:
            y = y.reshape(-1)
            x[y == self.cross_entropy.ignore_index] = 0  # 0 times NaN is not 0
        logits = x @ w.T
        if linear_bias is not None:
            logits += linear_bias
        loss, grad, summary = self.cross_entropy.value_and_grad(logits, y, stats=True)
        grads = [(grad @ w).reshape(hidden.shape), grad.T @ x]
        if linear_bias is not None:
            grads.append(grad.sum(axis=0))
        if out is not None:
            for given, computed in zip(out, grads, strict=True):
                given[...] = computed
            grads = list(out)
        if self.cross_entropy.reduction == "none":
            loss = loss.reshape(shape)
        summary = summary._replace(logsumexp=summary.logsumexp.reshape(shape))
        return (loss, tuple(grads), summary) if stats else (loss, tuple(grads))
