from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._types import FloatArray, Group, IntArray

__version__: str
compiler: str

class Tuning:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    chunk_size: int
    serial_size: int
    wake_size: int
    turn_size: int
    spin_ns: int

tuning: Tuning

def available_isas() -> list[str]: ...
def active_isa() -> str: ...
def use_isa(name: str) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int, beyond: bool = False) -> None: ...
def affinity_cpus() -> int: ...
def cgroup_cpus(root: str = "") -> int: ...

class Updater:
    def __init__(self, kernel: str, step_info: type | None = None) -> None: ...
    def check_options(self, group: Group) -> None: ...
    def add_group(
        self,
        names: list[str],
        params: list[FloatArray],
        group: Group,
        groups: list[Group],
        starts: list[int] = ...,
    ) -> None: ...
    def remove_group(self, index: int, groups: list[Group]) -> None: ...
    def step(
        self,
        groups: list[Group],
        grads: Sequence[FloatArray | None],
        max_norm: float | None = None,
        norm_type: float = 2.0,
        grad_scale: float = 1.0,
        skip_nonfinite: bool = False,
        zero_grads: bool = False,
        out: Sequence[FloatArray | None] | None = None,
        total_norm: float | None = None,
    ) -> Any: ...
    def state(self, index: int) -> dict[str, Any]: ...
    def load(
        self,
        states: list[dict[str, Any] | None],
        groups: list[Group],
        loaded_groups: list[Group],
        values: list[FloatArray | None] = ...,
    ) -> None: ...

class TensorUpdater:
    def __init__(self, kernel: str, step_info: type) -> None: ...
    def step(
        self,
        groups: list[Group],
        state: Any,
        make_state: Callable[[Any, Group, str], Any],
        step_others: Callable[[list[tuple[int, Any]]], object],
        increment_version: Callable[[list[Any]], object],
        max_norm: float | None = None,
        grad_scale: float = 1.0,
        skip_nonfinite: bool = False,
    ) -> Any: ...

def step_tensors(
    kernel: str,
    group: Group,
    params: list[Any],
    grads: list[Any],
    states: dict[str, list[Any]],
    state_steps: list[Any],
    out: list[Any] | None = None,
    grad_scale: float = 1.0,
) -> None: ...

class Applied:
    def __init__(
        self,
        names: list[str],
        params: list[FloatArray],
        averages: list[FloatArray],
        active: npt.NDArray[np.bool_],
    ) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

def twins(
    names: list[str], params: list[FloatArray], first: int, copy: bool
) -> list[FloatArray]: ...
def update(
    kernel: str,
    param: FloatArray,
    grad: FloatArray,
    states: dict[str, Any],
    step: int,
    group: dict[str, Any],
) -> None: ...
def grad_norm(grads: Sequence[tuple[str, FloatArray | None]], norm_type: float) -> float: ...
def clip_grad_norm(
    grads: Sequence[tuple[str, FloatArray | None]],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
) -> float: ...
def clip_grad_value(grads: Sequence[tuple[str, FloatArray | None]], clip_value: float) -> None: ...
def check_cross_entropy(loss: object) -> None: ...
def cross_entropy(
    loss: object,
    logits: FloatArray,
    targets: IntArray | FloatArray | int,
    want_grad: bool,
    out: FloatArray | None,
    stats: type[tuple[Any, ...]] | None,
    denominator: float | None = None,
) -> Any: ...
def check_nll_loss(weight: FloatArray | None, reduction: str) -> None: ...
def nll_loss(
    log_probs: FloatArray,
    targets: IntArray | int,
    weight: FloatArray | None,
    ignore_index: int,
    reduction: str,
    want_grad: bool,
    out: FloatArray | None,
) -> Any: ...
def pointwise_loss(
    kernel: str,
    input: FloatArray,  # noqa: A002
    target: FloatArray,
    weight: FloatArray | None,
    pos_weight: FloatArray | None,
    options: Sequence[float],
    reduction: str,
    want_grad: bool,
    out: FloatArray | None,
) -> Any: ...
def pointwise_function(
    kernel: str,
    operands: list[tuple[str, FloatArray]],
    options: Sequence[float],
    out: FloatArray | None,
) -> FloatArray: ...
def softmax(
    x: FloatArray, grad: FloatArray | None, axis: int, log: bool, out: FloatArray | None
) -> FloatArray: ...
def check_linear_cross_entropy(
    hidden: FloatArray,
    linear_weight: FloatArray,
    targets: IntArray | FloatArray | int,
    linear_bias: FloatArray | None,
    weight: FloatArray | None,
    ignore_index: int,
    out: Sequence[FloatArray] | None,
) -> tuple[npt.NDArray[np.int64] | None, float, tuple[FloatArray, ...]]: ...
def as_numpy(array: object, name: str) -> npt.NDArray[Any]: ...
def copy_rounded(array: FloatArray, out: FloatArray) -> None: ...
def as_number(value: object, name: str) -> float: ...
def as_flag(value: object, name: str) -> bool: ...
def as_integer(value: object, name: str) -> int: ...
def as_text(value: object, name: str) -> str: ...
def check_array(array: object, name: str) -> None: ...
def short_repr(value: object) -> str: ...
