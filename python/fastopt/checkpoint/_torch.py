"""State dicts from and to the optimizers of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._checks import NamesError, counted
from fastopt._storage import bfloat16, is_bfloat16
from fastopt._structure import few
from fastopt._types import Group
from fastopt.optim._base import Optimizer

# Options of a group that only one of the two libraries has, with the defaults of torch.
_FASTOPT_ONLY = ("momentum_init", "state_dtype", "master", "stochastic_rounding", "seed")
_TORCH_ONLY = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
# Options that the state of an older torch may not have, and their values (``__setstate__``).
_ADDED = {
    "amsgrad": False,
    "centered": False,
    "decoupled_weight_decay": False,
    "maximize": False,
    "momentum": 0.0,
    "nesterov": False,
}


def from_torch(state_dict: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Convert the `state_dict` of a torch optimizer for `optimizer`.

    torch numbers the parameters, fastopt names them. They are matched by their order in each group.
    Options that fastopt does not have (``foreach``, ``fused``, ...) are left out. Options that an
    older torch did not have (``maximize``, ...) get the defaults of torch. Options that only
    fastopt has (``seed``, ...) are those of `optimizer`. But the dtypes of the states decide
    ``state_dtype``, and those of ``master_param`` (the master weights of TransformerEngine) decide
    ``master``. No array is cast.

    Parameters
    ----------
    state_dict : mapping
        ``torch_optimizer.state_dict()``, with tensors or arrays of float types.
    optimizer : Optimizer
        An optimizer of the same class with the same parameters in the same groups. It is not
        changed; pass the result to its ``load_state_dict``.

    Returns
    -------
    dict
        The state; its arrays are copies.

    Raises
    ------
    KeyError, TypeError, ValueError
        If this is not a state dict of a torch optimizer; if the groups, their sizes or options do
        not match; if a step is not a whole number in [0, 2**63); if a tensor is not a dense tensor
        on the CPU with a float type; if a group has states of bfloat16 and of another type, or
        masters of two types.
    ModuleNotFoundError
        If a tensor is of bfloat16, and the package ml_dtypes is not installed.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of fastopt's, not {type(optimizer).__name__}")
    states, groups = _parts(state_dict)
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"torch's state dict has {counted(len(groups), 'group')}, the optimizer "
            f"{len(optimizer.param_groups)}"
        )
    added = _ADDED | {"decoupled_weight_decay": type(optimizer).__name__ == "AdamW"}
    state: dict[str, Any] = {}
    converted = []
    for number, (theirs, ours) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        names = ours["param_names"]
        if len(theirs["params"]) != len(names):
            raise ValueError(
                f"group {number} of torch's state dict has {len(theirs['params'])} parameters, the "
                f"optimizer's {len(names)}"
            )
        known = added | {key: ours[key] for key in _FASTOPT_ONLY if key in ours}
        options = {key: known[key] for key in optimizer.defaults if key in known} | {
            key: _option(value, f"group {number}, {key!r}")
            for key, value in theirs.items()
            if key not in _TORCH_ONLY and key not in ("params", "param_names", "step")
        }
        missing = [key for key in optimizer.defaults if key not in options]
        if missing:
            raise NamesError(
                f"group {number} of torch's state dict has no {', '.join(map(repr, missing))}: is "
                f"it that of a {type(optimizer).__name__}?"
            )
        converted.append(options | {"params": list(names)})
        own = {
            name: _state(states.get(identity, {}), name, theirs.get("step", 1))
            for identity, name in zip(theirs["params"], names, strict=True)
        }
        converted[-1] |= _options_of_states(own, ours, f"group {number} of torch's state dict")
        state |= own
    return {"state": state, "param_groups": converted}


def to_torch(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of `optimizer` as the `state_dict` of the same optimizer in torch.

    The parameters are numbered in their order. The tensors are copies with the dtypes of the
    states. torch must be installed. It keeps the step in float32, so a step beyond 2**24 is
    rounded. Options that only fastopt has (``state_dtype``, ``master``, ``stochastic_rounding``,
    ``seed``) are left out.

    ``load_state_dict`` of torch casts float states to the dtype of their parameter: states of
    float32 and a ``master_param`` of float32 beside a bfloat16 parameter. To keep them, put the
    tensors into ``torch_optimizer.state[parameter]`` after it. The optimizers of torch ignore
    ``master_param``. FusedAdam of TransformerEngine uses it; it counts the steps in its groups.

    Raises
    ------
    ImportError
        Without torch.
    ValueError
        If torch does not have an option: ``momentum_init="zero"`` before the first step.

    Examples
    --------
    ``torch_optimizer.load_state_dict(fo.checkpoint.to_torch(optimizer))``
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("to_torch makes tensors and needs torch: pip install torch") from error
    counts = "dampening" not in optimizer.defaults  # SGD of torch does not
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        names = group["params"]
        first = sum(len(before["params"]) for before in groups)
        starts_at_zero = group.get("momentum_init") == "zero" and group["momentum"] != 0
        if starts_at_zero and not all("momentum_buffer" in saved["state"][name] for name in names):
            raise ValueError(
                "torch has no momentum_init='zero': take a step with every parameter first, from "
                "then on both are the same"
            )
        options = {key: value for key, value in group.items() if key not in _FASTOPT_ONLY}
        for key, value in _TORCH_ONLY.items():
            options.setdefault(key, value)
        options["params"] = list(range(first, first + len(names)))
        groups.append(options)
        for number, name in enumerate(names, first):
            entry = saved["state"][name]
            tensors = {
                key: _tensor(torch, np.array(value, order="C"))
                for key, value in entry.items()
                if key != "step"
            }
            if counts and entry["step"] > 0:
                tensors["step"] = torch.tensor(float(entry["step"]))
            if tensors:
                state[number] = tensors
    return {"state": state, "param_groups": groups}


def _parts(state_dict: Any) -> tuple[Mapping[Any, Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the states by the numbers of their parameters, and the groups, after all checks."""
    _check_kind(state_dict, Mapping, "it")
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise NamesError(f"this is not a state_dict of a torch optimizer: there is no {key!r}")
    states, groups = state_dict["state"], state_dict["param_groups"]
    _check_kind(states, Mapping, "'state'")
    _check_kind(groups, Sequence, "'param_groups'")
    numbered: set[Any] = set()
    for number, group in enumerate(groups):
        _check_kind(group, Mapping, f"group {number}")
        if "params" not in group:
            raise NamesError(f"group {number} of torch's state dict has no 'params'")
        _check_kind(group["params"], Sequence, f"group {number}, 'params',")
        for identity in group["params"]:
            _check_kind(identity, (int, np.integer, str), f"a parameter of group {number}")
            if identity in numbered:
                raise ValueError(f"torch's state dict has the parameter {identity!r} twice")
            numbered.add(identity)
    for identity, entry in states.items():
        _check_kind(entry, Mapping, f"the state of {identity!r}")
    for mapping in (*groups, *states.values()):
        for key in mapping:
            _check_kind(key, str, "a name")
    if strangers := states.keys() - numbered:
        raise NamesError(
            "torch's state dict has a state of parameters that are in none of its groups: "
            + few(sorted(map(repr, strangers)))
        )
    return states, groups


