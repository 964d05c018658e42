"""What the fused and the reference optimizers share: groups, names, gradients, state dicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastopt import _core
from fastopt._checks import NamesError, counted, flag, int64
from fastopt._types import FloatArray, Grads, Group, Params


class StepInfo(NamedTuple):
    """The result of a step.

    Attributes
    ----------
    grad_norm : float or None
        Norm of all gradients, after `grad_scale` and before clipping; None if no option of the
        step needs it.
    skipped : bool
        Whether nothing was done because of a NaN or infinity in the gradients.
    """

    grad_norm: float | None
    skipped: bool


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict(..., strict=False)`` did not find a partner for.

    Attributes
    ----------
    missing_keys : list of str
        Parameters of the object, and options of its groups as ``"param_groups[0].lr"``, that the
        state dict does not have. They keep their values.
    unexpected_keys : list of str
        Parameters and options of the state dict that the object does not have. They are not loaded.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.missing_keys or self.unexpected_keys)


class StateView(Mapping[str, Mapping[str, Any]]):
    """``optimizer.state``: parameter name -> its arrays and its integer ``step``.

    The mappings are read-only; the arrays in them are the optimizer's own.
    """

    def __init__(self, optimizer: OptimizerBase) -> None:
        self._optimizer = optimizer

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return MappingProxyType(self._optimizer._state(self._optimizer._index[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizer._index)

    def __len__(self) -> int:
        return len(self._optimizer._index)

    def __repr__(self) -> str:
        return repr({name: dict(self[name]) for name in self})


class OptimizerBase(ABC):
    """Parameter groups and their names; a subclass keeps the states and does the step."""

    param_groups: list[Group]

    def __init__(self, params: Params, defaults: Group) -> None:
        self.defaults = defaults
        self.param_groups = []
        self._index: dict[str, int] = {}  # of each name, in the order of the parameters
        self._named: set[str] = set()  # the names that were given, not numbered
        groups, self._by_group = _groups(params)
        for group in groups:
            self.add_param_group(group)

    # Each of these changes everything, `param_groups` too, or raises.
    @abstractmethod
    def _add_group(self, names: list[str], arrays: list[FloatArray], group: Group) -> None: ...
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
    ) -> StepInfo: ...
    @abstractmethod
    def _state(self, index: int) -> dict[str, Any]: ...
    @abstractmethod
    def _load(self, states: list[dict[str, Any] | None], groups: list[Group]) -> None: ...

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
            differ from the optimizer's defaults.

        Raises
        ------
        TypeError, ValueError
            If a parameter or an option cannot be used. Nothing has been added then.
        """
        params = _settled(_params_of(param_group))
        names, arrays = _new_params({"params": params}, self._index)
        unknown = sorted(map(repr, set(param_group) - set(self.defaults) - {"params"}))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(unknown)} in a parameter group; "
                f"{type(self).__name__} has {', '.join(self.defaults)}"
            )
        group: Group = {"params": tuple(arrays), "param_names": tuple(names)}
        group |= {key: param_group.get(key, default) for key, default in self.defaults.items()}
        index = self._index | {name: i for i, name in enumerate(names, len(self._index))}
        named = self._named | set(names) if isinstance(params, Mapping) else self._named
        count, before = len(self.param_groups), (self._index, self._named)
        try:
            self._index, self._named = index, named
            self._add_group(names, arrays, group)
        except BaseException:
            self._index, self._named = before
            if len(self.param_groups) > count:  # an interrupt came just behind it
                self._remove_group(count)
            raise

    def remove_param_group(self, index: int) -> None:
        """Remove a group: its parameters are not updated any more, and their states are gone.

        Parameters
        ----------
        index : int
            The number of the group in `param_groups`; negative ones count from the end.

        Raises
        ------
        TypeError, IndexError
            If there is no such group.
        """
        number, count = int64("index", index), len(self.param_groups)
        if not -count <= number < count:
            raise IndexError(
                f"there is no group {number}: the optimizer has {counted(count, 'group')}"
            )
        number %= count
        gone = self.param_groups[number]["param_names"]
        index_of = {name: i for i, name in enumerate(n for n in self._index if n not in gone)}
        named = self._named.difference(gone)
        try:
            self._remove_group(number)
            self._index, self._named = index_of, named
        except BaseException:
            if len(self.param_groups) < count:  # an interrupt came just behind it
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
    ) -> StepInfo:
        """Update all parameters in place, by one step.

        Parameters
        ----------
        grads : mapping or sequence
            The gradients: a mapping by name; or, for parameters given as a sequence, one in the
            same order. For parameters given in groups, a mapping by name over all groups, or a
            list with one of these for each group. Each has the shape and dtype of its parameter and
            any strides, and is only read. None skips the parameter, its state and its step counter.
        max_norm : float, optional
            Clip the gradients, as they are after `grad_scale`, to this norm over all of them:
            they are multiplied by ``min(1, max_norm / (norm + 1e-6))`` as they are used.
        norm_type : float
            2 for the 2-norm, inf for the largest magnitude.
        grad_scale : float
            Divide the gradients by this (loss scaling), as they are used.
        skip_nonfinite : bool
            Do nothing, and say so, if a gradient holds NaN or infinity.
        zero_grads : bool
            Set the gradients to zero after they have been used; they must be writeable then, and
            share no memory. A step that is skipped leaves them.

        Returns
        -------
        StepInfo
            ``grad_norm``, the norm before clipping (None without `max_norm` and
            `skip_nonfinite`), and ``skipped``.

        Raises
        ------
        TypeError, ValueError, KeyError
            If an array or an option cannot be used. Nothing has been written then.
        RuntimeError
            If another thread is using this optimizer.
        """
        if type(grads) is not list or self._named or self._by_group or len(self.param_groups) > 1:
            grads = _flatten_grads(
                grads, self._index, self.param_groups, self._by_group, self._named
            )
        return self._step(grads, max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all parameters and the options of all groups.

        The arrays are the optimizer's own: copy what is to outlive the next step.
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
        """Take over what `state_dict` returned; the arrays are copied.

        Parameters are matched by name within each group, whatever their order.

        Parameters
        ----------
        state_dict : mapping
            With ``"state"`` and ``"param_groups"``.
        strict : bool
            False loads what has a partner, and returns the rest. A group then takes the options of
            the saved group that holds the first of its parameters, as far as it has them itself. An
            entry that is not a state of this optimizer is refused all the same.

        Returns
        -------
        IncompatibleKeys
            The names that are missing and those that are not known, both empty if `strict`.

        Raises
        ------
        KeyError
            If names of parameters, states or options are missing or unknown, and `strict`.
        TypeError, ValueError
            If the groups, or an array's dtype or shape, do not match. In every case nothing has
            been loaded.
        """
        strict = flag("strict", strict)
        state, saved = _read_state_dict(state_dict)
        if strict:
            _require_same_names(self._index, state, "state dict")
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
                        f"group {number} holds {_few(names)}, in the state dict "
                        f"{_few(saved[number]['params'])}"
                    )
                _require_same_names(
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
        """Return group `number` with the options of a saved one, or as it is."""
        if new is None:
            return dict(old)
        own = {"params": old["params"], "param_names": old["param_names"]}
        options = {key: value for key, value in new.items() if key not in own}
        for key, default in self.defaults.items():
            value = options.setdefault(key, old[key])
            if isinstance(default, tuple) and isinstance(value, list):
                options[key] = tuple(value)  # from a file that has no tuples
        return own | options

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {number}")
            names = group["param_names"]
            shown = _few(names)
            size = sum(param.size for param in group["params"])
            lines.append(f"    params: {shown} ({len(names)} arrays, {size:,} elements)")
            lines += [f"    {key}: {group[key]}" for key in sorted(self.defaults)]
        return "\n".join([*lines, ")"])


def _read_state_dict(
    state_dict: Mapping[str, Any],
) -> tuple[dict[str, dict[str, Any]], list[Mapping[str, Any]]]:
    """Return the states and the groups of a state dict, after a check of its structure."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, not {_core.short_repr(state_dict)}")
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise NamesError(f"the state dict has no {key!r}")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping):
        raise TypeError(f"'state' must be a mapping, not {_core.short_repr(state)}")
    states = {}
    for name, entry in state.items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"the state of {name!r} must be a mapping, not {_core.short_repr(entry)}"
            )
        states[name] = dict(entry)
    if not isinstance(groups, Sequence) or isinstance(groups, str):
        raise TypeError(f"'param_groups' must be a list, not {_core.short_repr(groups)}")
    for number, group in enumerate(groups):
        if not isinstance(group, Mapping):
            raise TypeError(
                f"group {number} of the state dict must be a mapping, not {_core.short_repr(group)}"
            )
        names = group.get("params")
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise TypeError(
                f"the 'params' of group {number} of the state dict must be a list of names, not "
                + _core.short_repr(names)
            )
    return states, list(groups)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _flatten_grads(
    grads: Grads,
    names: Iterable[str],
    groups: Sequence[Group],
    by_group: bool,
    named: Set[str],
) -> Sequence[FloatArray | None]:
    """Return the gradients as one flat sequence in the order of the parameters.

    `names` are those of all `groups`; `by_group` says that the parameters were given as groups,
    `named` are the names that were given, not numbered.
    """
    if isinstance(grads, Mapping):
        if grads and not named and not by_group and set(grads).isdisjoint(names):
            raise NamesError(
                "gradients of parameters that were given as a sequence must be a sequence in the "
                f"same order, or have their numbers as names; not {_few(list(map(repr, grads)))}"
            )
        return _by_name(grads, names)
    if not isinstance(grads, Sequence) or isinstance(grads, str):
        raise TypeError(
            f"grads must be a mapping or a sequence of arrays, not {type(grads).__name__}"
            + "; put a single array into a list" * isinstance(grads, np.ndarray)
            + "; pass the mapping itself" * isinstance(grads, ItemsView)
        )
    nested = (isinstance(part, Mapping | list | tuple) for part in grads)
    if not by_group and not (len(groups) > 1 and all(nested)):
        if named:
            _refuse_sequence(names)
        return grads
    if len(grads) != len(groups):
        raise ValueError(
            f"grads has {counted(len(grads), 'group')} for "
            f"{counted(len(groups), 'parameter group')}; pass one list or mapping for each group, "
            "or one mapping by name"
        )
    flat: list[FloatArray | None] = []
    for number, (group, part) in enumerate(zip(groups, grads, strict=True)):
        own = group["param_names"]
        if isinstance(part, Mapping) and set(part) == {"params"} and "params" not in own:
            part = part["params"]
        if isinstance(part, Mapping):
            flat += _by_name(part, own)
            continue
        if not isinstance(part, Sequence):
            raise TypeError(
                f"the gradients of group {number} must be a mapping or a sequence of arrays, "
                f"not {type(part).__name__}; pass one list or mapping for each group"
            )
        if not named.isdisjoint(own):
            _refuse_sequence(own)
        if len(part) != len(own):
            raise ValueError(
                f"group {number} of grads has {counted(len(part), 'gradient')} for "
                f"{counted(len(own), 'parameter')}; pass None for a parameter without one"
            )
        flat += part
    return flat


def _groups(params: Params) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the groups that `params` stands for, and whether it was given as groups."""
    if isinstance(params, Mapping):
        return [{"params": params}], False
    if isinstance(params, np.ndarray) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be a mapping name -> array, a sequence of arrays or a list of groups, "
            f"not {type(params).__name__}"
            + "; put a single array into a list"
            * isinstance(params, np.ndarray)
        )
    items: list[Any] = list(params)
    if not items:
        raise ValueError("params is empty: there is nothing to optimize")
    if all(isinstance(item, Mapping) for item in items):
        return items, True
    return [{"params": items}], False


