"""Losses for torch's autograd, with the names, arguments and defaults of ``torch.nn.functional``.

The pass that computes a loss computes its gradients too, if an argument needs them. The backward
pass returns them as they are where the incoming gradient is 1, and multiplied by it elsewhere;
with ``retain_graph=True`` it returns copies.

fastopt takes dense tensors on the CPU of float32, float64, bfloat16 or float16, with any strides.
The pages of the losses, as `fastopt.CrossEntropyLoss`, say how accurate they are. These functions
call those of torch for everything else: other devices and types, subclasses of Tensor, arguments
that are broadcast or have different dtypes, targets and weights that need a gradient, the
deprecated `size_average` and `reduce`, and in ``torch.compile``.

A second derivative, a forward-mode derivative and ``torch.func`` raise RuntimeError. Use the
functions of torch for them. With autocast the loss of 16-bit tensors is float32, as in torch.

Examples
--------
>>> import torch, fastopt.torch as ft
>>> logits = torch.zeros(2, 4, requires_grad=True)
>>> loss = ft.cross_entropy(logits, torch.tensor([0, 3]))
>>> loss.backward()
>>> logits.grad
tensor([[-0.3750,  0.1250,  0.1250,  0.1250],
        [ 0.1250,  0.1250,  0.1250, -0.3750]])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastopt import losses
from fastopt._types import BatchReduction, Reduction

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
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

# The class of fastopt for each function of torch. Their options have the same names.
_CLASSES: dict[str, type[Any]] = {
    "binary_cross_entropy": losses.BCELoss,
    "binary_cross_entropy_with_logits": losses.BCEWithLogitsLoss,
    "cross_entropy": losses.CrossEntropyLoss,
    "huber_loss": losses.HuberLoss,
    "kl_div": losses.KLDivLoss,
    "l1_loss": losses.L1Loss,
    "linear_cross_entropy": losses.LinearCrossEntropyLoss,
    "mse_loss": losses.MSELoss,
    "nll_loss": losses.NLLLoss,
    "smooth_l1_loss": losses.SmoothL1Loss,
}
_OPTIONS = {name: set(inspect.signature(kind).parameters) for name, kind in _CLASSES.items()}
_OPTIONS["linear_cross_entropy"].add("linear_bias")  # an argument of the call in fastopt
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Private in torch. Without the first, gradients are copied. Without the second, the message is
# that of torch.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)
_is_transformed: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", lambda: False
)


class _Loss(torch.autograd.Function):
    """A loss whose gradients are computed together with its value."""

    @staticmethod
    def forward(ctx: Any, name: str, compute: Callable[[bool], Any], *inputs: Tensor) -> Tensor:
        """Return the loss, and keep the gradients of those inputs that need one."""
        needed = ctx.needs_input_grad[2:]
        loss, grads = compute(any(needed))
        pairs = zip(grads, needed, strict=False)  # there may be no gradients
        ctx.name = name
        ctx.save_for_backward(*(grad if need else None for grad, need in pairs))
        return cast(Tensor, loss)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        if torch.is_grad_enabled():  # because of create_graph
            raise RuntimeError(
                f"fastopt.torch.{ctx.name} has no second derivative; for create_graph=True use "
                f"torch.nn.functional.{ctx.name}"
            )
        grads = ctx.saved_tensors
        is_kept = _graph_is_kept()  # without retain_graph, nothing reads the gradients after this
        if incoming.ndim > 0 or incoming.item() != 1:
            multiply = torch.mul if is_kept else Tensor.mul_
            grads = [g if g is None else multiply(g, _beside(g, incoming)) for g in grads]
        elif is_kept:  # the caller may change what it gets
            grads = [g if g is None else g.clone() for g in grads]
        return (None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse the forward mode."""
        raise _no_transform(ctx.name)


def _beside(grad: Tensor, incoming: Tensor) -> Tensor:
    """Return the incoming gradients of single losses in a shape that is broadcast to `grad`."""
    return incoming.unsqueeze(1) if 0 < incoming.ndim < grad.ndim else incoming


def _no_transform(name: str) -> RuntimeError:
    return RuntimeError(
        f"fastopt.torch.{name} has no forward-mode derivative and does not work in torch.func; "
        f"use torch.nn.functional.{name} there"
    )


