"""The structure of parameters: groups, names, and gradients in the order of the parameters."""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple, NoReturn

from fastopt._checks import NamesError, counted, is_array
from fastopt._types import FloatArray, Grads, Group, Params


class IncompatibleKeys(NamedTuple):
    """The names that ``load_state_dict(..., strict=False)`` has not matched.

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
        """Whether there are any names."""
        return bool(self.missing_keys or self.unexpected_keys)


class _Words(NamedTuple):
    """What messages call an argument with an array for each parameter."""

    argument: str
    one: str
    many: str


_GRADS = _Words("grads", "gradient", "gradients")
COPIES = _Words("out", "copy", "copies")


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def flatten_grads(
    grads: Grads,
    names: Iterable[str],
    groups: Sequence[Group],
    by_group: bool,
    named: Set[str],
    words: _Words = _GRADS,
) -> Sequence[FloatArray | None]:
    """Return the gradients as one flat sequence in the order of the parameters.

    `names` are the names in all `groups`. `by_group` says whether the parameters were given as
    groups. `named` contains the names that the caller gave, without the numbers. With the `words`
    `COPIES`, these are not gradients but arrays that get copies of the parameters.
    """
    if isinstance(grads, Mapping):
        if grads and not named and not by_group and set(grads).isdisjoint(names):
            raise NamesError(
                f"{words.many} of parameters that were given as a sequence must be a sequence in "
                f"the same order, or have their numbers as names; not {few(list(map(repr, grads)))}"
            )
        return _by_name(grads, names, words)
    if not isinstance(grads, Sequence) or isinstance(grads, str):
        raise TypeError(
            f"{words.argument} must be a mapping or a sequence of arrays, "
            f"not {type(grads).__name__}"
            + "; put a single array into a list" * is_array(grads)
            + "; pass the mapping itself" * isinstance(grads, ItemsView)
        )
    nested = (isinstance(part, Mapping | list | tuple) for part in grads)
    if not by_group and not (len(groups) > 1 and all(nested)):
        if named:
            _refuse_sequence(names, words)
        return grads
    if len(grads) != len(groups):
        raise ValueError(
            f"{words.argument} has {counted(len(grads), 'group')} for "
            f"{counted(len(groups), 'parameter group')}; pass one list or mapping for each group, "
            "or one mapping by name"
        )
    flat: list[FloatArray | None] = []
    for number, (group, part) in enumerate(zip(groups, grads, strict=True)):
        own = group["param_names"]
        if isinstance(part, Mapping) and set(part) == {"params"} and "params" not in own:
            part = part["params"]
        if isinstance(part, Mapping):
            flat += _by_name(part, own, words)
            continue
        if not isinstance(part, Sequence):
            raise TypeError(
                f"the {words.many} of group {number} must be a mapping or a sequence of arrays, "
                f"not {type(part).__name__}; pass one list or mapping for each group"
            )
        if not named.isdisjoint(own):
            _refuse_sequence(own, words)
        if len(part) != len(own):
            raise ValueError(
                f"group {number} of {words.argument} has "
                f"{counted(len(part), words.one, words.many)} for "
                f"{counted(len(own), 'parameter')}; pass None for a parameter without one"
            )
        flat += part
    return flat


def as_groups(params: Params) -> tuple[list[Mapping[str, Any]], bool]:
    """Return `params` as groups, and whether it was given as groups."""
    if isinstance(params, Mapping):
        return [{"params": params}], False
    if is_array(params) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be a mapping name -> array, a sequence of arrays or a list of groups, "
            f"not {type(params).__name__}" + "; put a single array into a list" * is_array(params)
        )
    items: list[Any] = list(params)
    if not items:
        raise ValueError("params is empty, []: there is nothing to optimize")
    if all(isinstance(item, Mapping) for item in items):
        return items, True
    return [{"params": items}], False


def new_params(
    group: Mapping[str, Any], taken: Collection[str]
) -> tuple[list[str], list[FloatArray], Set[str]]:
    """Return the result of `name_params` for a new group; the names in `taken` are refused."""
    if not isinstance(group, Mapping):
        raise TypeError(
            f"a parameter group must be a mapping with 'params', not {type(group).__name__}"
        )
    if "params" not in group:
        raise ValueError(
            f"a parameter group needs 'params', this one has {few(list(map(repr, group)))}; the "
            "arrays of all layers go into one mapping, with names such as 'layer1.weight'"
        )
    # The next number follows the largest one, because an earlier group may have been removed.
    numbers = [int(name) + 1 for name in taken if name.isdecimal() and len(name) < 19]
    names, arrays, given = name_params(group["params"], first=max([len(taken), *numbers]))
    for name in names:
        if name in taken:
            raise ValueError(f"there is a parameter named {name!r} already")
    return names, arrays, given


def name_params(params: Any, first: int) -> tuple[list[str], list[FloatArray], Set[str]]:
    """Return the names and arrays of one group, and the names that the caller gave.

    The arrays of a sequence are numbered from `first`. A sequence may also contain pairs of a name
    and an array: the items of a mapping, or ``named_parameters()`` of torch.
    """
    if is_array(params):
        params = [params]
    if not isinstance(params, Mapping):
        if not isinstance(params, Iterable) or isinstance(params, str):
            raise TypeError(
                "the params of a group must be a mapping or a sequence of arrays, not "
                f"{type(params).__name__}"
            )
        params = list(params)
        if params and all(_is_pair(item) for item in params):
            pairs, params = params, dict(params)
            if len(params) != len(pairs):
                raise ValueError("two parameters have the same name; each needs another name")
    if not params:
        raise ValueError(f"params is empty, {params!r}: there is nothing to optimize")
    if isinstance(params, list):
        return [str(first + i) for i in range(len(params))], params, frozenset()
    for name, array in params.items():
        if not isinstance(name, str):
            raise TypeError(f"the names of parameters must be strings, not {name!r}")
        if isinstance(array, Mapping):
            raise TypeError(
                f"parameter {name!r} must be a NumPy array, not {type(array).__name__}; the "
                "arrays of all layers go into one mapping, with names such as 'layer1.weight'"
            )
    return list(params), list(params.values()), set(params)


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _refuse_sequence(names: Iterable[str], words: _Words) -> NoReturn:
    raise TypeError(
        f"{words.many} of parameters that were given by name must be a mapping name -> "
        f"{words.one}, not a sequence, whose order might be another one; the parameters are "
        + few(list(map(repr, names)))
    )


def _by_name(grads: Mapping[str, Any], names: Iterable[str], words: _Words) -> list[Any]:
    try:
        flat = [grads[name] for name in names]
    except KeyError:
        require_same_names(names, grads, words.many, hint=" (None skips a parameter)")
        raise
    if len(flat) != len(grads):
        require_same_names(names, grads, words.many, hint=" (None skips a parameter)")
    return flat


def require_same_names(
    expected: Iterable[str],
    given: Iterable[str],
    what: str,
    *,
    extra: bool = False,
    hint: str = "",
) -> None:
    """Raise KeyError with the missing names in `given` and, unless `extra`, its unknown names."""
    wanted, got = set(expected), set(given)
    faults = []
    if wanted - got:
        faults.append(f"missing: {', '.join(sorted(map(repr, wanted - got)))}{hint}")
    if got - wanted and not extra:
        faults.append(f"not known: {', '.join(sorted(map(repr, got - wanted)))}")
    if faults:
        raise NamesError(f"the names in the {what} do not match; {'; '.join(faults)}")


def span(array: FloatArray) -> tuple[int, int]:
    """Return the addresses between which the elements of an array lie."""
    begin: int = array.__array_interface__["data"][0]
    if array.size == 0 or array.flags.c_contiguous:
        return begin, begin + array.nbytes
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    low, high = sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
    return begin + low, begin + high + array.itemsize
