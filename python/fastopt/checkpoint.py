"""Checkpoints: one safetensors file, hashed, written whole or not at all.

The file holds every array as a tensor under a readable name (``params/0.weight``,
``optimizer/state/0.weight/exp_avg``), so any reader of safetensors can open it. All else (step
counters, options, what a schedule needs) stands as JSON in its metadata, with a SHA-256 of each
tensor and one of the JSON itself. SHA-256 because processors compute it and every system has
``sha256sum``. The same content gives the same bytes, so that two runs can be compared by their
files. There is no pickle: loading a file runs nothing that stands in it.

Needs the package ``safetensors`` (the extra ``fastopt[checkpoint]``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastopt._types import FloatArray, Params
from fastopt.optim._base import OptimizerBase, _groups, _new_params, _require_same_names

__all__ = ["Checkpoint", "CheckpointError", "Stateful", "from_torch", "load", "save", "to_torch"]

FORMAT = "1"
_DTYPES = frozenset(
    ["bool", "complex64"]
    + [f"float{bits}" for bits in (16, 32, 64)]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


class CheckpointError(ValueError):
    """A file that is no checkpoint, or a damaged one; the message says what is wrong."""


class Stateful(Protocol):
    """What `save` and `load` ask of an optimizer, a schedule or an average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: mappings, sequences, numbers, strings and arrays."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Take it over whole, or raise and leave everything as it was."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; None for what was not saved."""

    params: dict[str, npt.NDArray[Any]] | None
    optimizer: dict[str, Any] | None  # state dicts
    scheduler: dict[str, Any] | None
    ema: dict[str, Any] | None
    extra: Any


def save(
    path: str | os.PathLike[str],
    *,
    params: Params | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    ema: Stateful | None = None,
    extra: Any = None,
) -> None:
    """Write a checkpoint.

    It is written beside `path` under another name, brought to the disk, and then renamed: whatever
    happens meanwhile, `path` is the old file or the new one, whole. What a process that was killed
    leaves behind is a folder named ``.<name>.tmp-...``, which may be deleted. No save does that: it
    may be the folder of a save that is going on elsewhere.

    Arrays that are contiguous in C order are written from where they are; the others are copied.
    Nothing may write into them meanwhile: a file in which hash and array differ cannot be loaded.

    Parameters
    ----------
    path : path
        By custom ``*.safetensors``. Replaced if it exists; of a symbolic link the link itself is.
    params : mapping, sequence or groups
        The parameters, as they were given to the optimizer; a sequence gets the names "0", "1", ...
        Of groups only the arrays are saved: their options are the optimizer's.
    optimizer, scheduler, ema
        An optimizer, a schedule, a `WeightEMA`: whatever has `state_dict` and `load_state_dict`.
    extra
        Anything else, say ``{"epoch": 3, "rng": rng.bit_generator.state}``: mappings with string
        keys, lists, tuples, strings, numbers of any size, None, arrays and NumPy scalars.

    Raises
    ------
    TypeError, ValueError
        If something cannot be saved; the message names its place. Nothing has been written then.
    OSError
        If the file cannot be written; an older one of this name is left as it was.

    Examples
    --------
    >>> import tempfile, numpy as np, fastopt as fo
    >>> params = {"w": np.ones(3, dtype=np.float32)}
    >>> optimizer = fo.AdamW(params)
    >>> info = optimizer.step({"w": np.ones(3, dtype=np.float32)})
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/run.safetensors"
    >>> fo.save(path, params=params, optimizer=optimizer, extra={"epoch": 1})
    >>> info = optimizer.step({"w": np.ones(3, dtype=np.float32)})
    >>> fo.load(path, params=params, optimizer=optimizer).extra
    {'epoch': 1}
    >>> optimizer.state["w"]["step"]
    1
    >>> folder.cleanup()
    """
    parts = {
        "params": None if params is None else _by_name(params),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "extra": extra,
    }
    tensors: dict[str, npt.NDArray[Any]] = {}
    try:
        content = {name: _pack(part, name, tensors) for name, part in parts.items()}
    except RecursionError as error:
        raise ValueError("something to be saved is nested too deep, or contains itself") from error
    document = json.dumps(
        {
            "content": content,
            "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
        },
        allow_nan=False,
    )
    # One entry: the library writes several in a random order, and the bytes are to be the same.
    entry = f"{FORMAT} {_sha256(document.encode())} {document}"
    _write(Path(path), tensors, {"fastopt": entry})


def load(
    path: str | os.PathLike[str],
    *,
    params: Params | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    ema: Stateful | None = None,
) -> Checkpoint:
    """Read a checkpoint, and restore what is passed.

    Version, structure and all hashes are checked first; then everything that is passed is restored
    in place, all of it or nothing.

    Parameters
    ----------
    path : path
        What `save` has written.
    params : mapping, sequence or groups
        Arrays with the names, shapes and dtypes of those saved, to write into.
    optimizer, scheduler, ema
        Objects built as those that were saved; each takes over its `state_dict`.

    Returns
    -------
    Checkpoint
        All that the file holds; its arrays are copies.

    Raises
    ------
    CheckpointError
        If the file is damaged, cut short, or no checkpoint.
    KeyError, TypeError, ValueError
        If what is passed does not fit what was saved: names that are missing or extra, shapes,
        dtypes, options. Nothing has been changed then.
    OSError
        If the file cannot be read.

    Examples
    --------
    See `save`.
    """
    checkpoint = _read(Path(path))
    arrays: list[tuple[FloatArray, npt.NDArray[Any]]] = []
    if params is not None:
        arrays = list(_match(_by_name(params), _saved(checkpoint, "params")))
    # Each object loads whole or not at all. If a later one refuses, those before it go back; the
    # largest comes last, so that the copies are small.
    undo: list[tuple[Stateful, dict[str, Any]]] = []
    objects = {"scheduler": scheduler, "ema": ema, "optimizer": optimizer}
    wanted = {name: item for name, item in objects.items() if item is not None}
    for name in wanted:
        _saved(checkpoint, name)
    try:
        for number, (name, item) in enumerate(wanted.items(), 1):
            before = _copy(item.state_dict()) if number < len(wanted) else None
            item.load_state_dict(_saved(checkpoint, name))
            if before is not None:
                undo.append((item, before))
    except BaseException:
        for item, before in reversed(undo):
            item.load_state_dict(before)
        raise
    for array, saved in arrays:
        array[...] = saved
    return checkpoint


def from_torch(state_dict: Mapping[str, Any], optimizer: OptimizerBase) -> dict[str, Any]:
    """Turn the `state_dict` of a torch optimizer into one that `optimizer` loads.

    torch numbers the parameters, fastopt names them: they are matched by their order, group by
    group. Options that fastopt does not have (``foreach``, ``fused``, ...) are left out.

    Parameters
    ----------
    state_dict : mapping
        ``torch_optimizer.state_dict()``. Tensors, or arrays, of the parameters' dtypes.
    optimizer : Optimizer
        Of the same class, over the same parameters in the same groups. It is not changed: pass the
        result to ``optimizer.load_state_dict``.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the groups, their sizes or options do not match, or a tensor is no dense array on the
        CPU of a dtype that NumPy has.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise KeyError(f"this is no state_dict of a torch optimizer: there is no {key!r}")
    groups = state_dict["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"torch's state dict has {len(groups)} groups, the optimizer "
            f"{len(optimizer.param_groups)}"
        )
    numbered = {identity for group in groups for identity in group["params"]}
    if strangers := state_dict["state"].keys() - numbered:
        raise KeyError(
            "torch's state dict has a state of parameters that are in none of its groups: "
            + ", ".join(sorted(map(repr, strangers)))
        )
    state: dict[str, Any] = {}
    converted = []
    for number, (theirs, ours) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        names = ours["param_names"]
        if len(theirs["params"]) != len(names):
            raise ValueError(
                f"group {number} of torch's state dict has {len(theirs['params'])} parameters, the "
                f"optimizer's {len(names)}"
            )
        missing = [k for k in optimizer.defaults if k not in theirs and k not in _MAY_BE_ABSENT]
        if missing:
            raise KeyError(
                f"group {number} of torch's state dict has no {', '.join(map(repr, missing))}: is "
                f"it that of a {type(optimizer).__name__}?"
            )
        options = {
            key: _plain(theirs[key], f"group {number}, {key!r}")
            for key in theirs
            if key not in _TORCH_ONLY and key != "params"
        }
        own = {key: ours[key] for key in optimizer.defaults if key not in options}
        converted.append(own | options | {"params": list(names)})
        for identity, name in zip(theirs["params"], names, strict=True):
            entry = dict(state_dict["state"].get(identity, {}))
            arrays = {
                key: _as_array(value, f"{key} of {name!r}")
                for key, value in entry.items()
                if key != "step" and value is not None
            }
            # torch's SGD does not count: a buffer says that there was a step at least.
            step = int(entry["step"]) if "step" in entry else int(bool(arrays))
            state[name] = {"step": step, **arrays}
    return {"state": state, "param_groups": converted}


