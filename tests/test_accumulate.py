"""GradAccumulator: parity with the reference, means over uneven micro-batches, bad input."""

from __future__ import annotations

import copy
import inspect
import pickle
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from bad_cases import BAD_GRADS, BAD_PARAMS
from cases import DTYPES, make_grads, make_params
from fastopt import _core
from fastopt._types import FloatArray
from helpers import LAYOUTS, Setting, ones, orders, refused, same_bits


def same_sums(a: fo.GradAccumulator, b: fo.reference.GradAccumulator) -> bool:
    return list(a.grads) == list(b.grads) and all(
        (x is None and y is None) or (x is not None and same_bits(x, y))
        for x, y in zip(a.grads.values(), b.grads.values(), strict=True)
    )


def snapshot(acc: fo.GradAccumulator) -> list[Any]:
    return [a for a in acc.grads.values() if a is not None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_equal_the_reference(dtype: Any, setting: Setting) -> None:
    params = make_params(dtype)
    assert sum(p.size for p in params) > _core.tuning.serial_size  # uses several threads
    before = [p.copy() for p in params]
    acc, reference = fo.GradAccumulator(params), fo.reference.GradAccumulator(params)
    for _ in range(2):  # rounds
        assert acc.weight == 0
        assert set(acc.grads.values()) == {None}
        for grads, weight in zip(make_grads(params, 4), (1.0, 32, 7.3, 0.0), strict=True):
            kept = [None if g is None else g.copy() for g in grads]
            acc.add(grads, weight)
            reference.add(grads, weight)
            assert same_sums(acc, reference)
            assert acc.weight == reference.weight
            assert all(g is None or same_bits(g, k) for g, k in zip(grads, kept, strict=True))
        for array in snapshot(acc):
            array[...] = np.nan  # the first call of a round replaces the sums
        acc.reset()
        reference.reset()
    assert all(same_bits(p, b) for p, b in zip(params, before, strict=True))


@given(st.data())
def test_any_values_weights_and_gaps(data: st.DataObject) -> None:
    shapes = data.draw(
        st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=9), min_size=1, max_size=4)
    )
    acc, reference = (
        module.GradAccumulator([np.ones(s, np.float32) for s in shapes])
        for module in (fo, fo.reference)
    )
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            acc.reset()
            reference.reset()
        grads = [
            data.draw(st.none() | hnp.arrays(np.float32, s, elements=st.floats(width=32)))
            for s in shapes
        ]
        weight = data.draw(st.just(0.0) | st.floats(2.0**-149, 1e6))
        acc.add(grads, weight)
        reference.add(grads, weight)
        assert same_sums(acc, reference)
        assert acc.weight == reference.weight


def test_any_order_and_strides(isa: str) -> None:
    rng = np.random.default_rng(5)
    big = rng.standard_normal((10, 12, 14, 2)).astype(np.float32)
    grads = [
        big[::2, ::2, ::2, 0],
        big[4::-1, 5::-1, 6::-1, 1],
        np.asfortranarray(big[:5, :6, :7, 0]),
        np.broadcast_to(big[:5, :6, :1, 0], (5, 6, 7)),
    ]
    params = orders(np.float32)
    acc, reference = fo.GradAccumulator(params), fo.reference.GradAccumulator(params)
    for weight, grad in enumerate(grads, 3):
        grad.flags.writeable = False
        acc.add([grad] * len(params), weight)
        reference.add([grad] * len(params), weight)
    assert same_sums(acc, reference)
    for param, total in zip(params, acc.grads.values(), strict=True):
        assert total is not None
        assert total.strides == param.strides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_gradients_of_any_layout(layout: str, dtype: Any, threads: int) -> None:
    shape, arrange = LAYOUTS[layout]
    plain = np.random.default_rng(6).standard_normal(shape).astype(dtype)
    acc, reference = (
        module.GradAccumulator([np.ones(shape, dtype)]) for module in (fo, fo.reference)
    )
    for weight in (3, 5):
        acc.add([arrange(plain)], weight)
        reference.add([plain], weight)
    assert same_sums(acc, reference)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [False, True])
