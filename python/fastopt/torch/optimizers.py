"""The optimizers as subclasses of those of `torch.optim`."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
import torch
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.nn import Parameter
from torch.optim.adam import adam
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

import fastopt._core as _core
from fastopt import StepInfo
from fastopt._checks import flag, integer, number

_max_norm = number(">= 0", lambda x: x >= 0)
_seed = integer(0)
_HALVES = (torch.bfloat16, torch.float16)
_STATES = (torch.float32, torch.bfloat16)  # of parameters of 32 and 16 bits
_MASTERS = (torch.float32, torch.int16)
_DTYPES = ("state_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")


class Optimizer(torch.optim.Optimizer, ABC):
    """Base class of the optimizers for torch: the step, and the options that torch does not have.

    A subclass also inherits from the class of `torch.optim` that has its name. It takes the
    arguments of that class, and its state dicts go both ways. One call of C++ steps all parameters.
    torch steps those that the call does not take: on other devices, complex, of float16 without a
    master, of another class than `torch.Tensor`, `torch.nn.Parameter` and `DTensor`, or with sparse
    gradients. A step with such parameters refuses `max_norm` and `skip_nonfinite`. The other
    options below change nothing for them; the first such step gives a UserWarning.

    Parameters
    ----------
    params, *args, **kwargs
        As in `torch.optim`. `foreach` changes nothing on the CPU, and `fused` only what a
        `GradScaler` does; see `step`. `capturable` and `differentiable` must be False.
    max_norm : float, optional
        Clip the gradients to this norm within the step: the update multiplies them by
        ``min(1, max_norm / (norm + 1e-6))``, as `torch.nn.utils.clip_grad_norm_` does. The norm is
        over all gradients of the step in this process, so all groups must have the same value, and
        parameters that are `DTensor` over several processes are refused.
    state_dtype : torch.dtype, optional
        The type of new states, `torch.float32` or `torch.bfloat16`. None is the type of the
        parameter, and `torch.float32` for a parameter of 16 bits. States that are there already,
        loaded ones for example, keep their type. `Adam` and `AdamW` have `exp_avg_dtype` and
        `exp_avg_sq_dtype` instead.
    master_weights : bool
        Keep a float32 copy of parameters of 16 bits in their state, as ``master_param``. The steps
        are those of a float32 parameter.
    store_param_remainders : bool
        With `master_weights`: ``master_param`` is the int16 that makes a float32 together with the
        bfloat16 parameter. Parameters of float16 have a float32 copy in any case.
    stochastic_rounding : bool
        Round bfloat16 parameters without a master, and second moments in bfloat16, up or down at
        random, so that the mean is exact and small changes are not lost.
    seed : int
        The seed of these random numbers. They depend on the step and the name of the parameter too,
        which is its number without `named_parameters`. So optimizers of one parameter each, or
        groups that are replaced between steps, have the same numbers for all parameters: give them
        names, or another seed each.

    Attributes
    ----------
    grad_norm : float or None
        The norm of the gradients before clipping, of the last step that computed one.
    skipped : bool
        Whether the last step did nothing, because of a gradient with NaN or infinity.
    """

    grad_norm: float | None = None
    skipped: bool = False

    _checked: Any = None  # the values of the options that were checked last
    _warned = False  # of options that torch ignores

    _kernel: ClassVar[str]  # the name of the row in the table of updates
    _dtype_options: ClassVar[tuple[str, ...]] = ("state_dtype",)  # the types of new states
    _takes_sparse: ClassVar[bool] = False  # whether torch's function takes sparse gradients

    def __init__(
        self,
        params: Any,
        *args: Any,
        max_norm: float | None = None,
        master_weights: bool = False,
        store_param_remainders: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        options = {
            "max_norm": max_norm,
            "master_weights": master_weights,
            "store_param_remainders": store_param_remainders,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
        }
        options |= {name: kwargs.pop(name, None) for name in self._dtype_options}
        super().__init__(params, *args, **kwargs)
        self.defaults |= options
        for group in self.param_groups:
            group |= options | group
            _check_options(group)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        max_norm: float | EllipsisType | None = ...,
        skip_nonfinite: bool = False,
    ) -> Any:
        """Update all parameters that have a gradient.

        With ``fused=True``, a `GradScaler` does not unscale the gradients in a pass of its own: the
        step divides them by the scale, without a change of ``p.grad``, and does nothing if the
        scaler has found infinity or NaN.

        Parameters
        ----------
        closure : callable, optional
            Computes the gradients and returns the loss.
        max_norm : float or None
            As the option of the groups, which it replaces for this step.
        skip_nonfinite : bool
            Do nothing if a gradient holds NaN or infinity; `skipped` says so.

        Returns
        -------
        object
            The result of `closure`, or None.

        Raises
        ------
        TypeError, ValueError, KeyError
            If an option, a tensor or a state is refused. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Anyone may have replaced the groups.
        options = [tuple(map(group.get, _CHECKED)) for group in self.param_groups]
        if options != self._checked:
            for group in self.param_groups:
                _check_options(group)
            self._checked = options
        if max_norm is ...:
            max_norm = _common_max_norm(self.param_groups)
        if max_norm is not None or skip_nonfinite:
            _require_whole_tensors(self.param_groups)
        if getattr(self, "found_inf", None):
            self.skipped = True
            return loss
        scale = getattr(self, "grad_scale", None)
        scale = 1.0 if scale is None else float(scale)

        def step_others(others: list[tuple[int, torch.Tensor]]) -> None:
            self._check_others(others)
            for index in {index for index, _ in others}:
                params = [p for i, p in others if i == index]
                self._step_in_torch({**self.param_groups[index], "params": params}, scale)

        # As torch.no_grad() does, which takes a microsecond.
        grad_enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            info = self._updater.step(
                self.param_groups,
                self.state,
                self._make_state,
                step_others,
                increment_version,
                max_norm,
                scale,
                skip_nonfinite,
            )
        finally:
            torch._C._set_grad_enabled(grad_enabled)
        self.skipped = info is not None and info.skipped
        if info is not None:
            self.grad_norm = info.grad_norm
        return loss

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func` with what torch does around each step, where that does anything.

        Without a hook and a profiler, it takes longer than the step of a small tensor.
        """
        profiled = torch.optim.Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                profiler._is_profiler_enabled
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
            ):
                return profiled(self, *args, **kwargs)
            return func(self, *args, **kwargs)

        return step

    @cached_property
    def _updater(self) -> Any:
        return _core.TensorUpdater(self._kernel, StepInfo)

    def _check_others(self, others: list[tuple[int, torch.Tensor]]) -> None:
        """Refuse sparse gradients before torch steps a parameter; warn of options it ignores."""
        if not self._takes_sparse and any(p.grad.is_sparse for _, p in others):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients; use SGD, or "
                "torch.optim.SparseAdam"
            )
        for index, p in others:
            ignored = [name for name in _IGNORED if self.param_groups[index].get(name)]
            if ignored and not self._warned:
                self._warned = True
                params = [q for group in self.param_groups for q in group["params"]]
                number = next(i for i, q in enumerate(params) if q is p)
                warnings.warn(
                    f"torch steps parameter {number} ({p.dtype}, on {p.device}), without the "
                    f"option {', '.join(ignored)}; see fastopt.torch.Optimizer",
                    stacklevel=5,  # the caller of `step`
                )

    @abstractmethod
    def _step_in_torch(self, group: dict[str, Any], scale: float) -> None:
        """Step the parameters of a group with torch's function."""

    def _state_dtype(self, name: str, group: Mapping[str, Any]) -> torch.dtype | None:
        dtype: torch.dtype | None = group.get("state_dtype")
        return dtype

    def _make_state(self, p: torch.Tensor, group: Mapping[str, Any], name: str) -> torch.Tensor:
        """Return a new state, as `TensorUpdater.step` needs it."""
        if name == "step":
            return torch.zeros((), dtype=torch.float32, device="cpu")
        local = getattr(p, "_local_tensor", p)  # the part of a DTensor in this process
        dtype = self._state_dtype(name, group)
        if name == "master_param":
            split = group.get("store_param_remainders") and local.dtype == torch.bfloat16
            dtype = torch.int16 if split else torch.float32
        elif dtype is None or local.dtype == torch.float64:
            dtype = torch.float32 if local.dtype in _HALVES else local.dtype
        state = _zeros_like(local, dtype)
        if name == "master_param" and dtype == torch.float32:
            state.copy_(local)
        if local is p:
            return state
        return type(p).from_local(
            state, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The groups of a state dict of torch lack the options of fastopt, which stay as they are.
        before = vars(self).get("param_groups", ())  # there are none after pickle
        for group, old in zip(state["param_groups"], before, strict=False):
            group |= {key: old[key] for key in self.defaults if key in old} | group
        for group in state["param_groups"]:
            named = {name: group[name] for name in _DTYPES if isinstance(group.get(name), str)}
            group |= {name: getattr(torch, dtype) for name, dtype in named.items()}
        super().__setstate__(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of torch; types among the options are text, such as "bfloat16".

        `torch.distributed.checkpoint` refuses other objects in a full state dict.
        """
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            dtypes = {key: value for key, value in group.items() if isinstance(value, torch.dtype)}
            group |= {key: str(dtype).removeprefix("torch.") for key, dtype in dtypes.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a result of `state_dict`, of this class or of torch's.

        Unlike in torch, the states of parameters on the CPU of float32, of bfloat16, and of float16
        with a master keep the type that they have in `state_dict`, if it is float32 or bfloat16,
        and become float32 otherwise. Options of fastopt that it lacks stay as they are.

        Raises
        ------
        TypeError
            If a ``master_param`` has been cast, as torch's `load_state_dict` does. Nothing is
            loaded then.
        """
        loaded: dict[str, Any] = {}

        def keep(_: Any, final: dict[str, Any]) -> None:
            for i, saved in final["state"].items():
                master = saved.get("master_param")
                if isinstance(master, torch.Tensor) and master.dtype not in _MASTERS:
                    raise TypeError(
                        f"master_param of parameter {i} has dtype {master.dtype}: an optimizer of "
                        "torch has cast it; load what fastopt saved, or delete it from the state "
                        "dict, and a new one begins as a copy of the parameter"
                    )
            loaded.update(final)

        def restore(_: Any) -> None:  # torch has cast the states to the types of the parameters
            ids = [i for group in loaded["param_groups"] for i in group["params"]]
            params = [(p, group) for group in self.param_groups for p in group["params"]]
            for i, (p, group) in zip(ids, params, strict=True):
                saved = loaded["state"].get(i, {})
                if not _has_own_types(p, saved, group):
                    continue
                for key, value in saved.items():
                    if isinstance(value, torch.Tensor) and key != "step":
                        kept = _STATES if key != "master_param" else _MASTERS
                        dtype = value.dtype if value.dtype in kept else torch.float32
                        self.state[p][key] = value.to(p.device, dtype)

        with (
            self.register_load_state_dict_pre_hook(keep),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ):
            super().load_state_dict(state_dict)


class SGD(Optimizer, torch.optim.SGD):
    """`torch.optim.SGD` in C++: the same arguments, and those of `Optimizer`.

    Examples
    --------
    >>> import torch, fastopt.torch as ft
    >>> p = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = ft.SGD([p], lr=1.0, momentum=0.9)
    >>> for _ in range(2):
    ...     p.grad = torch.ones(1)
    ...     optimizer.step()
    >>> p.detach()
    tensor([-2.9000])
    """

    _kernel = "sgd"
    _takes_sparse = True

    def _step_in_torch(self, group: dict[str, Any], scale: float) -> None:
        lists: list[list[Any]] = [[] for _ in range(3)]
        has_sparse_grad = self._init_group(group, *lists)
        params, grads, buffers = lists
        sgd(
            params,
            _unscaled(grads, scale),
            buffers,
            has_sparse_grad=has_sparse_grad,
            **_options(group, "foreach fused lr momentum dampening weight_decay nesterov maximize"),
        )
        if buffers:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer


class RMSprop(Optimizer, torch.optim.RMSprop):
    """`torch.optim.RMSprop` in C++: the same arguments, and those of `Optimizer`.

    Examples
    --------
    >>> import torch, fastopt.torch as ft
    >>> p = torch.nn.Parameter(torch.zeros(1))
    >>> p.grad = torch.ones(1)
    >>> ft.RMSprop([p], lr=0.01).step()
    >>> p.detach()
    tensor([-0.1000])
    """

    _kernel = "rmsprop"

    def _step_in_torch(self, group: dict[str, Any], scale: float) -> None:
        lists: list[list[Any]] = [[] for _ in range(6)]
        has_complex = self._init_group(group, *lists)
        params, grads, square_avgs, buffers, grad_avgs, steps = lists
        rmsprop(
            params,
            _unscaled(grads, scale),
            square_avgs,
            grad_avgs,
            buffers,
            steps,
            has_complex=has_complex,
            **_options(group, "foreach lr alpha eps weight_decay momentum centered maximize"),
        )


class Adam(Optimizer, torch.optim.Adam):
    """`torch.optim.Adam` in C++: the same arguments, and those of `Optimizer`.

    Parameters
    ----------
    exp_avg_dtype, exp_avg_sq_dtype : torch.dtype, optional
        The types of new states, which `Optimizer` describes as `state_dtype`. The second is that of
        ``max_exp_avg_sq`` too.

    Examples
    --------
    >>> import torch, fastopt.torch as ft
    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([3.0, -4.0])
    >>> optimizer = ft.Adam([p], lr=0.5, max_norm=1.0)
    >>> optimizer.step()
    >>> p.detach(), optimizer.grad_norm
    (tensor([-0.5000,  0.5000]), 5.0)
    """

    _kernel = "adam"
    _dtype_options = ("exp_avg_dtype", "exp_avg_sq_dtype")

    def _state_dtype(self, name: str, group: Mapping[str, Any]) -> torch.dtype | None:
        dtype: torch.dtype | None = group.get(f"{name.removeprefix('max_')}_dtype")
        return dtype

    def _step_in_torch(self, group: dict[str, Any], scale: float) -> None:
        lists: list[list[Any]] = [[] for _ in range(6)]
        has_complex = self._init_group(group, *lists)
        params, grads, *states = lists
        beta1, beta2 = group["betas"]
        adam(
            params,
            _unscaled(grads, scale),
            *states,
            has_complex=has_complex,
            beta1=beta1,
            beta2=beta2,
            **_options(
                group,
                "foreach fused lr weight_decay eps amsgrad maximize decoupled_weight_decay",
            ),
        )


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW` in C++: the same arguments, and those of `Adam` and `Optimizer`.

    Examples
    --------
    >>> import torch, fastopt.torch as ft
    >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    >>> p.grad = torch.ones_like(p)
    >>> optimizer = ft.AdamW([p], lr=1e-3, weight_decay=0.0, master_weights=True)
    >>> optimizer.step()
    >>> p.detach(), optimizer.state[p]["master_param"]
    (tensor([1.], dtype=torch.bfloat16), tensor([0.9990]))
    """


# The options that C++ does not check in each step.
_CHECKED = (
    "max_norm",
    "master_weights",
    "store_param_remainders",
    "stochastic_rounding",
    "seed",
    "capturable",
    "differentiable",
    *_DTYPES,
)

# The options that change nothing for the parameters that torch steps.
_IGNORED = ("master_weights", "stochastic_rounding", *_DTYPES)


def _check_options(group: Mapping[str, Any]) -> None:
    """Check these options of a group."""
    if group.get("max_norm") is not None:
        _max_norm("max_norm", group["max_norm"])
    for name in ("master_weights", "store_param_remainders", "stochastic_rounding"):
        flag(name, group.get(name, False))
    _seed("seed", group.get("seed", 0))
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(
                f"{name}=True needs the steps of torch; use {name}=False, or torch.optim"
            )
    for name in _DTYPES:
        dtype = group.get(name)
        if dtype not in (None, *_STATES):
            raise (ValueError if isinstance(dtype, torch.dtype) else TypeError)(
                f"{name} must be None, torch.float32 or torch.bfloat16, not {dtype!r}"
            )
    if group.get("store_param_remainders") and not group.get("master_weights"):
        raise ValueError("store_param_remainders=True needs master_weights=True")


def _has_own_types(p: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Return whether the states of a parameter may have other types than the parameter."""
    if p.dtype == torch.float16 and not ("master_param" in state or group.get("master_weights")):
        return False  # torch steps it
    return p.device.type == "cpu" and p.dtype in (torch.float32, *_HALVES)


