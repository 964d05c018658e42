"""Schedules along half a cosine: annealing, annealing with restarts, and one cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, floor, pi
from typing import Any, ClassVar, Literal

from fastopt._checks import (
    Check,
    below_one,
    choice,
    flag,
    for_each_group,
    fraction,
    integer,
    list_of,
    non_negative,
    one_or_each,
    positive,
    short_repr,
    to_float,
)
from fastopt._types import Group
from fastopt.schedules._base import HasGroups, LRScheduler, groups_of


class CosineAnnealingLR(LRScheduler):
    r"""Reduce the rate to `eta_min` in `T_max` steps, along half a cosine.

    .. math:: \eta_t = \eta_{\min} + \tfrac12 (\eta_0 - \eta_{\min})
        \left(1 + \cos \frac{\pi t}{T_{\max}}\right)

    It is computed from the last rate, as in torch:

    .. math:: \eta_t - \eta_{\min} = (\eta_{t-1} - \eta_{\min})\,
        \frac{1 + \cos(\pi t / T_{\max})}{1 + \cos(\pi (t - 1) / T_{\max})}

    After `T_max` steps the rate rises again, until step ``2 * T_max``. Stop at `T_max`, or use
    `CosineAnnealingWarmRestarts`.

    Parameters
    ----------
    T_max : int
        The number of steps until `eta_min`, at least 1.
    eta_min : float
        At least 0.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.CosineAnnealingLR(opt, T_max=4)
    >>> rates = []
    >>> for epoch in range(5):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [1.     0.8536 0.5    0.1464 0.    ]
    """

    T_max: int
    eta_min: float
    _options: ClassVar[Mapping[str, Check]] = {"T_max": integer(1), "eta_min": non_negative}
    _continues_as_is: ClassVar[bool] = True

    def __init__(
        self, optimizer: HasGroups, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self._accept(T_max=T_max, eta_min=eta_min)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the rates of step `last_epoch`."""
        epoch, low = self.last_epoch, self.eta_min
        if epoch == 0:
            return self._lrs()
        if (epoch - 1) % (2 * self.T_max) == self.T_max:  # after the lowest rate: 0 / 0
            rise = 1 - cos(pi / self.T_max)
            return [
                lr + (base - low) * rise / 2
                for lr, base in zip(self._lrs(), self.base_lrs, strict=True)
            ]
        height, before = 1 + cos(pi * epoch / self.T_max), 1 + cos(pi * (epoch - 1) / self.T_max)
        if before == 0:  # rounding, for more than 1e8 steps
            return [low + (base - low) * height / 2 for base in self.base_lrs]
        quotient = height / before
        lrs = [quotient * (lr - low) + low for lr in self._lrs()]
        # At the end of the rise to an initial rate of 0, rounding may give a negative rate.
        return [0.0 if -1e-9 * low < lr < 0 else lr for lr in lrs]

    def _restart(self) -> None:
        super()._restart()
        # torch begins with the formula, whose rounding may change the last bit of the rate.
        self._apply([self.eta_min + (base - self.eta_min) for base in self.base_lrs])


