"""One step of each optimizer: one tensor of 4 K to 64 M elements, an MLP, many small tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from peers import PEERS, make_arrays, make_step, timed

OPTIMIZERS = [
    name
    for name in fo.__all__
    if isinstance(getattr(fo, name), type) and issubclass(getattr(fo, name), fo.Optimizer)
]
OPTIMIZERS.remove("Optimizer")
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 1e-3, "momentum": 0.9}}
SIZES = {
    "4 K": 4 << 10,
    "64 K": 64 << 10,
    "1 M": 1 << 20,
    "16 M": 16 << 20,
    "64 M": 64 << 20,
}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "MLP 784-256-128-10": [(256, 784), (256,), (128, 256), (128,), (10, 128), (10,)],
    "200 tensors of 64": [(64,)] * 200,
}
CASES = [
    pytest.param(label, [(size,)], id=label, marks=pytest.mark.slow if size > 4 << 20 else [])
    for label, size in SIZES.items()
] + [pytest.param(label, shapes, id=label) for label, shapes in SHAPES.items()]


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("label", "shapes"), CASES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step(
    name: str, label: str, shapes: list[tuple[int, ...]], peer: str, benchmark: Any
) -> None:
    options = OPTIONS.get(name, {})
    params, grads = make_arrays(shapes, 0), make_arrays(shapes, 1)
    # A large array is checked at its ends and at places in between, which is where chunks meet.
    places = [np.r_[0 : p.size : max(1, p.size // 100_000), p.size - 1] for p in params]
    expected = [p.ravel()[at] for p, at in zip(params, places, strict=True)]
    reference = getattr(fo.reference, name)(expected, **options)
    step = make_step(peer, name, options, params, grads)
    for _ in range(2):
        step()
        reference.step([g.ravel()[at] for g, at in zip(grads, places, strict=True)])
    for param, wanted, at in zip(params, expected, places, strict=True):
        got = param.ravel()[at]
        if peer == "torch":
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, wanted)
    arrays = 2 + 1 + 2 * (len(reference.state["0"]) - 1)  # read and written, but the gradient
    timed(benchmark, step, f"{name}, {label}", 4 * arrays * sum(p.size for p in params))