def test_uneven_micro_batches_are_one_batch(reduction: Any, ignored: bool) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((23, 5)), rng.integers(0, 4, 23)
    if ignored:
        y[rng.random(23) < 0.4] = -100
    counted = y != -100
    ce = fo.CrossEntropyLoss(reduction=reduction)
    w = rng.standard_normal((5, 4))
    _, dlogits = ce.value_and_grad(x @ w, y)
    whole = {"w": x.T @ dlogits}
    if reduction == "sum":
        whole["w"] /= counted.sum()

    p, q = {"w": w.copy()}, {"w": w.copy()}
    acc = fo.GradAccumulator(p)
    edges = (0, 1, 3, 11, 12, 23)
    for first, last in pairwise(edges):
        part = slice(first, last)
        if not counted[part].any():
            continue
        _, dlogits = ce.value_and_grad(x[part] @ w, y[part])
        weight = float(counted[part].sum()) if reduction == "mean" else 1.0
        acc.add({"w": x[part].T @ dlogits}, weight)
    scale = acc.weight if reduction == "mean" else float(counted.sum())
    assert scale == counted.sum()
    options: dict[str, Any] = {"max_norm": 0.01}
    a = fo.AdamW(p).step(acc.grads, grad_scale=scale, **options)
    b = fo.AdamW(q).step(whole, **options)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-13)  # the mean's: it is clipped
    np.testing.assert_allclose(p["w"], q["w"], rtol=1e-12)


def test_without_weights_every_call_counts_the_same() -> None:
    acc = fo.GradAccumulator([np.zeros(2)])
    for value in (1.0, 2.0, 6.0):
        acc.add([np.full(2, value)])
    p = np.zeros(2)
    fo.SGD([p], lr=1.0).step(acc.grads, grad_scale=acc.weight)
    assert list(p) == [-3, -3]


def test_no_gradient_in_a_round_skips_the_parameter() -> None:
    p = {"a": np.zeros(1), "b": np.zeros(1)}
    acc, opt = fo.GradAccumulator(p), fo.SGD(p, lr=1.0, momentum=0.9)
    acc.add({"a": np.ones(1), "b": None}, 2)
    acc.add({"a": np.ones(1), "b": None}, 2)
    assert acc.grads["b"] is None
    opt.step(acc.grads, grad_scale=acc.weight)
    assert (p["a"][0], p["b"][0]) == (-1, 0)
    assert opt.state["b"] == {"step": 0}
    acc.reset()
    acc.add({"a": np.ones(1), "b": None}, 3)
    acc.add({"a": np.ones(1), "b": np.full(1, 4.0)}, 1)  # not from the three samples of the others
    opt.step(acc.grads, grad_scale=acc.weight)
    assert p["b"][0] == -1