def _params_of(group: Mapping[str, Any]) -> Any:
    if not isinstance(group, Mapping):
        raise TypeError(
            f"a parameter group must be a mapping with 'params', not {type(group).__name__}"
        )
    if "params" not in group:
        raise ValueError(
            f"a parameter group needs 'params', this one has {_few(list(map(repr, group)))}; the "
            "arrays of all layers go into one mapping, with names such as 'layer1.weight'"
        )
    return group["params"]


def _new_params(
    group: Mapping[str, Any], taken: Collection[str]
) -> tuple[list[str], list[FloatArray]]:
    """Return the names and arrays of a group that joins parameters with the names `taken`."""
    # Numbers go on behind the largest one there is: a group before may have been removed.
    numbers = [int(name) + 1 for name in taken if name.isdecimal() and len(name) < 19]
    names, arrays = _named(_params_of(group), first=max([len(taken), *numbers]))
    for name in names:
        if name in taken:
            raise ValueError(f"there is a parameter named {name!r} already")
    return names, arrays


def _settled(params: Any) -> Any:
    """Return the params of a group as a mapping, if they have names, or as a list."""
    if isinstance(params, Mapping):
        return params
    if isinstance(params, np.ndarray):
        return [params]
    if not isinstance(params, Iterable) or isinstance(params, str):
        raise TypeError(
            "the params of a group must be a mapping or a sequence of arrays, not "
            f"{type(params).__name__}"
        )
    items = list(params)
    pairs = (isinstance(item, tuple) and len(item) == 2 for item in items)
    if not items or not all(pairs) or not all(isinstance(name, str) for name, _ in items):
        return items
    by_name = dict(items)  # the items of a mapping, or torch's named_parameters()
    if len(by_name) != len(items):
        raise ValueError("two parameters have the same name; each needs a name of its own")
    return by_name


