"""Options of the wrong kind: refused by name in one sentence, before anything is written."""

from __future__ import annotations

import inspect
from array import array
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import _checks, _core
from fastopt import functional as F  # noqa: N812
from helpers import refused

X = np.linspace(0.1, 0.9, 12).reshape(4, 3)
Y = np.array([0, 1, 2, 0])
PARAM, GRAD = np.ones(3), np.ones(3)

# The calls, each with an array that it would write, and its options by kind.
LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": lambda out, **o: F.cross_entropy(X, Y, out=out, **o),
    "nll_loss": lambda out, **o: F.nll_loss(X, Y, out=out, **o),
    "mse_loss": lambda out, **o: F.mse_loss(X, X, out=out, **o),
    "l1_loss": lambda out, **o: F.l1_loss(X, X, out=out, **o),
    "smooth_l1_loss": lambda out, **o: F.smooth_l1_loss(X, X, out=out, **o),
    "huber_loss": lambda out, **o: F.huber_loss(X, X, out=out, **o),
    "binary_cross_entropy": lambda out, **o: F.binary_cross_entropy(X, X, out=out, **o),
    "binary_cross_entropy_with_logits": lambda out, **o: F.binary_cross_entropy_with_logits(
        X, X, out=out, **o
    ),
    "kl_div": lambda out, **o: F.kl_div(X, X, out=out, **o),
    "linear_cross_entropy": lambda out, **o: F.linear_cross_entropy(
        X, X, Y, out=(out, np.empty((4, 3))), **o
    ),
    "gelu": lambda out, **o: F.gelu(X, out=out, **o),
    "gelu_backward": lambda out, **o: F.gelu_backward(X, X, out=out, **o),
    "logistic": lambda out, **o: F.logistic(X, out=out, **o),
    "dropout": lambda out, **o: F.dropout(X, out=out, **{"seed": 0, **o}),
    "softmax": lambda out, **o: F.softmax(X, out=out, **o),
    "log_softmax": lambda out, **o: F.log_softmax(X, out=out, **o),
    "softmax_backward": lambda out, **o: F.softmax_backward(X, X, out=out, **o),
    "log_softmax_backward": lambda out, **o: F.log_softmax_backward(X, X, out=out, **o),
    "clip_grad_norm_": lambda out, **o: fo.clip_grad_norm_([out], **{"max_norm": 1.0, **o}),
    "clip_grad_value_": lambda out, **o: fo.clip_grad_value_([out], **o),
    "grad_norm": lambda out, **o: fo.grad_norm([out], **o),
    "sgd_": lambda out, **o: F.sgd_(out, X, np.zeros_like(out), momentum=0.9, **o),
    "adam_": lambda out, **o: F.adam_(out, X, np.zeros_like(out), np.zeros_like(out), **o),
    "adamw_": lambda out, **o: F.adamw_(out, X, np.zeros_like(out), np.zeros_like(out), **o),
    "gradcheck": lambda out, **o: fo.testing.gradcheck(lambda x: (np.sum(x**2), 2 * x), X, **o),
    "set_num_threads": lambda out, **o: fo.set_num_threads(**o),
}
OPTIONS = {
    "cross_entropy": "ignore_index:i reduction:t label_smoothing:n z_loss:n logit_softcap:n",
    "nll_loss": "ignore_index:i reduction:t",
    "mse_loss": "reduction:t",
    "l1_loss": "reduction:t",
    "smooth_l1_loss": "reduction:t beta:n",
    "huber_loss": "reduction:t delta:n",
    "binary_cross_entropy": "reduction:t",
    "binary_cross_entropy_with_logits": "reduction:t",
    "kl_div": "reduction:t log_target:f",
    "linear_cross_entropy": "ignore_index:i reduction:t label_smoothing:n z_loss:n logit_softcap:n "
    "memory_limit:i?",
    "gelu": "approximate:t",
    "gelu_backward": "approximate:t",
    "logistic": "L:n k:n x0:n",
    "dropout": "p:n seed:i first:i",
    "softmax": "axis:i dim:i?",
    "log_softmax": "axis:i dim:i?",
    "softmax_backward": "axis:i dim:i?",
    "log_softmax_backward": "axis:i dim:i?",
    "clip_grad_norm_": "max_norm:n norm_type:n error_if_nonfinite:f",
    "clip_grad_value_": "clip_value:n",
    "grad_norm": "norm_type:n",
    "sgd_": "step:i?",
    "adam_": "step:i",
    "adamw_": "step:i",
    "gradcheck": "eps:n? rtol:n? atol:n? max_elements:i? allow_kinks:f raise_exception:f",
    "set_num_threads": "count:i",
}
CASES = [
    (function, *option.partition(":")[::2])
    for function, options in OPTIONS.items()
    for option in options.split()
]


