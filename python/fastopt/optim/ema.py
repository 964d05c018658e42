"""Exponential moving averages of the parameters, for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

import fastopt._core as _core
from fastopt._checks import flag, mapping
from fastopt._structure import IncompatibleKeys, as_groups, new_params, require_same_names
from fastopt._types import FloatArray, Group, Params

__all__ = ["WeightEMA"]


class WeightEMA:
    r"""Exponential moving average of parameters, which often evaluates better than the parameters.

    Call `update` after each step of the optimizer. Update number :math:`t` (1, 2, ...) of a
    parameter :math:`p` is

    .. math::
        a_1 &= p_1 \\
        a_t &= a_{t-1} + (1 - d_t)(p_t - a_{t-1}) \\
        d_t &= d \ \text{ or, with warmup, }\ \min\left(d, \frac{t}{9 + t}\right)

    in one pass over all parameters, with the same bits for any instruction set and number of
    threads. The averages are float64 for float64 parameters, and float32 for all others. In
    float32, rounding may keep an average at a relative distance of ``6e-8 / (1 - decay)`` from the
    parameter.

    Parameters
    ----------
    params : mapping, sequence or groups
        The parameters in the structure for the optimizer: float32, float64, bfloat16 or float16,
        dense in memory. The averages have the same names. Options in groups are ignored. A master
        of an optimizer is not seen: `update` reads the parameters.
    decay : float
        :math:`d` in [0, 1]. The average is over about ``1 / (1 - decay)`` updates.
    warmup : bool
        Use a smaller decay at first, so that the initial parameters do not dominate a short
        training.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. The same
    as ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``. The warm-up is
    that of ``tf.train.ExponentialMovingAverage``; its ``num_updates`` is the number of earlier
    updates.

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
    ...     print(params["w"])  # evaluate the model here
    [ 6.75 -6.75]
    >>> print(params["w"])
    [ 12. -12.]
    """

    def __init__(self, params: Params, decay: float = 0.999, *, warmup: bool = False) -> None:
        self._group: Group = {"params": (), "decay": decay, "warmup": warmup}
        self._params: dict[str, FloatArray] = {}
        self._averages: dict[str, FloatArray] = {}
        self._applied = np.zeros(1, bool)  # within applied()
        for group in as_groups(params)[0]:
            self.add_param_group(group)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "WeightEMA cannot be pickled or copied; save its state_dict(), and load that into a "
            "new one over the copied parameters"
        )

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters, like `Optimizer.add_param_group`; the next update is their first.

        Parameters
        ----------
        param_group : mapping
            With ``"params"``. Other options are ignored.

        Raises
        ------
        RuntimeError
            Within `applied`.
        """
        self._refuse_within_applied("add_param_group()")
        names, arrays, _ = new_params(param_group, self._params)
        params = self._params | dict(zip(names, arrays, strict=True))
        first = len(self._params)
        copies = _core.twins(list(params), list(params.values()), first, True)
        averages = self._averages | dict(zip(names, copies, strict=True))
        steps = [self._step(i) for i in range(first)] + [0] * len(names)
        group = self._group | {"params": tuple(averages.values())}
        core = _core.Updater("weight_ema")
        core.add_group(list(averages), list(averages.values()), group, [])
        core.load([{"step": step} for step in steps], [group], [group])
        # One statement without a call, in which no interrupt can come.
        self._core, self._group, self._params, self._averages = core, group, params, averages

    @property
    def decay(self) -> float:
        """The decay of the next updates; it may be changed."""
        decay: float = self._group["decay"]
        return decay

    @decay.setter
    def decay(self, decay: float) -> None:
        self._group["decay"] = decay

    @property
    def warmup(self) -> bool:
        """Whether the first updates have a smaller decay; it may be changed."""
        warmup: bool = self._group["warmup"]
        return warmup

    @warmup.setter
    def warmup(self, warmup: bool) -> None:
        self._group["warmup"] = warmup

    @property
    def params(self) -> Mapping[str, FloatArray]:
        """The parameters by name: the arrays that the constructor got."""
        return MappingProxyType(self._params)

    @property
    def averages(self) -> Mapping[str, FloatArray]:
        """The average of each parameter by name: the arrays that `update` writes, not copies.

        Before the first update they are copies of the initial parameters.
        """
        return MappingProxyType(self._averages)

    @property
    def num_updates(self) -> int:
        """The number of updates."""
        return self._step(0)

    def update(self) -> None:
        """Update the averages with the present parameters.

        Raises
        ------
        RuntimeError
            Within `applied`, or if another thread is using this object.
        """
        self._refuse_within_applied("update()")
        self._core.step([self._group], tuple(self._params.values()))

    def applied(self) -> AbstractContextManager[None]:
        """Put the averages into the parameters during a ``with`` block.

        Parameters of 16 bits get the averages rounded to nearest.

        After the block, the parameters have the same bits as before it, also after an exception or
        an interrupt. Changes of the parameters within the block are lost: do not call ``step`` or
        `fastopt.load` there. Within the block, `fastopt.save` saves the averages as ``params=``,
        and refuses ``ema=``.

        Raises
        ------
        RuntimeError
            Within another block.
        """
        names, params, averages = self._params, self._params.values(), self._averages.values()
        return _core.Applied(list(names), list(params), list(averages), self._applied)

    def state_dict(self) -> dict[str, Any]:
        """Return the options, and the average and the number of updates of each parameter.

        The arrays are those that `update` writes: copy them to keep them.

        Raises
        ------
        RuntimeError
            Within `applied`, where the parameters hold the averages.
        """
        self._refuse_within_applied("state_dict()")
        state = {
            name: {"step": self._step(i), "average": average}
            for i, (name, average) in enumerate(self._averages.items())
        }
        return {"decay": self.decay, "warmup": self.warmup, "state": state}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Load a result of `state_dict`; the arrays are copied.

        Parameters
        ----------
        state_dict : mapping
            With ``"decay"``, ``"warmup"`` and ``"state"``.
        strict : bool
            False loads the averages whose names both sides have, and returns the other names.

        Returns
        -------
        IncompatibleKeys
            The missing and the unknown names; there are none if `strict`.

        Raises
        ------
        RuntimeError
            Within `applied`.
        """
        self._refuse_within_applied("load_state_dict()")
        strict = flag("strict", strict)
        mapping("state_dict", state_dict)
        own = self.state_dict()
        missing = [] if strict else [key for key in ("decay", "warmup") if key not in state_dict]
        require_same_names(own.keys() - missing, state_dict, "state dict", extra=not strict)
        state = mapping("'state'", state_dict["state"])
        decay, warmup = (state_dict.get(key, own[key]) for key in ("decay", "warmup"))
        if strict:
            require_same_names(self._params, state, "state dict")
        entries: list[dict[str, Any] | None] = []
        values: list[Any] = []
        for name in self._params:
            if name not in state:
                entries.append(None)
                values.append(None)
                continue
            entry = mapping(f"the state of {name!r}", state[name])
            require_same_names(("step", "average"), entry, f"state of {name!r}")
            entries.append({"step": entry["step"]})
            values.append(entry["average"])
        missing += [name for name in self._params if name not in state]
        unexpected = [name for name in state if name not in self._params]
        unexpected += [key for key in state_dict if key not in own]
        result = IncompatibleKeys(missing, unexpected)
        group = self._group | {"decay": decay, "warmup": warmup}
        self._core.load(entries, [self._group], [group], values)
        return result

    def __repr__(self) -> str:
        size = sum(math.prod(param.shape) for param in self._params.values())
        return (
            f"WeightEMA(decay={self.decay}, warmup={self.warmup}, num_updates={self.num_updates}, "
            f"{len(self._params)} arrays, {size:,} elements)"
        )

    def _step(self, index: int) -> int:
        step: int = self._core.state(index)["step"]
        return step

    def _refuse_within_applied(self, what: str) -> None:
        if self._applied[0]:
            raise RuntimeError(
                f"{what} within applied(): the parameters hold the averages until its block ends"
            )
