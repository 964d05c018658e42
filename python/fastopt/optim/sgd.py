"""SGD with momentum."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy.typing as npt

from fastopt._storage import Master
from fastopt._types import Params
from fastopt.optim._fused import FusedOptimizer


class SGD(FusedOptimizer):
    r"""Stochastic gradient descent, optionally with momentum.

    With the gradient :math:`g_t`, :math:`\mu` = `momentum`, :math:`\tau` = `dampening` and
    :math:`\lambda` = `weight_decay`:

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        b_t &= \mu b_{t-1} + (1 - \tau) g_t, \qquad b_1 = g_1 \\
        p_t &= p_{t-1} - \mathrm{lr}\,(g_t + \mu b_t)
            \ \text{ with nesterov,}\quad p_{t-1} - \mathrm{lr}\, b_t \ \text{ without}

    Steps are counted for each parameter: its step 1 is the step with its first gradient.

    Parameters
    ----------
    params : mapping, sequence or groups
        Arrays of floats, which are updated in place; see `Optimizer`.
    lr : float
        Learning rate, >= 0.
    momentum : float
        :math:`\mu` >= 0; with 0 there is no state.
    dampening : float
        :math:`\tau`. It does not change the first gradient.
    weight_decay : float
        L2 penalty :math:`\lambda` >= 0.
    nesterov : bool
        Nesterov momentum; needs `momentum` > 0 and `dampening` = 0.
    maximize : bool
        Maximize instead of minimize: the gradients are negated first.
    momentum_init : {"grad", "zero"}
        "grad": the buffer begins with the first gradient, as in torch. "zero": it begins with zero,
        and `dampening` changes the first gradient too. With ``dampening=momentum`` this is the
        moving average of textbooks, :math:`b_t = \mu b_{t-1} + (1 - \mu) g_t`.
    state_dtype, master, stochastic_rounding, seed
        The types of the states and the master copy, and their rounding; see `Optimizer`.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Sutskever et
    al., "On the importance of initialization and momentum in deep learning", ICML 2013 (the form
    of Nesterov momentum used here).

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> p = np.zeros(1, dtype=np.float32)
    >>> opt = fo.SGD([p], lr=1.0, momentum=0.9)
    >>> for _ in range(2):
    ...     info = opt.step([np.ones(1, dtype=np.float32)])
    >>> print(p)
    [-2.9]
    """

    _kernel: ClassVar[str] = "sgd"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        momentum_init: Literal["grad", "zero"] = "grad",
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "momentum_init": momentum_init,
                "state_dtype": state_dtype,
                "master": master,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
        )
