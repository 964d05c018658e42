"""RMSprop."""

from __future__ import annotations

from typing import ClassVar

import numpy.typing as npt

from fastopt._storage import Master
from fastopt._types import Params
from fastopt.optim._fused import FusedOptimizer


class RMSprop(FusedOptimizer):
    r"""RMSprop, optionally centered and with momentum.

    With the gradient :math:`g_t`, :math:`\alpha` = `alpha`, :math:`\mu` = `momentum` and
    :math:`\lambda` = `weight_decay`:

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        m_t &= \alpha m_{t-1} + (1 - \alpha) g_t, \quad
            \tilde v_t = \max(v_t - m_t^2, 0) \ \text{ if centered, else } \tilde v_t = v_t \\
        b_t &= \mu b_{t-1} + g_t / (\sqrt{\tilde v_t} + \epsilon) \\
        p_t &= p_{t-1} - \mathrm{lr}\, b_t

    Parameters
    ----------
    params : mapping, sequence or groups
        Arrays of floats, which are updated in place; see `Optimizer`.
    lr : float
        Learning rate, >= 0.
    alpha : float
        Decay of the averages, in [0, 1].
    eps : float
        :math:`\epsilon` >= 0, added after the root.
    weight_decay : float
        L2 penalty :math:`\lambda` >= 0.
    momentum : float
        :math:`\mu` >= 0.
    centered : bool
        Divide by an estimate of the standard deviation instead of the root mean square.
    maximize : bool
        Maximize instead of minimize: the gradients are negated first.
    state_dtype, master, stochastic_rounding, seed
        The types of the states and the master copy, and their rounding; see `Optimizer`.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5 - rmsprop", Coursera, 2012; centered: Graves, "Generating
    sequences with recurrent neural networks", 2013.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> p = np.zeros(1, dtype=np.float32)
    >>> info = fo.RMSprop([p], lr=0.01).step([np.ones(1, dtype=np.float32)])
    >>> print(p.round(4))
    [-0.1]
    """

    _kernel: ClassVar[str] = "rmsprop"
    _second_moment = "square_avg"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
                "state_dtype": state_dtype,
                "master": master,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
        )
