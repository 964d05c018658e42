"""Checkpoints: one safetensors file, hashed, written whole or not at all.

The file holds every array as a tensor with a readable name (``params/0.weight``,
``optimizer/state/0.weight/exp_avg``), so that any reader of safetensors can open it. Everything
else (step counters, options, states of schedules) is JSON in the metadata, with a SHA-256 of each
tensor and of the JSON. Processors have instructions for SHA-256, and every system has
``sha256sum``. The same content gives the same bytes, so that two runs can be compared by their
files. The file has no pickle: loading it runs no code from it.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

import fastopt._core as _core
from fastopt._checks import NamesError, as_path, flag, mapping, short_repr
from fastopt._structure import (
    IncompatibleKeys,
    as_groups,
    few,
    new_params,
    require_same_names,
    span,
)
from fastopt._types import Params
from fastopt.checkpoint._file import CheckpointError, read_file, write_file
from fastopt.checkpoint._torch import from_torch, to_torch

__all__ = ["Checkpoint", "CheckpointError", "Stateful", "from_torch", "load", "save", "to_torch"]


class Stateful(Protocol):
    """The methods that `save` and `load` need of an optimizer, a schedule or an average."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: mappings, sequences, numbers, strings and arrays."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Load the whole state, or raise an exception and change nothing."""


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """The contents of a checkpoint; a part that was not saved is None.

    Attributes
    ----------
    params : dict of str to array
    optimizer, scheduler, ema : dict
        State dicts; that of a `fastopt.distributed.Sharded` holds the parts of this rank.
    extra
        Anything.
    incompatible : dict of str to IncompatibleKeys
        With ``strict=False``, for each argument of `load`: the names that the file does not have
        (``missing_keys``) and those that only the file has (``unexpected_keys``).
    """

    params: dict[str, npt.NDArray[Any]] | None
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None
    ema: dict[str, Any] | None
    extra: Any
    incompatible: dict[str, IncompatibleKeys] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [name for name in _PARTS[1:4] if getattr(self, name) is not None]
        if self.params is not None:
            parts.insert(0, f"params: {few(list(self.params))}")
        if self.extra is not None:
            parts.append(f"extra: {short_repr(self.extra)}")
        if any(self.incompatible.values()):
            parts.append(f"incompatible: {self.incompatible}")
        return f"Checkpoint({'; '.join(parts)})"


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

    It is written into the same folder under a random name, flushed to the disk, and then renamed.
    So `path` is always the complete old file or the complete new file. After the rename the folder
    is flushed to the disk too. An error of this is ignored: the new file is in place, but a power
    failure may bring back the old file. A killed process leaves a file ``.fastopt-...``, which you
    may delete. `save` does not delete it, because another `save` may be writing it.

    Arrays may be of bool, integers, float16, float32, float64, complex64 and the bfloat16 of the
    package ml_dtypes. Parameters may be tensors of torch on the CPU: `load` writes to them, also if
    they require grad.

    Arrays in C order are written without a copy; others are copied. Do not write into the arrays
    meanwhile: a file whose hashes do not match its arrays cannot be loaded.

    Parameters
    ----------
    path : path
        Usually ``*.safetensors``. An existing file is replaced. A symbolic link is replaced itself,
        not the file behind it. A pipe or a device is refused.
    params : mapping, sequence or groups
        The parameters in the structure for the optimizer. The arrays of a sequence get the names
        "0", "1", ... The options of groups are not saved here, but with the optimizer.
    optimizer, scheduler, ema
        An optimizer, a schedule and a `WeightEMA`, or other objects with `state_dict` and
        `load_state_dict`. With a `fastopt.distributed.Sharded`, all ranks call `save`, and rank 0
        writes the file of the plain optimizer.
    extra
        Anything else, such as ``{"epoch": 3, "rng": rng.bit_generator.state}``: mappings with
        string keys, lists, tuples, strings, numbers of any size, None, arrays and NumPy scalars,
        nested at most 200 deep. Bits and types are kept; a subclass becomes the plain type. An
        array takes about 300 bytes more than its data, a NumPy scalar about 50. Everything except
        the arrays may take 100 MB.

    Raises
    ------
    TypeError, ValueError
        If something cannot be saved; the message names its place.
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
    ranks = _ranks_of(optimizer)

    def prepare() -> tuple[Path, dict[str, Any]]:
        target = as_path("path", path)
        if all(part is None for part in (params, optimizer, scheduler, ema, extra)):
            raise ValueError("there is nothing to save: pass params=, optimizer= or another part")
        plain = None if ranks is not None else optimizer
        return target, {
            "params": None if params is None else _by_name(params),
            "optimizer": None if plain is None else _state_of(plain, "optimizer"),
            "scheduler": None if scheduler is None else _state_of(scheduler, "scheduler"),
            "ema": None if ema is None else _state_of(ema, "ema"),
            "extra": extra,
        }

    if ranks is None:
        write_file(*prepare())
        return
    target, parts = ranks.together(prepare, "save")
    parts["optimizer"] = ranks.state_dict(root=0)  # the others need no memory for it
    ranks.on_first_rank(lambda: write_file(target, parts))


def load(
    path: str | os.PathLike[str],
    *,
    params: Params | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    ema: Stateful | None = None,
    extra: Stateful | None = None,
    strict: bool = True,
) -> Checkpoint:
    """Read a checkpoint, and restore the arguments from it.

    Format, structure and all hashes are checked first. Then all arguments are restored in place, or
    none of them, also after Ctrl-C or a MemoryError. For this, their present state is copied first.
    There is one exception: a second Ctrl-C while the old state is put back may leave some objects
    with the loaded state.

    Parameters
    ----------
    path : path
        A file of `save`.
    params : mapping, sequence or groups
        Arrays with the saved names, shapes and dtypes. They are overwritten.
    optimizer, scheduler, ema
        Objects with the structure of the saved ones; each loads its state. With a
        `fastopt.distributed.Sharded`, all ranks call `load`; rank 0 reads the file, and sends
        `extra` and what is restored. The number of ranks may differ from that of the saved run.
    extra
        An object whose `load_state_dict` takes the saved `extra`. It is called first.
    strict : bool
        False restores only the names that both sides have, in `params` and in each object whose
        `load_state_dict` has an option `strict`, such as optimizers. The other names are in
        ``incompatible`` of the result. Shapes and dtypes must still match.

    Returns
    -------
    Checkpoint
        The contents of the file; the arrays are copies.

    Raises
    ------
    CheckpointError
        If the file is damaged, cut short, or not a checkpoint.
    KeyError, TypeError, ValueError
        If what is passed does not fit what was saved: names that are missing or extra, shapes,
        dtypes, options.
    ModuleNotFoundError
        If the file holds bfloat16, and the package ml_dtypes is not installed.
    OSError
        If the file cannot be read.

    Examples
    --------
    A new layer beside the saved one:

    >>> import tempfile, numpy as np, fastopt as fo
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/run.safetensors"
    >>> fo.save(path, params={"first": np.ones(2), "last": np.ones(1)})
    >>> params = {"first": np.zeros(2), "new": np.zeros(3)}
    >>> fo.load(path, params=params, strict=False).incompatible["params"]
    IncompatibleKeys(missing_keys=['new'], unexpected_keys=['last'])
    >>> params["first"]
    array([1., 1.])
    >>> folder.cleanup()
    """
    ranks = _ranks_of(optimizer)
    given: dict[str, Any] = {}
    before: dict[str, Any] = {}
    options: dict[str, dict[str, bool]] = {}

    def prepare() -> Path:
        strictly = flag("strict", strict)
        own = optimizer if ranks is None else ranks.own_part
        for name, item in (
            ("extra", extra),
            ("scheduler", scheduler),
            ("ema", ema),
            ("optimizer", own),
            ("params", None if params is None else _Arrays(_by_name(params))),
        ):
            if item is not None:
                given[name] = item
                options[name] = {} if strictly or not _takes_strict(item) else {"strict": False}
        return as_path("path", path)

    def keep() -> None:
        for name, item in given.items():
            state = _state_of(item, name)
            # That of a part is replaced, not written.
            replaced = ranks is not None and name == "optimizer"
            before[name] = state if replaced else copy.deepcopy(state)

    if ranks is None:
        source = prepare()
        checkpoint = Checkpoint(**_checked(read_file(source), source))
        keep()
    else:
        source = ranks.together(prepare, "load")
        checkpoint = _received(source, ranks, given)
        ranks.together(keep, "load")

    with ExitStack() as undo:

        def restore() -> None:
            for name, item in given.items():
                saved = getattr(checkpoint, name)
                if saved is None and name != "extra":  # which may be None
                    raise NamesError(f"{source} holds no {name}; leave {name}= out")
                undo.callback(item.load_state_dict, before[name])
                answer = item.load_state_dict(saved, **options[name])
                if isinstance(answer, IncompatibleKeys) and not strict:
                    checkpoint.incompatible[name] = answer

        restore() if ranks is None else ranks.together(restore, "load")
        undo.pop_all()  # what went well stays
    return checkpoint


class _Ranks(Protocol):
    """An optimizer whose state is spread over the ranks of MPI: `fastopt.distributed.Sharded`."""

    own_part: Stateful

    def state_dict(self, *, root: int | None = None) -> dict[str, Any]: ...
    def scatter_state(self, state_dict: Mapping[str, Any] | None) -> dict[str, Any]: ...
    def on_first_rank(self, function: Callable[[], Any]) -> Any: ...
    def together(self, function: Callable[[], Any], method: str) -> Any: ...


def _ranks_of(optimizer: Stateful | None) -> _Ranks | None:
    """Return the optimizer if its state is spread over ranks."""
    return cast("_Ranks", optimizer) if hasattr(optimizer, "scatter_state") else None


def _received(path: Path, ranks: _Ranks, wanted: Collection[str]) -> Checkpoint:
    """Return the extra part and the `wanted` parts of a checkpoint, which rank 0 reads."""
    whole: list[Any] = []

    def read() -> dict[str, Any]:
        parts = _checked(read_file(path), path)
        parts = {name: parts[name] if name in {*wanted, "extra"} else None for name in _PARTS}
        whole.append(parts["optimizer"])
        return parts | {"optimizer": None if parts["optimizer"] is None else {}}

    parts = ranks.on_first_rank(read)
    if parts["optimizer"] is not None:
        parts["optimizer"] = ranks.scatter_state(whole.pop() if whole else None)
    return Checkpoint(**parts)


_PARTS = ("params", "optimizer", "scheduler", "ema", "extra")


def _checked(parts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the parts of a checkpoint file, after a check of their types."""
    if parts.keys() != set(_PARTS):
        raise CheckpointError(f"{path} does not hold what save() writes, but {', '.join(parts)}")
    for name in _PARTS[:-1]:
        if not isinstance(parts[name], (dict, type(None))):
            raise CheckpointError(
                f"{path} does not hold what save() writes: {name} is not a mapping, but "
                f"{type(parts[name]).__name__}"
            )
    for name, array in (parts["params"] or {}).items():
        if not isinstance(array, np.ndarray):
            raise CheckpointError(
                f"{path} does not hold what save() writes: parameter {name!r} is not an array, but "
                f"{type(array).__name__}"
            )
    return parts


