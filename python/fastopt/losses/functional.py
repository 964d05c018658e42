"""The losses as functions, with the names of ``torch.nn.functional``.

Each returns the result of ``value_and_grad`` of the class with these options: the loss and its
gradient with respect to the first argument. The class documents the arguments, the mathematics and
the errors. Arrays are float32, float64, bfloat16 or float16, all of one dtype, which the gradient
has too; those of 16 bits are computed in float32. Pass the options by name that torch has after its
deprecated ``size_average`` and ``reduce``.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastopt._types import BatchReduction, FloatArray, IntArray, Reduction
from fastopt.losses.cross_entropy import CrossEntropyLoss
from fastopt.losses.linear_cross_entropy import LinearCrossEntropyLoss
from fastopt.losses.nll import NLLLoss
from fastopt.losses.pointwise import (
    BCELoss,
    BCEWithLogitsLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
]


def cross_entropy(
    logits: FloatArray,
    targets: IntArray | FloatArray | int,
    weight: FloatArray | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float = 0.0,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the softmax cross-entropy and its gradient; see `fastopt.CrossEntropyLoss`."""
    loss_of = CrossEntropyLoss(
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
    )
    return loss_of.value_and_grad(logits, targets, out=out)


def linear_cross_entropy(
    hidden: FloatArray,
    linear_weight: FloatArray,
    targets: IntArray | FloatArray | int,
    linear_bias: FloatArray | None = None,
    out: Sequence[FloatArray] | None = None,
    *,
    weight: FloatArray | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float = 0.0,
    memory_limit: int | None = None,
) -> tuple[float | FloatArray, tuple[FloatArray, ...]]:
    """Return the cross-entropy of ``hidden @ linear_weight.T + linear_bias`` and its gradients.

    They are ``(dhidden, dlinear_weight)``, and ``dlinear_bias`` if there is a bias; see
    `fastopt.LinearCrossEntropyLoss`.
    """
    loss_of = LinearCrossEntropyLoss(
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        memory_limit=memory_limit,
    )
    return loss_of.value_and_grad(hidden, linear_weight, targets, linear_bias, out=out)


def nll_loss(
    log_probs: FloatArray,
    targets: IntArray | int,
    weight: FloatArray | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the negative log-likelihood and its gradient; see `fastopt.NLLLoss`."""
    return NLLLoss(weight, ignore_index, reduction).value_and_grad(log_probs, targets, out=out)


def mse_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the squared error and its gradient; see `fastopt.MSELoss`."""
    return MSELoss(reduction).value_and_grad(input, target, out=out)


def l1_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the absolute error and its gradient; see `fastopt.L1Loss`."""
    return L1Loss(reduction).value_and_grad(input, target, out=out)


def smooth_l1_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    beta: float = 1.0,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the smooth absolute error and its gradient; see `fastopt.SmoothL1Loss`."""
    return SmoothL1Loss(reduction, beta).value_and_grad(input, target, out=out)


def huber_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    *,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return Huber's loss and its gradient; see `fastopt.HuberLoss`."""
    return HuberLoss(reduction, delta).value_and_grad(input, target, out=out)


def binary_cross_entropy(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    weight: FloatArray | None = None,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the binary cross-entropy of probabilities and its gradient; see `fastopt.BCELoss`."""
    return BCELoss(weight, reduction).value_and_grad(input, target, out=out)


def binary_cross_entropy_with_logits(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    weight: FloatArray | None = None,
    *,
    reduction: Reduction = "mean",
    pos_weight: FloatArray | None = None,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the binary cross-entropy of logits, and its gradient; see `BCEWithLogitsLoss`."""
    loss_of = BCEWithLogitsLoss(weight, reduction, pos_weight)
    return loss_of.value_and_grad(input, target, out=out)


def kl_div(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: BatchReduction = "mean",
    log_target: bool = False,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the Kullback-Leibler divergence and its gradient; see `fastopt.KLDivLoss`."""
    return KLDivLoss(reduction, log_target).value_and_grad(input, target, out=out)
