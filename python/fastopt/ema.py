"""Exponential moving averages of the parameters, to evaluate with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from fastopt import _core
from fastopt._arrays import writer_into
from fastopt._types import FloatArray, Group, Params
from fastopt.optim._base import _groups, _new_params, _require_same_names

__all__ = ["WeightEMA"]


class WeightEMA:
    r"""Exponential moving average of parameters: often better to evaluate than the last ones.

    Call `update` after each step of the optimizer. Update number :math:`t` (1, 2, ...) of a
    parameter :math:`p` is

    .. math::
        a_1 &= p_1 \\
        a_t &= a_{t-1} + (1 - d_t)(p_t - a_{t-1}) \\
        d_t &= d \ \text{ or, with warmup, }\ \min\left(d, \frac{t}{9 + t}\right)

    in one pass over all parameters, with the same bits for any instruction set and number of
    threads. In float32 the rounding of the updates may hold an average back from the parameter by
    ``6e-8 / (1 - decay)`` of itself.

    Parameters
    ----------
    params : mapping, sequence or groups
        What the optimizer was given: float32 or float64, dense in memory. The averages get the
        same names; options in groups are passed over.
    decay : float
        :math:`d` in [0, 1]. The average reaches back over about ``1 / (1 - decay)`` updates. The
        attribute `decay` may be changed; it is read at each update.
    warmup : bool
        Forget faster at first, so that a short training is not judged by where it began.

    Attributes
    ----------
    decay, warmup
        As above.

    Raises
    ------
    TypeError, ValueError
        If a parameter or an option cannot be used.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. The same
    as ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``; the warm-up is
    that of ``tf.train.ExponentialMovingAverage``, whose ``num_updates`` is here the number of
    updates before.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> params = {"w": np.zeros(2)}
    >>> opt, ema = fo.SGD(params, lr=1.0), fo.WeightEMA(params, decay=0.75)
    >>> for _ in range(3):
    ...     info = opt.step({"w": np.array([-4.0, 4.0])})
    ...     ema.update()
    >>> print(params["w"], ema.averages["w"])
    [ 12. -12.] [ 6.75 -6.75]
    >>> with ema.applied():
    ...     print(params["w"])  # here the model is evaluated
    [ 6.75 -6.75]
    >>> print(params["w"])
    [ 12. -12.]
    """

    def __init__(self, params: Params, decay: float = 0.999, *, warmup: bool = False) -> None:
        self.decay = decay
        self.warmup = warmup
        self._params: dict[str, FloatArray] = {}
        self._averages: dict[str, FloatArray] = {}
        self._applied = False
        for group in _groups(params)[0]:
            self.add_param_group(group)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "WeightEMA cannot be pickled or copied; save its state_dict(), and load that into a "
            "new one over the copied parameters"
        )

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters, as to an optimizer; their first update is the next one.

        Parameters
        ----------
        param_group : mapping
            With ``"params"``; its other options are passed over.

        Raises
        ------
        TypeError, ValueError
            If a parameter cannot be used. Nothing has been added then.
        RuntimeError
            Within `applied`.
        """
        self._refuse_within_applied("add_param_group()")
        names, arrays = _new_params(param_group, self._params)
        params = self._params | dict(zip(names, arrays, strict=True))
        writer_into(params)  # checks them
        averages = self._averages | {name: np.array(params[name], order="K") for name in names}
        steps = [self._step(i) for i in range(len(self._params))] + [0] * len(names)
        self._core, self._group = _make_core(averages, steps, self.decay, self.warmup)
        self._params, self._averages = params, averages

    @property
    def params(self) -> Mapping[str, FloatArray]:
        """The parameters by name: the arrays that it was given."""
        return MappingProxyType(self._params)

    @property
    def averages(self) -> Mapping[str, FloatArray]:
        """The average of each parameter by name: the arrays that `update` writes, not copies.

        Before the first update they hold the parameters as they were at the beginning.
        """
        return MappingProxyType(self._averages)

    @property
    def num_updates(self) -> int:
        """How many updates there have been."""
        return self._step(0)

    def update(self) -> None:
        """Take the parameters as they are now into the averages.

        Raises
        ------
        TypeError, ValueError
            If `decay`, a parameter or an average cannot be used any more. Nothing has been written
            then.
        RuntimeError
            Within `applied`, or if another thread is using this object.
        """
        self._refuse_within_applied("update()")
        self._group["decay"], self._group["warmup"] = self.decay, self.warmup
        self._core.step([self._group], tuple(self._params.values()), None, 1.0, False, False)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the parameters for the length of a ``with`` block.

        Afterwards the parameters are what they were before it, to the bit, whether the block ends
        or raises; what it has written into them is lost. They are kept in a copy meanwhile.

        Raises
        ------
        TypeError, ValueError
            If a parameter cannot be written any more. Nothing has been written then.
        RuntimeError
            Within another such block.
        """
        self._refuse_within_applied("applied()")
        write = writer_into(self._params)
        before = [np.array(param, order="K") for param in self._params.values()]
        self._applied = True
        try:
            write(tuple(self._averages.values()))
            yield
        finally:
            write(before)
            self._applied = False

    def state_dict(self) -> dict[str, Any]:
        """Return the options, and of each parameter the average and the number of its updates.

        The arrays are those that `update` writes: copy what is to outlive the next one.
        """
        state = {
            name: {"step": self._step(i), "average": average}
            for i, (name, average) in enumerate(self._averages.items())
        }
        return {"decay": self.decay, "warmup": self.warmup, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the arrays are copied.

        Raises
        ------
        KeyError
            If names are missing or unknown.
        TypeError, ValueError
            If an option, an array's dtype or its shape does not match. In every case nothing has
            been loaded.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, not {type(state_dict).__name__}")
        _require_same_names(("decay", "warmup", "state"), state_dict, "state dict")
        state, decay, warmup = (state_dict[key] for key in ("state", "decay", "warmup"))
        _require_same_names(self._params, state, "state dict")
        values, steps = [], []
        for name in self._params:
            entry = state[name]
            if not isinstance(entry, Mapping):
                raise TypeError(f"the state of {name!r} must be a mapping, not {entry!r}")
            _require_same_names(("step", "average"), entry, f"state of {name!r}")
            value = entry["average"]
            # A copy, since it may be the very array that is written.
            values.append(value.copy() if isinstance(value, np.ndarray) else value)
            steps.append(entry["step"])
        core, group = _make_core(self._averages, steps, decay, warmup)
        writer_into(self._averages)(values)
        self._core, self._group = core, group
        self.decay, self.warmup = decay, warmup

    def __repr__(self) -> str:
        size = sum(param.size for param in self._params.values())
        return (
            f"WeightEMA(decay={self.decay}, warmup={self.warmup}, num_updates={self.num_updates}, "
            f"{len(self._params)} arrays, {size:,} elements)"
        )

    def _step(self, index: int) -> int:
        step: int = self._core.state(index)["step"]
        return step

    def _refuse_within_applied(self, what: str) -> None:
        if self._applied:
            raise RuntimeError(
                f"{what} within applied(): the parameters hold the averages until its block ends"
            )


def _make_core(
    averages: Mapping[str, FloatArray], steps: Sequence[int], decay: float, warmup: bool
) -> tuple[_core.Optimizer, Group]:
    """Return what updates these averages, after so many updates of each, and its options."""
    group: Group = {"params": tuple(averages.values()), "decay": decay, "warmup": warmup}
    core = _core.Optimizer("weight_ema")
    core.add_group(list(averages), group["params"], group)
    core.load([{"step": step} for step in steps], [group])
    return core, group