def test_an_interrupt_leaves_sums_and_weight_together() -> None:
    """An interrupted `add` is done whole or not at all."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    grads: list[Any] = [np.ones(3), np.ones(2, np.float32)]
    acc = fo.GradAccumulator(grads)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(200):
            acc.reset()
            acc.add(grads)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 1e-6 * number)
                while True:
                    acc.add(grads)
            except InterruptedError:
                pass
            for total in acc.grads.values():
                assert total is not None
                assert np.all(total == acc.weight)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_structures_are_those_of_the_optimizer() -> None:
    a, b, c = np.ones((2, 3)), np.ones(2), np.ones(4)
    grads: list[Any] = [np.full_like(x, i) for i, x in enumerate((a, b, c), 1)]
    pairs: list[tuple[Any, list[Any]]] = [
        ([a, b, c], [grads, tuple(grads), dict(zip("012", grads, strict=True))]),
        (dict(zip("xyz", (a, b, c), strict=True)), [dict(zip("zyx", grads[::-1], strict=True))]),
        (
            [{"params": [a], "lr": 0.1}, {"params": {"v": b, "w": c}}],
            [
                [grads[:1], {"w": grads[2], "v": grads[1]}],
                {"w": grads[2], "v": grads[1], "0": grads[0]},
            ],
        ),
    ]
    for params, structures in pairs:
        acc = fo.GradAccumulator(params)
        assert list(acc.grads) == list(fo.SGD(params).state)
        for structure in structures:
            acc.reset()
            acc.add(structure, 2)
            fo.SGD(params).step(acc.grads)  # what it takes
            for total, grad in zip(acc.grads.values(), grads, strict=True):
                assert total is not None
                assert np.all(total == 2 * grad)


def test_a_group_added_later() -> None:
    p = [np.ones(2), np.ones(3)]
    acc, reference = fo.GradAccumulator(p[:1]), fo.reference.GradAccumulator(p[:1])
    acc.add([p[0]], 2)
    reference.add([p[0]], 2)
    acc.add_param_group({"params": p[1:], "lr": 1.0})
    reference.add_param_group({"params": p[1:], "lr": 1.0})
    acc.add([p[0], p[1]], 3)
    reference.add([p[0], p[1]], 3)
    assert list(acc.grads) == ["0", "1"]
    assert same_sums(acc, reference)
    assert acc.weight == 5


def test_reference_has_the_same_face() -> None:
    for name in ("__init__", "add_param_group", "add", "reset"):
        fused, reference = (
            getattr(c, name) for c in (fo.GradAccumulator, fo.reference.GradAccumulator)
        )
        assert inspect.signature(fused) == inspect.signature(reference)


def test_repr_says_what_it_holds() -> None:
    acc = fo.GradAccumulator([np.ones((2, 3)), np.ones(2)])
    acc.add([None, np.ones(2)], 3)
    for part in ("2 arrays", "8 elements", "weight=3.0"):
        assert part in repr(acc)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*r[1:], id=r[0]) for r in BAD_PARAMS]
)
def test_parameters(make: Callable[[], Any], error: type[Exception], word: str) -> None:
    with refused(error, "parameter 'bad'", word):
        fo.GradAccumulator({"good": ones(3), "bad": make()})
    acc = fo.GradAccumulator({"good": ones(3)})
    with refused(error, "parameter 'bad'", word):
        acc.add_param_group({"params": {"bad": make()}})
    acc.add({"good": ones(3)})
    with refused(ValueError, "'good'"):
        acc.add_param_group({"params": {"good": ones(2)}})


@pytest.mark.parametrize(
    ("spoil", "error", "word"), [pytest.param(*r[1:], id=r[0]) for r in BAD_GRADS]
)
@pytest.mark.parametrize("rounds", [0, 1])
def test_gradients(
    spoil: Callable[[Any], Any], error: type[Exception], word: str, rounds: int
) -> None:
    acc = fo.GradAccumulator({"a": ones(5), "b": ones(2, 3)})
    for _ in range(rounds):
        acc.add({"a": ones(5), "b": ones(2, 3)}, 4)
    with refused(error, "gradient of 'b'", word, arrays=snapshot(acc)):
        acc.add({"a": ones(5), "b": spoil(ones(2, 3))}, 4)
    assert acc.weight == 4 * rounds
    assert (acc.grads["a"] is None) == (rounds == 0)


def test_structures_overlaps_and_weights() -> None:
    acc = fo.GradAccumulator({"a": ones(5), "b": ones(2)})
    good: dict[str, FloatArray | None] = {"a": ones(5), "b": ones(2)}
    acc.add(good, 2)
    own = acc.grads["a"]
    arrays = snapshot(acc)
    bad: list[tuple[Any, Any, type[Exception], list[str]]] = [
        (good | {"a": own}, 1, ValueError, ["sum of 'a'", "gradient of 'a'", "share memory"]),
        ({"a": ones(5)}, 1, KeyError, ["missing: 'b'", "None skips"]),
        (good | {"c": None}, 1, KeyError, ["not known: 'c'"]),
        ([ones(5), ones(2)], 1, TypeError, ["by name", "'a', 'b'"]),
        (ones(5), 1, TypeError, ["ndarray"]),
        (good, -1, ValueError, ["weight", "-1"]),
        (good, float("nan"), ValueError, ["weight", "nan"]),
        (good, float("inf"), ValueError, ["weight", "inf"]),
        (good, "all", TypeError, ["weight", "all"]),
        (good, ones(2), TypeError, ["weight"]),
    ]
    for grads, weight, error, words in bad:
        with refused(error, *words, arrays=arrays):
            acc.add(grads, weight)
        assert acc.weight == 2
    listed = fo.GradAccumulator([ones(5), ones(2)])
    for count in (1, 3):
        with refused(ValueError, "2 parameters", f"{count} gradient"):
            listed.add([ones(5)] * count)
    acc.add(good, 2)
    assert acc.weight == 4
    assert np.all(arrays[0] == 4)


def test_a_round_without_weight_makes_no_step() -> None:
    p = np.ones(2)
    acc, opt = fo.GradAccumulator([p]), fo.SGD([p])
    acc.add([np.ones(2)], 0)
    with refused(ValueError, "grad_scale", arrays=[p], optimizer=opt):
        opt.step(acc.grads, grad_scale=acc.weight)


def test_no_write_beside_the_arrays(threads: int) -> None:
    """Neither the gradients nor what lies around them in memory."""
    memory = np.arange(150_000, dtype=np.float32)
    before = memory.copy()
    acc = fo.GradAccumulator([np.ones((300, 160), np.float32), np.ones(3, np.float32)])
    for _ in range(2):
        acc.add([memory[7 : 7 + 144_000].reshape(300, 480)[:, ::3], memory[:3]], 3)
    assert same_bits(memory, before)


def test_copies_are_refused_with_the_way_out() -> None:
    acc = fo.GradAccumulator([ones(2)])
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="make a new one over the copied parameters"):
            attempt(acc)
