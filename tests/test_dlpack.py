"""Arrays of other libraries by way of DLPack: read and written in place, and let go once."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from exporter import IS_COPIED, READ_ONLY, Exporter, OldExporter
from helpers import check, ones, refused, same_bits

f = fo.functional
VALUES = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def change(**fields: Any) -> Callable[[Any], None]:
    """Return a function that sets fields of the struct; a callable gets the old value."""

    def apply(tensor: Any) -> None:
        for name, value in fields.items():
            setattr(tensor, name, value(getattr(tensor, name)) if callable(value) else value)

    return apply


def axes(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


class Raising(Exporter):
    def capsule(self) -> Any:
        raise BufferError("not\nnow")


class NoCapsule(Exporter):
    def capsule(self) -> Any:
        return object()


class Used(Exporter):
    """Returns the same capsule each time, which can be taken once only."""

    taken: Any = None

    def capsule(self) -> Any:
        if self.taken is None:
            self.taken = super().capsule()
            itself: Any = self
            fo.grad_norm([itself])
        return self.taken


class NoDevice(Exporter):
    def __dlpack_device__(self) -> Any:
        raise RuntimeError("lost")


A = ones(3, 4)
HALF = np.ones((3, 4), np.float16)
NULL = ctypes.POINTER(ctypes.c_int64)()
REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("device", lambda: Exporter(A, device=(2, 0)), TypeError, "device (2, 0)"),
    ("device of the tensor", lambda: Exporter(A, change(device=2)), TypeError, "device (2, 0)"),
    ("no device", lambda: Exporter(A, device="cpu"), TypeError, "no device"),
    ("device of no number", lambda: Exporter(A, device=("cpu", 0)), TypeError, "no device"),
    ("device that raises", lambda: NoDevice(A), TypeError, "(lost)"),
    ("lanes", lambda: Exporter(A, change(lanes=2)), TypeError, "dtype float32, which is not"),
    ("float8", lambda: Exporter(A, change(code=10, bits=8)), TypeError, "which is not taken"),
    ("float8 of code 2", lambda: Exporter(A, change(bits=8)), TypeError, "which is not taken"),
    ("float128", lambda: Exporter(A, change(bits=128)), TypeError, "which is not taken"),
    ("no bits", lambda: Exporter(A, change(bits=0)), TypeError, "which is not taken"),
    ("int4", lambda: Exporter(A, change(code=0, bits=4)), TypeError, "which is not taken"),
    ("unknown code", lambda: Exporter(A, change(code=99)), TypeError, "which is not taken"),
    ("integers", lambda: Exporter(A.astype(np.int32)), TypeError, "int32"),
    ("bool", lambda: Exporter(A.astype(bool)), TypeError, "bool"),
    ("complex", lambda: Exporter(A.astype(complex)), TypeError, "complex128"),
    ("version", lambda: Exporter(A, version=(2, 0)), TypeError, "DLPack 2.0"),
    ("no memory", lambda: Exporter(A, change(data=None)), ValueError, "no memory"),
    ("axes", lambda: Exporter(A, change(ndim=33)), ValueError, "33 dimensions"),
    ("negative axes", lambda: Exporter(A, change(ndim=-1)), ValueError, "-1 dimensions"),
    ("negative shape", lambda: Exporter(A, change(shape=axes(-3, 4))), ValueError, "-3"),
    ("no shape", lambda: Exporter(A, change(shape=NULL)), ValueError, "no shape"),
    ("large shape", lambda: Exporter(A, change(shape=axes(2**62, 4))), ValueError, "64 bits"),
    ("large strides", lambda: Exporter(A, change(strides=axes(2**62, 1))), ValueError, "64 bits"),
    ("misaligned", lambda: Exporter(A, change(byte_offset=2)), ValueError, "misaligned"),
    ("misaligned half", lambda: Exporter(HALF, change(data=lambda p: p + 1)), ValueError, "misal"),
    (
        "misaligned bfloat16",
        lambda: Exporter(HALF, change(code=4, byte_offset=1)),
        ValueError,
        "misaligned",
    ),
    ("an error", lambda: Raising(A), TypeError, "does not give its memory (not now)"),
    ("no capsule", lambda: NoCapsule(A), TypeError, "no unused capsule"),
    ("used capsule", lambda: Used(A), TypeError, "no unused capsule"),
    ("old and misaligned", lambda: Exporter(A, change(byte_offset=2), legacy=True), ValueError, ""),
]


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_refused(make: Callable[[], Any], error: type[Exception], word: str) -> None:
    bad, good = make(), ones(3, 4)
    with refused(error, "parameter 'bad'", word, arrays=[good]):
        fo.AdamW({"good": good, "bad": bad})
    opt = fo.AdamW({"a": good, "b": ones(3, 4)})
    for _ in range(2):  # without a plan, and with one
        with refused(error, "gradient of 'b'", word, arrays=[good], optimizer=opt):
            opt.step({"a": ones(3, 4), "b": bad})
        opt.step({"a": ones(3, 4), "b": ones(3, 4)})
    calls: dict[str, Callable[[], Any]] = {
        "logits": lambda: fo.CrossEntropyLoss()(bad, np.array([0, 1, 2])),
        "input": lambda: f.mse_loss(bad, good),
        "x": lambda: f.relu(bad),
        "gradient 'bad'": lambda: fo.grad_norm({"bad": bad}),
        "gradient '1'": lambda: fo.clip_grad_norm_([good, bad], 0.5),
    }
    for name, call in calls.items():
        with refused(error, name, word, arrays=[good]):
            call()
    if isinstance(bad, Used):
        bad.taken = None
    assert bad.made == bad.deleted


READ: list[tuple[str, Callable[[], Any], Any]] = [
    ("versioned", lambda: Exporter(VALUES.copy()), VALUES),
    ("legacy", lambda: Exporter(VALUES.copy(), legacy=True), VALUES),
    ("old", lambda: OldExporter(VALUES.copy()), VALUES),
    ("read-only", lambda: Exporter(VALUES.copy(), flags=READ_ONLY), VALUES),
    ("a later version", lambda: Exporter(VALUES.copy(), version=(1, 99)), VALUES),
    ("pinned", lambda: Exporter(VALUES.copy(), change(device=3), device=(3, 0)), VALUES),
    ("managed", lambda: Exporter(VALUES.copy(), change(device=13), device=(13, 1)), VALUES),
    ("no strides", lambda: Exporter(VALUES.copy(), change(strides=NULL)), VALUES),
    ("no deleter", lambda: Exporter(VALUES.copy(), has_deleter=False), VALUES),
    (
        "transposed",
        lambda: Exporter(VALUES.copy(), change(shape=axes(4, 3), strides=axes(1, 4))),
        VALUES.T,
    ),
    (
        "negative strides",
        lambda: Exporter(VALUES.copy(), change(data=lambda p: p + 44, strides=axes(-4, -1))),
        VALUES[::-1, ::-1],
    ),
    (
        "an offset",
        lambda: Exporter(VALUES.copy(), change(byte_offset=16, shape=axes(2, 4))),
        VALUES[1:],
    ),
    ("a broadcast", lambda: Exporter(VALUES.copy(), change(strides=axes(0, 1))), VALUES[[0, 0, 0]]),
    ("no axes", lambda: Exporter(np.array(2.0)), np.array(2.0)),
    ("no axes, no shape", lambda: Exporter(np.array(2.0), change(shape=NULL)), np.array(2.0)),
    ("empty", lambda: Exporter(np.zeros((0, 4), np.float32)), np.zeros((0, 4), np.float32)),
    ("32 axes", lambda: Exporter(ones(*[1] * 32)), ones(*[1] * 32)),
]


@pytest.mark.parametrize(("make", "expected"), [pytest.param(*r[1:], id=r[0]) for r in READ])
def test_gradients(make: Callable[[], Any], expected: Any) -> None:
    grad = make()
    a, b = (np.full(expected.shape, 0.5, expected.dtype) for _ in range(2))
    one, two = fo.AdamW([a]), fo.AdamW([b])
    for _ in range(3):
        info = one.step([grad], max_norm=1.0)
        assert info == two.step([expected], max_norm=1.0)
    assert same_bits(a, b)
    assert fo.grad_norm([grad]) == fo.grad_norm([expected])
    if grad.has_deleter:
        assert grad.made == grad.deleted > 0


def pair(*shape: int, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Return a producer, and an array that must get the same bits."""
    values = np.random.default_rng(1).standard_normal(shape or (3, 4)).astype(dtype)
    return Exporter(values.copy()), values


