"""Gradients of several micro-batches, summed for one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from math import isfinite
from typing import Any, NoReturn

import numpy as np

import fastopt._core as _core
from fastopt._checks import counted, to_float
from fastopt._structure import as_groups, flatten_grads, new_params
from fastopt._types import FloatArray, Grads, Group, Params

__all__ = ["GradAccumulator"]

_ONE = np.ones(1)


class GradAccumulator:
    r"""Weighted sum of the gradients of micro-batches: a large batch in little memory.

    ``add(grads, weight)`` adds ``weight * grads`` to one buffer for each parameter. If `grads` are
    gradients of the mean over a micro-batch and `weight` is the number of its samples,

    .. math::
        \frac{\sum_i n_i g_i}{\sum_i n_i}

    is the gradient of the mean over all samples, for micro-batches of any sizes. The step divides:
    ``opt.step(acc.grads, grad_scale=acc.weight)``. It clips the mean, not the sum.

    The sums are float64 for float64 parameters, and float32 for all others: a sum in 16 bits would
    lose small gradients.

    Parameters
    ----------
    params : mapping, sequence or groups
        The parameters in the structure for the optimizer. Only their names, shapes, dtypes and
        memory orders are used.

    Examples
    --------
    Seven samples in micro-batches of 3, 3 and 1, and in one batch:

    >>> import numpy as np, fastopt as fo
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((7, 4)), rng.integers(0, 3, 7)
    >>> params = {"w": np.zeros((4, 3))}
    >>> ce, acc, opt = fo.CrossEntropyLoss(), fo.GradAccumulator(params), fo.SGD(params, lr=1.0)
    >>> for i in (slice(0, 3), slice(3, 6), slice(6, 7)):
    ...     loss, dlogits = ce.value_and_grad(x[i] @ params["w"], y[i])
    ...     acc.add({"w": x[i].T @ dlogits}, weight=len(x[i]))
    >>> loss, dlogits = ce.value_and_grad(x @ params["w"], y)
    >>> info = opt.step(acc.grads, grad_scale=acc.weight)
    >>> acc.reset()
    >>> bool(np.allclose(params["w"], -x.T @ dlogits))
    True
    """

    def __init__(self, params: Params) -> None:
        self._sums: dict[str, FloatArray] = {}
        # The weights are one more array, which the same call sums, so that no interrupt comes
        # between the two.
        self._total = np.zeros(1)
        self._groups: list[Group] = [_make_group({"weight": self._total})]
        self._core = _make_core(self._groups, [])
        self._named: Set[str] = set()
        groups, self._by_group = as_groups(params)
        for group in groups:
            self.add_param_group(group)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "GradAccumulator cannot be pickled or copied; make a new one over the copied parameters"
        )

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters, like `Optimizer.add_param_group`.

        Parameters
        ----------
        param_group : mapping
            With ``"params"``. Other options are ignored.
        """
        names, arrays, given = new_params(param_group, self._sums)
        sums = dict(zip(names, _core.twins(names, arrays, 0, False), strict=True))
        groups = [*self._groups, _make_group(sums)]
        core = _make_core(groups, [self._count(i) for i in range(1 + len(self._sums))])
        named = self._named | given
        sums = self._sums | sums
        # One statement without a call, in which no interrupt can come.
        self._core, self._groups, self._sums, self._named = core, groups, sums, named

    def add(self, grads: Grads, weight: float = 1.0) -> None:
        """Add ``weight * grads`` to the sums; the first call of a round replaces them.

        Parameters
        ----------
        grads : mapping or sequence
            In any structure that `Optimizer.step` takes. A gradient has the shape of its parameter,
            any strides, and the dtype float32, bfloat16 or float16 (float64 for float64
            parameters); it is only read. None adds nothing.
        weight : float
            At least 0. Pass the number by which the mean over the micro-batch divides: the number
            of samples, the number of targets that are not ignored, or the sum of their class
            weights. With 1, all calls have the same weight. A positive number that the dtype of an
            array rounds to 0 or infinity is refused.
        """
        flat = flatten_grads(grads, self._sums, self._groups[1:], self._by_group, self._named)
        if len(flat) != len(self._sums):
            raise ValueError(
                f"grads has {counted(len(flat), 'gradient')} for "
                f"{counted(len(self._sums), 'parameter')}; pass None for a parameter without one"
            )
        weight = to_float("weight", weight)
        if isfinite(weight) and not isfinite(self.weight + weight):
            raise ValueError(f"weight is {weight}, and the sum of the weights is beyond float64")
        groups = [group | {"weight": weight} for group in self._groups]
        self._core.step(groups, [_ONE, *flat])

    @property
    def grads(self) -> dict[str, FloatArray | None]:
        """The sums by name, which `add` writes; None for a parameter without a gradient."""
        return {
            name: array if self._count(number) else None
            for number, (name, array) in enumerate(self._sums.items(), 1)
        }

    @property
    def weight(self) -> float:
        """The sum of the weights of this round; 0 before the first `add`."""
        return float(self._total[0]) if self._count(0) else 0.0

    def reset(self) -> None:
        """Begin a new round."""
        steps: list[dict[str, Any] | None] = [{"step": 0}] * (1 + len(self._sums))
        self._core.load(steps, self._groups, self._groups)

    def __repr__(self) -> str:
        size = sum(array.size for array in self._sums.values())
        return f"GradAccumulator({len(self._sums)} arrays, {size:,} elements, weight={self.weight})"

    def _count(self, index: int) -> int:
        count: int = self._core.state(index)["step"]
        return count


def _make_group(sums: Mapping[str, FloatArray]) -> Group:
    return {"params": tuple(sums.values()), "param_names": tuple(sums), "weight": 1.0}


def _make_core(groups: list[Group], counts: Sequence[int]) -> _core.Updater:
    """Return a new updater for the sums of these groups, with the numbers of calls so far."""
    core = _core.Updater("accumulate")
    for group in groups:
        core.add_group(list(group["param_names"]), list(group["params"]), group, [])
    new = sum(len(group["params"]) for group in groups) - len(counts)
    core.load([{"step": count} for count in [*counts, *[0] * new]], groups, groups)
    return core
