"""Updates equal the reference bit for bit: any instruction set, threads, size and alignment."""

from __future__ import annotations

import inspect
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, DTYPES, FUNCTIONS, Case, make_grads, make_params
from fastopt import _core
from fastopt._storage import DEFAULTS
from helpers import LAYOUTS, Setting, at_offset, hostile, orders, same_bits

STEPS = 4


@cache
def gradients(dtype: Any) -> list[list[Any]]:
    return make_grads(make_params(dtype), STEPS)


@lru_cache(maxsize=2)
def expected(number: int, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
    """The parameters after each step and the final states, from the reference."""
    params = make_params(dtype)
    optimizer = CASES[number].reference(params)
    after = []
    for grads in gradients(dtype):
        optimizer.step(grads)
        after.append([p.copy() for p in params])
    return after, {name: dict(state) for name, state in optimizer.state.items()}


@pytest.mark.parametrize(
    ("number", "dtype"),
    [pytest.param(i, d, id=f"{c}-{d.__name__}") for i, c in enumerate(CASES) for d in DTYPES],
)
class TestParity:
    def test_steps_equal_the_reference(self, number: int, dtype: Any, setting: Setting) -> None:
        after, states = expected(number, dtype)
        params = make_params(dtype)
        assert sum(p.size for p in params) > _core.tuning.serial_size  # uses several threads
        optimizer = CASES[number].fused(params)
        for step, grads in enumerate(gradients(dtype)):
            before = [None if g is None else g.copy() for g in grads]
            optimizer.step(grads)
            for param, wanted in zip(params, after[step], strict=True):
                assert same_bits(param, wanted)
            for grad, copy in zip(grads, before, strict=True):
                assert grad is None or same_bits(grad, copy)
        for name, state in optimizer.state.items():
            assert state.keys() == states[name].keys()
            for key, value in state.items():
                assert same_bits(value, states[name][key]), (name, key)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in FUNCTIONS], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_functional_forms_at_any_alignment(case: Case, dtype: Any, isa: str) -> None:
    function, names = FUNCTIONS[case.name]
    rng = np.random.default_rng(3)
    for size in (1, 7, 16, 33, 70, 257):
        start = rng.standard_normal(size).astype(dtype)
        steps = [hostile(rng, size, dtype), rng.standard_normal(size).astype(dtype)]
        truth = start.copy()
        reference = case.reference([truth])
        for grad in steps:
            reference.step([grad])
        for _ in range(6):
            offsets = rng.integers(0, 17, 5)
            param = at_offset(start, offsets[0])
            states = {
                n: at_offset(np.zeros(size, dtype), k)
                for n, k in zip(names, offsets[1:4], strict=False)
            }
            for t, grad in enumerate(steps, 1):
                extra = {} if case.name == "RMSprop" else {"step": t}
                function(param, at_offset(grad, offsets[4]), **states, **extra, **case.options)
            assert same_bits(param, truth)
            for name, value in reference.state["0"].items():
                assert name == "step" or same_bits(states[name], value)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_dense_order_and_any_gradient_strides(case: Case, isa: str) -> None:
    rng = np.random.default_rng(5)
    big = rng.standard_normal((10, 12, 14, 2)).astype(np.float32)
    column = rng.standard_normal((5, 6, 1)).astype(np.float32)
    grads = [
        big[::2, ::2, ::2, 0],
        big[4::-1, 5::-1, 6::-1, 1],
        np.asfortranarray(big[:5, :6, :7, 0]),
        np.broadcast_to(column, (5, 6, 7)),
        np.ascontiguousarray(big[:5, :6, :7, 1]),
    ]
    for grad in grads:
        grad.flags.writeable = False
    truth = orders(np.float32)[0]
    reference = case.reference([truth])
    params = orders(np.float32)
    optimizer = case.fused(params)
    for grad in grads:
        reference.step([grad])
        optimizer.step([grad] * len(params))
    for name, param in zip(optimizer.state, params, strict=True):
        assert same_bits(param, truth)
        for key, value in reference.state["0"].items():
            assert same_bits(optimizer.state[name][key], value)
        for value in optimizer.state[name].values():
            assert np.ndim(value) == 0 or value.strides == param.strides


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_gradients_of_any_layout(
    layout: str, dtype: type[np.floating[Any]], threads: int
) -> None:
    shape, arrange = LAYOUTS[layout]
    rng = np.random.default_rng(6)
    plain = rng.standard_normal(shape).astype(dtype)
    grad = arrange(plain)
    assert not grad.flags.c_contiguous
    np.testing.assert_array_equal(grad, plain)
    a, b = (np.ones(shape, dtype) for _ in range(2))
    fused, reference = fo.AdamW([a]), fo.reference.AdamW([b])
    norms = [
        optimizer.step([grad], max_norm=max_norm).grad_norm
        for max_norm in (None, 0.5)
        for optimizer in (fused, reference)
    ]
    assert norms[2] == norms[3]
    assert same_bits(a, b)
    fused.step([grad], zero_grads=True)
    reference.step([plain])
    assert same_bits(a, b)
    assert not grad.any()


def test_gradients_that_change_their_layout_between_steps() -> None:
    shape = (8, 40, 9001)
    a, b = (np.ones(shape, np.float32) for _ in range(2))
    fused, reference = fo.SGD([a], lr=0.1), fo.reference.SGD([b], lr=0.1)
    for seed in range(8):
        plain = 10 * np.random.default_rng(seed).random(shape, dtype=np.float32)
        # Smaller squares are lost when they are added after it: the norm shows the order.
        plain.flat[131_072 + 100] = 2.0**30
        for grad in (
            np.asfortranarray(plain),
            plain.transpose(0, 2, 1).copy().transpose(0, 2, 1),
            plain,
        ):
            norm = fused.step([grad], max_norm=1.0).grad_norm
            assert norm == fo.reference.grad_norm([plain])
            reference.step([plain], max_norm=1.0)
    assert same_bits(a, b)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_elements_bits_do_not_depend_on_its_place(case: Case, isa: str) -> None:
    param = np.full(CHUNK_AND_TAIL, 0.3, dtype=np.float32)
    grad = np.full(CHUNK_AND_TAIL, 0.7, dtype=np.float32)
    optimizer = case.fused([param])
    for _ in range(3):
        optimizer.step([grad])
    assert np.all(param.view(np.int32) == param.view(np.int32)[0])


CHUNK_AND_TAIL = _core.tuning.chunk_size + 67


@pytest.mark.parametrize("name", dict.fromkeys(case.name for case in CASES))
def test_the_function_has_the_options_of_the_class(name: str) -> None:
    if name in FUNCTIONS:
        function, states = FUNCTIONS[name]
        options = {*inspect.signature(getattr(fo, name)).parameters} - {"params", *DEFAULTS}
        others = {"param", "grad", "step", "master_param", *states}
        assert {*inspect.signature(function).parameters} - others == options