def let_go(*exporters: Exporter) -> bool:
    gc.collect()  # an exception holds what its frames hold
    return all(each.made == each.deleted > 0 for each in exporters)


def test_parameters_and_outputs_of_a_step() -> None:
    (param, a), (grad, b), (half, c) = pair(), pair(), pair(dtype=np.float16)
    one, two = fo.RMSprop([param], momentum=0.9), fo.RMSprop([a], momentum=0.9)
    for _ in range(3):
        one.step([grad], zero_grads=True, out=[half])
        two.step([b], zero_grads=True, out=[c])
        grad.array[...] = b[...] = VALUES
    assert same_bits(param.array, a)
    assert same_bits(half.array, c)
    one.step([grad])
    half.array[...] = 0
    one.step([VALUES])  # does not write to the copy of an earlier step
    assert not half.array.any()
    assert let_go(param, grad, half)
    state = {name: dict(state) for name, state in one.state.items()}
    one.load_state_dict({"state": state, "param_groups": one.state_dict()["param_groups"]})
    assert let_go(param)


def test_states_of_a_functional_update() -> None:
    arrays, plain = zip(*(pair() for _ in range(4)), strict=True)
    for array in (*(exporter.array for exporter in arrays), *plain):
        np.abs(array, out=array)
    for step in (1, 2):
        f.adamw_(*arrays, step=step)
        f.adamw_(*plain, step=step)
    for exporter, array in zip(arrays, plain, strict=True):
        assert same_bits(exporter.array, array)
    assert let_go(*arrays)


