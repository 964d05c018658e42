"""The losses as functions, with the names of ``torch.nn.functional``.

Each returns the result of ``value_and_grad`` of the class with these options: the loss and its
gradient with respect to the first argument. The class documents the arguments, the mathematics and
the errors. Pass the options by name that torch has after its deprecated ``size_average`` and
``reduce``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastopt._checks import Reduction
from fastopt._types import FloatArray, IntArray
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
    """Return the softmax cross-entropy and its gradient; see `fastopt.CrossEntropyLoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> loss, grad = F.cross_entropy(np.array([[1.0, 1.0]]), np.array([0]), label_smoothing=0.5)
    >>> print(f"{loss:.4f}", grad)
    0.6931 [[-0.25  0.25]]
    """
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
    *,
    weight: FloatArray | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float = 0.0,
    memory_limit: int | None = None,
    out: Sequence[FloatArray] | None = None,
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
    """Return the negative log-likelihood and its gradient; see `fastopt.NLLLoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> loss, grad = F.nll_loss(np.log([[0.25, 0.75]]), np.array([0]))
    >>> print(f"{loss:.4f}", grad)
    1.3863 [[-1.  0.]]
    """
    return NLLLoss(weight, ignore_index, reduction).value_and_grad(log_probs, targets, out=out)


def mse_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the squared error and its gradient; see `fastopt.MSELoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> print(*F.mse_loss(np.array([1.0, 5.0]), np.array([1.0, 2.0])))
    4.5 [0. 3.]
    """
    return MSELoss(reduction).value_and_grad(input, target, out=out)


def l1_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the absolute error and its gradient; see `fastopt.L1Loss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> print(*F.l1_loss(np.array([1.0, 5.0]), np.array([1.0, 2.0]), reduction="sum"))
    3.0 [0. 1.]
    """
    return L1Loss(reduction).value_and_grad(input, target, out=out)


def smooth_l1_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Reduction = "mean",
    beta: float = 1.0,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the smooth absolute error and its gradient; see `fastopt.SmoothL1Loss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> print(*F.smooth_l1_loss(np.array([1.0, 5.0]), np.array([0.0, 2.0]), beta=2.0))
    1.125 [0.25 0.5 ]
    """
    return SmoothL1Loss(reduction, beta).value_and_grad(input, target, out=out)


def huber_loss(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    *,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return Huber's loss and its gradient; see `fastopt.HuberLoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> print(*F.huber_loss(np.array([0.5, 5.0]), np.array([0.0, 2.0]), delta=2.0))
    2.0625 [0.25 1.  ]
    """
    return HuberLoss(reduction, delta).value_and_grad(input, target, out=out)


def binary_cross_entropy(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    weight: FloatArray | None = None,
    *,
    reduction: Reduction = "mean",
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the binary cross-entropy of probabilities and its gradient; see `fastopt.BCELoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> loss, grad = F.binary_cross_entropy(np.array([0.5, 0.25]), np.array([1.0, 0.0]))
    >>> print(f"{loss:.4f}", grad.round(4))
    0.4904 [-1.      0.6667]
    """
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
    """Return the binary cross-entropy of logits and its gradient; see `fastopt.BCEWithLogitsLoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> loss, grad = F.binary_cross_entropy_with_logits(np.array([0.0, 40.0]), np.array([0.0, 1.0]))
    >>> print(f"{loss:.4f} {grad[0]:.4f} {grad[1]:.4e}")
    0.3466 0.2500 -2.1242e-18
    """
    loss_of = BCEWithLogitsLoss(weight, reduction, pos_weight)
    return loss_of.value_and_grad(input, target, out=out)


def kl_div(
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    *,
    reduction: Literal["mean", "sum", "none", "batchmean"] = "mean",
    log_target: bool = False,
    out: FloatArray | None = None,
) -> tuple[float | FloatArray, FloatArray]:
    """Return the Kullback-Leibler divergence and its gradient; see `fastopt.KLDivLoss`.

    Examples
    --------
    >>> import numpy as np, fastopt.functional as F
    >>> log_probs, target = np.log([[0.25, 0.75]]), np.array([[0.5, 0.5]])
    >>> loss, grad = F.kl_div(log_probs, target, reduction="batchmean")
    >>> print(f"{loss:.4f}", grad)
    0.1438 [[-0.5 -0.5]]
    """
    return KLDivLoss(reduction, log_target).value_and_grad(input, target, out=out)
