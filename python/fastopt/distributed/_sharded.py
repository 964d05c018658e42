"""An optimizer whose states are spread over the ranks of MPI."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from time import sleep
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

import fastopt as fo
from fastopt._checks import (
    choice,
    counted,
    finite,
    flag,
    integer,
    mapping,
    non_negative,
    short_repr,
)
from fastopt._storage import bfloat16
from fastopt._structure import flatten_grads, span
from fastopt._types import FloatArray, Grads, Group, Params
from fastopt.distributed._agreement import agree, on_first_rank
from fastopt.distributed._exchange import Array, Exchange, Order
from fastopt.distributed._interrupts import interrupts_kept
from fastopt.distributed._mpi import import_mpi
from fastopt.distributed._shard import shard

T = TypeVar("T")

_APART = "; the ranks no longer have the same parameters: load a checkpoint"


class Sharded:
    r"""An optimizer of which each rank of MPI keeps the states of its part only.

    All ranks have all parameters. A step sums the gradients of the ranks, lets each rank update its
    part of the parameters in place, and gives all ranks the new parameters (ZeRO stage 1). With
    :math:`R` ranks, the states of a rank take :math:`1/R` of the memory.

    The sum is taken in the order of the ranks, in float32 (float64 for float64 parameters). So the
    bits of a run repeat for a number of ranks. The updates are those of the plain optimizer with
    this sum; only the norm for `max_norm` may differ by its rounding. With one rank, the bits are
    those of the plain optimizer.

    All ranks make the object with equal parameters and options, and call its methods together.

    Parameters
    ----------
    optimizer_class : class
        `SGD`, `RMSprop`, `Adam` or `AdamW`, or one of `fastopt.reference`.
    params : mapping, sequence or groups
        As for the optimizer: NumPy arrays, with equal values on all ranks.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks; by default ``MPI.COMM_WORLD``.
    grad_dtype : {None, "float32", "bfloat16"}
        The type in which gradients are sent. "bfloat16" halves what is sent, and rounds gradients
        of float32 to nearest before the sum. It needs the package ml_dtypes. None is float32.
        Gradients of float64 parameters are sent in float64.
    **options
        The options of the optimizer.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
    optimizer_class : class

    Raises
    ------
    ModuleNotFoundError
        If mpi4py is not installed.
    ValueError
        On all ranks, if their parameters or options differ; it names the first that differs.
    RuntimeError
        On all other ranks, if a rank raises. This holds for all methods.

    Notes
    -----
    A step ends before Ctrl-C has an effect; then all ranks raise KeyboardInterrupt. For this, a
    step in the main thread replaces Python's own handler of SIGINT until it ends. Ctrl-C elsewhere
    in a program concerns one rank: start it with ``-m mpi4py``, which ends the others.

    Examples
    --------
    The same lines run with ``mpiexec -n 4``; each rank then has its own gradients:

    >>> import numpy as np, fastopt as fo
    >>> from fastopt.distributed import Sharded  # doctest: +SKIP
    >>> params = {"w": np.zeros(1000, np.float32)}
    >>> optimizer = Sharded(fo.AdamW, params, lr=0.1)  # doctest: +SKIP
    >>> info = optimizer.step({"w": np.ones(1000, np.float32)}, max_norm=1.0)  # doctest: +SKIP
    >>> fo.save("run.safetensors", params=params, optimizer=optimizer)  # doctest: +SKIP
    """

    def __init__(
        self,
        optimizer_class: Callable[..., fo.Optimizer],
        params: Params,
        comm: Any = None,
        *,
        grad_dtype: str | None = None,
        **options: Any,
    ) -> None:
        self.comm = _communicator(comm)
        self.optimizer_class = optimizer_class
        self._params: list[_Param] = []
        self._parts: list[list[slice]] = [[] for _ in range(self.comm.size)]  # of each rank
        self._exchange: Exchange | None = None  # of the last step
        self._interrupts: list[int] = []  # that came too late for the last step

        def build() -> None:
            self._wire = _wire_dtype(grad_dtype)
            if not (
                isinstance(optimizer_class, type) and issubclass(optimizer_class, fo.Optimizer)
            ):
                raise TypeError(
                    "optimizer_class must be a class of optimizers, such as fastopt.AdamW, not "
                    f"{short_repr(optimizer_class)}"
                )
            given: Any = list(params) if isinstance(params, Iterator) else params
            for group in given if isinstance(given, Sequence) else ():
                _refuse_starts(group)
            # It checks the parameters, groups and options. It never steps, so it has no states.
            self._whole = optimizer_class(given, **options)
            groups = [self._own_group(group) for group in self._whole.param_groups]
            self._own = optimizer_class(groups, **options)

        def facts() -> dict[str, object]:
            return {
                "optimizer_class": optimizer_class.__name__,
                "grad_dtype": self._wire.name,
            } | self._facts(0)

        self._together("the constructor", build, facts)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Sharded cannot be pickled or copied; save it with fastopt.save")

    @property
    def param_groups(self) -> list[Group]:
        """The groups with the whole parameters and the options, which are read at each step."""
        return self._whole.param_groups

    @property
    def defaults(self) -> Group:
        """The options of groups that do not set them."""
        return self._whole.defaults

    @property
    def state(self) -> Mapping[str, Mapping[str, Any]]:
        """The states of this rank's parts by name, flat in the order of the memory."""
        return self._own.state

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group of parameters; see `Optimizer.add_param_group`."""
        count = len(self.param_groups)
        before = list(self._params), [list(parts) for parts in self._parts]

        def add() -> None:
            _refuse_starts(param_group)
            self._whole.add_param_group(param_group)
            self._own.add_param_group(self._own_group(self._whole.param_groups[count]))

        try:
            self._together("add_param_group", add, lambda: self._facts(count))
        except BaseException:
            self._params, self._parts = before
            for optimizer in (self._whole, self._own):
                if len(optimizer.param_groups) > count:
                    optimizer.remove_param_group(count)
            raise
        self._exchange = None

    def remove_param_group(self, index: int) -> None:
        """Remove a group; see `Optimizer.remove_param_group`."""
        self._together("remove_param_group", lambda: None, lambda: {"index": index})
        self._own.remove_param_group(index)  # raises if there is no such group
        self._whole.remove_param_group(index)
        left = {name for group in self.param_groups for name in group["param_names"]}
        kept = [number for number, param in enumerate(self._params) if param.name in left]
        self._params = [self._params[i] for i in kept]
        self._parts = [[parts[i] for i in kept] for parts in self._parts]
        self._exchange = None

    def step(
        self,
        grads: Grads | None,
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        grad_scale: float = 1.0,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        weight: float | None = None,
    ) -> fo.StepInfo:
        r"""Update all parameters by one step with the sum of the gradients over the ranks.

        Parameters
        ----------
        grads : mapping or sequence
            The gradients of this rank; see `Optimizer.step`. A parameter has a gradient on all
            ranks or on none. None needs ``weight=0``, and counts as a gradient for each parameter.
        max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads
            See `Optimizer.step`. They are equal on all ranks. The gradient is the sum over
            `grad_scale`, and so is the norm. ``grad_scale=comm.size`` makes the sum a mean.
        weight : float, optional
            The weight of this rank, at least 0, such as the number of its samples. The weighted
            mean :math:`\sum_r w_r g_r / \sum_r w_r` is then in the place of the sum. The gradients
            of a rank with weight 0 are not read.

        Returns
        -------
        StepInfo
            ``grad_norm`` and ``skipped``, equal on all ranks.

        Raises
        ------
        KeyboardInterrupt
            After the step, on all ranks, if Ctrl-C came within it on one; after the next step, if
            it came in the last moment.
        """
        arguments = grads, max_norm, norm_type, grad_scale, skip_nonfinite, zero_grads, weight
        with interrupts_kept(self._interrupts):
            info = self._step(*arguments)
            if any(self._everyones(len(self._interrupts))):
                if not self._interrupts:  # it is of another rank, and ours may come a little later
                    sleep(0.1)
                self._interrupts.clear()
                raise KeyboardInterrupt
        return info

    def _step(
        self,
        grads: Grads | None,
        max_norm: float | None,
        norm_type: float,
        grad_scale: float,
        skip_nonfinite: bool,
        zero_grads: bool,
        weight: float | None,
    ) -> fo.StepInfo:
        flat: list[Array | None] = []
        facts = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "grad_scale": grad_scale,
            "skip_nonfinite": skip_nonfinite,
            "zero_grads": zero_grads,
            "whether weight is passed": weight is not None,
        }

        def check() -> None:
            if weight is not None:
                non_negative("weight", weight)
                finite("grad_scale", grad_scale)
            held = [param for group in self.param_groups for param in group["params"]]
            own = [param.array for param in self._params]
            if len(held) != len(own) or not all(map(is_, held, own)):
                raise ValueError(
                    "the 'params' of a group cannot be replaced, nor the groups reordered; use "
                    "remove_param_group and add_param_group"
                )
            flat.extend(self._flat(grads, weight, flag("zero_grads", zero_grads)))
            _copy_options(self._whole, self._own)

        def all_facts() -> dict[str, object]:
            missing = [name for name, grad in zip(self.state, flat, strict=True) if grad is None]
            return facts | self._options(0) | {"the list of parameters without a gradient": missing}

        self._together("step", check, all_facts)
        weights = None
        if weight is not None:
            weights = self._everyones(weight)
            largest = max(weights)
            # By a power of two, which changes no bit: float32 holds the weights then.
            weights = [math.ldexp(w, -math.frexp(largest)[1]) for w in weights]
            if largest == 0:
                raise ValueError("the weights of all ranks are 0")
            if self.comm.size > 1:
                grad_scale = grad_scale * math.fsum(weights)
        exchange = self._exchange_of([grad is not None for grad in flat])
        sums = exchange.reduce(None if weight == 0 else flat, weights)
        total_norm, skips = None, skip_nonfinite
        if self.comm.size > 1 and (max_norm is not None or skip_nonfinite):
            total_norm, all_finite = self._norm(sums, norm_type)
            skips = skip_nonfinite and not all_finite
        used = total_norm if max_norm is not None or skips else None
        info: fo.StepInfo = self._together(
            "step",
            lambda: self._own.step(
                dict(zip(self.state, sums, strict=True)),
                max_norm=max_norm,
                norm_type=norm_type,
                grad_scale=grad_scale,
                skip_nonfinite=skips,
                total_norm=used,
            ),
            hint=_APART,
        )
        if total_norm is not None:
            info = info._replace(grad_norm=total_norm / grad_scale)
        if not info.skipped:
            exchange.gather()
            if zero_grads and grads is not None:
                for grad in self._found(grads):
                    if grad is not None:
                        grad[...] = 0
        return info

    def state_dict(self, *, root: int | None = None) -> dict[str, Any]:
        """Return the whole state, as the plain optimizer does.

        The arrays are new. A plain optimizer can load the result, and a `Sharded` of any number of
        ranks.

        Parameters
        ----------
        root : int, optional
            The rank that gets the whole state; the others get an empty dict, and need no memory for
            it. By default all ranks get it.
        """
        here = root in (None, self.comm.rank)

        def allocate() -> dict[str, Any]:
            if root is not None:
                integer(0, self.comm.size - 1)("root", root)
            result = self.own_part.state_dict()
            for param in self._params:
                entry = result["state"][param.name] = dict(result["state"][param.name])
                for key, own in entry.items():
                    if isinstance(own, np.ndarray):
                        whole = np.empty_like(param.array, dtype=own.dtype) if here else None
                        entry[key] = own, whole
            return result

        result = self._together("state_dict", allocate, lambda: {"root": root})
        for number, param in enumerate(self._params):
            entry = result["state"][param.name]
            for key, pair in entry.items():
                if isinstance(pair, tuple):
                    own, entry[key] = pair
                    self._gather(number, own, entry[key], root)
        return result if here else {}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> fo.IncompatibleKeys:
        """Load a whole state; see `Optimizer.load_state_dict`.

        Parameters
        ----------
        state_dict : mapping
            A result of `state_dict`, of this class or of the plain optimizer; equal on all ranks.
        strict : bool
            False loads the names that both sides have, and returns the others.
        """
        own = self.own_part
        before = own.state_dict()  # loading replaces its arrays

        def facts() -> dict[str, object]:
            states = {
                f"the state of {name!r}": (sorted(state), state["step"])
                for name, state in self.state.items()
            }
            return self._options(0) | states

        def load() -> fo.IncompatibleKeys:
            parts = self._parts[self.comm.rank]
            mine = self._replaced(state_dict, lambda flat, number: flat[parts[number]])
            return own.load_state_dict(mine, strict)

        try:
            return self._together("load_state_dict", load, facts)
        except BaseException:
            own.load_state_dict(before)
            raise

    @property
    def own_part(self) -> OwnPart:
        """The state of this rank's parts only, for `fastopt.load`."""
        return OwnPart(self._own, self._whole)

    def scatter_state(self, state_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the state of this rank's parts, for a whole state that only rank 0 has.

        Parameters
        ----------
        state_dict : mapping, optional
            On rank 0 a result of `state_dict`; not read on the others.

        Returns
        -------
        dict
            What ``own_part.load_state_dict`` takes.
        """
        whole: list[Array] = []

        def keep(flat: Array, number: int) -> _Sent:
            whole.append(np.ascontiguousarray(flat))
            return _Sent(flat.dtype, number)

        result = self.on_first_rank(lambda: self._replaced(state_dict, keep))
        sent = [
            (entry, key, value)
            for entry in result["state"].values()
            for key, value in entry.items()
            if isinstance(value, _Sent)
        ]

        def allocate() -> None:
            for entry, key, (dtype, number) in sent:
                part = self._parts[self.comm.rank][number]
                entry[key] = np.empty(part.stop - part.start, dtype)

        self._together("scatter_state", allocate)
        for place, (entry, key, (dtype, number)) in enumerate(sent):
            counts = self._counts(number, dtype.itemsize)
            data = [whole[place].view(np.uint8), counts, "B"] if whole else None
            self.comm.Scatterv(data, entry[key].view(np.uint8))
        return result

    def on_first_rank(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result on all ranks.

        Parameters
        ----------
        function : callable
            Called without arguments. If it raises, all ranks raise this error. Its result is
            pickled.
        """
        agree(self.comm, None, {"the method": "on_first_rank"})
        return on_first_rank(self.comm, function)

    def together(self, function: Callable[[], T], method: str = "together") -> T:
        """Call a function on all ranks, and return its result; all raise if it raises on one.

        Parameters
        ----------
        function : callable
            Called without arguments. It does not communicate.
        method : str
            What the ranks do, for the message if they do not do the same.
        """
        return self._together(method, function)

    def __repr__(self) -> str:
        return f"Sharded(rank {self.comm.rank} of {self.comm.size}, {self._whole!r})"

    def _own_group(self, group: Group) -> Group:
        """Return a group with this rank's parts of the parameters; keep the parts of all ranks."""
        names, ranks = group["param_names"], self.comm.size
        params = [_Param(n, a) for n, a in zip(names, group["params"], strict=True)]
        self._params += params
        sizes = [param.array.size for param in params]
        parts = [shard(sizes, ranks, rank) for rank in range(ranks)]
        for all_parts, new in zip(self._parts, parts, strict=True):
            all_parts += new
        own = parts[self.comm.rank]
        return _options_of(group) | {
            "params": {p.name: p.flat[part] for p, part in zip(params, own, strict=True)},
            "starts": [part.start for part in own],
        }

    def _replaced(
        self, state_dict: Mapping[str, Any] | None, replace: Callable[[Array, int], Any]
    ) -> dict[str, Any]:
        """Return a state dict in which ``replace(flat, number)`` is in the place of each array.

        `flat` is the array in the order of parameter `number` in memory.
        """
        state_dict = mapping("state_dict", state_dict)
        states: dict[str, Any] = {}
        params = {param.name: (number, param) for number, param in enumerate(self._params)}
        for name, entry in mapping("'state'", state_dict.get("state", {})).items():
            states[name] = entry
            if name not in params or not isinstance(entry, Mapping):
                continue  # the optimizer says what is wrong
            number, param = params[name]
            states[name] = dict(entry)
            for key, value in entry.items():
                if isinstance(value, np.ndarray):
                    param.require_shape(value, f"{key!r} of {name!r}")
                    states[name][key] = replace(param.order.flat(value), number)
        return {**state_dict, "state": states}

    def _counts(self, number: int, itemsize: int) -> list[int]:
        """Return the bytes of each rank's part of a state of parameter `number`."""
        return [(every[number].stop - every[number].start) * itemsize for every in self._parts]

    def _gather(self, number: int, own: Array, whole: Array | None, root: int | None) -> None:
        """Fill a whole state of parameter `number`, on rank `root` or on all."""
        data = None
        if whole is not None:
            flat = self._params[number].order.flat(whole).view(np.uint8)
            data = [flat, self._counts(number, own.itemsize), "B"]
        if root is None:
            self.comm.Allgatherv(own.view(np.uint8), data)
        else:
            self.comm.Gatherv(own.view(np.uint8), data, root)

    def _flat(self, grads: Grads | None, weight: float | None, written: bool) -> list[Array | None]:
        """Return the gradients in the order of the parameters, as flat as these."""
        if grads is None:
            if weight != 0:
                raise TypeError("grads is None, which needs weight=0")
            return [param.flat for param in self._params]  # of the right shapes, and not read
        found = self._found(grads)
        if len(found) != len(self._params):
            raise ValueError(
                f"grads has {counted(len(found), 'gradient')} for "
                f"{counted(len(self._params), 'parameter')}; pass None for a parameter without one"
            )
        flat = [
            None if grad is None else param.flat_grad(grad, written)
            for param, grad in zip(self._params, found, strict=True)
        ]
        self._refuse_overlap(found)
        return flat

    def _refuse_overlap(self, grads: Sequence[FloatArray | None]) -> None:
        """Raise ValueError if a gradient shares memory with a parameter, which is written."""
        # The address of an empty parameter may lie within another one.
        params = [param for param in self._params if param.array.size]
        params.sort(key=lambda param: param.span)
        given = [(n, grad) for n, grad in enumerate(grads) if grad is not None and grad.size]
        if not params or not given:
            return
        spans = np.array([span(grad) for _, grad in given], np.int64)
        begins, ends = np.array([param.span for param in params], np.int64).T
        last = np.searchsorted(begins, spans[:, 1]) - 1  # begins before the end of the gradient
        for place in np.flatnonzero((last >= 0) & (ends[last] > spans[:, 0])):
            number, grad = given[place]
            for param in params:
                if np.shares_memory(param.array, grad):
                    raise ValueError(
                        f"parameter {param.name!r} and gradient of {self._params[number].name!r} "
                        "share memory; an array that is written must have separate memory (use "
                        ".copy())"
                    )

    def _found(self, grads: Grads) -> Sequence[FloatArray | None]:
        """Return the gradients in the order of the parameters."""
        whole = self._whole
        return flatten_grads(grads, whole._index, whole.param_groups, whole._by_group, whole._named)

    def _exchange_of(self, given: list[bool]) -> Exchange:
        """Return the buffers for a step of the parameters that are `given` gradients."""
        if self._exchange is None or self._exchange.given != given:  # the same on all ranks
            self._exchange = None  # first free its buffers
            flat = [param.flat for param in self._params]
            self._exchange = self._together(
                "step", lambda: Exchange(self.comm, flat, self._parts, given, self._wire)
            )
        return self._exchange

    def _norm(self, sums: Sequence[Array | None], norm_type: float) -> tuple[float, bool]:
        """Return the norm of the parts of all ranks, and whether all elements are finite."""
        norms = self._everyones(fo.grad_norm(sums, norm_type))
        if any(map(math.isnan, norms)):
            return math.nan, False
        norm = max(norms) if norm_type == math.inf else math.hypot(*norms)
        if math.isfinite(norm):
            return norm, True
        finite = all(np.isfinite(part).all() for part in sums if part is not None)
        return norm, all(self._everyones(float(finite)))

    def _everyones(self, value: float) -> list[float]:
        """Return the numbers of all ranks."""
        result = np.empty(self.comm.size)
        self.comm.Allgather(np.array([value], np.float64), result)
        return [float(number) for number in result]

    def _together(
        self,
        method: str,
        change: Callable[[], T],
        facts: Callable[[], Mapping[str, object]] = dict,
        hint: str = "",
    ) -> T:
        """Call `change`; raise if it raises on any rank, or if the facts after it differ."""
        result: Any = None
        after: Mapping[str, object] = {}
        error: BaseException | None = None
        try:
            result = change()
            after = facts()
        except BaseException as raised:  # also Ctrl-C: the others must hear of it
            error = raised
        agree(self.comm, error, {"the method": method, **after}, hint)
        return result  # type: ignore[no-any-return]

    def _options(self, first: int) -> dict[str, object]:
        """Return the options of the groups from number `first` on, with names for messages."""
        return {
            f"{key!r} of group {number}": group[key]
            for number, group in enumerate(self.param_groups[first:], first)
            for key in self.defaults
        }

    def _facts(self, first: int) -> dict[str, object]:
        """Return what must be equal on all ranks of the groups from number `first` on."""
        facts = self._options(first)
        known = {name for group in self.param_groups[:first] for name in group["param_names"]}
        for param in self._params:
            if param.name not in known:
                what = f"parameter {param.name!r}"
                facts[f"the dtype of {what}"] = param.array.dtype.name
                facts[f"the shape of {what}"] = param.array.shape
                facts[f"the order in memory of {what}"] = param.order.axes
                digest = hashlib.sha256(param.flat.view(np.uint8).data).hexdigest()[:16]
                facts[f"{what}, as the hash of its values,"] = digest
        return facts


class _Param:
    """A whole parameter, its name, and its elements as one dimension."""

    def __init__(self, name: str, array: FloatArray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"parameter {name!r} must be a NumPy array, not {short_repr(array)}")
        self.name, self.array, self.order = name, array, Order(array)
        self.flat = self.order.flat(array)
        self.span = span(array)
        wide = array.dtype == np.float64
        self._usual = np.dtype(np.float64 if wide else np.float32)  # dtype of a gradient
        self._taken = ("float64",) if wide else ("float32", "bfloat16", "float16")

    def flat_grad(self, grad: Any, written: bool) -> Array:
        """Return a gradient in the order of the parameter, after its checks."""
        plain = type(grad) is np.ndarray and grad.shape == self.array.shape
        if not plain or grad.dtype != self._usual or written:
            self._check(grad, f"gradient of {self.name!r}", written)
        return self.order.flat(grad)

    def _check(self, grad: Any, what: str, written: bool) -> None:
        if not isinstance(grad, np.ndarray) or isinstance(grad, np.ma.MaskedArray):
            raise TypeError(f"{what} must be a NumPy array, not {short_repr(grad)}")
        if grad.dtype.name not in self._taken or not grad.dtype.isnative:
            taken = " or ".join(self._taken)
            raise TypeError(f"{what} must have dtype {taken}, not {grad.dtype}")
        self.require_shape(grad, what)
        if written and not grad.flags.writeable:
            raise ValueError(f"{what} is read-only, and zero_grads writes to it")

    def require_shape(self, array: Array, what: str) -> None:
        """Raise ValueError if `array` has not the shape of the parameter."""
        if array.shape != self.array.shape:
            raise ValueError(
                f"{what} has shape {array.shape} but parameter {self.name!r} has shape "
                f"{self.array.shape}; they must be equal"
            )


class _Sent(NamedTuple):
    """In the place of an array that rank 0 sends."""

    dtype: np.dtype[Any]
    number: int  # of the parameter


class OwnPart:
    """The state of the parts of one rank; nothing of it is sent."""

    def __init__(self, own: fo.Optimizer, whole: fo.Optimizer) -> None:
        self._own, self._whole = own, whole

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the parts; the arrays are those of the optimizer."""
        _copy_options(self._whole, self._own)
        return self._own.state_dict()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> fo.IncompatibleKeys:
        """Load a result of `state_dict` or of `Sharded.scatter_state`."""
        result = self._own.load_state_dict(state_dict, strict)
        _copy_options(self._own, self._whole)
        return result


def _copy_options(source: fo.Optimizer, target: fo.Optimizer) -> None:
    """Give the groups of one optimizer the options of another."""
    for old, new in zip(target.param_groups, source.param_groups, strict=True):
        for key in [key for key in old if key not in new]:
            del old[key]
        old.update(_options_of(new))


def _options_of(group: Group) -> Group:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _refuse_starts(group: object) -> None:
    if isinstance(group, Mapping) and "starts" in group:
        raise ValueError("a group of Sharded has no 'starts': it cuts whole parameters itself")


def _wire_dtype(grad_dtype: str | None) -> np.dtype[Any]:
    """Return the dtype in which gradients are sent that are summed in float32."""
    if grad_dtype is None:
        return np.dtype(np.float32)
    choice("float32", "bfloat16")("grad_dtype", grad_dtype)
    return bfloat16() if grad_dtype == "bfloat16" else np.dtype(np.float32)


def _communicator(comm: Any) -> Any:
    MPI = import_mpi()
    if comm is None:
        return MPI.COMM_WORLD
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"comm must be an mpi4py.MPI.Intracomm, not {short_repr(comm)}")
    return comm
