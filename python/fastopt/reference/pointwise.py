"""The pointwise losses and the activations, in plain NumPy and float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._types import BatchReduction, FloatArray, Reduction
from fastopt.reference.storage import widen

Float64: TypeAlias = npt.NDArray[np.float64]


def _sigmoid(x: Any) -> Any:
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


class PointwiseLoss(ABC):
    """Base class of the pointwise losses; `terms` defines the loss of an element."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction: str = reduction

    @abstractmethod
    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""

    def __call__(self, input: FloatArray, target: FloatArray) -> float | FloatArray:  # noqa: A002
        """Return the loss."""
        return self.value_and_grad(input, target)[0]

    def value_and_grad(
        self,
        input: FloatArray,  # noqa: A002
        target: FloatArray,
        out: FloatArray | None = None,
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss and its gradient, which is written into `out` if there is one."""
        x, y = np.asarray(input, np.float64), np.asarray(target, np.float64)
        with np.errstate(all="ignore"):
            losses, grad = self.terms(x, y)
            loss: float | FloatArray = np.asarray(losses)
            if self.reduction != "none":
                loss = float(np.sum(losses))
            if self.reduction in ("mean", "batchmean"):
                count = x.size if self.reduction == "mean" else x.shape[0]
                loss, grad = float(np.float64(loss) / count), grad / np.float64(count)
        if out is None:
            return loss, np.asarray(grad)
        out[...] = grad
        return loss, out


class MSELoss(PointwiseLoss):
    """`fastopt.MSELoss` in plain NumPy."""

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        return (x - y) ** 2, 2 * (x - y)


class L1Loss(PointwiseLoss):
    """`fastopt.L1Loss` in plain NumPy."""

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        return abs(x - y), np.sign(x - y)


class SmoothL1Loss(PointwiseLoss):
    """`fastopt.SmoothL1Loss` in plain NumPy."""

    def __init__(self, reduction: Reduction = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        d, beta = x - y, self.beta
        near = abs(d) < beta
        loss = np.where(near, 0.5 * d * (d / np.float64(beta)), abs(d) - 0.5 * beta)
        return loss, np.where(near, d / np.float64(beta), np.sign(d))


class HuberLoss(PointwiseLoss):
    """`fastopt.HuberLoss` in plain NumPy."""

    def __init__(self, reduction: Reduction = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        d, delta = x - y, self.delta
        loss = np.where(abs(d) <= delta, 0.5 * d * d, delta * (abs(d) - 0.5 * delta))
        return loss, np.clip(d, -delta, delta)


class BCELoss(PointwiseLoss):
    """`fastopt.BCELoss` in plain NumPy."""

    def __init__(self, weight: FloatArray | None = None, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.weight = weight

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        w = 1.0 if self.weight is None else np.asarray(self.weight, np.float64)
        log_x, log_rest = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
        grad = (x - y) / np.maximum((1 - x) * x, 1e-12)
        return w * -(y * log_x + (1 - y) * log_rest), w * grad


class BCEWithLogitsLoss(PointwiseLoss):
    """`fastopt.BCEWithLogitsLoss` in plain NumPy."""

    def __init__(
        self,
        weight: FloatArray | None = None,
        reduction: Reduction = "mean",
        pos_weight: FloatArray | None = None,
    ) -> None:
        super().__init__(reduction)
        self.weight = weight
        self.pos_weight = pos_weight

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        w = 1.0 if self.weight is None else np.asarray(self.weight, np.float64)
        v = 1.0 if self.pos_weight is None else np.asarray(self.pos_weight, np.float64)
        loss = v * y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)
        return w * loss, w * ((1 - y) * _sigmoid(x) - v * y * _sigmoid(-x))


class KLDivLoss(PointwiseLoss):
    """`fastopt.KLDivLoss` in plain NumPy."""

    def __init__(
        self,
        reduction: BatchReduction = "mean",
        log_target: bool = False,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.log_target = log_target

    def terms(self, x: Float64, y: Float64) -> tuple[Any, Any]:
        """Return loss and derivative of each element."""
        p, log_p = (np.exp(y), y) if self.log_target else (y, np.log(y))
        return np.where((p == 0) & ~np.isnan(x), 0.0, p * (log_p - x)), -p


def sigmoid(x: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(_sigmoid(np.asarray(x, np.float64)))


def sigmoid_backward(grad: FloatArray, y: FloatArray) -> FloatArray:
    """Return the gradient with respect to the input of `sigmoid`, from its result."""
    y = np.asarray(y, np.float64)
    return np.asarray(grad * y * (1 - y))


def relu(x: FloatArray) -> FloatArray:
    """Return max(x, 0)."""
    return np.where(x <= 0, 0.0, np.asarray(x, np.float64))


def relu_backward(grad: FloatArray, x_or_y: FloatArray) -> FloatArray:
    """Return the gradient with respect to the input of `relu`, from the input or the result."""
    return np.where(x_or_y <= 0, 0.0, np.asarray(grad, np.float64))


def tanh(x: FloatArray) -> FloatArray:
    """Return the hyperbolic tangent."""
    return np.asarray(np.tanh(np.asarray(x, np.float64)))


def tanh_backward(grad: FloatArray, y: FloatArray) -> FloatArray:
    """Return the gradient with respect to the input of `tanh`, from its result."""
    y = np.asarray(y, np.float64)
    return np.asarray(grad * ((1 - y) * (1 + y)))


def silu(x: FloatArray) -> FloatArray:
    """Return x * sigmoid(x)."""
    x = np.asarray(x, np.float64)
    return np.asarray(x * _sigmoid(x))


def silu_backward(grad: FloatArray, x: FloatArray) -> FloatArray:
    """Return the gradient with respect to the input of `silu`."""
    x = np.asarray(x, np.float64)
    return np.asarray(grad * (_sigmoid(x) * (1 + x * _sigmoid(-x))))


def _gate(x: Any, approximate: str) -> tuple[Any, Any]:
    """Return the gate F of `gelu`, x * F(x), and x * F'(x)."""
    if approximate == "tanh":
        slope = np.sqrt(8 / np.pi)
        gate = _sigmoid(slope * (x + 0.044715 * x**3))
        rest = _sigmoid(-slope * (x + 0.044715 * x**3))
        return gate, slope * (x + 3 * 0.044715 * x**3) * gate * rest
    gate = np.vectorize(math.erfc, [np.float64])(-x / np.sqrt(2)) / 2
    return gate, x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def gelu(x: FloatArray, approximate: str = "none") -> FloatArray:
    """Return x * Phi(x) with the normal distribution function, or its approximation by tanh."""
    x = np.asarray(x, np.float64)
    return np.asarray(x * _gate(x, approximate)[0])


def gelu_backward(grad: FloatArray, x: FloatArray, approximate: str = "none") -> FloatArray:
    """Return the gradient with respect to the input of `gelu`."""
    gate, change = _gate(np.asarray(x, np.float64), approximate)
    return np.asarray(grad * (gate + change))


def dropout(x: FloatArray, p: float = 0.5, *, seed: int, first: int = 0) -> FloatArray:
    """Return x / (1 - p), or 0 where a hash of the seed and the element's number is below p."""
    x = widen(x)
    key = (seed + 0x9E3779B97F4A7C15) % 2**64
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    low, high = np.uint32(key % 2**32), np.uint32(key >> 32)
    hashed = np.arange(first, first + x.size).astype(np.uint32) * np.uint32(0x9E3779B9) + low
    hashed = (hashed ^ hashed >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    hashed = ((hashed ^ hashed >> np.uint32(13)) + high) * np.uint32(0xC2B2AE35)
    hashed = (hashed ^ hashed >> np.uint32(16)) * np.uint32(0x27D4EB2F)
    hashed ^= hashed >> np.uint32(15)
    threshold = min(round(p * 2**32), 2**32 - 1)
    scale = x.dtype.type(2**32 / (2**32 - threshold))
    kept = hashed.reshape(x.shape) >= np.uint32(threshold)
    return np.asarray(np.where(kept, x * scale, x.dtype.type(0)))


def logistic(x: FloatArray, L: float = 1.0, k: float = 1.0, x0: float = 0.0) -> FloatArray:
    """Return L / (1 + exp(-k (x - x0)))."""
    return np.asarray(L * _sigmoid(k * (np.asarray(x, np.float64) - x0)))