def _check_kind(value: Any, kind: Any, where: str) -> None:
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        wanted = {Mapping: "a mapping", Sequence: "a list", str: "a string"}.get(kind, "a number")
        raise TypeError(
            "this is not a state_dict of a torch optimizer: "
            f"{where} must be {wanted}, not {type(value).__name__}"
        )


def _options_of_states(states: Mapping[str, Mapping[str, Any]], group: Group, where: str) -> Group:
    """Return the options of `group` that the dtypes of the states decide."""
    found: dict[str, dict[str, str]] = {"state_dtype": {}, "master": {}}
    for name, entry in states.items():
        for key, array in entry.items():
            if key != "step":
                option = "master" if key == "master_param" else "state_dtype"
                found[option].setdefault(array.dtype.name, f"{key} of {name!r}")
    for option, dtypes in found.items():
        if len(dtypes) > 1 and (option == "master" or "bfloat16" in dtypes):
            kinds = " and ".join(f"{dtype} ({place})" for dtype, place in dtypes.items())
            raise TypeError(
                f"{where} has states of {kinds}, but a group has one {option}; cast the tensors to "
                "one type, or give the parameters groups of their own"
            )
    options: Group = {}
    if "bfloat16" in found["state_dtype"]:
        options["state_dtype"] = "bfloat16"
    elif found["state_dtype"] and group.get("state_dtype") == "bfloat16":
        options["state_dtype"] = None
    for dtype, master in (("int16", "split"), ("float32", "float32")):
        if dtype in found["master"]:
            options["master"] = master
    return options


