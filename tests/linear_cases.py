"""Cases of linear cross-entropy: options, data, and the loss of fastopt and of the reference."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt as fo
from fastopt._types import FloatArray

ROWS, WIDTH, CLASSES = 50, 12, 300
# "soft": `data` returns probabilities. "weight": `losses` gets class weights of this dtype.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "ignore_index": 7},
    {"label_smoothing": 0.1, "ignore_index": 7},
    {"weight": np.float64},
    {"weight": np.float32, "ignore_index": 7},
    {"z_loss": 1e-2},
    {"logit_softcap": 5.0},
    {"soft": True},
    {"soft": True, "reduction": "none", "weight": np.float64},
    {
        "weight": np.float64,
        "label_smoothing": 0.2,
        "z_loss": 1e-3,
        "logit_softcap": 10.0,
        "ignore_index": 7,
    },
]


def data(
    options: dict[str, Any], dtype: Any = np.float64, rows: int = ROWS, classes: int = CLASSES
) -> tuple[FloatArray, FloatArray, Any, FloatArray]:
    """Return hidden, linear_weight, targets, linear_bias."""
    rng = np.random.default_rng([rows, classes])
    hidden = rng.standard_normal((rows, WIDTH)).astype(dtype)
    linear_weight = rng.standard_normal((classes, WIDTH)).astype(dtype)
    targets: Any = rng.integers(0, classes, rows)
    targets[::5] = options.get("ignore_index", 0)
    if options.get("soft"):
        targets = rng.random((rows, classes)).astype(dtype) ** 8
        targets /= targets.sum(axis=1, keepdims=True)
    return hidden, linear_weight, targets, rng.standard_normal(classes).astype(dtype)


def losses(
    options: dict[str, Any], memory_limit: int | None = None, classes: int = CLASSES
) -> tuple[Any, Any]:
    options = {key: value for key, value in options.items() if key != "soft"}
    if "weight" in options:
        options["weight"] = np.linspace(0.2, 3, classes, dtype=options["weight"])
    ours = fo.LinearCrossEntropyLoss(**options, memory_limit=memory_limit)
    return ours, fo.reference.LinearCrossEntropyLoss(**options)