class Bomb:
    """User code that raises in every conversion."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def convert(self) -> Any:
        raise self.error

    __float__ = __index__ = __bool__ = convert


@pytest.mark.parametrize(("function", "option", "kind"), CASES)
def test_wrong_kinds(function: str, option: str, kind: str) -> None:
    wrong: list[Any] = [[1.0], {}, 1j, np.complex128(1), np.zeros(100_000), object, "1.0" * 500]
    wrong += [] if kind.endswith("?") else [None]
    wrong += [] if kind[0] == "t" else ["1.0", np.str_("1"), b"1", np.ma.masked]
    wrong += [1.5, np.float32(2)] if kind[0] == "i" else []
    for value in wrong:
        if kind[0] == "t" and isinstance(value, str):
            continue
        out = np.full_like(X, 7)
        with pytest.raises(TypeError) as caught:
            LOSSES[function](out, **{option: value})
        message = str(caught.value)
        assert option in message
        assert len(message) < 300
        assert "incompatible" not in message
        assert (out == 7).all()


@pytest.mark.parametrize(("function", "option", "kind"), CASES)
def test_errors_of_user_code_pass(function: str, option: str, kind: str) -> None:
    if kind[0] == "t":
        return
    for error in (RuntimeError("mine"), KeyboardInterrupt(), MemoryError()):
        out = np.full_like(X, 7)
        with pytest.raises(type(error)) as caught:
            LOSSES[function](out, **{option: Bomb(error)})
        assert caught.value is error
        assert (out == 7).all()


def test_every_option_is_in_the_table() -> None:
    arrays = {"weight", "pos_weight", "out", "lr", "betas", "eps", "weight_decay"}
    flags = {"amsgrad", "maximize", "decoupled_weight_decay", "nesterov"}
    others = {"momentum", "dampening", "momentum_init", "alpha", "centered"}  # of optimizers
    for name, options in OPTIONS.items():
        if name in ("gradcheck", "set_num_threads"):
            continue
        function = getattr(F, name, None) or getattr(fo, name)
        taken = inspect.signature(function).parameters.values()
        scalars = {p.name for p in taken if p.default is not p.empty or p.name == "step"}
        named = {option.split(":")[0] for option in options.split()}
        array_like = {"linear_bias", "momentum_buffer", "max_exp_avg_sq", "master_param", *arrays}
        assert scalars - named <= array_like | flags | others, name


def test_numbers_of_other_kinds_are_taken() -> None:
    for value in (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), Fraction(1, 2)):
        assert _core.as_number(value, "x") == 0.5
    for flag in (True, 1, 1.0, np.True_, np.array(True), np.int8(1)):
        assert _core.as_flag(flag, "x") is True
    for integer in (3, np.int8(3), np.uint64(3), np.array(3)):
        assert _core.as_integer(integer, "x") == 3
    with pytest.raises(ValueError, match="x must be True or False, not 2"):
        _core.as_flag(2, "x")
    with pytest.raises(ValueError, match="x must be within the range of float64, not 10000"):
        _core.as_number(10**400, "x")
    with pytest.raises(ValueError, match=r"x .*too long to print"):
        _core.as_number(10**5000, "x")
    with pytest.raises(
        ValueError, match="x must be an integer of 64 bits, not 9223372036854775808"
    ):
        _core.as_integer(2**63, "x")
    assert _core.as_integer(-(2**63), "x") == -(2**63)


@pytest.mark.parametrize("value", [-1, 11])
def test_the_range_of_an_integer(value: int) -> None:
    with pytest.raises(ValueError, match=rf"x must be in \[0, 10\], not {value}"):
        _checks.integer(0, 10)("x", value)


@pytest.mark.parametrize("flag", [True, np.False_, np.array(True)])
def test_a_flag_is_not_a_number(flag: Any) -> None:
    for convert, kind in ((_core.as_number, "a number"), (_core.as_integer, "an integer")):
        with pytest.raises(TypeError, match=f"x must be {kind}, not .*(True|False)"):
            convert(flag, "x")
    with refused(TypeError, "lr must be a number", arrays=[PARAM]):
        fo.SGD([PARAM], lr=flag)
    with refused(TypeError, "betas[0] must be a number", arrays=[PARAM]):
        fo.Adam([PARAM], betas=(flag, 0.9))
    with refused(TypeError, "decay must be a number", arrays=[PARAM]):
        fo.WeightEMA([PARAM], decay=flag)
    opt = fo.SGD([PARAM], nesterov=flag, momentum=0.5)  # where a flag is meant it is one
    with refused(TypeError, "grad_scale must be a number", arrays=[PARAM], optimizer=opt):
        opt.step([GRAD], grad_scale=flag)


def test_the_norms_that_are_taken() -> None:
    for norm_type in ("inf", None, True):
        with pytest.raises(TypeError, match="norm_type must be 2 or inf, not "):
            fo.grad_norm([GRAD], norm_type)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"norm_type must be 2 or inf, not 1\.0"):
        fo.grad_norm([GRAD], 1.0)


def test_a_state_that_an_option_needs() -> None:
    words = "momentum_buffer is None, but momentum=0.5 needs it"
    with refused(TypeError, words, arrays=[PARAM]):
        F.sgd_(PARAM, GRAD, momentum=0.5, step=1)
    with refused(TypeError, "grad_avg is None, but centered=True needs it", arrays=[PARAM]):
        F.rmsprop_(PARAM, GRAD, GRAD.copy(), centered=True)
    with refused(TypeError, "square_avg must be a NumPy array", arrays=[PARAM]):
        F.rmsprop_(PARAM, GRAD, None)  # type: ignore[arg-type]


def test_texts_that_utf8_does_not_hold() -> None:
    for text in ("\ud800", "mean\0", "", "Mean"):
        with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none'"):
            fo.CrossEntropyLoss(reduction=text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gradient '\\ud800' must be a NumPy array"):
        fo.grad_norm({"\ud800": 1.0})  # type: ignore[arg-type]
    assert fo.grad_norm({"\ud800": np.array([3.0]), 4: np.array([4.0])}) == 5.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float64(3), ["a NumPy scalar (float64)", "np.array("]),
        (3.0, ["not float", "np.asarray("]),
        ([3.0], ["not list", "np.asarray("]),
        (None, ["not NoneType"]),
        ("3", ["not str", "pass the array itself"]),
        ({"a": 3}, ["not dict", "pass the array itself"]),
        ((i for i in range(3)), ["not generator", "list("]),
        (memoryview(b"1234"), ["not memoryview", "np.asarray("]),
        (np.ones((4, 3), np.longdouble), ["float128", ".astype(np.float32)"]),
        (np.ones((4, 3), bool), ["bool", ".astype(np.float32)"]),
        (np.ones((4, 3), complex), ["complex128", ".real"]),
        (np.ones((4, 3), object), ["object", ".astype(np.float32)"]),
        (np.ones((4, 3), "M8[s]"), ["datetime64[s]"]),
        (np.ones((4, 3), [("a", "f8"), ("b", "f8")]), ["one of its fields"]),
        (np.ma.array(X, mask=X > 0.5), ["masked array", ".data"]),
    ],
)
def test_what_is_no_array_of_floats(value: Any, words: list[str]) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "logits": lambda v: F.cross_entropy(v, Y),
        "log_probs": lambda v: F.nll_loss(v, Y),
        "input": lambda v: F.mse_loss(v, X),
        "target": lambda v: F.mse_loss(X, v),
        "hidden": lambda v: F.linear_cross_entropy(v, X, Y),
        "linear_weight": lambda v: F.linear_cross_entropy(X, v, Y),
        "x": F.softmax,
        "y": lambda v: F.sigmoid_backward(X, v),
        "gradient '0'": lambda v: fo.grad_norm([X if v is None else v]),
        "pos_weight": lambda v: fo.BCEWithLogitsLoss(pos_weight=X[0] if v is None else v),
        "weight": lambda v: fo.BCELoss(weight=X[0] if v is None else v),
        "out": lambda v: F.relu(X, out=X.copy() if v is None else v),
    }
    for what, call in calls.items():
        if value is None and what in ("gradient '0'", "pos_weight", "weight", "out"):
            continue  # left out
        if what == "out":
            with refused(TypeError, "out", "np.empty" if "mask" not in words[0] else "masked"):
                call(value)
            continue
        with refused(TypeError, what, *words):
            call(value)


@pytest.mark.parametrize("way", ["toarray", "to_numpy", "numpy"])
def test_arrays_of_other_libraries(way: str) -> None:
    of_library = type("Tensor", (), {way: lambda self: X})()
    with refused(TypeError, "logits", "not Tensor", f"convert it with .{way}()"):
        F.cross_entropy(of_library, Y)


def test_misspelt_keywords_name_the_public_class() -> None:
    for name in ("CrossEntropyLoss", "LinearCrossEntropyLoss", "NLLLoss", "MSELoss", "BCELoss"):
        with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword"):
            getattr(fo, name)(lable_smoothing=0.1)


def test_gradients_that_are_none() -> None:
    for grads in (None, 5, "ab", 1.5):
        with refused(TypeError, "grads must be a mapping, a sequence or an array"):
            fo.grad_norm(grads)  # type: ignore[arg-type]


def test_axis_and_dim() -> None:
    assert np.array_equal(F.softmax(X, dim=0), F.softmax(X, 0))
    assert np.array_equal(F.log_softmax(X, dim=0), F.log_softmax(X, axis=0))
    assert np.array_equal(F.softmax_backward(X, X, dim=0), F.softmax_backward(X, X, 0))
    assert np.array_equal(F.log_softmax_backward(X, X, dim=0), F.log_softmax_backward(X, X, 0))
    for axis in (0, -1):
        with pytest.raises(TypeError, match="two names of one argument"):
            F.softmax(X, axis, dim=0)


def test_a_wrong_kind_of_grad() -> None:
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="grad must be True or False, not 'yes'"):
        fo.CrossEntropyLoss().value_and_stats(X, Y, grad=wrong)
    with pytest.raises(TypeError, match="grad must be True or False, not 'yes'"):
        fo.LinearCrossEntropyLoss().value_and_stats(X, X, Y, grad=wrong)
    with pytest.raises(ValueError, match="out is for the gradient, but grad=False"):
        fo.CrossEntropyLoss().value_and_stats(X, Y, grad=False, out=X.copy())


def named(name: str, base: type = object, **members: Any) -> Any:
    return type(name, (base,), members)


def raising(error: type[BaseException]) -> Any:
    def fail(self: object) -> str:
        raise error("of the repr")

    return named("Odd", __repr__=fail)()


@pytest.mark.parametrize(
    "name", ["array", "set", "frozenset", "dict", "deque", "tuple", "list", "str", "int"]
)
def test_a_repr_does_not_depend_on_the_name_of_the_class(name: str) -> None:
    plain, entries = named(name)(), named(name, list)([1, 2])
    assert _core.short_repr(plain).startswith(f"<test_options.{name} object at")
    assert _core.short_repr(entries) == "[1, 2]"
    assert len(_core.short_repr([plain])) < 100  # reprlib may fail inside a list
    with pytest.raises(TypeError, match=f"max_norm must be a number, not .*{name} object"):
        fo.clip_grad_norm_([np.ones(2)], plain)


def test_a_repr_that_fails() -> None:
    for error in (ValueError, TypeError, RecursionError, AttributeError, OSError):
        assert _core.short_repr(raising(error)) == "a value of type Odd"
    assert _core.short_repr(named("Odd", __repr__=lambda self: 5)()) == "a value of type Odd"
    for passed in (KeyboardInterrupt, MemoryError, SystemExit):
        with pytest.raises(passed):
            _core.short_repr(raising(passed))


def test_a_repr_of_containers_is_cut() -> None:
    for many in (deque([1] * 99), array("d", [0] * 99), [1] * 99, set(range(99)), "x" * 999):
        assert len(_core.short_repr(many)) < 90
    assert _core.short_repr(named("Many", list)(range(999))).endswith("...")


def test_control_characters_in_a_name_are_escaped() -> None:
    name = "a\0b\x1b[31m\x7f"
    with pytest.raises(TypeError) as caught:
        fo.grad_norm({name: 1.0})  # type: ignore[arg-type]
    assert r"gradient 'a\x00b\x1b[31m\x7f' must be a NumPy array" in str(caught.value)
    with pytest.raises(TypeError) as caught:
        fo.WeightEMA({name: 1.0})  # type: ignore[arg-type]
    assert r"'a\x00b\x1b[31m\x7f' must be a NumPy array" in str(caught.value)
    with pytest.raises(TypeError, match="gradient 'two words' must be"):
        fo.grad_norm({"two\n words": 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_norm_that_was_refused(norm: float) -> None:
    name = "nan" if np.isnan(norm) else "inf"
    grads = np.array([1.0, norm])
    with pytest.raises(RuntimeError, match=f"norm of the gradients is {name}, but .* finite norms"):
        fo.clip_grad_norm_(grads, 1.0, error_if_nonfinite=True)
    assert grads[0] == 1


@pytest.mark.parametrize(
    "loss", [fo.MSELoss, fo.NLLLoss, fo.CrossEntropyLoss, fo.LinearCrossEntropyLoss]
)
def test_the_choices_of_reduction(loss: Any) -> None:
    for value, error in ((None, TypeError), ("x", ValueError)):
        with pytest.raises(error) as caught:
            loss(reduction=value)
        message = f"reduction must be 'mean', 'sum' or 'none', not {value!r}"
        assert str(caught.value) == message
