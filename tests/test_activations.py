"""tanh, SiLU and GELU: bounds in float64, the ends of the range, gradients, options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
import fastopt.functional as F  # noqa: N812
from cases import DTYPES
from helpers import refused, same_bits
from pointwise_cases import FUNCTIONS

GATED: list[tuple[Any, Any, dict[str, Any]]] = [
    (F.silu, F.silu_backward, {}),
    (F.gelu, F.gelu_backward, {}),
    (F.gelu, F.gelu_backward, {"approximate": "tanh"}),
]


def normal_tail(a: Any) -> Any:
    """Return the share of a normal distribution beyond `a` >= 0, in the format of `a`."""
    density = np.exp(-a * a / 2) / np.sqrt(2 * np.arccos(a.dtype.type(-1)))
    term = total = a
    for k in range(1, 60):
        term = term * a * a / (2 * k + 1)
        total = total + term
    fraction = a
    for k in range(200, 0, -1):  # of Laplace
        fraction = a + k / np.maximum(fraction, 1)
    return np.where(a < 3, 0.5 - density * total, density / fraction)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def truths(x: Any) -> dict[str, Any]:
    """Return the results for `x`, in its format; of a backward function, for a gradient of 1."""
    pi = np.arccos(x.dtype.type(-1))
    tail = normal_tail(abs(x))
    normal = np.where(x < 0, tail, 1 - tail)
    k, cubic = np.sqrt(8 / pi), x.dtype.type("0.044715")
    u, v = k * (x + cubic * x**3), k * (x + 3 * cubic * x**3)
    return {
        "tanh()": np.tanh(x),
        "silu()": x * sigmoid(x),
        "silu_backward()": sigmoid(x) * (1 + x * sigmoid(-x)),
        "gelu()": x * normal,
        "gelu_backward()": normal + x * np.exp(-x * x / 2) / np.sqrt(2 * pi),
        "gelu(approximate=tanh)": x * sigmoid(u),
        "gelu_backward(approximate=tanh)": sigmoid(u) * (1 + v * sigmoid(-u)),
    }


@pytest.mark.parametrize(
    "row", [row for row in FUNCTIONS if str(row) in truths(np.ones(1))], ids=str
)
def test_float64_beside_more_digits(row: Any) -> None:
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no longer format than float64")
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.uniform(*ends, 3000) for ends in ((-39, 9), (-3, 3), (-760, 30))])
    x = np.concatenate([x, rng.standard_normal(3000) * 10.0 ** rng.uniform(-320, 0, 3000)])
    with np.errstate(all="ignore"):
        truth = truths(x.astype(np.longdouble))[str(row)]
    arrays = [x] if row.operands == 1 else [np.ones_like(x), x]
    bound = row.ulp + 0 * x
    if row.options:  # the rounding of the argument grows in the exponential
        bound = 4 + 5 * np.where(x < 0, abs(x + 0.044715 * x**3), 0)
    row.check(row.fused(*arrays, **row.options), truth, arrays, bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_and_special_values(dtype: Any, isa: str) -> None:
    info = np.finfo(dtype)
    tiny, huge, inf, nan = 2 * info.smallest_subnormal, info.max, np.inf, np.nan
    x = np.array(
        [-inf, -huge, -1000, -0.0, 0.0, tiny, -tiny, info.tiny, 1000, huge, inf, nan], dtype
    )
    expected = np.array([-1, -1, -1, -0.0, 0, tiny, -tiny, info.tiny, 1, 1, 1, nan], dtype)
    assert same_bits(F.tanh(x), expected)
    half = x[3:8] / 2
    ones = np.ones_like(x)
    for function, backward, options in GATED:
        y = function(x, **options)
        assert same_bits(y[:3], np.full(3, -0.0, dtype))
        assert same_bits(y[3:8], half)
        assert same_bits(y[8:], x[8:])
        slope = backward(ones, x, **options)
        assert np.all(slope[:3] == 0)
        assert np.all(slope[3:8] == 0.5)
        assert same_bits(slope[8:], np.array([1, 1, 1, nan], dtype))
        gradients = backward(
            np.array([nan, -3, 2], dtype), np.array([1, huge, 0], dtype), **options
        )
        assert same_bits(gradients, np.array([nan, -3, 1], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_results_keep_their_digits(dtype: Any) -> None:
    """Down to the smallest numbers: 1 + erf(x) would be 0 from -6 on in float32."""
    for function, _, options in GATED:
        x = np.arange(-800, -1, 0.25).astype(dtype)
        y = function(x, **options)
        rises = np.diff(y[y < 0])
        assert y[y < 0][0] >= -100 * np.finfo(dtype).smallest_subnormal
        assert np.all(rises <= 0)


def test_gradients() -> None:
    x = np.concatenate([np.linspace(-6, 6, 61), [-1e-9, 1e-9]])
    weight = np.cos(np.arange(x.size))

    def through_tanh(x: Any) -> Any:
        y = F.tanh(x)
        return np.sum(weight * y), F.tanh_backward(weight, y)

    assert fo.testing.gradcheck(through_tanh, x)
    for function, backward, options in GATED:
        assert fo.testing.gradcheck(
            lambda x, f=function, b=backward, o=options: (
                np.sum(weight * f(x, **o)),
                b(weight, x, **o),
            ),
            x,
        )


@pytest.mark.parametrize("value", ["erf", "Tanh", "", None, 1, True, b"tanh", np.ones(3)])
def test_approximate_is_none_or_tanh(value: Any) -> None:
    x = np.ones(3)
    error = ValueError if isinstance(value, str) else TypeError
    with refused(error, "approximate must be 'none' or 'tanh', not", arrays=[x]):
        F.gelu(x, value, out=x)
    with refused(error, "approximate must be 'none' or 'tanh', not", arrays=[x]):
        F.gelu_backward(x, x.copy(), value, out=x)