def to_torch(optimizer: OptimizerBase) -> dict[str, Any]:
    """Return the state of `optimizer` as the `state_dict` of the torch optimizer of that name.

    The parameters are numbered in their order; tensors are copies. Needs torch, which keeps the
    step in float32: a step beyond 2**24 is rounded.

    Raises
    ------
    ValueError
        If torch has no such option: ``momentum_init="zero"`` where a parameter has had no step.

    Examples
    --------
    ``torch_optimizer.load_state_dict(fo.checkpoint.to_torch(optimizer))``
    """
    import torch

    counts = "dampening" not in optimizer.defaults  # torch's SGD does not
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
                key: torch.from_numpy(np.array(value, order="C"))
                for key, value in entry.items()
                if key != "step"
            }
            if counts and entry["step"] > 0:
                tensors["step"] = torch.tensor(float(entry["step"]))
            if tensors:
                state[number] = tensors
    return {"state": state, "param_groups": groups}


# What only one of the two has among a group's options, and torch's defaults.
_FASTOPT_ONLY = ("momentum_init",)
_MAY_BE_ABSENT = (*_FASTOPT_ONLY, "decoupled_weight_decay")  # older torch lacks it
_TORCH_ONLY = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


def _plain(value: Any, where: str) -> Any:
    """Return an option of torch's as a plain number, string, None or tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, where) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        return float(value)  # a learning rate may be a tensor
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} of torch's state dict is {value!r}, not a number") from error


def _as_array(tensor: Any, where: str) -> npt.NDArray[Any]:
    try:
        return np.array(tensor.detach().numpy() if hasattr(tensor, "detach") else tensor)
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{where} cannot be a NumPy array: {error}") from error


def _by_name(params: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the parameters under the names that an optimizer gives them."""
    found: dict[str, npt.NDArray[Any]] = {}
    for group in _groups(params)[0]:
        names, arrays = _new_params(group, found)
        for name, array in zip(names, arrays, strict=True):
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"parameter {name!r} must be a NumPy array, not {type(array).__name__}"
                )
            found[name] = array
    return found