def _common_max_norm(groups: list[dict[str, Any]]) -> float | None:
    """Return the option `max_norm` of all groups."""
    values = [group.get("max_norm") for group in groups]
    if values and values.count(values[0]) < len(values):
        raise ValueError(
            f"the groups differ in max_norm: {values}; the norm is that of all gradients, so give "
            "all groups the same max_norm, or call step(max_norm=...)"
        )
    return values[0] if values else None


def _require_whole_tensors(groups: list[dict[str, Any]]) -> None:
    """Refuse parameters of which each process has a part, as the norms would differ."""
    for group in groups:
        for i, p in enumerate(group["params"]):
            if type(p) is not Parameter and hasattr(p, "device_mesh") and p.device_mesh.size() > 1:
                raise TypeError(
                    f"parameter {i} of a group is a DTensor over {p.device_mesh.size()} processes, "
                    "so max_norm and skip_nonfinite, which know this process alone, cannot include "
                    "it; use torch.nn.utils.clip_grad_norm_"
                )


def _options(group: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: group[name] for name in names.split()}


def _unscaled(grads: list[torch.Tensor], scale: float) -> list[torch.Tensor]:
    return grads if scale == 1 else [grad / scale for grad in grads]


def _zeros_like(p: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return zeros with the strides of `torch.zeros_like`, in memory of NumPy, in huge pages."""
    memory = torch.from_numpy(np.zeros(max(p.numel(), 1) * dtype.itemsize, np.uint8)).view(dtype)
    layout = torch.empty_like(p, memory_format=torch.preserve_format, device="meta")
    return memory.as_strided(p.shape, layout.stride())
