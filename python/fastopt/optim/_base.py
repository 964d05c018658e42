"""What the fused and the reference optimizers share: groups, names, gradients, state dicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastopt._types import FloatArray, Grads, Group, Params


class StepInfo(NamedTuple):
    """What a step tells.

    Attributes
    ----------
    grad_norm : float or None
        2-norm of all gradients, after `grad_scale` and before clipping; None if no option of the
        step needs it.
    skipped : bool
        Whether nothing was done because of a NaN or infinity in the gradients.
    """

    grad_norm: float | None
    skipped: bool


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

    @abstractmethod
    def _add_group(self, names: list[str], arrays: Sequence[FloatArray], group: Group) -> None: ...
    @abstractmethod
    def _step(
        self,
        grads: Sequence[FloatArray | None],
        max_norm: float | None,
        grad_scale: float,
        skip_nonfinite: bool,
        zero_grads: bool,
    ) -> StepInfo: ...
    @abstractmethod
    def _state(self, index: int) -> dict[str, Any]: ...
    @abstractmethod
    def _load(self, states: list[dict[str, Any]], groups: list[Group]) -> None: ...

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
        names, arrays = _new_params(param_group, self._index)
        unknown = sorted(map(repr, set(param_group) - set(self.defaults) - {"params"}))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(unknown)} in a parameter group; "
                f"{type(self).__name__} has {', '.join(self.defaults)}"
            )
        group: Group = {"params": tuple(arrays), "param_names": tuple(names)}
        group |= {key: param_group.get(key, default) for key, default in self.defaults.items()}
        self._add_group(names, arrays, group)
        if isinstance(param_group["params"], Mapping):
            self._named.update(names)
        for name in names:
            self._index[name] = len(self._index)
        self.param_groups.append(group)

    def step(
        self,
        grads: Grads,
        *,
        max_norm: float | None = None,
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
            Clip the gradients, as they are after `grad_scale`, to this 2-norm over all of them:
            they are multiplied by ``min(1, max_norm / (norm + 1e-6))`` as they are used.
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
        if type(grads) is not list or self._by_group or self._named:
            grads = _flatten_grads(
                grads, self._index, self.param_groups, self._by_group, self._named
            )
        return self._step(grads, max_norm, grad_scale, skip_nonfinite, zero_grads)

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

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the arrays are copied.

        Raises
        ------
        KeyError
            If names of parameters, states or options are missing or unknown.
        TypeError, ValueError
            If the groups, or an array's dtype or shape, do not match. In every case nothing has
            been loaded.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, not {type(state_dict).__name__}")
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise KeyError(f"the state dict has no {key!r}")
        _require_same_names(self._index, state_dict["state"], "state dict")
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(
                f"the state dict has {len(saved)} groups, the optimizer {len(self.param_groups)}"
            )
        groups = []
        for number, (old, new) in enumerate(zip(self.param_groups, saved, strict=True)):
            names = list(old["param_names"])
            if list(new.get("params", ())) != names:
                raise ValueError(
                    f"group {number} holds {names}, in the state dict {new.get('params')}"
                )
            _require_same_names(
                self.defaults,
                new,
                f"group {number} of the state dict",
                extra=True,
                hint=f" (options of {type(self).__name__}: was another optimizer saved?)",
            )
            own = {"params": old["params"], "param_names": old["param_names"]}
            options = {key: value for key, value in new.items() if key not in own}
            for key, default in self.defaults.items():
                if isinstance(default, tuple) and isinstance(options[key], list):
                    options[key] = tuple(options[key])  # from a file that has no tuples
            groups.append(own | options)
        states = []
        for name in self._index:
            entry = state_dict["state"][name]
            if not isinstance(entry, Mapping):
                raise TypeError(f"the state of {name!r} must be a mapping, not {entry!r}")
            states.append(dict(entry))
        self._load(states, groups)
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update(loaded)
            for key in group.keys() - loaded.keys():
                del group[key]

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
            raise KeyError(
                "gradients of parameters that were given as a sequence must be a sequence in the "
                f"same order, or have their numbers as names; not {_few(list(map(repr, grads)))}"
            )
        return _by_name(grads, names)
    if not isinstance(grads, Sequence) or isinstance(grads, str):
        raise TypeError(
            f"grads must be a mapping or a sequence of arrays, not {type(grads).__name__}"
            + "; put a single array into a list" * isinstance(grads, np.ndarray)
        )
    if not by_group:
        if named:
            _refuse_sequence(names)
        return grads
    if len(grads) != len(groups):
        raise ValueError(
            f"there are {len(groups)} parameter groups but {len(grads)} groups of "
            "gradients; pass one list or mapping for each group, or one mapping by name"
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
                f"group {number} has {len(own)} parameters but {len(part)} gradients; "
                "pass None for a parameter without one"
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


def _new_params(
    group: Mapping[str, Any], taken: Collection[str]
) -> tuple[list[str], list[FloatArray]]:
    """Return the names and arrays of a group that joins parameters with the names `taken`."""
    if "params" not in group:
        raise ValueError(
            f"a parameter group needs 'params', this one has {_few(list(map(repr, group)))}; the "
            "arrays of all layers go into one mapping, with names such as 'layer1.weight'"
        )
    names, arrays = _named(group["params"], first=len(taken))
    for name in names:
        if name in taken:
            raise ValueError(f"there is a parameter named {name!r} already")
    return names, arrays


def _named(params: Any, first: int) -> tuple[list[str], list[FloatArray]]:
    """Return the names and arrays of one group; a sequence is numbered from `first`."""
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
    elif isinstance(params, Iterable):
        arrays = [params] if isinstance(params, np.ndarray) else list(params)
        names = [str(first + i) for i in range(len(arrays))]
    else:
        raise TypeError(
            "the params of a group must be a mapping or a sequence of arrays, not "
            f"{type(params).__name__}"
        )
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
        flat = []
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
        raise KeyError(f"the names in the {what} do not match; {'; '.join(faults)}")
