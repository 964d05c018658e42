"""One step of each optimizer: one tensor of 4 K to 64 M elements, an MLP, many small tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from peers import PEERS, make_arrays, make_step, timed

# Name, options, bytes that must move per float32 parameter.
OPTIMIZERS: list[tuple[str, dict[str, Any], int]] = [
    ("SGD", {"lr": 1e-3, "momentum": 0.9}, 20),
    ("RMSprop", {}, 20),
    ("Adam", {}, 28),
    ("AdamW", {}, 28),
]
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
@pytest.mark.parametrize(("name", "options", "moved"), OPTIMIZERS, ids=[o[0] for o in OPTIMIZERS])
def test_step(
    name: str,
    options: dict[str, Any],
    moved: int,
    label: str,
    shapes: list[tuple[int, ...]],
    peer: str,
    benchmark: Any,
) -> None:
    params, grads = make_arrays(shapes, 0), make_arrays(shapes, 1)
    head = [p.ravel()[:1000].copy() for p in params]
    step = make_step(peer, name, options, params, grads)
    step()
    expected = make_step("reference", name, options, head, [g.ravel()[:1000] for g in grads])
    expected()
    for param, wanted in zip(params, head, strict=True):
        if peer == "torch":
            np.testing.assert_allclose(param.ravel()[:1000], wanted, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(param.ravel()[:1000], wanted)
    timed(benchmark, step, f"{name}, {label}", moved * sum(p.size for p in params))