def _loss(name: str, inputs: Sequence[Tensor], target: Tensor, **given: Any) -> Tensor:
    """Return this loss, computed by fastopt if it takes the arguments, and by torch otherwise.

    Parameters
    ----------
    name : str
        The name of the function in torch.
    inputs : sequence of tensors
        The arguments before the target.
    given : dict
        The options. None stands for the default, except for the reduction.
    """
    options = {k: v for k, v in given.items() if v is not None or k == "reduction"}
    if not _is_taken(name, inputs, target, options):
        return cast(Tensor, getattr(functional, name)(*inputs, target, **options))
    if _is_transformed():
        raise _no_transform(name)
    dtype, linear = inputs[0].dtype, name == "linear_cross_entropy"
    single = options["reduction"] == "none"
    autocast = dtype.itemsize == 2 and torch.is_autocast_enabled("cpu")
    loss_dtype = torch.float32 if autocast else dtype
    # The gradient of float16 may be too small before it is multiplied by a scale of the loss. The
    # others are computed in float32 anyway, and bfloat16 would be rounded twice.
    if dtype is torch.float16 or (dtype is torch.bfloat16 and (single or linear)):
        options = {k: _float32(v) for k, v in options.items()}
        wide = _loss(name, [*map(_float32, inputs)], _float32(target), **options)
        return cast(Tensor, wide.to(loss_dtype))

    bias = [options.pop("linear_bias")] if "linear_bias" in options else []
    loss_of = _CLASSES[name](**options)
    arguments = (*inputs, target, *bias)
    if linear:  # NumPy multiplies the matrices
        arguments = tuple(x.detach().numpy() for x in arguments)
    recorded = torch.is_grad_enabled()  # never true within `forward`

    def compute(needed: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not (needed and recorded):
            return _tensor(loss_of(*arguments), loss_dtype), ()
        out = None
        if dtype is torch.bfloat16:  # which NumPy does not have
            # Its large arrays have huge pages, those of torch have not.
            out = torch.from_numpy(np.empty(inputs[0].shape, np.int16)).view(dtype)
        value, grads = loss_of.value_and_grad(*arguments, out=out)
        grads = grads if isinstance(grads, tuple) else (grads,)
        return _tensor(value, loss_dtype), tuple(_tensor(grad, dtype) for grad in grads)

    result: Tensor = _Loss.apply(name, compute, *inputs, *bias)
    if single and result.requires_grad and target.dtype is torch.int64:
        # Ignored rows have no gradient, even if the incoming one is infinite or NaN.
        result = result.masked_fill(target == options["ignore_index"], 0)
    return result


def _is_taken(name: str, inputs: Sequence[Tensor], target: Tensor, options: dict[str, Any]) -> bool:
    """Whether fastopt computes the loss."""
    input, *_ = inputs  # noqa: A001
    weights = [options[key] for key in ("weight", "pos_weight") if key in options]
    learned = [*inputs, *(options[key] for key in ("linear_bias",) if key in options)]
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not options.keys() <= _OPTIONS[name]
        or not all(map(_is_plain, (*learned, *weights, target)))
        or input.dtype not in _DTYPES
        or any(x.dtype != input.dtype for x in (*learned, *weights))
        or any(x.requires_grad for x in (*weights, target))
    ):
        return False
    shape = input.shape
    if name == "linear_cross_entropy":
        if inputs[1].ndim != 2 or input.ndim == 0 or torch.is_autocast_enabled("cpu"):
            return False
        shape = shape[:-1] + inputs[1].shape[:1]
        needed = torch.is_grad_enabled() and any(x.requires_grad for x in learned)
        if options["reduction"] == "none" and needed:
            return False  # fastopt has the gradient of the sum only
    indices = target.dtype is torch.int64 and "ignore_index" in _OPTIONS[name]
    return indices or (target.dtype == input.dtype and target.shape == shape)


