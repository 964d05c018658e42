"""The common part of the fused and the reference optimizers: groups, names, state dicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from fastopt import _checks, _storage
from fastopt._checks import NamesError, counted, flag, int64, mapping, short_repr
from fastopt._structure import (
    COPIES,
    IncompatibleKeys,
    as_groups,
    few,
    flatten_grads,
    new_params,
    require_same_names,
)
from fastopt._types import FloatArray, Grads, Group, Params

_check_norm = _checks.number(">= 0, NaN or infinite", lambda norm: not norm < 0)


class StepInfo(NamedTuple):
    """The result of a step.

    Attributes
    ----------
    grad_norm : float or None
        Norm of all gradients, after `grad_scale` and before clipping; None without `max_norm` and
        `skip_nonfinite`.
    skipped : bool
        Whether the step did nothing because a gradient holds NaN or infinity.
    """

    grad_norm: float | None
    skipped: bool


class StateView(Mapping[str, Mapping[str, Any]]):
    """``optimizer.state``: the arrays and the integer ``step`` of each parameter, by name.

    The mappings are read-only. The arrays are those of the optimizer, not copies.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return MappingProxyType(self._optimizer._state(self._optimizer._index[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer._index)

    def __len__(self) -> int:
        return len(self._optimizer._index)

    def __repr__(self) -> str:
        return repr({name: dict(self[name]) for name in self})


class Optimizer(ABC):
    """Base class of the optimizers: parameter groups and their names.

    A subclass contains the states and does the step.

    Parameters
    ----------
    params : mapping, sequence or groups
        Arrays of float32, float64, bfloat16 or float16, dense in memory, which are updated in
        place: a mapping name -> array, a sequence of arrays, or a list of dicts with ``"params"``
        and options. To set a parameter, write into its array (``w[...] = x``). bfloat16 is
        ``ml_dtypes.bfloat16``.
    defaults : dict
        The options for groups that do not set them.

    Notes
    -----
    The arithmetic is that of float32, and of float64 for float64 parameters. Parameters and
    gradients may be of 16 bits, and so may the states, which the last options of every optimizer
    choose:

    state_dtype : {None, "float32", "bfloat16"}
        The type of the states, also as a dtype. None is float64 for float64 parameters, which have
        no other, and float32 for all others.
    master : {None, "float32", "split"}
        What a parameter of 16 bits has lost by rounding is kept in its state as ``master_param``.
        "float32": as the whole parameter in float32. "split": as the int16 that makes a float32
        together with the bfloat16 parameter. The steps are those of a float32 parameter. float16
        parameters need "float32". A step takes a parameter that was written since the last step.
    stochastic_rounding : bool
        Round bfloat16 parameters without a master, and second moments in bfloat16, up or down at
        random, so that the mean is exact and small changes are not lost.
    seed : int
        The random numbers depend on this number in [0, 2**63), the number of the step, the name of
        the parameter and the place of the element, and on nothing else.

    These four are fixed when a group is added; only `load_state_dict` changes them.
    """

    # The state whose rounding `stochastic_rounding` changes, beside that of the parameters.
    _second_moment: ClassVar[str | None] = None

    def __init__(self, params: Params, defaults: Group) -> None:
        self.defaults = defaults | _storage.check_options(defaults)
        self._param_groups: list[Group] = []
        self._index: dict[str, int] = {}  # the number of each name, in the order of the parameters
        self._named: Set[str] = set()  # the names that were given, not numbered
        groups, self._by_group = as_groups(params)
        for group in groups:
            self.add_param_group(group)

    # Each of these changes everything, `param_groups` too, or raises. The options of `_step` are
    # those of `step`, in its order.
    @abstractmethod
    def _add_group(
        self, names: list[str], arrays: list[FloatArray], group: Group, starts: list[int]
    ) -> None: ...
    @abstractmethod
    def _remove_group(self, index: int) -> None: ...
    @abstractmethod
    def _step(
        self,
        grads: Sequence[FloatArray | None],
        max_norm: float | None,
        norm_type: float,
        grad_scale: float,
        skip_nonfinite: bool,
        zero_grads: bool,
        out: Sequence[FloatArray | None] | None,
        total_norm: float | None,
    ) -> StepInfo: ...
    @abstractmethod
    def _state(self, index: int) -> dict[str, Any]: ...
    @abstractmethod
    def _load(self, states: list[dict[str, Any] | None], groups: list[Group]) -> None: ...

    @property
    def param_groups(self) -> list[Group]:
        """The groups: dicts of ``"params"``, ``"param_names"`` and the options, read at each step.

        You may change the options. You may also add other keys, which `state_dict` saves too.
        """
        return self._param_groups

    @param_groups.setter
    def param_groups(self, groups: object) -> None:
        if groups is not self._param_groups:  # as after `+=`, which the next step refuses
            raise AttributeError(
                "param_groups cannot be replaced: change the options in its groups, or call "
                "add_param_group or remove_param_group"
            )

    @property
    def state(self) -> StateView:
        """The state of each parameter by name; see `StateView`."""
        return StateView(self)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters.

        Parameters
        ----------
        param_group : mapping
            ``"params"``, a mapping name -> array or a sequence of arrays, and any options that
            differ from the optimizer's defaults. If the arrays are parts of larger parameters,
            ``"starts"`` may be a sequence with an integer >= 0 for each array: the number of its
            first element in the memory order of the whole parameter. The noise of
            `stochastic_rounding` is then that of the whole parameter, if the part has its name.
            ``"starts"`` is no option: neither `param_groups` nor a state dict holds it.
        """
        names, arrays, given = new_params(param_group, self._index)
        unknown = sorted(map(repr, set(param_group) - set(self.defaults) - {"params", "starts"}))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(unknown)} in a parameter group; "
                f"{type(self).__name__} has {', '.join(self.defaults)}"
            )
        check_starts = _checks.list_of(_checks.integer(0), len(names), len(names))
        starts = check_starts("starts", param_group.get("starts", [0] * len(names)))
        group: Group = {"params": tuple(arrays), "param_names": tuple(names)}
        group |= {key: param_group.get(key, default) for key, default in self.defaults.items()}
        group |= self._storage_options(group)
        index = self._index | {name: i for i, name in enumerate(names, len(self._index))}
        named = self._named | given
        count, before = len(self.param_groups), (self._index, self._named)
        try:
            self._index, self._named = index, named
            self._add_group(names, arrays, group, starts)
        except BaseException:
            self._index, self._named = before
            if len(self.param_groups) > count:  # an interrupt came after the change
                self._remove_group(count)
            raise

    def remove_param_group(self, index: int) -> None:
        """Remove a group and the states of its parameters.

        Parameters
        ----------
        index : int
            The number of the group in `param_groups`; a negative number counts from the end.

        Raises
        ------
        IndexError
            If the group does not exist.
        """
        number, count = int64("index", index), len(self.param_groups)
        if not -count <= number < count:
            raise IndexError(
                f"there is no group {number}: the optimizer has {counted(count, 'group')}"
            )
        number %= count
        gone = self.param_groups[number]["param_names"]
        index_of = {name: i for i, name in enumerate(n for n in self._index if n not in gone)}
        named = self._named - set(gone)
        try:
            self._remove_group(number)
            self._index, self._named = index_of, named
        except BaseException:
            if len(self.param_groups) < count:  # an interrupt came after the change
                self._index, self._named = index_of, named
            raise

    def step(
        self,
        grads: Grads,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        grad_scale: float = 1.0,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        out: Grads | None = None,
        total_norm: float | None = None,
    ) -> StepInfo:
        """Update all parameters in place by one step.

        Parameters
        ----------
        grads : mapping or sequence
            The gradients in the structure of the parameters: a mapping by name, or for a sequence
            of parameters, a sequence in the same order. For groups, one mapping over all groups, or
            a list with a mapping or sequence for each group. A gradient has the shape of its
            parameter, any strides, and the dtype float32, bfloat16 or float16 (float64 for float64
            parameters); it is only read. None skips the parameter, its state and its step counter.
        max_norm : float, optional
            Clip the gradients to this norm: after `grad_scale`, the update multiplies them by
            ``min(1, max_norm / (norm + 1e-6))``. The norm is over all gradients.
        norm_type : float
            2 for the 2-norm, inf for the largest magnitude.
        grad_scale : float
            The update divides the gradients by this number (loss scaling).
        skip_nonfinite : bool
            Do nothing if a gradient holds NaN or infinity; the result says so.
        zero_grads : bool
            Set the gradients to zero after the update, but not if the step is skipped. They must be
            writeable and must not share memory.
        out : mapping or sequence, optional
            Arrays in the structure of `grads` that get the new parameters, rounded to nearest: of
            bfloat16 or float16, with the shape and memory order of a float32 parameter. None means
            no copy. A parameter that is skipped is not copied.
        total_norm : float, optional
            The norm of all gradients before `grad_scale`, as `grad_norm` returns it, if those of
            this step are a part of them. The step then measures no norm, and `norm_type` has no
            effect: `max_norm` and the result use this norm. With `skip_nonfinite`, NaN or infinity
            skips the step. Without `max_norm` and `skip_nonfinite` it is a ValueError.

        Returns
        -------
        StepInfo
            ``grad_norm`` and ``skipped``.

        Examples
        --------
        Two optimizers, perhaps in two processes, each with a part of a parameter:

        >>> import numpy as np, fastopt as fo
        >>> w, grad = np.zeros(1000), np.ones(1000)
        >>> norm = fo.grad_norm(grad)
        >>> for part in (slice(0, 300), slice(300, 1000)):
        ...     opt = fo.Adam([{"params": {"w": w[part]}, "starts": [part.start]}])
        ...     info = opt.step({"w": grad[part]}, max_norm=1.0, total_norm=norm)
        >>> info.grad_norm == norm
        True
        """
        if total_norm is not None:
            total_norm = _check_norm("total_norm", total_norm)
            if max_norm is None and not flag("skip_nonfinite", skip_nonfinite):
                raise ValueError(
                    "total_norm has no effect without max_norm or skip_nonfinite; give one of them"
                )
        groups = self._param_groups
        if type(grads) is not list or self._named or self._by_group or len(groups) > 1:
            grads = flatten_grads(grads, self._index, groups, self._by_group, self._named)
        if out is not None:
            out = flatten_grads(out, self._index, groups, self._by_group, self._named, COPIES)
        return self._step(
            grads, max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads, out, total_norm
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parameters and the options of all groups.

        The arrays are those of the optimizer, which the next step changes: copy them to keep them.
        """
        groups = []
        for group in self.param_groups:
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            groups.append(options | {"params": list(group["param_names"])})
        state = {name: self._state(i) for name, i in self._index.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> IncompatibleKeys:
        """Load a result of `state_dict`; the arrays are copied.

        Parameters are matched by name within each group, in any order.

        Parameters
        ----------
        state_dict : mapping
            With ``"state"`` and ``"param_groups"``.
        strict : bool
            False loads the names that both sides have, and returns the others. The options of a
            group then come from the saved group that contains the first of its saved parameters.
            An entry that is not a state of this optimizer is refused in any case.

        Returns
        -------
        IncompatibleKeys
            The missing and the unknown names; there are none if `strict`.
        """
        strict = flag("strict", strict)
        state, saved = _read_state_dict(state_dict)
        if strict:
            require_same_names(self._index, state, "state dict")
            if len(saved) != len(self.param_groups):
                raise ValueError(
                    f"the state dict has {counted(len(saved), 'group')}, the optimizer "
                    f"{len(self.param_groups)}"
                )
        missing = [name for name in self._index if name not in state]
        unexpected = [name for name in state if name not in self._index]
        group_of = {name: group for group in saved for name in group["params"]}
        known = {*self._index, *unexpected}
        unexpected += [name for name in group_of if name not in known]
        groups: list[Group] = []
        for number, old in enumerate(self.param_groups):
            names = old["param_names"]
            if strict:
                new: Mapping[str, Any] | None = saved[number]
                if set(saved[number]["params"]) != set(names):
                    raise ValueError(
                        f"group {number} holds {few(names)}, in the state dict "
                        f"{few(saved[number]['params'])}"
                    )
                require_same_names(
                    self.defaults,
                    saved[number],
                    f"group {number} of the state dict",
                    extra=True,
                    hint=f" (options of {type(self).__name__}: was another optimizer saved?)",
                )
            else:
                new = next((group_of[name] for name in names if name in group_of), None)
                where = f"param_groups[{number}]"
                missing += [f"{where}.{key}" for key in self.defaults if key not in (new or {})]
                unknown = (new or {}).keys() - old.keys() - {"params"}
                unexpected += [f"{where}.{key}" for key in sorted(unknown)]
                new = new and {key: value for key, value in new.items() if key not in unknown}
            groups.append(self._loaded_group(number, old, new))
        result = IncompatibleKeys(missing, unexpected)
        self._load([state.get(name) for name in self._index], groups)
        return result

    def _loaded_group(self, number: int, old: Group, new: Mapping[str, Any] | None) -> Group:
        """Return group `number`, with the options of a saved group if there is one."""
        if new is None:
            return dict(old)
        own = {"params": old["params"], "param_names": old["param_names"]}
        options = {key: value for key, value in new.items() if key not in own}
        for key, default in self.defaults.items():
            value = options.setdefault(key, old[key])
            if isinstance(default, tuple) and isinstance(value, list):
                options[key] = tuple(value)  # a file may have lists instead of tuples
        group = own | options
        return group | self._storage_options(group)

    def _storage_options(self, group: Group) -> Group:
        """Return the options of the types of a group in plain form, after all checks."""
        return _storage.check_options(group, group["params"], self._second_moment is not None)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {number}")
            names = group["param_names"]
            shown = few(names)
            size = sum(math.prod(param.shape) for param in group["params"])
            lines.append(f"    params: {shown} ({len(names)} arrays, {size:,} elements)")
            lines += [f"    {key}: {group[key]}" for key in sorted(self.defaults)]
        return "\n".join([*lines, ")"])


def _read_state_dict(
    state_dict: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], list[Mapping[str, Any]]]:
    """Return the states and the groups of a state dict, after a check of its structure."""
    for key in ("state", "param_groups"):
        if key not in mapping("state_dict", state_dict):
            raise NamesError(f"the state dict has no {key!r}")
    groups = state_dict["param_groups"]
    states = {
        name: dict(mapping(f"the state of {name!r}", entry))
        for name, entry in mapping("'state'", state_dict["state"]).items()
    }
    if not isinstance(groups, Sequence) or isinstance(groups, str):
        raise TypeError(f"'param_groups' must be a list, not {short_repr(groups)}")
    for number, group in enumerate(groups):
        names = mapping(f"group {number} of the state dict", group).get("params")
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise TypeError(
                f"the 'params' of group {number} of the state dict must be a list of names, not "
                + short_repr(names)
            )
    return states, [_storage.DEFAULTS | dict(group) for group in groups]  # of an older file