def _saved(checkpoint: Checkpoint, name: str) -> Any:
    part = getattr(checkpoint, name)
    if part is None:
        raise KeyError(f"the checkpoint holds no {name}")
    return part


def _match(
    arrays: Mapping[str, FloatArray], saved: Mapping[str, npt.NDArray[Any]]
) -> Iterator[tuple[FloatArray, npt.NDArray[Any]]]:
    """Pair the arrays with what is to be written into them, after all checks."""
    _require_same_names(arrays, saved, "checkpoint's params")
    for name, array in arrays.items():
        there = saved[name]
        if array.shape != there.shape:
            raise ValueError(
                f"parameter {name!r} has shape {array.shape}, in the checkpoint {there.shape}"
            )
        if array.dtype != there.dtype:
            raise TypeError(f"parameter {name!r} is {array.dtype}, in the checkpoint {there.dtype}")
        if not array.flags.writeable:
            raise ValueError(f"parameter {name!r} is read-only; pass a writeable array")
    for name, array in arrays.items():
        yield array, saved[name]


def _copy(value: Any) -> Any:
    """Return the same nest with copies of its arrays."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return value.copy() if isinstance(value, np.ndarray) else value


# JSON ---------------------------------------------------------------------------------------------
# What JSON does not have is a mapping with one key that begins with "$"; a key that does so itself
# gets one more.


def _pack(value: Any, where: str, tensors: dict[str, npt.NDArray[Any]]) -> Any:
    """Return `value` as JSON, and put its arrays into `tensors`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        array = _packable(value, where)
        plain = where.encode(errors="backslashreplace").decode()  # UTF-8 has no lone surrogates
        name, number = plain, 1
        while name in tensors:  # the path "a/b" may be that of two places
            number += 1
            name = f"{plain}#{number}"
        tensors[name] = array
        return {"$array" if isinstance(value, np.ndarray) else "$scalar": name}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Mapping):
        packed = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys must be strings")
            packed["$" * key.startswith("$") + key] = _pack(item, f"{where}/{key}", tensors)
        return packed
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{where}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise TypeError(
        f"{where} is {type(value).__name__}, which a checkpoint cannot hold: only mappings, lists, "
        "tuples, numbers, strings, None and arrays"
    )


