"""The updates as functions over lists of tensors, on state that the caller owns.

One call checks and steps all tensors, without the GIL, in whatever thread it is called: nothing has
changed if it raises. The tensors lie on the CPU. Each parameter has a gradient and the states that
the options need, of its shape, in lists of the same length as `params`. The types may differ, as
those of `fastopt.functional` may.

- ``grads`` are only read. The update divides them by ``grad_scale``.
- ``state_steps`` are float32 tensors of one element, which count the steps and are increased by 1.
- ``master_params`` belong to parameters of 16 bits: tensors of float32, or of int16 that make a
  float32 together with a parameter of bfloat16.
- ``out`` are tensors of bfloat16 or float16 that get the new parameters of float32, rounded to
  nearest; None for a parameter means no copy.

Examples
--------
>>> import torch, fastopt.torch.functional as F
>>> params, grads = [torch.zeros(1)], [torch.ones(1)]
>>> exp_avgs, exp_avg_sqs, steps = [torch.zeros(1)], [torch.zeros(1)], [torch.zeros(())]
>>> F.adamw_(params, grads, exp_avgs, exp_avg_sqs, steps, lr=0.5)
>>> params, steps
([tensor([-0.5000])], [tensor(1.)])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import increment_version

import fastopt._core as _core

__all__ = ["adam_", "adamw_", "rmsprop_", "sgd_"]

_Tensors: TypeAlias = Sequence[torch.Tensor]


def sgd_(
    params: _Tensors,
    grads: _Tensors,
    momentum_buffers: _Tensors | None = None,
    state_steps: _Tensors | None = None,
    *,
    master_params: _Tensors | None = None,
    out: Sequence[torch.Tensor | None] | None = None,
    lr: float | torch.Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Update `params` in place, as `fastopt.torch.SGD` does.

    `momentum_buffers` and `state_steps` are needed with momentum only. The first step sets the
    buffers to the gradients.
    """
    if momentum != 0 and state_steps is None:
        raise TypeError("sgd_ with momentum needs state_steps, the tensors that count the steps")
    _step(
        "sgd",
        {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        },
        params,
        grads,
        {"momentum_buffer": momentum_buffers, "master_param": master_params},
        state_steps,
        out,
        grad_scale,
    )


def rmsprop_(
    params: _Tensors,
    grads: _Tensors,
    square_avgs: _Tensors,
    momentum_buffers: _Tensors | None = None,
    grad_avgs: _Tensors | None = None,
    state_steps: _Tensors | None = None,
    *,
    master_params: _Tensors | None = None,
    out: Sequence[torch.Tensor | None] | None = None,
    lr: float | torch.Tensor = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Update `params` and their averages in place, as `fastopt.torch.RMSprop` does.

    `momentum_buffers` are needed with momentum, `grad_avgs` with `centered`. The update does not
    depend on `state_steps`.
    """
    _step(
        "rmsprop",
        {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        },
        params,
        grads,
        {
            "square_avg": square_avgs,
            "momentum_buffer": momentum_buffers,
            "grad_avg": grad_avgs,
            "master_param": master_params,
        },
        state_steps,
        out,
        grad_scale,
    )


def adam_(
    params: _Tensors,
    grads: _Tensors,
    exp_avgs: _Tensors | None,
    exp_avg_sqs: _Tensors,
    state_steps: _Tensors,
    *,
    max_exp_avg_sqs: _Tensors | None = None,
    master_params: _Tensors | None = None,
    out: Sequence[torch.Tensor | None] | None = None,
    lr: float | torch.Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Update `params` and their moments in place, as `fastopt.torch.Adam` does.

    `max_exp_avg_sqs` are needed with `amsgrad`. `exp_avgs` are neither read nor written if
    ``betas[0]`` is 0, and may be None then.
    """
    _step(
        "adam",
        {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        },
        params,
        grads,
        {
            "exp_avg": exp_avgs,
            "exp_avg_sq": exp_avg_sqs,
            "max_exp_avg_sq": max_exp_avg_sqs,
            "master_param": master_params,
        },
        state_steps,
        out,
        grad_scale,
    )


def adamw_(
    params: _Tensors,
    grads: _Tensors,
    exp_avgs: _Tensors | None,
    exp_avg_sqs: _Tensors,
    state_steps: _Tensors,
    *,
    max_exp_avg_sqs: _Tensors | None = None,
    master_params: _Tensors | None = None,
    out: Sequence[torch.Tensor | None] | None = None,
    lr: float | torch.Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Update `params` and their moments in place, as `fastopt.torch.AdamW` does.

    `max_exp_avg_sqs` are needed with `amsgrad`. `exp_avgs` are neither read nor written if
    ``betas[0]`` is 0, and may be None then.
    """
    adam_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        state_steps,
        max_exp_avg_sqs=max_exp_avg_sqs,
        master_params=master_params,
        out=out,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        grad_scale=grad_scale,
    )


def _step(
    kernel: str,
    options: dict[str, Any],
    params: _Tensors,
    grads: _Tensors,
    states: dict[str, _Tensors | None],
    state_steps: _Tensors | None,
    out: Sequence[torch.Tensor | None] | None,
    grad_scale: float,
) -> None:
    lists = {"params": params, "grads": grads, **states, "state_steps": state_steps, "out": out}
    for name, tensors in lists.items():
        if tensors is None:
            continue
        if not isinstance(tensors, Sequence):
            raise TypeError(f"{name} must be a list of tensors, not {type(tensors).__name__}")
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor | None):
                raise TypeError(f"{name}[{i}] must be a tensor, not {type(tensor).__name__}")
    params = list(params)
    copies = None if out is None else list(out)
    if state_steps is None:  # the update does not depend on them
        state_steps = [torch.zeros((), dtype=torch.float32, device="cpu")] * len(params)
    with torch.no_grad():
        _core.step_tensors(
            kernel,
            options,
            params,
            list(grads),
            {name: list(tensors) for name, tensors in states.items() if tensors is not None},
            list(state_steps),
            copies,
            grad_scale,
        )
    increment_version(params + [copy for copy in copies or () if copy is not None])
