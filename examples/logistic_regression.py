"""Logistic regression in plain NumPy: a loss, an optimizer, two lines of calculus.

Needs NumPy alone. Run it with: python examples/logistic_regression.py
"""

from __future__ import annotations

import numpy as np

import fastopt as fo

# Two clouds of points in 20 dimensions; the first 1600 are for training.
rng = np.random.default_rng(0)
labels = rng.integers(0, 2, 2000)
x = rng.standard_normal((2000, 20)) + 0.6 * (labels[:, None] - 0.5)
y = labels.astype(np.float64)
x_train, y_train, x_val, y_val = x[:1600], y[:1600], x[1600:], y[1600:]

params = {"weight": np.zeros(20), "bias": np.zeros(1)}
opt = fo.AdamW(params, lr=0.05)
loss_of = fo.BCEWithLogitsLoss()


def logits(x: np.ndarray) -> np.ndarray:
    """Return a number for each row; above 0 means class 1."""
    return x @ params["weight"] + params["bias"]


for epoch in range(1, 11):
    order = rng.permutation(len(x_train))
    for start in range(0, len(order), 100):
        rows = order[start : start + 100]
        loss, slope = loss_of.value_and_grad(logits(x_train[rows]), y_train[rows])
        opt.step({"weight": x_train[rows].T @ slope, "bias": slope.sum(keepdims=True)})
    if epoch % 5 == 0:
        print(f"epoch {epoch:2d}  loss of the last batch {loss:.3f}")

right = ((logits(x_val) > 0) == (y_val > 0)).mean()
print(f"{right:.1%} of the other 400 points are right")
assert right > 0.85