def _is_plain(x: Any) -> bool:
    """Whether this is a dense tensor on the CPU whose memory holds its elements."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
    )


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _tensor(x: Any, dtype: Any) -> Tensor:
    """Return a result of fastopt as a tensor; a number is rounded to the dtype."""
    if isinstance(x, float):
        x = torch.tensor(x, dtype=dtype, device="cpu")
    return x if isinstance(x, Tensor) else cast(Tensor, torch.from_numpy(x))


def cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the softmax cross-entropy of logits with class indices or probabilities.

    See `fastopt.CrossEntropyLoss`.
    """
    return _loss(
        "cross_entropy",
        [input],
        target,
        weight=weight,
        size_average=size_average,
        ignore_index=ignore_index,
        reduce=reduce,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def linear_cross_entropy(
    input: Tensor,  # noqa: A002
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> Tensor:
    """Return the cross-entropy of ``input @ linear_weight.T + linear_bias`` in little memory.

    See `fastopt.LinearCrossEntropyLoss`. The function of torch, which needs torch 2.13, is called
    with `options`, with autocast, with a `linear_weight` of more than two axes, and for the
    gradients of reduction "none".
    """
    return _loss(
        "linear_cross_entropy",
        [input, linear_weight],
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )


def nll_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the negative log-likelihood of class indices; see `fastopt.NLLLoss`."""
    return _loss(
        "nll_loss",
        [input],
        target,
        weight=weight,
        size_average=size_average,
        ignore_index=ignore_index,
        reduce=reduce,
        reduction=reduction,
    )


def mse_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return the squared error; see `fastopt.MSELoss`. With `weight`, that of torch."""
    return _loss(
        "mse_loss",
        [input],
        target,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        weight=weight,
    )


def l1_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return the absolute error; see `fastopt.L1Loss`. With `weight`, that of torch."""
    return _loss(
        "l1_loss",
        [input],
        target,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        weight=weight,
    )


def smooth_l1_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Return the smooth absolute error; see `fastopt.SmoothL1Loss`."""
    return _loss(
        "smooth_l1_loss",
        [input],
        target,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        beta=beta,
    )


def huber_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: Reduction = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return Huber's loss; see `fastopt.HuberLoss`. With `weight`, that of torch."""
    return _loss("huber_loss", [input], target, reduction=reduction, delta=delta, weight=weight)


def binary_cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the binary cross-entropy of probabilities; see `fastopt.BCELoss`."""
    return _loss(
        "binary_cross_entropy",
        [input],
        target,
        weight=weight,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
    )


def binary_cross_entropy_with_logits(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: Reduction = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the binary cross-entropy of logits; see `fastopt.BCEWithLogitsLoss`."""
    return _loss(
        "binary_cross_entropy_with_logits",
        [input],
        target,
        weight=weight,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        pos_weight=pos_weight,
    )


def kl_div(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: BatchReduction = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return the Kullback-Leibler divergence; see `fastopt.KLDivLoss`."""
    return _loss(
        "kl_div",
        [input],
        target,
        size_average=size_average,
        reduce=reduce,
        reduction=reduction,
        log_target=log_target,
    )


def _forward(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the method `forward` of a module of torch, by this function."""
    name = loss.__name__
    options = sorted(_OPTIONS[name] & inspect.signature(loss).parameters.keys())

    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002
        """Return the loss."""
        return loss(input, target, **{option: getattr(self, option) for option in options})

    return forward


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`cross_entropy` as a module; see `torch.nn.CrossEntropyLoss`."""

    forward = _forward(cross_entropy)


class NLLLoss(torch.nn.NLLLoss):
    """`nll_loss` as a module; see `torch.nn.NLLLoss`."""

    forward = _forward(nll_loss)


class MSELoss(torch.nn.MSELoss):
    """`mse_loss` as a module; see `torch.nn.MSELoss`."""

    forward = _forward(mse_loss)


class L1Loss(torch.nn.L1Loss):
    """`l1_loss` as a module; see `torch.nn.L1Loss`."""

    forward = _forward(l1_loss)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """`smooth_l1_loss` as a module; see `torch.nn.SmoothL1Loss`."""

    forward = _forward(smooth_l1_loss)


class HuberLoss(torch.nn.HuberLoss):
    """`huber_loss` as a module; see `torch.nn.HuberLoss`."""

    forward = _forward(huber_loss)


class BCELoss(torch.nn.BCELoss):
    """`binary_cross_entropy` as a module; see `torch.nn.BCELoss`."""

    forward = _forward(binary_cross_entropy)


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """`binary_cross_entropy_with_logits` as a module; see `torch.nn.BCEWithLogitsLoss`."""

    forward = _forward(binary_cross_entropy_with_logits)


class KLDivLoss(torch.nn.KLDivLoss):
    """`kl_div` as a module; see `torch.nn.KLDivLoss`."""

    forward = _forward(kl_div)


if hasattr(torch.nn, "LinearCrossEntropyLoss"):
    __all__ += ["LinearCrossEntropyLoss"]

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """`linear_cross_entropy` as a module, which needs torch 2.13.

        See `torch.nn.LinearCrossEntropyLoss`.
        """

        def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002
            """Return the loss."""
            shape, bias = (self.num_classes, *self.out_features), self.linear.bias
            return linear_cross_entropy(
                input,
                self.linear.weight.reshape(*shape, self.linear.in_features),
                target,
                linear_bias=None if bias is None else bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )
