"""Numbers that the dtype of the arrays cannot hold: the correct value, or a named error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case, make_grads, make_params
from fastopt._types import FloatArray
from helpers import same_bits

TINY = 5e-324  # float64's smallest


def truth(grads: FloatArray, scale: float, max_norm: float | None) -> Any:
    """The scaled gradients of a step, computed with a larger range."""
    wide = grads.astype(np.longdouble) / np.longdouble(scale)
    if max_norm is None:
        return wide
    clip = max_norm / (np.sqrt((wide**2).sum()) + 1e-6)
    return wide * min(clip, np.longdouble(1))


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16384, reason="needs a wider type")
@pytest.mark.parametrize(
    ("dtype", "grads", "scale", "max_norm"),
    [
        (np.float32, [0.0, -0.0], 8e-202, None),
        (np.float32, [0.0, -0.0], TINY, 1.0),
        (np.float32, [0.0, 1e-38, -3e-45], 1e-40, None),
        (np.float32, [1e30, -3e35, 0.0], 1e40, None),
        (np.float32, [1e30, -3e35, 0.0], 1e39, 1e-5),
        (np.float32, [1e30, -3e35, 0.0], 1.0, 1e-8),
        (np.float32, [1e-3, -1e-3, 0.0], 1e-310, 1.0),
        (np.float32, [1.5, -2.5], 1e300, None),
        (np.float64, [0.0, -0.0], TINY, None),
        (np.float64, [1e-320, 0.0, -1e-315], 1e-320, None),
        (np.float64, [1e-10, -2e-12, 0.0], 1e-320, 1.0),
        (np.float64, [1e300, -2e307, 0.0], 1.0, 1e-300),
        (np.float64, [1e300, -2e307, 0.0], 1.7e308, None),
        (np.float64, [1e-300, -2e-300], 1e-309, 1e300),
        # The product is a normal number, but its factors are not.
        (np.float64, [1e7, -3e6], 1e-300, 1e-15),
        (np.float64, [1e7, -3e6], 1e-302, 1e-12),
        (np.float64, [1e-5, 2e-5], 1.7e308, 1e-13),
        (np.float64, [1e300, 1e290], 1e-10, 1e-10),
        (np.float32, [1e7, -3e6], 1e-300, 1e-15),
        (np.float32, [1e30, -3e35], 1e-275, 1e-2),
    ],
)
def test_a_scale_that_is_no_factor_of_the_dtype(
    dtype: Any, grads: list[float], scale: float, max_norm: float | None
) -> None:
    g = np.array(grads, dtype)
    expected = -truth(g, scale, max_norm).astype(dtype)
    steps = []
    for module in (fo, fo.reference):
        for maximize in (False, True):
            p = np.zeros_like(g)
            optimizer = module.SGD([p], lr=1.0, maximize=maximize)
            optimizer.step([g], grad_scale=scale, max_norm=max_norm, skip_nonfinite=True)
            steps.append(-p if maximize else p)
    assert all(same_bits(p + 0.0, steps[0] + 0.0) for p in steps)
    assert np.isfinite(steps[0]).all()
    assert np.allclose(steps[0], expected, rtol=4 * np.finfo(dtype).eps, atol=2 * TINY)


@pytest.mark.parametrize("options", [{"grad_scale": 1e-41}, {"grad_scale": 1e41, "max_norm": 1e-9}])
@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_parity_where_no_factor_fits(case: Case, options: dict[str, Any]) -> None:
    params = make_params(np.float32)
    copies = [p.copy() for p in params]
    fused, reference = case.fused(params), case.reference(copies)
    for grads in make_grads(params, 3):
        fused.step(grads, **options)
        reference.step(grads, **options)
    assert all(map(same_bits, params, copies))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("SGD", {"lr": 1e39}, "lr"),
        ("SGD", {"weight_decay": 1e300}, "weight_decay"),
        ("SGD", {"momentum": 1e39}, "momentum"),
        ("SGD", {"momentum": 0.5, "dampening": -1e39}, "dampening"),
        ("RMSprop", {"eps": 1e-46}, "eps"),
        ("RMSprop", {"lr": 1e39}, "lr"),
        ("RMSprop", {"momentum": 1e39}, "momentum"),
        ("RMSprop", {"weight_decay": 1e39}, "weight_decay"),
        ("Adam", {"eps": 1e-60}, "eps"),
        ("Adam", {"eps": 1e39}, "eps"),
        ("Adam", {"lr": 2e38}, "lr / (1 - betas[0]**step)"),  # 2e39 at the first step
        ("Adam", {"weight_decay": 1e39}, "weight_decay"),
        ("AdamW", {"lr": 1e20, "weight_decay": 1e20}, "1 - lr * weight_decay"),
    ],
)
def test_options_beyond_float32(name: str, options: dict[str, float], word: str) -> None:
    make: Callable[..., Any] = getattr(fo, name)
    wide, p, q = np.ones(3), np.ones(3, np.float32), np.ones(2)
    g, grads = np.ones(3), [np.ones(2), np.ones(3, np.float32)]
    assert make([wide], **options).step([g]) == (None, False)  # float64 holds it
    with pytest.raises(ValueError, match="float32") as caught:
        make([p, q], **options)
    assert word in str(caught.value)
    # An option that is set later is refused by the step.
    kept = {key: value for key, value in options.items() if key in ("momentum", "dampening")}
    optimizer = make([q, p], **({"momentum": 0.9} if kept else {}))
    optimizer.step(grads)
    before = p.copy(), q.copy(), optimizer.state_dict()
    states = {n: {k: np.copy(v) for k, v in s.items()} for n, s in before[2]["state"].items()}
    optimizer.param_groups[0].update(options)
    with pytest.raises(ValueError, match="float32"):
        optimizer.step(grads)
    assert same_bits(p, before[0])
    assert same_bits(q, before[1])
    for parameter, state in optimizer.state.items():
        assert all(same_bits(value, states[parameter][key]) for key, value in state.items())


def test_functional_updates_refuse_them_too() -> None:
    p, g = np.ones(2, np.float32), np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"lr is 1e\+39, out of the range of float32"):
        fo.functional.sgd_(p, g, lr=1e39)
    with pytest.raises(ValueError, match="eps is 1e-50"):
        fo.functional.rmsprop_(p, g, np.zeros_like(p), eps=1e-50)
    assert (p == 1).all()


@pytest.mark.parametrize("weight", [1e39, 1e-46, 1e308, 5e-324])
def test_weights_beyond_float32(weight: float) -> None:
    p: FloatArray = np.ones(2)
    q: FloatArray = np.ones(2, np.float32)
    sums = fo.GradAccumulator([p, q])
    sums.add([p, q], 2.0)
    with pytest.raises(ValueError, match=r"weight is .* out of the range of float32"):
        sums.add([p, q], weight)
    assert sums.weight == 2
    assert all((np.asarray(g) == 2).all() for g in sums.grads.values())
    sums.reset()
    assert sums.weight == 0
    wide = fo.GradAccumulator([p])
    wide.add([p], weight)
    assert wide.weight == weight
    assert (np.asarray(wide.grads["0"]) == weight).all()


def test_weights_whose_sum_is_beyond_float64() -> None:
    p = np.ones(2)
    sums = fo.GradAccumulator([p])
    sums.add([np.full(2, 1e-300)], 1e308)
    with pytest.raises(ValueError, match="sum of the weights is beyond float64"):
        sums.add([np.full(2, 1e-300)], 1e308)
    assert sums.weight == 1e308


def test_a_weight_is_read_once() -> None:
    class Weight:
        count = 0

        def __float__(self) -> float:
            self.count += 1
            return float(self.count)

    sums = fo.GradAccumulator([{"params": [np.ones(2)]}, {"params": [np.ones(2)]}])
    sums.add([[np.ones(2)], [np.ones(2)]], Weight())  # type: ignore[arg-type]
    assert sums.weight == 1
    assert all((np.asarray(g) == 1).all() for g in sums.grads.values())


def test_a_mean_of_weights_that_are_tiny() -> None:
    p, g = np.ones(2, np.float32), np.full(2, 0.5, np.float32)
    sums = fo.GradAccumulator([p])
    sums.add([g], weight=1e-40)
    fo.SGD([p], lr=1.0).step(sums.grads, grad_scale=sums.weight)
    assert np.allclose(p, 0.5, rtol=1e-4)  # float32 holds 5 digits of 5e-41


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_the_end_of_a_step_counter(name: str) -> None:
    p, g = np.ones(2), np.ones(2)
    optimizer = getattr(fo, name)([p])
    optimizer.step([g])
    state = optimizer.state_dict()
    for step in (2**63 - 1, 2**63, 2**100):
        state["state"]["0"]["step"] = step
        with pytest.raises(ValueError, match="'step' in the state of '0'"):
            optimizer.load_state_dict(state)
    state["state"]["0"]["step"] = 2**63 - 2
    optimizer.load_state_dict(state)
    optimizer.step([g])  # the last one
    assert optimizer.state["0"]["step"] == 2**63 - 1
    before = p.copy()
    with pytest.raises(ValueError, match="'0' is at its end"):
        optimizer.step([g])
    assert same_bits(p, before)
    assert optimizer.state["0"]["step"] == 2**63 - 1


def test_huge_steps_have_the_bits_of_the_reference() -> None:
    for step in (2**31, 2**53 + 1, 2**63 - 2):
        p, q, g = np.ones(3), np.ones(3), np.linspace(-1, 1, 3)
        pair = fo.Adam([p]), fo.reference.Adam([q])
        for optimizer in pair:
            optimizer.step([g])
            state = optimizer.state_dict()
            state["state"]["0"]["step"] = step
            optimizer.load_state_dict(state)
            optimizer.step([g])
        assert same_bits(p, q)
    m, v, p = np.zeros(3), np.zeros(3), np.ones(3)
    fo.functional.adam_(p, g, m, v, step=sys.maxsize)
    with pytest.raises(ValueError, match="step must be an integer of 64 bits"):
        fo.functional.adam_(p, g, m, v, step=sys.maxsize + 1)


def test_floating_point_settings_of_numpy_change_nothing() -> None:
    rng = np.random.default_rng(3)
    grads = [rng.standard_normal(50).astype(np.float32) * 1e30, np.full(3, np.nan)]
    results = []
    for errors in ("ignore", "raise"):
        p: list[FloatArray] = [np.ones(50, np.float32), np.ones(3)]
        q: list[FloatArray] = [np.ones(50, np.float32), np.ones(3)]
        with np.errstate(all=errors):
            optimizer, average, sums = fo.AdamW(p, lr=1e30), fo.WeightEMA(p), fo.GradAccumulator(p)
            sums.add(grads, 1e30)
            optimizer.step(sums.grads, grad_scale=sums.weight, max_norm=1e-30)
            average.update()
            average.update()
            reference = fo.reference.AdamW(q, lr=1e30)
            reference.step(grads, max_norm=1e-30, grad_scale=np.float64(1e-320))
        results.append([*p, *average.averages.values()])
    assert all(map(same_bits, *results))