def _named(params: Any, first: int) -> tuple[list[str], list[FloatArray]]:
    """Return the names and arrays of one group; a sequence is numbered from `first`."""
    params = _settled(params)
    if isinstance(params, Mapping):
        for name, array in params.items():
            if not isinstance(name, str):
                raise TypeError(f"the names of parameters must be strings, not {name!r}")
            if isinstance(array, Mapping):
                raise TypeError(
                    f"parameter {name!r} must be a NumPy array, not {type(array).__name__}; the "
                    "arrays of all layers go into one mapping, with names such as 'layer1.weight'"
                )
        names, arrays = list(params), list(params.values())
    else:
        arrays = params
        names = [str(first + i) for i in range(len(arrays))]
    if not arrays:
        raise ValueError("a parameter group is empty: there is nothing to optimize")
    return names, arrays


def _refuse_sequence(names: Iterable[str]) -> NoReturn:
    raise TypeError(
        "gradients of parameters that were given by name must be a mapping name -> gradient, not a "
        "sequence, whose order might be another one; the parameters are "
        + _few(list(map(repr, names)))
    )


def _by_name(grads: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    try:
        flat = [grads[name] for name in names]
    except KeyError:
        _require_same_names(names, grads, "gradients", hint=" (None skips a parameter)")
        raise
    if len(flat) != len(grads):
        _require_same_names(names, grads, "gradients", hint=" (None skips a parameter)")
    return flat


def _require_same_names(
    expected: Iterable[str],
    given: Iterable[str],
    what: str,
    *,
    extra: bool = False,
    hint: str = "",
) -> None:
    """Raise KeyError listing what `given` lacks and, unless `extra` is fine, what it adds."""
    wanted, got = set(expected), set(given)
    faults = []
    if wanted - got:
        faults.append(f"missing: {', '.join(sorted(map(repr, wanted - got)))}{hint}")
    if got - wanted and not extra:
        faults.append(f"not known: {', '.join(sorted(map(repr, got - wanted)))}")
    if faults:
        raise NamesError(f"the names in the {what} do not match; {'; '.join(faults)}")
