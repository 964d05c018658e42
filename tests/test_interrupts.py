"""Optimizers, averages and sums after exceptions: in the old state or the new one, and usable."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt._types import FloatArray
from helpers import HANG, check, interrupt_at, interrupt_everywhere

Operation = tuple[Callable[[], object], Callable[[], object]]


def bits(value: Any) -> Any:
    """Return nested arrays in a form that == compares to the bit."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, dict):
        return tuple((key, bits(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(bits, value))
    return repr(value)


def two_groups(module: Any) -> tuple[dict[str, FloatArray], Any]:
    params = {"a": np.arange(20.0), "b": np.ones(3, np.float32)}
    groups = [{"params": {name: array}, "lr": 0.1 + len(name)} for name, array in params.items()]
    optimizer = module.AdamW(groups)
    optimizer.step({name: array + 1 for name, array in params.items()}, max_norm=1.0)
    return params, optimizer


def look_at(*objects: Any) -> Callable[[], object]:
    return lambda: [bits(o.state_dict() if hasattr(o, "state_dict") else o) for o in objects]


def adding(module: Any) -> Operation:
    params, optimizer = two_groups(module)
    new = {"params": [np.ones(2), np.ones(())], "lr": 0.5}
    return lambda: optimizer.add_param_group(new), look_at(params, optimizer)


def removing(module: Any) -> Operation:
    params, optimizer = two_groups(module)
    return lambda: optimizer.remove_param_group(0), look_at(params, optimizer)


def loading(module: Any, strict: bool = True) -> Operation:
    params, optimizer = two_groups(module)
    _, other = two_groups(module)
    other.step({name: array + 2 for name, array in params.items()})
    other.param_groups[0].update(betas=[0.5, 0.5], initial_lr=3.0)
    saved = other.state_dict()
    if not strict:
        del saved["state"]["b"]
    return lambda: optimizer.load_state_dict(saved, strict), look_at(params, optimizer)


def stepping(module: Any) -> Operation:
    params, optimizer = two_groups(module)
    grads = {name: array + 3 for name, array in params.items()}
    return lambda: optimizer.step(grads, max_norm=1e-3), look_at(params, optimizer)


def averaged() -> tuple[dict[str, FloatArray], fo.WeightEMA]:
    params = {"a": np.arange(20.0), "b": np.ones(3, np.float32)}
    average = fo.WeightEMA(params, 0.5)
    average.update()
    params["a"] += 1
    return params, average


def average_adding(_: Any) -> Operation:
    params, average = averaged()
    new = {"params": {"c": np.ones(4)}}
    return lambda: average.add_param_group(new), look_at(params, average)


def average_loading(_: Any) -> Operation:
    params, average = averaged()
    other = averaged()[1]
    other.update()
    other.decay, other.warmup = 0.25, True
    saved = other.state_dict()
    return lambda: average.load_state_dict(saved), look_at(params, average)


def average_updating(_: Any) -> Operation:
    params, average = averaged()
    return average.update, look_at(params, average)


def summed() -> tuple[fo.GradAccumulator, Callable[[], object]]:
    sums = fo.GradAccumulator({"a": np.arange(20.0), "b": np.ones(3, np.float32)})
    sums.add({"a": np.ones(20), "b": None}, 2.0)
    return sums, lambda: bits([sums.grads, sums.weight])


def sum_adding(_: Any) -> Operation:
    sums, look = summed()
    new = {"params": {"c": np.ones(4)}}
    return lambda: sums.add_param_group(new), look


def sum_summing(_: Any) -> Operation:
    sums, look = summed()
    return lambda: sums.add({"a": np.ones(20), "b": np.ones(3, np.float32)}, 3.0), look


def sum_resetting(_: Any) -> Operation:
    sums, look = summed()
    return sums.reset, look


@pytest.mark.parametrize(
    "make",
    [
        adding,
        removing,
        loading,
        lambda module: loading(module, strict=False),
        stepping,
        average_adding,
        average_loading,
        average_updating,
        sum_adding,
        sum_summing,
        sum_resetting,
    ],
)
def test_interrupts_everywhere(make: Callable[[Any], Operation]) -> None:
    assert interrupt_everywhere(lambda: make(fo)) > 2


@pytest.mark.parametrize("make", [adding, removing, loading])
def test_interrupts_of_the_reference(make: Callable[[Any], Operation]) -> None:
    assert interrupt_everywhere(lambda: make(fo.reference)) > 2


def test_averages_are_taken_out_again_wherever_an_interrupt_comes() -> None:
    params, average = averaged()
    before, mean = bits(params), bits(dict(average.averages))

    def evaluate() -> None:
        with average.applied():
            assert bits(params) == mean
            sorted([3, 2, 1], key=lambda x: -x)

    number = 0
    while interrupt_at(number, evaluate):
        assert bits(params) == before
        average.update()  # it is not stuck
        _, average = params, fo.WeightEMA(params, 0.5)
        mean, number = bits(dict(average.averages)), number + 1
    assert number > 2


def test_a_block_that_is_dropped_puts_the_parameters_back() -> None:
    # This is like a call of __exit__ without memory.
    params, average = averaged()
    before = bits(params)
    block = average.applied()
    type(block).__enter__(block)
    assert bits(params) != before
    with pytest.raises(RuntimeError, match=r"applied\(\) within applied\(\)"), average.applied():
        pass
    del block
    assert bits(params) == before
    with average.applied():
        pass


def test_a_parameter_that_was_resized_within_the_block_is_left_alone() -> None:
    params = {"a": np.arange(20.0), "b": np.ones(3)}
    average = fo.WeightEMA(params, 0.5)
    with average.applied():
        params["a"].resize(1000, refcheck=False)
        params["b"][:] = 5
    assert params["a"].size == 1000
    assert (params["b"] == 1).all()


def test_a_group_whose_addition_fails_behind_the_core_can_be_added_again() -> None:
    params, optimizer = two_groups(fo)
    add = type(optimizer)._add_group

    def failing(self: Any, *arguments: Any) -> None:
        add(self, *arguments)
        raise MemoryError

    new = {"params": {"c": np.ones(2)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(optimizer), "_add_group", failing)
        with pytest.raises(MemoryError):
            optimizer.add_param_group(new)
    optimizer.add_param_group(new)
    optimizer.step({**params, "c": np.ones(2)} | {n: p + 1 for n, p in params.items()})
    assert optimizer.state["c"]["step"] == 1


class Parameter(np.ndarray[Any, Any]):
    """An array with an attribute for its optimizer."""

    owner: Any


@pytest.mark.parametrize(
    "make",
    [
        lambda p: fo.SGD([p], momentum=0.9),
        lambda p: fo.WeightEMA([p]),
        lambda p: fo.WeightEMA([p]).applied(),
        lambda p: fo.GradAccumulator([p]),
        lambda p: fo.StepLR(fo.Adam([p]), 1),
    ],
)
def test_cycles_through_parameters_are_collected(make: Callable[[Any], Any]) -> None:
    param = Parameter((1000,))  # it owns its memory
    param[...] = 0
    param.owner = made = make(param)
    if isinstance(made, fo.Optimizer):
        with pytest.raises(ValueError, match="shape"):  # a refused step drops its plan
            made.step([np.ones(3)])
        made.step([param.copy()])
    del made
    gone = weakref.ref(param)
    del param
    gc.collect()
    assert gone() is None


def test_code_that_runs_while_options_are_read_cannot_shorten_them() -> None:
    class Rate:
        def __float__(self) -> float:
            optimizer.param_groups.clear()
            return 0.5

    params = [np.ones(4), np.ones(4)]
    optimizer = fo.SGD([{"params": [p]} for p in params], lr=0.25)
    groups = optimizer.param_groups[:]
    groups[0]["lr"] = Rate()
    optimizer.step([[np.ones(4)], [np.ones(4)]])  # with the groups as they were
    assert [p[0] for p in params] == [0.5, 0.75]
    with pytest.raises(ValueError, match="0 parameter groups"):
        optimizer.step([[np.ones(4)], [np.ones(4)]])
    optimizer.param_groups[:] = groups


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError, OSError])
def test_errors_of_an_option_pass_through(error: type[BaseException]) -> None:
    class Rate:
        def __float__(self) -> float:
            raise error("mine")

    p = np.ones(2)
    optimizer = fo.SGD([p])
    optimizer.param_groups[0]["lr"] = Rate()
    with pytest.raises(error, match="mine"):
        optimizer.step([np.ones(2)])
    with pytest.raises(error, match="mine"):
        optimizer.step([np.ones(2)], grad_scale=Rate())  # type: ignore[arg-type]
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step([np.ones(2)])
    assert (p == 0).all()


def test_a_fork_within_a_step_is_named() -> None:
    code = f"""
import os, threading
import numpy as np, fastopt as fo
class Rate:
    def __float__(self):
        inside.set()
        assert go.wait({HANG})
        return 0.5
inside, go = threading.Event(), threading.Event()
optimizer = fo.SGD([np.ones(3)])
optimizer.param_groups[0]["lr"] = Rate()
other = threading.Thread(target=lambda: optimizer.step([np.ones(3)]))
other.start()
assert inside.wait({HANG})
child = os.fork()
try:
    optimizer.step([np.ones(3)])
except RuntimeError as error:
    words = "was forked" if child == 0 else "in use by another thread"
    assert words in str(error), error
else:
    raise AssertionError
if child == 0:
    os._exit(0)
go.set()
other.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    check(code)