def _state(entry: Mapping[str, Any], name: str, in_group: Any) -> dict[str, Any]:
    """Return the state of a parameter; `in_group` is the step of its group."""
    arrays = {
        key: _array(value, f"{key} of {name!r}", remainders=key == "master_param")
        for key, value in entry.items()
        if key != "step" and value is not None
    }
    # TransformerEngine counts in the group. SGD of torch does not: there was a step at least.
    return {"step": _step(entry.get("step", in_group if arrays else 0), name), **arrays}


def _step(value: Any, name: str) -> int:
    step = _number(value, f"the step of {name!r}")
    if isinstance(step, bool) or not isinstance(step, (int, float)):
        raise TypeError(f"the step of {name!r} must be a number, not {type(step).__name__}")
    if not 0 <= step < 2**63 or step != int(step):
        shown = step if abs(step) < 2**64 or isinstance(step, float) else "beyond 2**64"
        raise ValueError(f"the step of {name!r} must be whole and in [0, 2**63), not {shown}")
    return int(step)


def _option(value: Any, where: str) -> Any:
    """Return an option as a plain number, string, None or tuple of these."""
    is_list = isinstance(value, (list, tuple))
    items = tuple(_number(item, where) for item in (value if is_list else [value]))
    for item in items:
        if not (item is None or isinstance(item, (bool, int, float, str))):
            raise TypeError(
                f"{where} of torch's state dict is not a number, but {type(item).__name__}"
            )
    return items if is_list else items[0]


def _number(value: Any, where: str) -> Any:
    """Return the element of a tensor or NumPy scalar of one element; other values unchanged."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array; pass its data")
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except MemoryError:
        raise
    except Exception as error:  # torch has its own
        raise TypeError(f"{where} must be one number; use .item() on it ({error})") from error


def _array(tensor: Any, where: str, remainders: bool) -> npt.NDArray[Any]:
    """Return a copy of a tensor of floats; of int16 too, if it may hold `remainders`."""
    if isinstance(tensor, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array; pass its data")
    is_16_bit = str(getattr(tensor, "dtype", None)) == "torch.bfloat16"
    dtype = bfloat16() if is_16_bit else None  # NumPy has no tensors of it
    try:
        if is_16_bit:
            import torch

            tensor = tensor.view(torch.int16)
        array = np.array(tensor.detach().numpy() if hasattr(tensor, "detach") else tensor)
    except MemoryError:
        raise
    except Exception as error:  # torch has its own
        raise TypeError(
            f"{where} cannot be a NumPy array ({error}); use .to_dense(), .cpu() or .float() first"
        ) from error
    array = array if dtype is None else array.view(dtype)
    is_float = array.dtype.kind == "f" or is_bfloat16(array.dtype)
    if not is_float and not (remainders and array.dtype == np.int16):
        raise TypeError(f"{where} must be a tensor of floats, not {array.dtype}")
    return array


def _tensor(torch: Any, array: npt.NDArray[Any]) -> Any:
    """Return a tensor that shares the memory of an array."""
    if is_bfloat16(array.dtype):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
