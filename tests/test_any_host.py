"""Losses, activations and clipping: the same bits for any settings of the host, and subclasses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import functional as F  # noqa: N812
from fastopt.optim import clipping
from helpers import check

rng = np.random.default_rng(0)


def hostile(*shape: int) -> Any:
    """Return numbers that overflow and underflow, NaN and infinities."""
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)
    kinds = rng.integers(0, 12, shape)
    for kind, value in enumerate((np.nan, np.inf, -np.inf, 1e-42)):
        x[kinds == kind] = value
    with np.errstate(all="ignore"):
        return x.astype(np.float32)


X, G = hostile(40, 300), hostile(40, 300)
P = rng.random((40, 300)).astype(np.float32)
Y = rng.integers(0, 300, 40)
W = np.where(rng.random(300) < 0.5, 1e-46, 1e-320) + rng.random(300) * 1e-45
HIDDEN, LINEAR, BIAS = hostile(40, 20), hostile(300, 20), hostile(300)

CALLS: dict[str, Callable[[], Any]] = {
    "cross_entropy": lambda: fo.CrossEntropyLoss(
        W, label_smoothing=0.1, z_loss=1e-3
    ).value_and_stats(X, Y),
    "cross_entropy none": lambda: F.cross_entropy(X, Y, reduction="none", logit_softcap=3.0),
    "cross_entropy soft": lambda: F.cross_entropy(X, P, W),
    "nll_loss": lambda: F.nll_loss(X, Y, W),
    "linear_cross_entropy": lambda: fo.LinearCrossEntropyLoss(
        logit_softcap=5.0, memory_limit=100_000
    ).value_and_stats(HIDDEN, LINEAR, Y, BIAS),
    "linear_cross_entropy none": lambda: F.linear_cross_entropy(
        HIDDEN, LINEAR, Y, BIAS, reduction="none", ignore_index=int(Y[0])
    ),
    "mse_loss": lambda: F.mse_loss(X, G),
    "l1_loss": lambda: F.l1_loss(X, G),
    "smooth_l1_loss": lambda: F.smooth_l1_loss(X, G, beta=1e-300),
    "huber_loss": lambda: F.huber_loss(X, G, delta=1e300),
    "binary_cross_entropy": lambda: F.binary_cross_entropy(P, G, weight=W),
    "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(
        X, G, weight=W, pos_weight=W, reduction="none"
    ),
    "kl_div": lambda: F.kl_div(X, P),
    "kl_div log": lambda: F.kl_div(X, G, log_target=True),
    "sigmoid": lambda: F.sigmoid(X),
    "sigmoid_backward": lambda: F.sigmoid_backward(G, X),
    "relu": lambda: F.relu(X),
    "relu_backward": lambda: F.relu_backward(G, X),
    "tanh": lambda: F.tanh(X),
    "tanh_backward": lambda: F.tanh_backward(G, X),
    "silu": lambda: F.silu(X),
    "silu_backward": lambda: F.silu_backward(G, X),
    "gelu": lambda: F.gelu(X),
    "gelu_backward": lambda: F.gelu_backward(G, X),
    "gelu by tanh": lambda: F.gelu(X, "tanh"),
    "gelu_backward by tanh": lambda: F.gelu_backward(G, X, "tanh"),
    "logistic": lambda: F.logistic(X, 1e300, 1e300, -1e300),
    "dropout": lambda: F.dropout(X, 0.9, seed=1),
    "softmax": lambda: F.softmax(X, 0),
    "log_softmax": lambda: F.log_softmax(X),
    "softmax_backward": lambda: F.softmax_backward(G, X, 0),
    "log_softmax_backward": lambda: F.log_softmax_backward(G, X),
    "grad_norm": lambda: fo.grad_norm([X, G, W]),
    "grad_norm inf": lambda: fo.grad_norm([X, G, W], np.inf),
    "clip_grad_norm_": lambda: clipped(lambda x: fo.clip_grad_norm_(x, 1e-40)),
    "clip_grad_norm_ of finite numbers": lambda: clip_finite(0.1),
    "clip_grad_norm_ by a denormal number": lambda: clip_finite(3e-310),
    "clip_grad_value_": lambda: clipped(lambda x: fo.clip_grad_value_(x, 1e-46)),
    "gradcheck": lambda: fo.testing.gradcheck(
        lambda x: (float(np.sum(x)), np.ones_like(x)),
        np.array([1e-300, 1e300, 1.0]),
        raise_exception=False,
    ),
}


EXTREMES = np.array([1e300, 1e-300, 5e-324])


def clipped(clip: Callable[[Any], Any]) -> Any:
    copies = [X.copy(), EXTREMES.copy()]
    return clip(copies), copies


FINITE = rng.standard_normal(50)
NARROW = FINITE.astype(np.float32)


def clip_finite(max_norm: float) -> Any:
    copies = [FINITE.copy(), NARROW.copy()]
    return fo.clip_grad_norm_(copies, max_norm), copies


def bits(result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return [bits(item) for item in result]
    array = np.asarray(result)
    return array.dtype, array.shape, array.tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_nothing_depends_on_the_settings_of_errors(name: str) -> None:
    plain = bits(CALLS[name]())
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert bits(CALLS[name]()) == plain


# NumPy multiplies matrices and adds there, with the settings of the host.
OF_NUMPY = {"linear_cross_entropy", "linear_cross_entropy none", "gradcheck"}


@pytest.mark.parametrize("name", sorted(set(CALLS) - OF_NUMPY))
@pytest.mark.parametrize("bits_set", [0x8040, 0x2000, 0x4000, 0x6000], ids=hex)
def test_nothing_depends_on_flush_to_zero_or_rounding(name: str, bits_set: int, mxcsr: Any) -> None:
    read, write = mxcsr
    plain = bits(CALLS[name]())
    before = read()
    write(before | bits_set)
    try:
        result = CALLS[name]()
        assert read() & 0xFFC0 == (before | bits_set) & 0xFFC0
    finally:
        write(before)
    assert bits(result) == plain


def test_denormal_options_are_checked_whatever_the_host_has_set(mxcsr: Any) -> None:
    read, write = mxcsr
    calls: dict[str, Callable[[], Any]] = {
        "z_loss": lambda: F.cross_entropy(X, Y, z_loss=-1e-310),
        "label_smoothing": lambda: F.cross_entropy(X, Y, label_smoothing=-5e-324),
        "max_norm": lambda: fo.clip_grad_norm_([X.copy()], -1e-310),
        "clip_value": lambda: fo.clip_grad_value_([X.copy()], -1e-310),
    }
    before = read()
    for name, call in calls.items():
        write(before | 0x8040)
        try:
            with pytest.raises(ValueError, match=f"{name} .*not -"):
                call()
        finally:
            write(before)


def test_every_function_is_in_the_table() -> None:
    named = {name.split()[0] for name in CALLS}
    assert {n for n in F.__all__ if n not in ("sgd_", "rmsprop_", "adam_", "adamw_")} <= named
    assert {*clipping.__all__} <= named


class Hostile(np.ndarray):
    """A subclass whose behaviour must not matter."""

    def broken(self, *_args: Any, **_options: Any) -> Any:
        raise AssertionError("what a subclass overrides has been used")

    __array_ufunc__ = __array_function__ = astype = reshape = broken
    __getitem__ = __matmul__ = __mul__ = __len__ = sum = argmax = broken
    shape = dtype = flat = T = property(broken)


CLEAN = rng.standard_normal((6, 5)).astype(np.float32)
ARRAYS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "cross_entropy": (
        lambda x, y, w: fo.CrossEntropyLoss(w).value_and_stats(x, y),
        (CLEAN, np.arange(6) % 5, np.ones(5)),
    ),
    "soft": (F.cross_entropy, (CLEAN, np.abs(CLEAN))),
    "nll_loss": (F.nll_loss, (CLEAN, np.arange(6) % 5, np.ones(5))),
    "linear": (F.linear_cross_entropy, (CLEAN, CLEAN, np.arange(6) % 5, CLEAN[:, 0].copy())),
    "linear soft": (F.linear_cross_entropy, (CLEAN, CLEAN, np.abs(CLEAN @ CLEAN.T))),
    "mse_loss": (F.mse_loss, (CLEAN, CLEAN + 1)),
    "bce": (
        lambda x, y, w, v: F.binary_cross_entropy_with_logits(x, y, w, pos_weight=v),
        (CLEAN, np.abs(CLEAN), np.ones(5), np.ones(5)),
    ),
    "softmax": (lambda x: F.softmax(x, 0), (CLEAN,)),
    "softmax_backward": (lambda x, y: F.softmax_backward(x, y, 0), (CLEAN, CLEAN)),
    "dropout": (lambda x: F.dropout(x, seed=1), (CLEAN,)),
    "grad_norm": (lambda x: fo.grad_norm([x]), (CLEAN,)),
    "gradcheck": (
        lambda x: fo.testing.gradcheck(lambda a: (np.sum(a * a), 2 * a), x),
        (CLEAN.astype(np.float64),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_subclasses_are_taken_as_plain_arrays(name: str) -> None:
    call, arrays = ARRAYS[name]
    plain = bits(call(*arrays))
    for i, array in enumerate(arrays):
        forms = [array.view(Hostile), array.view(np.recarray)]
        if array.ndim == 2:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PendingDeprecationWarning)
                forms.append(np.matrix(array))
        for form in forms:
            result = call(*arrays[:i], form, *arrays[i + 1 :])
            assert bits(result) == plain
        with pytest.raises(TypeError, match="masked array"):
            call(*arrays[:i], np.ma.array(array), *arrays[i + 1 :])


def test_out_of_a_subclass_is_returned_itself() -> None:
    out = np.empty_like(CLEAN).view(Hostile)
    assert F.cross_entropy(CLEAN, np.zeros(6, int), out=out)[1] is out
    assert F.mse_loss(CLEAN, CLEAN, out=out)[1] is out
    assert F.nll_loss(CLEAN, np.zeros(6, int), out=out)[1] is out
    assert F.softmax(CLEAN, out=out) is out
    assert F.relu(CLEAN, out=out) is out
    outs = (out, np.empty_like(CLEAN).view(Hostile))
    grads = F.linear_cross_entropy(CLEAN, CLEAN, np.zeros(6, int), out=outs)[1]
    assert grads[0] is outs[0]
    assert grads[1] is outs[1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_dead_results_leave_the_address_space() -> None:
    check("""
