"""Losses that compare an input with a target, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import fastopt._core as _core
from fastopt._checks import (
    Check,
    Reduction,
    choice,
    flag,
    non_negative,
    positive,
    reduction_of,
    to_float,
)
from fastopt._types import FloatArray


class PointwiseLoss:
    """What these losses share: the reductions, and how they are called."""

    _kernel: ClassVar[str]
    # The reduction first, then the numbers that the kernel takes.
    _options: ClassVar[Mapping[str, Check]] = {"reduction": reduction_of}

    def __init__(self, reduction: str) -> None:
        self.reduction = reduction
        self._check()

    def __call__(self, input: FloatArray, target: FloatArray) -> float | FloatArray:  # noqa: A002
        """Return the loss.

        Parameters
        ----------
        input, target : arrays of one shape
            float32 or float64, both the same; any strides. They are not broadcast.

        Returns
        -------
        float, or with reduction "none" an array of the shape and dtype of `input`
            Added up in float64. With "mean", nan if there are no elements.
        """
        loss: float | FloatArray = self._run(input, target, want_grad=False, out=None)
        return loss

    def value_and_grad(
        self,
        input: FloatArray,  # noqa: A002
        target: FloatArray,
        *,
        out: FloatArray | None = None,
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss, as `__call__` does, and its gradient with respect to `input`.

        Parameters
        ----------
        out : array of the shape and dtype of `input`, optional
            Where the gradient goes: C-contiguous. May be `input` itself, which the gradient then
            replaces; otherwise it may share memory with no argument.

        Returns
        -------
        loss : float or array
        grad : array of the shape of `input`
            `out` if it was given. With reduction "none", the gradient of the sum.
        """
        result: tuple[float | FloatArray, FloatArray]
        result = self._run(input, target, want_grad=True, out=out)
        return result

    def _check(self) -> tuple[float, ...]:
        """Check the options and return the numbers among them."""
        _, *numbers = (check(name, getattr(self, name)) for name, check in self._options.items())
        return tuple(numbers)

    def _run(
        self,
        input: FloatArray,  # noqa: A002
        target: FloatArray,
        *,
        want_grad: bool,
        out: FloatArray | None,
    ) -> Any:
        return _core.pointwise_loss(
            self._kernel,
            input,
            target,
            getattr(self, "weight", None),
            getattr(self, "pos_weight", None),
            self._check(),
            self.reduction,
            want_grad,
            out,
        )

    def __repr__(self) -> str:
        options = dict(vars(self))
        for name in ("weight", "pos_weight"):
            if (weight := options.pop(name, None)) is not None:
                options[name] = f"array of shape {weight.shape}"
        reduction = f"reduction={options.pop('reduction')!r}"
        rest = (f"{name}={value}" for name, value in options.items())
        return f"{type(self).__name__}({', '.join((reduction, *rest))})"


class MSELoss(PointwiseLoss):
    r"""Squared error, :math:`(x - y)^2`, and its gradient :math:`2 (x - y)`.

    Computed in float64: a float32 gradient is the true one, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> loss, grad = fo.MSELoss().value_and_grad(np.array([1.0, 5.0]), np.array([1.0, 2.0]))
    >>> print(loss, grad)
    4.5 [0. 3.]
    """

    _kernel = "mse"

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)


class L1Loss(PointwiseLoss):
    r"""Absolute error, :math:`|x - y|`; its gradient is the sign of :math:`x - y`, 0 at 0.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> loss, grad = fo.L1Loss().value_and_grad(np.array([1.0, 5.0]), np.array([1.0, 2.0]))
    >>> print(loss, grad)
    1.5 [0.  0.5]
    """

    _kernel = "l1"

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)


class SmoothL1Loss(PointwiseLoss):
    r"""A square near 0, an absolute value with slope 1 beyond.

    With :math:`d = x - y`:

    .. math::

        \ell = \begin{cases}
            d^2 / (2 \beta) & |d| < \beta \\
            |d| - \beta / 2 & \text{elsewhere}
        \end{cases}

    Computed in float64: a float32 gradient is the true one, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.
    beta : float
        Where the square ends; at least 0. With 0 it is `L1Loss`.

    References
    ----------
    Girshick, "Fast R-CNN", ICCV 2015.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> loss, grad = fo.SmoothL1Loss().value_and_grad(np.array([0.5, 5.0]), np.array([0.0, 2.0]))
    >>> print(loss, grad)
    1.3125 [0.25 0.5 ]
    """

    _options: ClassVar[Mapping[str, Check]] = {"reduction": reduction_of, "beta": non_negative}

    def __init__(self, reduction: Reduction = "mean", beta: float = 1.0) -> None:
        self.beta = to_float("beta", beta)
        super().__init__(reduction)

    def _check(self) -> tuple[float, ...]:
        numbers = super()._check()
        return () if self._kernel == "l1" else numbers

    @property
    def _kernel(self) -> str:  # type: ignore[override]
        # The inverse of a denormal may be infinite; it counts as 0.
        return "l1" if self.beta < 2.0**-1022 else "smooth_l1"


