"""Losses that compare an input with a target, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import fastopt._core as _core
from fastopt._checks import (
    Check,
    choice,
    flag,
    non_negative,
    positive,
    reduction_of,
    to_float,
)
from fastopt._types import BatchReduction, FloatArray, Reduction


class PointwiseLoss:
    """Base class of these losses: the reductions and the calls."""

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
            float32, float64, bfloat16 or float16, both of the same dtype; any strides. They are not
            broadcast. For those of 16 bits, the results are those of float32 arrays, rounded.

        Returns
        -------
        float, or with reduction "none" an array of the shape and dtype of `input`
            The sum is in float64. With "mean", nan if there are no elements.
        """
        loss: float | FloatArray = self._run(input, target, want_grad=False, out=None)
        return loss

    def value_and_grad(
        self,
        input: FloatArray,  # noqa: A002
        target: FloatArray,
        out: FloatArray | None = None,
    ) -> tuple[float | FloatArray, FloatArray]:
        """Return the loss of `__call__` and its gradient with respect to `input`.

        Parameters
        ----------
        out : array of the shape and dtype of `input`, optional
            The array for the gradient, C-contiguous. It may be `input`, which the gradient then
            replaces. Otherwise it must not share memory with an argument.

        Returns
        -------
        loss : float or array
        grad : array of the shape of `input`
            `out` if there is one. With reduction "none", the gradient of the sum.
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

    It is computed in float64: a float32 gradient is the true gradient, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        The loss is the mean or the sum as a float, or an array in the shape of the input.

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
        The loss is the mean or the sum as a float, or an array in the shape of the input.

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
    r"""The square of small errors, the absolute value of large errors.

    With :math:`d = x - y`:

    .. math::

        \ell = \begin{cases}
            d^2 / (2 \beta) & |d| < \beta \\
            |d| - \beta / 2 & \text{elsewhere}
        \end{cases}

    It is computed in float64: a float32 gradient is the true gradient, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        The loss is the mean or the sum as a float, or an array in the shape of the input.
    beta : float
        At least 0. Errors below it are squared. With 0 it is `L1Loss`.

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
        # A denormal number counts as 0, because its inverse may be infinite.
        return "l1" if self.beta < 2.0**-1022 else "smooth_l1"


class HuberLoss(PointwiseLoss):
    r"""The square of small errors, `delta` times the absolute value of large errors.

    With :math:`d = x - y`:

    .. math::

        \ell = \begin{cases}
            d^2 / 2 & |d| \le \delta \\
            \delta\, (|d| - \delta / 2) & \text{elsewhere}
        \end{cases}

    It is computed in float64: a float32 gradient is the true gradient, rounded once.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        The loss is the mean or the sum as a float, or an array in the shape of the input.
    delta : float
        Greater than 0. Errors up to it are squared.

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

    Each logarithm is at least -100, and the gradient is bounded as in torch. It is computed in
    float64. `BCEWithLogitsLoss` takes logits instead of probabilities, and keeps more digits. An
    `input` outside [0, 1] raises ValueError.

    Parameters
    ----------
    weight : array, optional
        A weight for each element, of any dtype of an input, broadcast to the shape of the input. It
        is rounded to the dtype of the input (float32 for 16 bits). If an element is too small for
        that, the loss is computed in float64. "mean" still divides by the number of elements.
    reduction : {"mean", "sum", "none"}
        The loss is the mean or the sum as a float, or an array in the shape of the input.

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

    Nothing is subtracted from 1, so loss and gradient are accurate even if the model is sure and
    right. With targets 0 and 1, float32 gradients are within 4 units in the last place of the true
    gradients (6 with both weights). With other targets, :math:`\sigma(x) - y` may cancel.

    Parameters
    ----------
    weight : array, optional
        A weight for each element, of any dtype of an input, broadcast to the shape of the input. It
        is rounded to the dtype of the input (float32 for 16 bits). If an element is too small for
        that, the loss is computed in float64. "mean" still divides by the number of elements.
    reduction : {"mean", "sum", "none"}
        The loss is the mean or the sum as a float, or an array in the shape of the input.
    pos_weight : array, optional
        A weight for the positive targets, like `weight`.

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

    It is 0 where :math:`y` is 0, unless :math:`x` is NaN. For :math:`x = -\infty` torch returns NaN
    there. It is computed in float64.

    Parameters
    ----------
    reduction : {"mean", "sum", "none", "batchmean"}
        The loss is a float, or an array in the shape of the input. "batchmean" divides the sum by
        the size of the first axis, as in the definition of the divergence. "mean" divides by the
        number of elements.
    log_target : bool
        Whether the target holds the logarithms of the probabilities.

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
        reduction: BatchReduction = "mean",
        log_target: bool = False,
    ) -> None:
        self.log_target = flag("log_target", log_target)
        super().__init__(reduction)

    @property
    def _kernel(self) -> str:  # type: ignore[override]
        return "kl_div_log_target" if self.log_target else "kl_div"


def _checked(weight: FloatArray | None, name: str) -> FloatArray | None:
    """Return a checked `weight`; its shape is checked later, with that of the input."""
    if weight is not None:
        _core.check_array(weight, name)
    return weight