def _packable(value: npt.NDArray[Any] | np.generic, where: str) -> npt.NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array; save its data and its mask")
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"{where} is an array of {array.dtype}, which safetensors does not have")
    if not array.dtype.isnative:
        raise ValueError(
            f"{where} is byte-swapped ({array.dtype.str}); use "
            ".astype(array.dtype.newbyteorder('='))"
        )
    return np.require(array, requirements="C")


def _unpack(value: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if key == "$array":
            return tensors[item]
        if key == "$scalar":
            return tensors[item][()]
        if key == "$float":
            return float(item)
        if key == "$tuple":
            return tuple(_unpack(item, tensors))
    return {
        key[1:] if key.startswith("$") else key: _unpack(item, tensors)
        for key, item in value.items()
    }


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _describe(tensor: npt.NDArray[Any]) -> dict[str, Any]:
    """Return what the document says of a tensor."""
    data = tensor.reshape(-1).view(np.uint8)
    return {"dtype": tensor.dtype.name, "shape": list(tensor.shape), "sha256": _sha256(data)}


# Files --------------------------------------------------------------------------------------------


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "checkpoints need safetensors; install it with: pip install 'fastopt[checkpoint]'"
        ) from error
    return safetensors


def _write(path: Path, tensors: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> None:
    library = _safetensors()
    # A folder: the library makes temporary files of its own beside the one it is to write.
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    try:
        temporary = folder / path.name
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777  # what the umask leaves
        try:
            library.numpy.save_file(tensors, temporary, metadata)
        except library.SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        temporary.chmod(mode)
        _synchronize(temporary)
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _synchronize(path.parent)


def _synchronize(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Checkpoint:
    library = _safetensors()
    with path.open("rb"):  # an OSError that says what it is
        pass
    try:
        with library.safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get("fastopt")
            if entry is None:
                raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of fastopt")
            version, _, rest = entry.partition(" ")
            if version != FORMAT:
                raise CheckpointError(
                    f"{path} has format {version!r}; this version of fastopt reads {FORMAT!r}"
                )
            digest, _, document = rest.partition(" ")
            if _sha256(document.encode()) != digest:
                raise CheckpointError(f"{path} is damaged: the hash of its metadata does not match")
            content, described = _parse(document)
            if set(file.keys()) != set(described):
                raise CheckpointError(f"{path} is damaged: names of tensors do not match")
            tensors = {}
            for name, facts in described.items():
                tensors[name] = file.get_tensor(name)
                if _describe(tensors[name]) != facts:
                    raise CheckpointError(f"{path} is damaged: the hash of {name} does not match")
        return Checkpoint(**{name: _unpack(part, tensors) for name, part in content.items()})
    except CheckpointError:
        raise
    except library.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        # The hash of the metadata is right: another program has written it.
        raise CheckpointError(f"{path} does not hold what save() writes: {error!r}") from error


def _parse(document: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the packed parts, and what the document says of each tensor."""
    parsed = json.loads(document)
    content, described = parsed["content"], parsed["tensors"]
    parts = {field.name for field in fields(Checkpoint)}
    if not isinstance(content, dict) or content.keys() != parts or not isinstance(described, dict):
        raise ValueError("its parts are not those of a checkpoint")
    return content, described
