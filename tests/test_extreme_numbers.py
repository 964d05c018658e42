"""Numbers that float32 cannot hold: the correct value, or an error that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from fastopt import functional as F  # noqa: N812
from helpers import refused

rng = np.random.default_rng(0)
X = rng.standard_normal((6, 4)).astype(np.float32)
LOG_P = fo.functional.log_softmax(X)
P = fo.functional.sigmoid(X)
Y = np.array([0, 1, 2, 3, 0, 1])
TINY = [1e-320, 1e-46, 1e-40]
REDUCTIONS = ["mean", "sum", "none"]


def truth(loss: Callable[..., Any], weight: Any, x: Any, target: Any) -> Any:
    """Return the float64 result for usual weights; the loss is linear in the weights."""
    wide = target.astype(np.float64) if target.dtype.kind == "f" else target
    return loss(weight).value_and_grad(x.astype(np.float64), wide)


def close(got: Any, expected: Any, least: float) -> None:
    """Compare; for float32 with the rounding error of denormal numbers."""
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=least)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", TINY)
def test_class_weights(scale: float, reduction: str) -> None:
    near = np.array([1.0, 2.0, 3.0, 4.0])
    losses: list[tuple[Callable[..., Any], Any, Any]] = [
        (lambda w: fo.CrossEntropyLoss(w, reduction=reduction), X, Y),  # type: ignore[arg-type]
        (
            lambda w: fo.CrossEntropyLoss(w, reduction=reduction, label_smoothing=0.3),  # type: ignore[arg-type]
            X,
            Y,
        ),
        (lambda w: fo.CrossEntropyLoss(w, reduction=reduction), X, P),  # type: ignore[arg-type]
        (lambda w: fo.NLLLoss(w, reduction=reduction), LOG_P, Y),  # type: ignore[arg-type]
    ]
    for loss_of, x, target in losses:
        weight = scale * near  # denormal numbers of float64 have fewer digits
        loss, grad = loss_of(weight).value_and_grad(x, target)
        expected = truth(loss_of, weight / scale, x, target)
        cancels = reduction == "mean" and target is Y
        unit = 1.0 if cancels else scale
        close(loss, unit * expected[0], 0 if np.ndim(loss) == 0 else 1e-45)
        close(grad, unit * expected[1], 1e-7 if cancels else 3e-45)


def test_class_weights_with_z_loss_and_a_linear_layer() -> None:
    near = np.array([1.0, 2.0, 3.0, 4.0])
    plain = fo.CrossEntropyLoss(near, z_loss=0.1).value_and_grad(X, Y)
    tiny = fo.CrossEntropyLoss(1e-46 * near, z_loss=1e-47).value_and_grad(X, Y)
    close(tiny[0], plain[0], 0)
    close(tiny[1], plain[1], 1e-8)
    hidden, linear = X.copy(), rng.standard_normal((4, 4)).astype(np.float32)
    linear_plain = fo.LinearCrossEntropyLoss(near).value_and_grad(hidden, linear, Y)
    linear_tiny = fo.LinearCrossEntropyLoss(1e-46 * near).value_and_grad(hidden, linear, Y)
    close(linear_tiny[0], linear_plain[0], 0)
    for a, b in zip(linear_tiny[1], linear_plain[1], strict=True):
        close(a, b, 1e-7)


@pytest.mark.parametrize("scale", [1e-320, 1e308])
def test_class_weights_of_float64(scale: float) -> None:
    x, weight = X.astype(np.float64), scale * np.ones(4)
    for loss_of, scores in ((fo.CrossEntropyLoss, x), (fo.NLLLoss, LOG_P.astype(np.float64))):
        loss, grad = loss_of(weight).value_and_grad(scores, Y)
        expected, expected_grad = loss_of(np.ones(4)).value_and_grad(scores, Y)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-12)


def test_class_weights_that_no_unit_fits() -> None:
    out = np.full_like(X, 7)
    for weight in ([1.0, 1e-320, 1.0, 1e30], [1e38, 1e-46, 1.0, 1.0]):
        with refused(ValueError, "weight[1] is", "too small for float32", "logits", arrays=[out]):
            fo.CrossEntropyLoss(np.array(weight)).value_and_grad(X, Y, out=out)
        with refused(ValueError, "weight[1] is", "too small for float32", arrays=[out]):
            fo.NLLLoss(np.array(weight)).value_and_grad(LOG_P, Y, out=out)
    for large in (1e39, 1e308):
        with refused(ValueError, "weight[2]", "too large for float32", arrays=[out]):
            fo.CrossEntropyLoss(np.array([1, 1, large, 1])).value_and_grad(X, Y, out=out)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale", TINY)
def test_weights_of_elements(scale: float, reduction: str) -> None:
    near = np.array([1.0, 2.0, 3.0, 4.0])
    losses: list[tuple[Callable[..., Any], Any]] = [
        (lambda w: fo.BCELoss(w, reduction), P),  # type: ignore[arg-type]
        (lambda w: fo.BCEWithLogitsLoss(w, reduction), X),  # type: ignore[arg-type]
    ]
    target = (X > 0).astype(np.float32)
    for loss_of, x in losses:
        weight = scale * near
        out = np.full_like(X, 7)
        loss, grad = loss_of(weight).value_and_grad(x, target, out=out)
        expected = truth(loss_of, weight / scale, x, target)
        assert grad is out
        close(loss, scale * expected[0], 5e-324 if np.ndim(loss) == 0 else 1e-45)
        close(grad, scale * expected[1], 3e-45)
        # In place, too.
        inside = x.copy()
        loss_of(weight).value_and_grad(inside, target, out=inside)
        assert np.array_equal(inside, grad)
    positive = fo.BCEWithLogitsLoss(pos_weight=np.array([scale]), reduction=reduction)  # type: ignore[arg-type]
    loss, grad = positive.value_and_grad(np.full((3,), -2, np.float32), np.ones(3, np.float32))
    softplus = np.log1p(np.exp(-2.0)) + 2
    close(
        loss,
        {"sum": 3}.get(reduction, 1) * scale * softplus,
        5e-324 if reduction != "none" else 1e-45,
    )


@pytest.mark.parametrize("number", [1e-320, 1e-46, 1e-40, 1e39, 1e308])
def test_options_of_losses_and_functions(number: float) -> None:
    wide, target = X.astype(np.float64), P.astype(np.float64)
    calls: list[tuple[str, Callable[..., Any]]] = [
        ("beta", lambda x, t: F.smooth_l1_loss(x, t, beta=number)),
        ("delta", lambda x, t: F.huber_loss(x, t, delta=number)),
        ("L", lambda x, t: F.logistic(x, L=number)),
        ("k", lambda x, t: F.logistic(x, k=number)),
        ("x0", lambda x, t: F.logistic(x, x0=number)),
        ("label_smoothing", lambda x, t: F.cross_entropy(x, Y, label_smoothing=number)),
        ("logit_softcap", lambda x, t: F.cross_entropy(x, Y, logit_softcap=number)),
        ("p", lambda x, t: F.dropout(x, number, seed=0)),
    ]
    if number < 1:
        calls.append(("z_loss", lambda x, t: F.cross_entropy(x, Y, z_loss=number)))
    for name, call in calls:
        if name == "logit_softcap" or (name in ("p", "label_smoothing") and number > 1):
            with refused(ValueError, name):
                call(X, P)
            continue
        got, expected = call(X, P), call(wide, target)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for a, b in pairs:
            with np.errstate(over="ignore"):
                rounded = np.asarray(b).astype(np.asarray(a).dtype)
            assert not np.isnan(a).any(), name
            np.testing.assert_allclose(a, rounded, rtol=1e-5, atol=3e-45)
    with refused(ValueError, "logit_softcap must be 0 (none) or in [1e-30, 1e30]"):
        fo.CrossEntropyLoss(logit_softcap=1e-40)
    zero_lse = np.log(np.full((2, 4), 0.25))
    assert fo.CrossEntropyLoss(z_loss=1e308)(zero_lse[:, :1] * 0, np.zeros(2, int)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_norm", [0.0, 1e-320, 1e-300, 1e-46, 1e-40, 1e-30, 1.0, 1e39, 1e308])
@pytest.mark.parametrize("size", [1e-300, 1e-46, 1e-40, 1e-6, 1.0, 1e38, 1e300])
def test_clipping(dtype: Any, max_norm: float, size: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        grads = (size * np.array([1.0, -0.5, 1e-3, 0.25])).astype(dtype)
    if not np.isfinite(grads).all():
        return
    norm = fo.grad_norm(grads)
    clipped = grads.copy()
    assert fo.clip_grad_norm_(clipped, max_norm) == norm
    wide = grads.astype(np.longdouble)
    clip = min(np.longdouble(1), np.longdouble(max_norm) / (np.longdouble(norm) + 1e-6))
    least = 2 * float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(
        clipped.astype(np.longdouble), wide * clip, rtol=4 * float(np.finfo(dtype).eps), atol=least
    )
    assert np.isfinite(clipped).all()


@pytest.mark.parametrize("limit", [0.0, 1e-320, 1e-46, 1e-40, 1e39, 1e308, np.inf])
def test_clipping_by_value(limit: float) -> None:
    grads = np.array([1e-45, 1.0, -3e38, 0.0, np.nan, -1e-40], np.float32)
    expected = np.clip(grads.astype(np.float64), -limit, limit)
    fo.clip_grad_value_(grads, limit)
    with np.errstate(all="ignore"):
        assert np.array_equal(grads, expected.astype(np.float32), equal_nan=True)