def test_losses() -> None:
    (x, a), (out, b), (y, c) = pair(), pair(), pair()
    targets = np.array([0, 3, 1])
    exported: Any = Exporter(targets)
    calls: list[Callable[..., Any]] = [
        lambda x, y, out: fo.CrossEntropyLoss().value_and_grad(x, targets, out=out),
        lambda x, y, out: fo.CrossEntropyLoss().value_and_grad(x, exported, out=out),
        lambda x, y, out: fo.NLLLoss().value_and_grad(x, targets, out=out),
        lambda x, y, out: fo.MSELoss().value_and_grad(x, y, out=out),
        lambda x, y, out: (0.0, f.softmax(x, out=out)),
        lambda x, y, out: (0.0, f.tanh(x, out=out)),
    ]
    for call in calls:
        loss, grad = call(x, y, out)
        assert grad is out
        assert loss == call(a, c, b)[0]
        assert same_bits(out.array, b)
        assert same_bits(y.array, c)
    weight, w = pair(5, 4)
    dx, dw = pair(3, 4)[0], pair(5, 4)[0]
    loss_of = fo.LinearCrossEntropyLoss()
    loss, grads = loss_of.value_and_grad(x, weight, targets, out=(dx, dw))
    expected, (da, db) = loss_of.value_and_grad(a, w, targets)
    assert (loss, grads) == (expected, (dx, dw))
    assert same_bits(dx.array, da)
    assert same_bits(dw.array, db)
    assert let_go(x, out, y, exported, weight, dx, dw)


def test_averages_sums_and_clipping() -> None:
    (param, a), (grad, b) = pair(), pair()
    one, two = fo.WeightEMA({"w": param}, decay=0.5), fo.WeightEMA({"w": a}, decay=0.5)
    sums = fo.GradAccumulator({"w": param})
    for _ in range(2):
        sums.add({"w": grad})
        param.array += 1
        a += 1
        one.update()
        two.update()
    assert same_bits(one.averages["w"], two.averages["w"])
    assert same_bits(sums.grads["w"], b + b)
    with one.applied():
        assert param.made == param.deleted + 1  # the memory is held until the end
    assert same_bits(param.array, a)
    assert fo.clip_grad_norm_({"w": grad}, 0.5) == fo.clip_grad_norm_({"w": b}, 0.5)
    fo.clip_grad_value_([grad], 0.1)
    fo.clip_grad_value_([b], 0.1)
    assert same_bits(grad.array, b)
    assert let_go(param, grad)


def test_checkpoints(tmp_path: Any) -> None:
    param, a = pair()
    fo.save(tmp_path / "file", params={"w": param})
    param.array[...] = 0
    fo.load(tmp_path / "file", params={"w": param})
    assert same_bits(param.array, a)
    fixed: Any = Exporter(A, flags=READ_ONLY)
    with refused(ValueError, "parameter 'w'", "read-only", arrays=[A]):
        fo.load(tmp_path / "file", params={"w": fixed})
    assert let_go(param, fixed)