def _state_of(item: Stateful, name: str) -> Mapping[str, Any]:
    if isinstance(item, type):
        raise TypeError(f"{name} must be an object, not the class {item.__name__} itself")
    if not all(callable(getattr(item, name, None)) for name in ("state_dict", "load_state_dict")):
        raise TypeError(
            f"{name} must have state_dict and load_state_dict, as an optimizer has; "
            f"{type(item).__name__} has not"
        )
    return mapping(f"the state_dict of {name}", item.state_dict())


def _takes_strict(item: Stateful) -> bool:
    try:
        return "strict" in inspect.signature(item.load_state_dict).parameters
    except ValueError:  # it is compiled and has no signature
        return False


def _by_name(params: Any) -> dict[str, npt.NDArray[Any]]:
    """Return the parameters as plain arrays, with the names that an optimizer gives them."""
    found: dict[str, npt.NDArray[Any]] = {}
    for group in as_groups(params)[0]:
        names, arrays, _ = new_params(group, found)
        for name, array in zip(names, arrays, strict=True):
            array = _core.as_numpy(array, f"parameter {name!r}")
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(f"parameter {name!r} is a masked array; pass its data")
            found[name] = np.asarray(array)
    return found


class _Arrays:
    """Parameters as an object with a state."""

    def __init__(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        self._arrays = arrays

    def state_dict(self) -> dict[str, Any]:
        return self._arrays

    def load_state_dict(
        self, state_dict: Mapping[str, npt.NDArray[Any]], strict: bool = True
    ) -> IncompatibleKeys:
        if strict:
            require_same_names(self._arrays, state_dict, "checkpoint's params")
        pairs = [
            (name, array, state_dict[name])
            for name, array in self._arrays.items()
            if name in state_dict
        ]
        for name, array, saved in pairs:
            if array.shape != saved.shape:
                raise ValueError(
                    f"parameter {name!r} has shape {array.shape}, in the checkpoint {saved.shape}"
                )
            if array.dtype != saved.dtype:
                raise TypeError(
                    f"parameter {name!r} is {array.dtype}, in the checkpoint {saved.dtype}; pass "
                    f"an array of {saved.dtype}, or load without params= and use .astype"
                )
            if not array.flags.writeable:
                raise ValueError(f"parameter {name!r} is read-only; pass a writeable array")
        _refuse_overlap(pairs)
        for _, array, saved in pairs:
            array[...] = saved
        return IncompatibleKeys(
            [name for name in self._arrays if name not in state_dict],
            [name for name in state_dict if name not in self._arrays],
        )


def _refuse_overlap(pairs: list[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]) -> None:
    """Raise ValueError if two of the written arrays share memory."""
    spans = sorted((*span(array), index) for index, (_, array, _) in enumerate(pairs))
    end, last = 0, 0
    for begin, until, index in spans:
        (one, first, _), (other, second, _) = pairs[last], pairs[index]
        if begin < end and np.shares_memory(first, second):
            raise ValueError(f"parameters {one!r} and {other!r} overlap in memory; pass copies")
        if until > end:
            end, last = until, index
