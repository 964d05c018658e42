"""Trains on arrays of your own, with a callback of your own.

Needs the training tools: pip install '.[train]'. Run it with: python examples/own_data.py
"""

from __future__ import annotations

import numpy as np

from fastopt import train


def wave(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (count, 2) and noisy values (count, 1) of a function that is to be learned."""
    x = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    y = np.sin(3 * x[:, :1]) * x[:, 1:] + rng.normal(0, 0.02, (count, 1))
    return x, y.astype(np.float32)


class StopWhenGood(train.Callback):
    """Prints every tenth epoch, and ends training at a loss that is good enough."""

    def __init__(self, goal: float) -> None:
        self.goal = goal

    def on_epoch_end(self, trainer: train.Trainer, epoch: train.Epoch) -> None:
        """Look at the epoch that has just ended."""
        if epoch.epoch % 10 == 0:
            print(f"epoch {epoch.epoch:3d}  held-out loss {epoch.val_loss:.5f}")
        if epoch.val_loss < self.goal:
            trainer.stop(f"the held-out loss is below {self.goal}")


rng = np.random.default_rng(0)
x_train, y_train = wave(2000, rng)
x_val, y_val = wave(500, rng)
data = train.Data("wave", "regression", x_train, y_train, x_val, y_val, labels=())

config = train.RunConfig(task="regression", hidden=(64, 64), dropout=0.0, lr=0.005)
trainer = config.build(data)
history = trainer.fit(200, [StopWhenGood(0.001)])

print(f"after {len(history.epochs)} epochs: {history.stop_reason}")
point = np.array([[0.5, 0.8]], np.float32)
print(f"at (0.5, 0.8): {trainer.predict(point).item():.2f}, true {np.sin(1.5) * 0.8:.2f}")
assert history.stop_reason
