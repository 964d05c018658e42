"""The updates as functions, on state that the caller owns.

`fastopt.functional` describes the arrays.
"""

from __future__ import annotations

from typing import Literal

import fastopt._core as _core
from fastopt._checks import int64
from fastopt._types import FloatArray, IntArray

__all__ = ["adam_", "adamw_", "rmsprop_", "sgd_"]


def sgd_(
    param: FloatArray,
    grad: FloatArray,
    momentum_buffer: FloatArray | None = None,
    *,
    step: int | None = None,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_init: Literal["grad", "zero"] = "grad",
    master_param: FloatArray | IntArray | None = None,
) -> None:
    """Update `param` and `momentum_buffer` in place, as `fastopt.SGD` does.

    `momentum_buffer` and `step` are needed with momentum only. Step 1 sets the buffer to the
    gradient; with `momentum_init` "zero" it updates the buffer as usual.
    """
    if momentum != 0 and step is None:
        raise TypeError("sgd_ with momentum needs step, the number of this update (1, 2, ...)")
    _core.update(
        "sgd",
        param,
        grad,
        {"momentum_buffer": momentum_buffer, "master_param": master_param},
        1 if step is None else int64("step", step),
        {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "momentum_init": momentum_init,
        },
    )


def rmsprop_(
    param: FloatArray,
    grad: FloatArray,
    square_avg: FloatArray,
    momentum_buffer: FloatArray | None = None,
    grad_avg: FloatArray | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    master_param: FloatArray | IntArray | None = None,
) -> None:
    """Update `param` and its averages in place, as `fastopt.RMSprop` does.

    `momentum_buffer` is needed with momentum, `grad_avg` with `centered`.
    """
    _core.update(
        "rmsprop",
        param,
        grad,
        {
            "square_avg": square_avg,
            "momentum_buffer": momentum_buffer,
            "grad_avg": grad_avg,
            "master_param": master_param,
        },
        1,
        {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        },
    )


def adam_(
    param: FloatArray,
    grad: FloatArray,
    exp_avg: FloatArray | None,
    exp_avg_sq: FloatArray,
    max_exp_avg_sq: FloatArray | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    master_param: FloatArray | IntArray | None = None,
) -> None:
    """Update `param` and its moments in place, as `fastopt.Adam` does.

    `max_exp_avg_sq` is needed with `amsgrad`. `exp_avg` is neither read nor written if ``betas[0]``
    is 0, and may be None then.
    """
    _core.update(
        "adam",
        param,
        grad,
        {
            "exp_avg": exp_avg,
            "exp_avg_sq": exp_avg_sq,
            "max_exp_avg_sq": max_exp_avg_sq,
            "master_param": master_param,
        },
        int64("step", step),
        {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        },
    )


def adamw_(
    param: FloatArray,
    grad: FloatArray,
    exp_avg: FloatArray | None,
    exp_avg_sq: FloatArray,
    max_exp_avg_sq: FloatArray | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    master_param: FloatArray | IntArray | None = None,
) -> None:
    """Update `param` and its moments in place, as `fastopt.AdamW` does.

    `max_exp_avg_sq` is needed with `amsgrad`. `exp_avg` is neither read nor written if ``betas[0]``
    is 0, and may be None then.
    """
    adam_(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
        step=step,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        master_param=master_param,
    )
