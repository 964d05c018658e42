"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt

from fastopt._checks import flag
from fastopt._storage import Master
from fastopt._types import Group, Params
from fastopt.optim._fused import FusedOptimizer


class Adam(FusedOptimizer):
    r"""Adam, optionally with AMSGrad.

    With the gradient :math:`g_t` and :math:`\lambda` = `weight_decay`:

    .. math::

        g_t &\leftarrow g_t + \lambda p_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \frac{\mathrm{lr}}{1 - \beta_1^t} \cdot
            \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    AMSGrad uses the running maximum of the uncorrected :math:`v_t` in place of :math:`v_t`. With
    `decoupled_weight_decay` this is `AdamW`.

    Parameters
    ----------
    params : mapping, sequence or groups
        Arrays of floats, which are updated in place; see `Optimizer`.
    lr : float
        Learning rate, >= 0.
    betas : pair of float
        Decay of the averages of the gradient and of its square, each in [0, 1).
    eps : float
        :math:`\epsilon` >= 0, added after the root.
    weight_decay : float
        L2 penalty :math:`\lambda` >= 0.
    amsgrad : bool
        Use AMSGrad (Reddi et al.).
    maximize : bool
        Maximize instead of minimize: the gradients are negated first.
    decoupled_weight_decay : bool
        Multiply the parameters by ``1 - lr * weight_decay`` instead of adding to the gradient.
    state_dtype, master, stochastic_rounding, seed
        The types of the states and the master copy, and their rounding; see `Optimizer`.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015 (algorithm 1, with
    epsilon beside the corrected root); Reddi et al., "On the convergence of Adam and beyond",
    ICLR 2018.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> p = np.zeros(1, dtype=np.float32)
    >>> info = fo.Adam([p], lr=0.5).step([np.full(1, 3.0, dtype=np.float32)])
    >>> print(p.round(4))
    [-0.5]
    """

    _kernel: ClassVar[str] = "adam"
    _second_moment = "exp_avg_sq"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "decoupled_weight_decay": decoupled_weight_decay,
                "state_dtype": state_dtype,
                "master": master,
                "stochastic_rounding": stochastic_rounding,
                "seed": seed,
            },
        )


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    Like `Adam`, but weight decay multiplies the parameters before the update, and does not change
    the gradient:

    .. math::

        p_t = (1 - \mathrm{lr}\,\lambda)\, p_{t-1} - \frac{\mathrm{lr}}{1 - \beta_1^t} \cdot
            \frac{m_t}{\sqrt{v_t} / \sqrt{1 - \beta_2^t} + \epsilon}

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> p = np.ones(1, dtype=np.float32)
    >>> info = fo.AdamW([p], lr=0.5, weight_decay=0.2).step([np.ones(1, dtype=np.float32)])
    >>> print(p.round(4))
    [0.4]
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        state_dtype: npt.DTypeLike | None = None,
        master: Master | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            state_dtype=state_dtype,
            master=master,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
        )

    def _loaded_group(self, number: int, old: Group, new: Mapping[str, Any] | None) -> Group:
        decoupled = True if new is None else new.get("decoupled_weight_decay", True)
        if not flag("decoupled_weight_decay", decoupled):
            raise ValueError(
                f"group {number} of the state dict is that of an Adam with L2 weight decay; "
                "load it into Adam"
            )
        return super()._loaded_group(number, old, new)
