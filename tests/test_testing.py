"""gradcheck: correct gradients pass, wrong gradients fail, and the message names the place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt.testing import GradcheckError, gradcheck

A, B = np.random.default_rng(0).standard_normal((2, 3, 4))


def product(x: Any, y: Any) -> Any:
    return np.sum(x * x * y), (2 * x * y, x * x)


def message(fn: Callable[..., Any], inputs: Any, **options: Any) -> str:
    assert gradcheck(fn, inputs, **options, raise_exception=False) is False
    with pytest.raises(GradcheckError) as caught:
        gradcheck(fn, inputs, **options)
    return str(caught.value)


# -- right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_gradients_pass(dtype: Any) -> None:
    a, b = A.astype(dtype), B.astype(dtype)
    assert gradcheck(lambda x: (np.sum(x**3), 3 * x**2), a)
    assert gradcheck(lambda x: (x**3, 3 * x**2), a)  # of the sum
    assert gradcheck(product, (a, b))
    assert gradcheck(product, [a, b])
    assert gradcheck(lambda p: (np.sum(p["a"] * p["b"]), {"b": p["a"], "a": p["b"]}),
                     {"a": a, "b": b})  # fmt: skip
    assert gradcheck(lambda x: (np.sum(x * x), 2 * x), (a,))  # a sequence of one
    assert gradcheck(lambda x: (np.sum(x * x), [2 * x]), (a,))
    assert gradcheck(lambda x: (x * x, float(2 * x)), np.array(3, dtype))
    assert gradcheck(lambda x: (x.sum(), np.ones_like(x)), np.empty((0, 3), dtype))
    assert gradcheck(lambda x: (np.sum(x * x), 2 * x), np.asfortranarray(a)[::2])
    assert gradcheck(lambda x: (x.sum(), np.ones(4)), np.array([1e7, -1e7, 1, 0], dtype))


def test_a_value_in_float32_of_float64_inputs() -> None:
    assert gradcheck(lambda x: (np.sum(x**3).astype(np.float32), 3 * x**2), A)


def test_where_the_step_is_too_coarse_at_first() -> None:
    x = np.array([0.0, 1e-4, 1.0])
    assert gradcheck(lambda x: (x**3, 3 * x**2), x, atol=0)
    assert gradcheck(lambda x: (np.exp(200 * x), 200 * np.exp(200 * x)), x[:2])


def test_a_coarse_step_hides_no_wrong_gradient() -> None:
    x = np.array([0.1, 0.2])
    for k, wrong in ((3e4, 1e-4), (1e4, 5e-5)):
        assert gradcheck(lambda x, k=k: (np.sin(k * x), k * np.cos(k * x)), x)
        with pytest.raises(fo.testing.GradcheckError):
            gradcheck(lambda x, k=k, w=wrong: (np.sin(k * x), (1 + w) * k * np.cos(k * x)), x)


def test_a_kink_within_a_step_does_not_disturb() -> None:
    for x in (2e-6, -2e-6, 5e-6):
        assert gradcheck(lambda x: (np.maximum(x, 0), 1.0 * (x > 0)), np.array([x, 1.0]))
        assert gradcheck(lambda x: (abs(x), np.sign(x)), np.array([x, 1.0]))


def test_inputs_stay_and_buffers_may_be_reused() -> None:
    x = A.copy()
    buffer = np.empty_like(x)
    values = np.empty_like(x)

    def spends_its_input(x: Any) -> Any:
        np.square(x, out=values)
        np.multiply(x, 2, out=buffer)
        x[...] = np.nan
        return values, buffer

    def gives_its_input(x: Any) -> Any:
        value = np.sum(x * x)
        x *= 2
        return value, x

    x.flags.writeable = False
    assert gradcheck(spends_its_input, x)
    assert gradcheck(gives_its_input, {"x": x}["x"])
    np.testing.assert_array_equal(x, A)
    buffer[...] = 0


def test_a_sample_of_a_large_array() -> None:
    calls = []

    def fn(x: Any) -> Any:
        calls.append(1)
        grad = 2 * x
        grad[7, 7] += 1
        return np.sum(x * x), grad

    x = np.ones((100, 100))
    assert gradcheck(fn, x, max_elements=20)
    assert len(calls) == 42
    text = message(fn, x, max_elements=9999, seed=1)
    assert "in 1 of 9999 elements (of 10000) looked at of the input" in text
    assert "[7, 7]: fn gives 3, central differences give 2" in text


# -- wrong ---------------------------------------------------------------------------------------


def test_one_wrong_element_is_named() -> None:
    def fn(x: Any, y: Any) -> Any:
        value, (dx, dy) = product(x, y)
        dy[2, 1] += 1e-3
        return value, (dx, dy)

    text = message(fn, (A, B))
    assert "the gradient differs in 1 of 12 elements of inputs[1]" in text
    given, numerical = A[2, 1] ** 2 + 1e-3, A[2, 1] ** 2
    found = re.search(r"worst at \[2, 1\]: fn gives (\S+), central differences give (\S+) ", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(given, rel=1e-8)
    assert float(found[2]) == pytest.approx(numerical, rel=1e-7)
    assert "inputs[0]" not in text


def test_the_worst_is_named_and_the_others_listed() -> None:
    def fn(p: Any) -> Any:
        grad = 2 * p["w"]
        grad[0, 1] += 1e-3
        grad[1, 3] -= 5
        return np.sum(p["w"] ** 2), {"w": grad}

    text = message(fn, {"w": A})
    assert "2 of 12 elements of inputs['w']" in text
    assert "worst at [1, 3]" in text
    assert "also [0, 1]: " in text


def test_all_inputs_are_reported() -> None:
    text = message(lambda x, y: (np.sum(x * y), (x, y)), (A, B))
    assert "12 of 12 elements of inputs[0]" in text
    assert "12 of 12 elements of inputs[1]" in text


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: (np.sum(x * x), -2 * x), "-1 times the numerical derivative"),
        (lambda x: (np.mean(x * x), 2 * x), "12 times the numerical derivative"),
        (lambda x: (np.sum(A * A), 2 * x), "does not depend on any of these"),
        (lambda x: (np.sum(x * x), 2 * x * np.nan), "fn gives nan"),
        (lambda x: (np.sum(x * x), 2 * x + np.inf), "fn gives inf"),
        (lambda x: (np.sum(x * x), 2 * x.T.reshape(x.shape)), "also"),  # mixed up in memory
        (lambda x: (np.sum(x * x), 2 * x * (1 + 3e-5)), "1.00003 times"),
        (lambda x: (np.sum(x * x), 0 * x), "0 times"),
    ],
)
def test_wrong_everywhere(fn: Callable[[Any], Any], words: str) -> None:
    assert words in message(fn, A)


def test_float32_catches_a_wrong_gradient_too() -> None:
    x = A.astype(np.float32)
    assert "the input" in message(lambda x: (np.sum(x * x), 2.02 * x), x)


# -- kinks ---------------------------------------------------------------------------------------


def relu(x: Any, at_zero: float = 0.0) -> Any:
    return np.maximum(x, 0), np.where(x == 0, at_zero, x > 0)


def test_a_kink_is_called_one() -> None:
    x = np.array([[1.0, 0.0], [-1.0, 2.0]])
    for dtype in (np.float32, np.float64):
        text = message(relu, x.astype(dtype))
        assert (
            "the input is at a kink, or within eps of one, at [0, 1]: "
            "the slope is 0 below and 1 above, fn gives 0\n"
        ) in text
        assert "allow_kinks=True" in text
        assert "differs" not in text
        for right in (0.0, 0.3, 1.0):
            assert gradcheck(lambda x, g=right: relu(x, g), x.astype(dtype), allow_kinks=True)
        text = message(lambda x: relu(x, 1.5), x.astype(dtype), allow_kinks=True)
        assert "fn gives 1.5" in text
    assert gradcheck(lambda x: (abs(x), np.sign(x)), x)  # the mean of both slopes
    assert "the slope is -1 below and 1 above, fn gives 1" in message(
        lambda x: (abs(x), np.where(x < 0, -1, 1)), x
    )


def test_a_kink_does_not_hide_what_is_wrong_elsewhere() -> None:
    def fn(x: Any) -> Any:
        value, grad = relu(x)
        grad[3] = 0.9
        return value, grad

    text = message(fn, np.array([1.0, 0.0, -1.0, 2.0]), allow_kinks=True)
    assert "differs in 1 of 4 elements" in text
    assert "worst at [3]: fn gives 0.9" in text
    assert "kink" not in text


def test_a_jump_is_no_kink() -> None:
    text = message(lambda x: (np.floor(x), 0 * x), np.array([0.5, 1.0]), allow_kinks=True)
    assert "at a jump, or within eps of one, at [1]" in text


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "words"),
    [
        (product, (A, B.astype(int)), TypeError, "inputs[1] must be float64 or float32, not int64"),
        (product, (A, A.astype(complex)), TypeError, "not complex128"),
        (relu, A.astype(">f8"), TypeError, "not >f8"),
        (relu, [1.0, 2.0], TypeError, "inputs[0] must be a NumPy array, not float"),
        (relu, "x", TypeError, "inputs must be an array, a sequence or a mapping"),
        (relu, (), ValueError, "at least one array"),
        (relu, {"w": np.array([1, np.nan])}, ValueError, "inputs['w'] must be finite, but holds"),
        (lambda x: np.sum(x), A, TypeError, "must return the pair (value, gradient), not a float"),
        (lambda x: (1.0, x, x), A, TypeError, "not a tuple of 3"),
        (lambda x: (None, x), A, TypeError, "fn's value must be a number"),
        (lambda x: (1.0, None), A, TypeError, "fn's gradient must be an array"),
        (lambda x: (1.0, [None]), [A], TypeError, "the gradient of inputs[0] must hold real"),
        (lambda x: (1.0, x.T), A, ValueError, "must have its shape (3, 4), not (4, 3)"),
        (lambda x: (1.0, 1.0), A, ValueError, "must have its shape (3, 4), not ()"),
        (lambda x: (1.0, [x]), A, ValueError, "must be one array, not a list"),
        (lambda x, y: (1.0, x), (A, B), ValueError, "must be a sequence as the inputs are"),
        (lambda x, y: (1.0, (x,)), (A, B), ValueError, "the entries [0, 1], not [0]"),
        (lambda p: (1.0, {"v": A}), {"w": A}, ValueError, "the entries ['w'], not ['v']"),
        (lambda x: (np.sum(x) / 0.0, x), abs(A), ValueError, "finite at the inputs, not inf"),
        (lambda x: (x / (x != A[1, 2]), x), A, ValueError, "finite at the inputs, not "),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_cannot_be_checked_is_refused(
    fn: Callable[..., Any], inputs: Any, error: type[Exception], words: str
) -> None:
    for raise_exception in (True, False):
        with pytest.raises(error, match=re.escape(words)):
            gradcheck(fn, inputs, raise_exception=raise_exception)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_step_over_the_edge_is_told() -> None:
    x = np.array([1.0, 1e-6])
    with pytest.raises(ValueError, match=r"fn's value is nan at \[1\] where the input at \[1\] is"):
        gradcheck(lambda x: (np.log(x), 1 / x), x)
    assert gradcheck(lambda x: (np.log(x), 1 / x), x, eps=1e-9)


def test_a_random_function_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="the same value for the same inputs"):
        gradcheck(lambda x: (np.sum(x * (rng.random(x.shape) < 0.5)), x), A)


def test_a_value_of_changing_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep its shape \(12,\), not become \(11,\)"):
        gradcheck(lambda x: (x[x != A.min() + 2.0**-17], np.ones(A.shape)), A)


@pytest.mark.parametrize(
    "option", [{"eps": 0}, {"rtol": -1}, {"atol": np.nan}, {"max_elements": 0}]
)
def test_bad_options(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        gradcheck(relu, A, **option)


# -- the library, and a model --------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"label_smoothing": 0.1},
    {"ignore_index": 2},
    {"weight": np.array([0.5, 1, 2, 0, 3, 1])},
    {"weight": np.array([0.5, 1, 2, 0, 3, 1]), "label_smoothing": 0.3, "ignore_index": 0},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("module", [fo, fo.reference], ids=["fastopt", "reference"])
def test_cross_entropy(module: Any, options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(1)
    logits, targets = 2 * rng.standard_normal((5, 6)), np.array([0, 2, 5, 3, 1])
    ce = module.CrossEntropyLoss(**options)
    assert gradcheck(lambda x: ce.value_and_grad(x, targets), logits.astype(dtype))
    assert gradcheck(lambda x: ce.value_and_grad(x, targets, out=x), logits.astype(dtype))


Network = dict[str, Any]


def network() -> tuple[Network, Any, Any]:
    rng = np.random.default_rng(3)
    params = {
        "first.weight": rng.standard_normal((6, 5)),
        "first.bias": rng.standard_normal(6),
        "second.weight": rng.standard_normal((4, 6)),
        "second.bias": rng.standard_normal(4),
    }
    return params, rng.standard_normal((7, 5)), rng.integers(0, 4, 7)


def loss_and_grads(p: Network, x: Any, y: Any, sabotage: str = "") -> tuple[Any, Network]:
    """Two layers with ReLU between them, backwards by hand."""
    hidden = np.maximum(x @ p["first.weight"].T + p["first.bias"], 0)
    logits = hidden @ p["second.weight"].T + p["second.bias"]
    loss, dlogits = fo.CrossEntropyLoss().value_and_grad(logits, y)
    dhidden = dlogits @ p["second.weight"]
    if sabotage != "no relu":
        dhidden *= hidden > 0
    grads = {
        "first.weight": dhidden.T @ x,
        "first.bias": dhidden.sum(axis=0),
        "second.weight": dlogits.T @ hidden,
        "second.bias": dlogits.sum(axis=0) if sabotage != "mean" else dlogits.mean(axis=0),
    }
    if sabotage == "one weight":
        grads["second.weight"][2, 3] *= 1.01
    return loss, grads


def test_a_network_passes() -> None:
    params, x, y = network()
    assert gradcheck(lambda p: loss_and_grads(p, x, y), params)
    names = list(params)

    def as_sequence(*arrays: Any) -> Any:
        loss, grads = loss_and_grads(dict(zip(names, arrays, strict=True)), x, y)
        return loss, tuple(grads.values())

    assert gradcheck(as_sequence, tuple(params.values()))


@pytest.mark.parametrize(
    ("sabotage", "wrong", "words"),
    [
        ("no relu", ["first.weight", "first.bias"], ""),
        ("mean", ["second.bias"], "all of these are 0.142857 times"),
        ("one weight", ["second.weight"], "in 1 of 24 elements of inputs['second.weight']\n"
                                          "  worst at [2, 3]"),
    ],
)  # fmt: skip
def test_a_sabotaged_network_does_not(sabotage: str, wrong: list[str], words: str) -> None:
    params, x, y = network()
    text = message(lambda p: loss_and_grads(p, x, y, sabotage), params)
    assert re.findall(r"elements of inputs\['(.*)'\]", text) == wrong
    assert words in text


def test_float32_slopes_that_zeros_would_pass_for_are_refused() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4000, 10)).astype(np.float32), rng.integers(0, 10, 4000)
    large = rng.standard_normal(300_000).astype(np.float32)
    mean, total = fo.CrossEntropyLoss(), fo.CrossEntropyLoss(reduction="sum")
    for fn, at in (
        (lambda x: (mean(x, y), np.zeros_like(x)), x),
        (lambda x: mean.value_and_grad(x, y), x),
        (lambda x: (np.mean(x**2), np.zeros_like(x)), large),  # its float32 does not even change
        (lambda x: (np.mean(x**2), 2 * x / np.float32(x.size)), large),
    ):
        with pytest.raises(ValueError, match=r"all slopes .* too small to be checked in float32"):
            gradcheck(fn, at, max_elements=20, raise_exception=False)
    assert gradcheck(lambda x: mean.value_and_grad(x, y), x.astype(float), max_elements=20)
    assert gradcheck(lambda x: total.value_and_grad(x[:10], y[:10]), x[:10])
    assert gradcheck(lambda x: mean.value_and_grad(x, y), x, max_elements=20, eps=1.0, atol=1e-7)


def test_float32_slopes_of_zero_beside_others_are_right() -> None:
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((8, 3)).astype(np.float32), np.full(1, 0.5, np.float32)
    y = rng.integers(0, 3, 8)
    ce = fo.CrossEntropyLoss()

    def shifted(x: Any, b: Any) -> Any:  # a bias on all logits: only rounding moves the loss
        loss, dx = ce.value_and_grad(x + b, y)
        return loss, (dx, np.zeros_like(b))

    assert gradcheck(shifted, (x, b))
    # They do not hide errors in other places.
    with pytest.raises(GradcheckError, match=r"inputs\[0\]"):
        gradcheck(lambda x, b: (shifted(x, b)[0], (0 * x, 0 * b)), (x, b))
    z = rng.standard_normal(5)
    assert gradcheck(lambda z: (float(np.sum(z - z.mean())), np.zeros_like(z)), z)


def test_a_function_is_needed() -> None:
    with pytest.raises(TypeError, match="fn must be a function of the inputs, not 3"):
        fo.testing.gradcheck(3, np.ones(2))  # type: ignore[arg-type]