import resource, numpy as np, fastopt as fo
x = np.zeros((150 << 20) // 4, np.float32)
for i in range(8):
    fo.functional.relu(x[i:])  # of eight sizes
mapped = lambda: int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = mapped()
for size in (400 << 20, 90 << 20, 90 << 20, 90 << 20, 90 << 20):
    fo.functional.relu(np.zeros(size // 4, np.float32))
assert mapped() - before < 270 << 20, mapped() - before
""")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the module has another name")
def test_import_in_a_sub_interpreter_is_refused() -> None:
    check("""
import _xxsubinterpreters as interpreters
code = "import warnings; warnings.simplefilter('ignore'); import fastopt"
try:
    interpreters.run_string(interpreters.create(), code)
except BaseException as error:
    assert "sub-interpreter" in str(error) or "subinterpreter" in str(error), error
else:
    raise SystemExit("imported")
""")


@pytest.mark.parametrize("value", ["\udcff", "mmx", "x" * 5000])
def test_bad_environment_of_any_bytes(value: str) -> None:
    for name in ("FASTOPT_ISA", "FASTOPT_NUM_THREADS"):
        check(
            "try:\n    import fastopt\nexcept ImportError as error:\n"
            f"    assert '{name}' in str(error)\nelse:\n    raise SystemExit('imported')",
            **{name: value},
        )
