"""Two spirals that a network tells apart; draws the classes of the plane into spiral.png.

Needs the training tools: pip install '.[train]'. Run it with: python examples/spiral.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from fastopt import train


def spirals(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return points (count, 2) on two spirals with some noise, and the spiral of each."""
    labels = rng.integers(0, 2, count)
    angle = 3.5 * np.pi * np.sqrt(rng.random(count))
    turned = angle + np.pi * labels
    points = np.column_stack([np.cos(turned), np.sin(turned)]) * angle[:, None] / (3.5 * np.pi)
    return (points + rng.normal(0, 0.02, points.shape)).astype(np.float32), labels


rng = np.random.default_rng(0)
x_train, y_train = spirals(1500, rng)
x_val, y_val = spirals(500, rng)
data = train.Data("spirals", "classification", x_train, y_train, x_val, y_val, ("one", "two"))

config = train.RunConfig(hidden=(64, 64), dropout=0.0, lr=0.01, schedule="cosine", epochs=60)
trainer = config.build(data)
history = trainer.fit(config.epochs)
print(f"{history.epochs[-1].val_score:.1%} of the 500 held-out points are right")
assert history.epochs[-1].val_score > 0.97

side = np.linspace(-1.15, 1.15, 300, dtype=np.float32)
across, up = np.meshgrid(side, side)
logits = trainer.predict(np.column_stack([across.ravel(), up.ravel()]))
certainty = (logits[:, 1] - logits[:, 0]).reshape(across.shape)

plt.style.use("tableau-colorblind10")
fig, ax = plt.subplots(figsize=(5, 5), layout="constrained")
ax.contourf(across, up, certainty > 0, levels=[-0.5, 0.5, 1.5], colors=["C0", "C1"], alpha=0.25)
for spiral, marker in (0, "o"), (1, "^"):
    points = x_val[y_val == spiral]
    ax.plot(*points.T, marker, color=f"C{spiral}", markersize=4, label=data.labels[spiral])
ax.set(title="Two spirals, held-out points", xlabel="x", ylabel="y", aspect="equal")
ax.legend(loc="upper right")
fig.savefig("spiral.png", dpi=100)
print("wrote spiral.png")
