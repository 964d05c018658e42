"""Schedules that multiply the rate: by steps, along a line, as a power, or by a function.

The rates are products of factors, as in torch, so that several schedules can change one optimizer.
The formulas in closed form give other last bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import ClassVar

import numpy as np

from fastopt._checks import (
    Check,
    for_each_group,
    fraction,
    integer,
    list_of,
    non_negative,
    positive_fraction,
    short_repr,
    to_float,
)
from fastopt.schedules._base import FactorLR, HasGroups, LRScheduler


class StepLR(FactorLR):
    r"""Multiply the rate by `gamma` every `step_size` steps.

    .. math:: \eta_t = \eta_0\, \gamma^{\lfloor t / \mathrm{step\_size} \rfloor}

    Parameters
    ----------
    step_size : int
        At least 1.
    gamma : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.StepLR(opt, step_size=2, gamma=0.5)
    >>> rates = []
    >>> for epoch in range(5):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    step_size: int
    gamma: float
    _options: ClassVar[Mapping[str, Check]] = {"step_size": integer(1), "gamma": non_negative}

    def __init__(
        self, optimizer: HasGroups, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self._accept(step_size=step_size, gamma=gamma)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return `gamma` at the multiples of `step_size`, else 1."""
        return self.gamma if epoch > 0 and epoch % self.step_size == 0 else 1.0


class MultiStepLR(FactorLR):
    r"""Multiply the rate by `gamma` at each of the `milestones`.

    .. math:: \eta_t = \eta_0\, \gamma^{\,|\{m \,\in\, \mathrm{milestones} :\; m \le t\}|}

    Parameters
    ----------
    milestones : iterable of int
        Steps >= 0 in any order. A step that appears twice counts twice.
    gamma : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.MultiStepLR(opt, milestones=[1, 3], gamma=0.5)
    >>> rates = []
    >>> for epoch in range(5):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    milestones: list[int]
    gamma: float
    _options: ClassVar[Mapping[str, Check]] = {
        "milestones": list_of(integer(0)),
        "gamma": non_negative,
    }

    def __init__(
        self,
        optimizer: HasGroups,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        if isinstance(milestones, Iterable) and not isinstance(milestones, Sequence | np.ndarray):
            milestones = list(milestones)
        self._accept(milestones=milestones, gamma=gamma)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return `gamma` to the power of the number of milestones at `epoch`."""
        try:
            return self.gamma ** self.milestones.count(epoch)
        except OverflowError:
            return inf  # refused as a rate


class ConstantLR(FactorLR):
    r"""Use a fraction of the rate for the first `total_iters` steps, then the full rate.

    .. math:: \eta_t = \mathrm{factor} \cdot \eta_0 \ \text{ for } t < \mathrm{total\_iters},
        \qquad \eta_0 \ \text{ after}

    Parameters
    ----------
    factor : float
        In [0, 1]. After a factor of 0 or below 6e-309, which has no inverse, the rates are set to
        the initial rates (torch raises ZeroDivisionError).
    total_iters : int
        At least 1.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.ConstantLR(opt, factor=0.25, total_iters=2)
    >>> rates = []
    >>> for epoch in range(4):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [0.25, 0.25, 1.0, 1.0]
    """

    factor: float
    total_iters: int
    _options: ClassVar[Mapping[str, Check]] = {"factor": fraction, "total_iters": integer(1)}

    def __init__(
        self,
        optimizer: HasGroups,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self._accept(factor=factor, total_iters=total_iters)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return `factor` at step 0, its inverse at step `total_iters`, else 1."""
        if epoch == 0:
            return self.factor
        return 1.0 / self.factor if epoch == self.total_iters else 1.0

    def get_lr(self) -> list[float]:
        """Return the rates of step `last_epoch`."""
        if self.factor < 1 / sys.float_info.max and self.last_epoch == self.total_iters:
            return self.base_lrs
        return super().get_lr()


class LinearLR(FactorLR):
    r"""Change the rate linearly over `total_iters` steps: the usual warm-up.

    .. math:: \eta_t = \eta_0 \left(s + (e - s)\,
        \frac{\min(t, \mathrm{total\_iters})}{\mathrm{total\_iters}}\right)

    with :math:`s` = `start_factor` and :math:`e` = `end_factor`. If `end_factor` is 0, rounding
    makes the last rate of torch negative, by 1e-17 of the initial rate. Here it is 0, because
    optimizers refuse a negative rate.

    Parameters
    ----------
    start_factor : float
        In (0, 1].
    end_factor : float
        In [0, 1].
    total_iters : int
        At least 1.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.LinearLR(opt, start_factor=0.25, total_iters=3)
    >>> rates = []
    >>> for epoch in range(5):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    start_factor: float
    end_factor: float
    total_iters: int
    _options: ClassVar[Mapping[str, Check]] = {
        "start_factor": positive_fraction,
        "end_factor": fraction,
        "total_iters": integer(1),
    }
    _continues_as_is: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: HasGroups,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        self._accept(start_factor=start_factor, end_factor=end_factor, total_iters=total_iters)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return the quotient of the factors at `epoch` and the step before."""
        if epoch == 0:
            return self.start_factor
        if epoch > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (epoch - 1) * rise
        # With more than 1e15 steps, rounding may make the rest of a falling line 0.
        return max(0.0, 1.0 + rise / before) if before > 0 else 0.0


class ExponentialLR(FactorLR):
    r"""Multiply the rate by `gamma` at every step.

    .. math:: \eta_t = \eta_0\, \gamma^t

    Parameters
    ----------
    gamma : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.ExponentialLR(opt, gamma=0.5)
    >>> rates = []
    >>> for epoch in range(4):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [1.0, 0.5, 0.25, 0.125]
    """

    gamma: float
    _options: ClassVar[Mapping[str, Check]] = {"gamma": non_negative}
    _continues_as_is: ClassVar[bool] = True

    def __init__(self, optimizer: HasGroups, gamma: float, last_epoch: int = -1) -> None:
        self._accept(gamma=gamma)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return 1 at step 0, then `gamma`."""
        return self.gamma if epoch > 0 else 1.0


class PolynomialLR(FactorLR):
    r"""Reduce the rate to 0 in `total_iters` steps, as a power of the remaining part.

    .. math:: \eta_t = \eta_0 \left(1 -
        \frac{\min(t, \mathrm{total\_iters})}{\mathrm{total\_iters}}\right)^{\mathrm{power}}

    Parameters
    ----------
    total_iters : int
        At least 1.
    power : float
        At least 0. 1 gives a straight line.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.PolynomialLR(opt, total_iters=4, power=2.0)
    >>> rates = []
    >>> for epoch in range(6):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> rates
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    total_iters: int
    power: float
    _options: ClassVar[Mapping[str, Check]] = {"total_iters": integer(1), "power": non_negative}
    _continues_as_is: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: HasGroups,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self._accept(total_iters=total_iters, power=power)
        super().__init__(optimizer, last_epoch)

    def factor_at(self, epoch: int) -> float:
        """Return the quotient of the powers at `epoch` and the step before."""
        if epoch == 0 or epoch > self.total_iters:
            return 1.0
        left, before = 1.0 - epoch / self.total_iters, 1.0 - (epoch - 1) / self.total_iters
        # With more than 1e15 steps, rounding may make the remaining part 0.
        return float((left / before if before else 0.0) ** self.power)


class LambdaLR(LRScheduler):
    r"""Multiply the initial rate by a function of the step.

    .. math:: \eta_t = \eta_0\, \lambda(t)

    Parameters
    ----------
    lr_lambda : callable, or list of callables for each group
        Takes the number of the step, an int >= 0, and returns a factor >= 0. `state_dict` does not
        contain it: pass the same function to the schedule that continues.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.LambdaLR(opt, lambda epoch: 1 / (1 + epoch))
    >>> rates = []
    >>> for epoch in range(4):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [1.     0.5    0.3333 0.25  ]
    """

    _unsaved: ClassVar[tuple[str, ...]] = ("optimizer", "lr_lambda")

    def __init__(
        self,
        optimizer: HasGroups,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        for function in lr_lambda if isinstance(lr_lambda, list | tuple) else [lr_lambda]:
            if not callable(function):
                raise TypeError(
                    f"lr_lambda must be a function of the step, not {short_repr(function)}"
                )
        self.lr_lambda = lr_lambda
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the initial rates times the function at step `last_epoch`."""
        functions = for_each_group("lr_lambda", self.lr_lambda, len(self.base_lrs))
        return [
            base * to_float("what lr_lambda returns", function(self.last_epoch))
            for base, function in zip(self.base_lrs, functions, strict=True)
        ]