class HuberLoss(PointwiseLoss):
    r"""A square near 0, an absolute value with slope `delta` beyond.

    With :math:`d = x - y`:

    .. math::

        \ell = \begin{cases}
            d^2 / 2 & |d| \le \delta \\
            \delta\, (|d| - \delta / 2) & \text{elsewhere}
        \end{cases}

    Computed in float64: a float32 gradient is the true one, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.
    delta : float
        Where the square ends; greater than 0.

    References
    ----------
    Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 1964.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> huber = fo.HuberLoss(delta=2.0)
    >>> loss, grad = huber.value_and_grad(np.array([0.5, 5.0]), np.array([0.0, 2.0]))
    >>> print(loss, grad)
    2.0625 [0.25 1.  ]
    """

    _kernel = "huber"
    _options: ClassVar[Mapping[str, Check]] = {"reduction": reduction_of, "delta": positive}

    def __init__(self, reduction: Reduction = "mean", delta: float = 1.0) -> None:
        self.delta = to_float("delta", delta)
        super().__init__(reduction)


class BCELoss(PointwiseLoss):
    r"""Binary cross-entropy of probabilities.

    With weight :math:`w`:

    .. math::

        \ell &= -w\, (y \log x + (1 - y) \log(1 - x)) \\
        \frac{d\ell}{dx} &= w\, \frac{x - y}{\max(x (1 - x), 10^{-12})}

    Each logarithm is at least -100, and the gradient is bounded as in torch. Computed in float64.
    `BCEWithLogitsLoss` takes what the probabilities are computed from, and keeps more digits. An
    `input` outside [0, 1] raises ValueError.

    Parameters
    ----------
    weight : array, optional
        A weight for each element, float32 or float64, broadcast to the input's shape; rounded to
        the input's dtype, unless it is too small for that. "mean" divides by the number of elements
        all the same.
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> loss, grad = fo.BCELoss().value_and_grad(np.array([0.5, 1.0]), np.array([1.0, 1.0]))
    >>> print(f"{loss:.4f}", grad)
    0.3466 [-1.  0.]
    """

    _kernel = "bce"

    def __init__(self, weight: FloatArray | None = None, reduction: Reduction = "mean") -> None:
        self.weight = _checked(weight, "weight")
        super().__init__(reduction)


class BCEWithLogitsLoss(PointwiseLoss):
    r"""Binary cross-entropy of logits.

    With weights :math:`w` and :math:`v` (`pos_weight`):

    .. math::

        \ell &= w\, (v\, y\, s(-x) + (1 - y)\, s(x)), \quad s(x) = \log(1 + e^x) \\
        \frac{d\ell}{dx} &= w\, ((1 - y)\, \sigma(x) - v\, y\, \sigma(-x))

    Nothing is subtracted from 1: where the model is sure and right, loss and gradient are as
    accurate as anywhere. With targets 0 and 1, float32 gradients are within 4 units in the last
    place of the true ones, 6 with both weights; elsewhere :math:`\sigma(x) - y` may cancel.

    Parameters
    ----------
    weight : array, optional
        A weight for each element, float32 or float64, broadcast to the input's shape; rounded to
        the input's dtype, unless it is too small for that. "mean" divides by the number of elements
        all the same.
    reduction : {"mean", "sum", "none"}
        What the loss returns: a float, or an array of the input's shape.
    pos_weight : array, optional
        A weight for the positives, as `weight`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> bce = fo.BCEWithLogitsLoss()
    >>> loss, grad = bce.value_and_grad(np.array([40.0]), np.array([1.0]))
    >>> print(f"{loss:.4e} {grad[0]:.4e}")
    4.2484e-18 -4.2484e-18
    """

    _kernel = "bce_with_logits"

    def __init__(
        self,
        weight: FloatArray | None = None,
        reduction: Reduction = "mean",
        pos_weight: FloatArray | None = None,
    ) -> None:
        self.weight = _checked(weight, "weight")
        self.pos_weight = _checked(pos_weight, "pos_weight")
        super().__init__(reduction)


class KLDivLoss(PointwiseLoss):
    r"""Kullback-Leibler divergence of log-probabilities from probabilities.

    .. math:: \ell = y\, (\log y - x), \qquad \frac{d\ell}{dx} = -y

    It is 0 where :math:`y` is 0, whatever :math:`x` but NaN: where :math:`x = -\infty` too, which
    torch makes NaN. Computed in float64.

    Parameters
    ----------
    reduction : {"mean", "sum", "none", "batchmean"}
        What the loss returns: a float, or an array of the input's shape. "batchmean" divides the
        sum by the first axis's size: the divergence as it is defined, where "mean" is not.
    log_target : bool
        The target holds the logarithms of the probabilities.

    References
    ----------
    Kullback and Leibler, "On information and sufficiency", Annals of Mathematical Statistics 1951.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> kl = fo.KLDivLoss("batchmean")
    >>> loss, grad = kl.value_and_grad(np.log([[0.25, 0.75]]), np.array([[0.0, 1.0]]))
    >>> print(f"{loss:.4f}", grad)
    0.2877 [[-0. -1.]]
    """

    _options: ClassVar[Mapping[str, Check]] = {
        "reduction": choice("mean", "sum", "none", "batchmean")
    }

    def __init__(
        self,
        reduction: Literal["mean", "sum", "none", "batchmean"] = "mean",
        log_target: bool = False,
    ) -> None:
        self.log_target = flag("log_target", log_target)
        super().__init__(reduction)

    @property
    def _kernel(self) -> str:  # type: ignore[override]
        return "kl_div_log_target" if self.log_target else "kl_div"


def _checked(weight: FloatArray | None, name: str) -> FloatArray | None:
    """Return `weight` if it can be one; its shape is checked when that of the input is known."""
    if weight is not None:
        _core.check_array(weight, name)
    return weight