class CosineAnnealingWarmRestarts(LRScheduler):
    r"""Reduce the rate along half a cosine, and begin again with the initial rate.

    .. math:: \eta_t = \eta_{\min} + \tfrac12 (\eta_0 - \eta_{\min})
        \left(1 + \cos \frac{\pi T_{\mathrm{cur}}}{T_i}\right)

    :math:`T_{\mathrm{cur}}` is the number of steps since the last restart. :math:`T_i` is the
    length of the period: first `T_0`, and `T_mult` times as long after every restart. If you call
    `step` after every batch, count in batches: for a restart after n epochs of k batches, `T_0` is
    ``n * k``. Or count in epochs, and pass the epoch with its fraction to `step`.

    Parameters
    ----------
    T_0 : int
        The number of steps until the first restart, at least 1.
    T_mult : int
        At least 1.
    eta_min : float
        At least 0.

    Attributes
    ----------
    fraction : float
        The part of an epoch that has passed since `last_epoch`; see `step`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
    >>> schedule = fo.CosineAnnealingWarmRestarts(opt, T_0=2, T_mult=2)
    >>> rates = []
    >>> for epoch in range(7):
    ...     rates += schedule.get_last_lr()
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [1.     0.5    1.     0.8536 0.5    0.1464 1.    ]
    """

    T_0: int
    T_mult: int
    eta_min: float
    fraction: float
    _options: ClassVar[Mapping[str, Check]] = {
        "T_0": integer(1),
        "T_mult": integer(1),
        "eta_min": non_negative,
    }

    def __init__(
        self,
        optimizer: HasGroups,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self._accept(T_0=T_0, T_mult=T_mult, eta_min=eta_min)
        self.fraction = 0.0
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Set the rates of the next step, or of `epoch`.

        Parameters
        ----------
        epoch : float, optional
            At least 0 and below 2**63. It may have a fraction: with ``epoch + batch / batches``
            after each batch, the rate falls smoothly within an epoch. `last_epoch` is the whole
            part. Later steps without `epoch` keep the fraction, as in torch, up to the last bit.

        Examples
        --------
        >>> import numpy as np, fastopt as fo
        >>> opt = fo.SGD([np.zeros(1)], lr=1.0)
        >>> schedule = fo.CosineAnnealingWarmRestarts(opt, T_0=1)
        >>> rates = []
        >>> for epoch in [0, 0.25, 0.5, 0.75, 1]:
        ...     schedule.step(epoch)
        ...     rates += schedule.get_last_lr()
        >>> print(np.round(rates, 4))
        [1.     0.8536 0.5    0.1464 1.    ]
        """
        if epoch is None:
            super().step()
            return
        number = non_negative("epoch", epoch)
        if number >= 2**63:
            raise ValueError(f"epoch must be below 2**63 as a float, not {short_repr(epoch)}")
        whole = floor(number)
        self._change(lambda draft: draft._go_to(whole, number - whole))

    def get_lr(self) -> list[float]:
        """Return the rates of step `last_epoch` plus `fraction`."""
        since, period = self.last_epoch, self.T_0
        if self.T_mult == 1:
            since %= period
        while since >= period:
            since -= period
            period *= self.T_mult
        height = 1 + cos(pi * (since + self.fraction) / period)
        return [self.eta_min + (base - self.eta_min) * height / 2 for base in self.base_lrs]

    def _go_to(self, epoch: int, fraction: float | None = None) -> None:
        if fraction is not None:
            self.fraction = fraction
        super()._go_to(epoch)

    def _rewind(self) -> None:
        super()._rewind()
        self.fraction = 0.0

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | {"fraction": below_one}

    def _read(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(state_dict, Mapping):  # older states do not have it
            state_dict = {"fraction": 0.0, **state_dict}
        return super()._read(state_dict)


class OneCycleLR(LRScheduler):
    r"""Raise the rate to `max_lr`, then reduce it to almost 0: one cycle for a run.

    The rate rises from ``max_lr / div_factor`` to `max_lr` at step ``pct_start * total_steps - 1``.
    It then falls to ``max_lr / div_factor / final_div_factor`` at step ``total_steps - 1``. Both
    phases are half a cosine or a line. Momentum (for Adam, the first beta) first falls from
    `max_momentum` to `base_momentum`, and then rises again. The rates of the groups and their
    ``"initial_lr"`` are replaced. Call `step` after every batch.

    Parameters
    ----------
    max_lr : float, or list with one for each group
        The peak, at least 0.
    total_steps : int, optional
        At least 1. If None, ``epochs * steps_per_epoch``. A `step` beyond it raises ValueError.
    epochs, steps_per_epoch : int, optional
        Used if `total_steps` is None.
    pct_start : float
        The part of the steps in which the rate rises, in [0, 1].
    anneal_strategy : {"cos", "linear"}
        The shape of the phases.
    cycle_momentum : bool
        Also set ``group["momentum"]``, or the first of ``group["betas"]``. Each group must have
        one of them.
    base_momentum, max_momentum : float, or list with one for each group
        In [0, 1).
    div_factor, final_div_factor : float
        Greater than 0.
    three_phase : bool
        As in the paper: fall to the first rate at step ``2 * pct_start * total_steps - 2``, as
        steeply as it rose, then to the last rate.

    Notes
    -----
    The call of `step` after the last batch sets the rate of step `total_steps`, which no batch
    uses. The cosine rises there, as in torch. The line keeps its last value; in torch it becomes
    negative. A phase of length 0 has the rate of its end; torch divides by zero. Each schedule has
    its own bounds. torch keeps the bounds in the groups, so that two of these schedules on one
    optimizer both use the bounds of the second.

    References
    ----------
    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2018.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> opt = fo.SGD([np.zeros(1)], lr=1.0, momentum=0.9)
    >>> schedule = fo.OneCycleLR(opt, max_lr=1.0, total_steps=5, pct_start=0.6)
    >>> rates, momenta = [], []
    >>> for batch in range(5):
    ...     rates += schedule.get_last_lr()
    ...     momenta.append(opt.param_groups[0]["momentum"])
    ...     schedule.step()
    >>> print(np.round(rates, 4))
    [0.04 0.52 1.   0.5  0.  ]
    >>> print(np.round(momenta, 4))
    [0.95 0.9  0.85 0.9  0.95]
    """

    max_lr: float | list[float]
    total_steps: int
    pct_start: float
    anneal_strategy: str
    cycle_momentum: bool
    base_momentum: float | list[float]
    max_momentum: float | list[float]
    div_factor: float
    final_div_factor: float
    three_phase: bool
    _options: ClassVar[Mapping[str, Check]] = {
        "max_lr": one_or_each(non_negative),
        "total_steps": integer(1),
        "pct_start": fraction,
        "anneal_strategy": choice("cos", "linear"),
        "cycle_momentum": flag,
        "base_momentum": one_or_each(below_one),
        "max_momentum": one_or_each(below_one),
        "div_factor": positive,
        "final_div_factor": positive,
        "three_phase": flag,
    }

    def __init__(
        self,
        optimizer: HasGroups,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR needs total_steps, or epochs and steps_per_epoch")
            steps = integer(1)("steps_per_epoch", steps_per_epoch)
            total_steps = integer(1)("epochs", epochs) * steps
        self._accept(
            max_lr=max_lr,
            total_steps=total_steps,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            cycle_momentum=cycle_momentum,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            three_phase=three_phase,
        )
        self._held_momenta(optimizer)
        super().__init__(optimizer, last_epoch)

    def _start(self) -> None:
        super()._start()
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["initial_lr"] = base

    def get_lr(self) -> list[float]:
        """Return the rates of step `last_epoch`."""
        tops = for_each_group("max_lr", self.max_lr, len(self.base_lrs))
        return [
            self._anneal(base, top, base / self.final_div_factor)
            for base, top in zip(self.base_lrs, tops, strict=True)
        ]

    def _anneal(self, first: float, peak: float, last: float) -> float:
        """Return the value at step `last_epoch`, on the way from `first` over `peak` to `last`."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"OneCycleLR has reached its end, total_steps={self.total_steps}; make it with the "
                "number of batches of the whole run"
            )
        rise = float(self.pct_start * self.total_steps) - 1
        phases = [(rise, first, peak), (self.total_steps - 1, peak, last)]
        if self.three_phase:
            turn = float(2 * self.pct_start * self.total_steps) - 2
            phases[1:] = [(turn, peak, first), (self.total_steps - 1, first, last)]
        last_phase = len(phases) - 1
        i = next((i for i in range(last_phase) if self.last_epoch <= phases[i][0]), last_phase)
        end, start_value, end_value = phases[i]
        begin = phases[i - 1][0] if i else 0.0
        done = (self.last_epoch - begin) / (end - begin) if end != begin else 1.0
        if self.anneal_strategy == "cos":
            return end_value + (start_value - end_value) / 2.0 * (cos(pi * done) + 1)
        return (end_value - start_value) * min(done, 1.0) + start_value

    def _join_groups(self) -> None:
        tops = for_each_group("max_lr", self.max_lr, len(self.optimizer.param_groups))
        self.base_lrs = [top / self.div_factor for top in tops]

    def _momenta(self) -> list[float]:
        """Return the momentum of each group for step `last_epoch`."""
        count = len(self.base_lrs)
        lows = for_each_group("base_momentum", self.base_momentum, count)
        highs = for_each_group("max_momentum", self.max_momentum, count)
        return [self._anneal(high, low, high) for high, low in zip(highs, lows, strict=True)]

    def _set_momenta(self, momenta: list[float]) -> None:
        for i, (group, momentum) in enumerate(
            zip(self.optimizer.param_groups, momenta, strict=True)
        ):
            if "betas" in group:
                group["betas"] = (momentum, *_betas(i, group)[1:])
            else:
                group["momentum"] = momentum

    def _apply(self, lrs: list[float]) -> None:
        momenta = self._momenta() if self.cycle_momentum else []
        super()._apply(lrs)
        if self.cycle_momentum:
            self._set_momenta(momenta)

    def state_dict(self) -> dict[str, Any]:
        """Return the options, the counters and the momentum of the groups.

        See `LRScheduler.state_dict`.
        """
        return super().state_dict() | {"momentum": self._held_momenta(self.optimizer)}

    def _held_momenta(self, optimizer: HasGroups) -> list[float]:
        """Return the momentum of each group; an empty list without `cycle_momentum`."""
        groups = groups_of(optimizer) if self.cycle_momentum else []
        return [_betas(i, group)[0] for i, group in enumerate(groups)]

    def _checks(self) -> dict[str, Check]:
        return super()._checks() | {"momentum": list_of(below_one)}

    def _read(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._read(state_dict)
        groups = self.optimizer.param_groups
        for name in ("max_lr", "base_momentum", "max_momentum"):
            for_each_group(name, values[name], len(groups))
        cycled = [_betas(i, group) for i, group in enumerate(groups) if values["cycle_momentum"]]
        list_of(below_one, len(cycled), len(cycled))("momentum", values["momentum"])
        return values

    def _take(self, values: dict[str, Any]) -> None:
        values = dict(values)
        momenta = values.pop("momentum")
        super()._take(values)
        if self.cycle_momentum:
            self._set_momenta(momenta)


def _betas(number: int, group: Group) -> list[float]:
    """Return the momentum of a group, and its other betas if there are any."""
    if "betas" in group:
        name = f"the betas of parameter group {number}"
        betas: list[float] = list_of(to_float, 1)(name, group["betas"])
        return betas
    if "momentum" in group:
        return [to_float(f"the momentum of parameter group {number}", group["momentum"])]
    raise ValueError(
        f"cycle_momentum needs an optimizer with momentum or betas; parameter group {number} has "
        "neither; pass cycle_momentum=False"
    )
