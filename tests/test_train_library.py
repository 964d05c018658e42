"""The pieces of `fastopt.train`: the model, objectives, the loop, callbacks, configurations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft


def test_backward_is_the_derivative_of_forward() -> None:
    rng = np.random.default_rng(0)
    model = ft.MLP([5, 7, 6, 3], seed=1)
    for arrays in (model.params, model.grads):  # float64, so that differences are sharp
        arrays.update({name: array.astype(np.float64) for name, array in arrays.items()})
    for name, param in model.params.items():
        if name.endswith("bias"):  # not 0: there a unit without input sits on ReLU's kink
            param[...] = rng.standard_normal(param.shape)
    x: Any = rng.standard_normal((8, 5))
    y = rng.integers(0, 3, 8)
    ce = fo.CrossEntropyLoss()
    _, dlogits = ce.value_and_grad(model.forward(x, training=True), y)
    grads = model.backward(dlogits)
    for name, param in model.params.items():
        for i in np.ndindex(param.shape):
            kept = param[i]
            values = []
            for h in (1e-6, -1e-6):
                param[i] = kept + h
                values.append(float(ce(model.forward(x), y)))
            param[i] = kept
            assert grads[name][i] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    model = ft.MLP([4, 5000, 2], dropout=0.4, seed=2)
    x = np.ones((1, 4), np.float32)
    model.forward(x, training=True)
    hidden = model._last.inputs[1]
    plain = np.maximum(x @ model.params["0.weight"].T, 0)
    positive = plain > 0
    assert np.mean(hidden[positive] == 0) == pytest.approx(0.4, abs=0.05)
    assert hidden.mean() == pytest.approx(plain.mean(), rel=0.1)
    np.testing.assert_array_equal(model.forward(x), model.forward(x))


def test_dropped_units_get_no_gradient() -> None:
    model = ft.MLP([4, 50, 2], dropout=0.5, seed=3)
    logits = model.forward(np.ones((1, 4), np.float32), training=True)
    dead = model._last.inputs[1][0] == 0
    grads = model.backward(np.ones_like(logits))
    assert dead.any()
    assert np.all(grads["0.weight"][dead] == 0)
    assert np.all(grads["0.bias"][~dead] != 0)


@pytest.mark.parametrize(("sizes", "dropout"), [([3], 0.0), ([3, 0, 2], 0.0), ([3, 2], 1.0)])
def test_bad_models(sizes: list[int], dropout: float) -> None:
    with pytest.raises(ValueError, match=r"sizes|dropout"):
        ft.MLP(sizes, dropout)