@pytest.mark.parametrize(
    "options", [{"legacy": True}, {"flags": READ_ONLY}, {"flags": IS_COPIED}], ids=str
)
def test_what_may_not_be_written(options: dict[str, Any]) -> None:
    fixed: Any = Exporter(A, **options)
    half: Any = Exporter(HALF, **options)
    good = ones(3, 4)
    opt = fo.SGD({"w": good})
    calls: list[Callable[[], Any]] = [
        lambda: fo.SGD({"w": fixed}),
        lambda: fo.WeightEMA({"w": fixed}),
        lambda: opt.step({"w": ones(3, 4)}, out={"w": half}),
        lambda: opt.step({"w": fixed}, zero_grads=True),
        lambda: f.sgd_(fixed, good),
        lambda: f.sgd_(good, A, fixed, momentum=0.9, step=1),
        lambda: fo.clip_grad_norm_([fixed], 0.1),
        lambda: f.relu(good, out=fixed),
        lambda: fo.CrossEntropyLoss().value_and_grad(good, np.array([0, 1, 2]), out=fixed),
    ]
    for call in calls:
        with refused(ValueError, "does not allow writes", arrays=[A, HALF, good], optimizer=opt):
            call()
    assert let_go(fixed, half)


def test_memory_that_is_shared() -> None:
    memory = ones(3, 4)

    class Sharing(Exporter):
        def capsule(self) -> Any:
            self.change = change(data=memory.ctypes.data)
            return super().capsule()

    sharing: Any = Sharing(A)
    with refused(ValueError, "'a'", "'b'", "share memory", arrays=[memory]):
        fo.SGD({"a": sharing, "b": memory})
    opt = fo.SGD({"a": memory})
    for _ in range(2):
        with refused(ValueError, "'a'", "share memory", arrays=[memory], optimizer=opt):
            opt.step({"a": sharing})
        opt.step({"a": A})


def test_an_interrupt_passes_through() -> None:
    class Interrupted(Exporter):
        def capsule(self) -> Any:
            raise KeyboardInterrupt

    interrupted: Any = Interrupted(A)
    with pytest.raises(KeyboardInterrupt):
        fo.grad_norm([interrupted])


def test_steps_leave_nothing_behind() -> None:
    check(
        """
import gc, sys
sys.path.insert(0, "tests")
import numpy as np, fastopt as fo
from exporter import Exporter

param, grad = (Exporter(np.ones((3, 4), np.float32)) for _ in range(2))
half, bad = Exporter(np.ones((3, 4), np.float16)), Exporter(np.ones(12, np.int32))
opt = fo.AdamW([param])

def blocks_after(steps):
    for _ in range(steps):
        opt.step([grad], max_norm=1.0, out=[half])
        try:
            opt.step([bad])
        except TypeError:
            pass
    gc.collect()
    return sys.getallocatedblocks()

before = blocks_after(1000)
more = blocks_after(1000) - before
assert more < 500, more  # one object of each step would be 1000
assert all(each.made == each.deleted > 1000 for each in (param, grad, half, bad))
"""
    )


def test_bfloat16_without_ml_dtypes() -> None:
    check(
        """
import sys
sys.modules["ml_dtypes"] = None
sys.path.insert(0, "tests")
import numpy as np, fastopt as fo
from exporter import Exporter

class BFloat16(Exporter):
    def __init__(self, values):
        words = (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        super().__init__(words, lambda tensor: setattr(tensor, "code", 4))
        self.dtype = "bfloat16"
    @property
    def values(self):
        return (self.array.astype(np.uint32) << 16).view(np.float32)

param, grad = BFloat16([1.0, 2.0, -4.0]), BFloat16([0.5, 0.5, -1.0])
opt = fo.SGD([param], lr=1.0, momentum=0.5)
opt.step([grad])
assert param.values.tolist() == [0.5, 1.5, -3.0]
assert opt.state["0"]["momentum_buffer"].dtype == np.float32
opt = fo.AdamW([param], master="split")
opt.step([grad])
assert opt.state["0"]["master_param"].dtype == np.int16
fo.functional.adamw_(param, grad, BFloat16([0, 0, 0]), BFloat16([0, 0, 0]), step=1)
w = np.ones(3, np.float32)
fo.SGD([w]).step([grad], out=[param])
ema = fo.WeightEMA([param])
ema.update()
with ema.applied():
    pass
before = param.values
assert before.tolist() == param.values.tolist()
out = BFloat16([0, 0, 0])
assert fo.functional.relu(param, out=out) is out
fo.CrossEntropyLoss().value_and_grad(param, np.array(0), out=out)
fo.MSELoss().value_and_grad(param, grad, out=out)
fo.clip_grad_norm_([grad], 0.5)
try:
    fo.functional.relu(param)
except ModuleNotFoundError as error:
    assert "pip install ml_dtypes" in str(error)
else:
    raise SystemExit("there is no dtype for the result")
"""
    )
