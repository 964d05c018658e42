"""Arrays of JAX are read where they are; skipped where JAX is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from helpers import check, refused, same_bits

jax = pytest.importorskip("jax")
jnp: Any = jax.numpy


def test_gradients_and_logits() -> None:
    x, y = jnp.arange(12.0).reshape(4, 3) / 7, jnp.array([0, 2, 1, 1])
    params = {"w": np.ones((3, 3), np.float32), "b": np.zeros(3, np.float32)}
    plain = {name: array.copy() for name, array in params.items()}
    ce = fo.CrossEntropyLoss()

    def loss(params: Any) -> Any:
        logits = jax.nn.log_softmax(x @ params["w"] + params["b"])
        return -logits[jnp.arange(4), y].mean()

    one, two = fo.AdamW(params), fo.AdamW(plain)
    for _ in range(3):
        grads = jax.jit(jax.grad(loss))(params)
        expected = {name: np.array(grad) for name, grad in grads.items()}
        assert one.step(grads, max_norm=1.0) == two.step(expected, max_norm=1.0)
        for name, array in params.items():
            assert same_bits(array, plain[name])
    logits = x @ params["w"]
    value, grad = ce.value_and_grad(logits, y)
    assert value == pytest.approx(float(loss(params | {"b": jnp.zeros(3)})), rel=1e-5)
    assert same_bits(grad, ce.value_and_grad(np.asarray(logits), np.asarray(y))[1])
    assert fo.grad_norm(grads) == fo.grad_norm(expected)


def test_a_gradient_that_is_not_ready_is_waited_for() -> None:
    a = jnp.full((600, 600), 1 / 600)
    power = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda i, y: y @ a, x))
    power(a).block_until_ready()
    param = np.zeros((600, 600), np.float32)
    fo.SGD([param], lr=1.0).step([power(a)])
    assert np.allclose(param, -1 / 600, atol=1e-6)


def test_bfloat16() -> None:
    p, grad = np.ones(4, np.float32), jnp.full(4, 0.5, jnp.bfloat16)
    fo.SGD([p], lr=1.0).step([grad])
    assert p.tolist() == [0.5] * 4


def test_refused() -> None:
    array, good = jnp.ones(4), np.ones(4, np.float32)
    opt = fo.SGD({"w": good})
    held = [np.asarray(array), good]
    for call in (
        lambda: fo.SGD({"w": array}),
        lambda: fo.functional.relu(good, out=array),
        lambda: fo.CrossEntropyLoss().value_and_grad(good, np.array(1), out=array),
        lambda: fo.clip_grad_norm_([array], 0.5),
        lambda: opt.step({"w": array}, zero_grads=True),
        lambda: fo.WeightEMA({"w": array}),
    ):
        with refused(ValueError, "does not allow writes", arrays=held, optimizer=opt):
            call()
    deleted = jnp.ones(4) + 1
    deleted.delete()
    with refused(TypeError, "gradient of 'w'", "does not give its memory", arrays=held):
        opt.step({"w": deleted})

    def traced(x: Any) -> Any:
        with refused(TypeError, "x ", arrays=held):
            fo.functional.relu(x)
        return x

    jax.jit(traced)(array)
    with refused(TypeError, "gradient of 'w'", "int32", arrays=held):
        opt.step({"w": jnp.ones(4, int)})


def test_beside_torch_in_any_order() -> None:
    pytest.importorskip("torch")
    for order in ("jax, torch, fastopt", "fastopt, torch, jax"):
        check(
            f"""
import {order}
import fastopt as fo, numpy as np
p, array = torch.ones(3), np.ones(3, np.float32)
fo.SGD([p, array], lr=1.0).step([jax.numpy.ones(3), jax.numpy.ones(3)])
assert p.tolist() == array.tolist() == [0.0] * 3
"""
        )
