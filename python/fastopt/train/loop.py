"""The training loop: shuffled mini-batches, forward, loss, backward, step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_limits

from fastopt import CrossEntropyLoss, Optimizer
from fastopt.train.data import Data
from fastopt.train.model import MLP, Array, IntArray


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's samples, while the model was learning
    val_loss: float  # on held-out data, after the epoch
    val_accuracy: float
    samples_per_second: float  # of training; evaluation not counted


@dataclass
class Seconds:
    """Where the time went."""

    batch: float = 0.0  # gathering the rows of a batch
    forward: float = 0.0
    loss: float = 0.0  # value and gradient
    backward: float = 0.0
    step: float = 0.0
    evaluation: float = 0.0
    total: float = 0.0


@dataclass
class History:
    """A finished training run."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def diverged(self) -> bool:
        """Whether a loss became NaN or infinite."""
        return not all(isfinite(e.train_loss) and isfinite(e.val_loss) for e in self.epochs)

    @property
    def best(self) -> Epoch:
        """The first epoch with the highest held-out accuracy."""
        return max(self.epochs, key=lambda epoch: epoch.val_accuracy)


def evaluate(model: MLP, x: Array, y: IntArray, loss: CrossEntropyLoss) -> tuple[float, float]:
    """Return the mean loss and the accuracy of `model` on inputs and class indices."""
    total, correct = 0.0, 0
    for start in range(0, len(y), 4096):
        rows = slice(start, start + 4096)
        logits = model.forward(x[rows])
        correct += int(np.count_nonzero(logits.argmax(axis=1) == y[rows]))
        total += float(loss(logits, y[rows])) * len(y[rows])
    return total / len(y), correct / len(y)


def fit(
    model: MLP,
    data: Data,
    optimizer: Optimizer,
    loss: CrossEntropyLoss,
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    history: History | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_batch: Callable[[int, float], None] = lambda samples, loss: None,
) -> History:
    """Train `model` and return what happened; stop early if a loss is not finite.

    Parameters
    ----------
    model : MLP
    data : Data
    optimizer : Optimizer
        Over ``model.params``.
    loss : CrossEntropyLoss
        With reduction "mean".
    epochs, batch_size : int
        At least 1; the last batch of an epoch may be smaller.
    seed : int
        For the order of the samples.
    history : History, optional
        Filled as training goes on, for a caller who may be interrupted.
    on_epoch, on_batch : callable
        Called after each epoch, and after each batch with its size and its loss.
    """
    history = history or History()
    seconds = history.seconds
    order = np.random.default_rng(seed)
    samples = len(data.y_train)
    begin = perf_counter()
    with _blas_threads(model, batch_size), np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(1, epochs + 1):
            epoch_begin = perf_counter()
            total = 0.0
            shuffled = order.permutation(samples)
            for start in range(0, samples, batch_size):
                rows = shuffled[start : start + batch_size]
                value = _train_on(model, data, rows, optimizer, loss, seconds)
                total += value * len(rows)
                on_batch(len(rows), value)
            trained = perf_counter()
            val_loss, val_accuracy = evaluate(model, data.x_val, data.y_val, loss)
            seconds.evaluation += perf_counter() - trained
            speed = samples / (trained - epoch_begin)
            history.epochs.append(Epoch(epoch, total / samples, val_loss, val_accuracy, speed))
            seconds.total = perf_counter() - begin
            on_epoch(history.epochs[-1])
            if history.diverged:
                break
    return history


def _blas_threads(model: MLP, batch_size: int) -> AbstractContextManager[object]:
    """Keep BLAS on one thread where its products are too small to share: waiting costs more."""
    work = batch_size * max(param.size for param in model.params.values())
    return threadpool_limits(1, "blas") if work < 4_000_000 else nullcontext()


def _train_on(
    model: MLP,
    data: Data,
    rows: IntArray,
    optimizer: Optimizer,
    loss: CrossEntropyLoss,
    seconds: Seconds,
) -> float:
    """Take one step on the samples `rows` and return their mean loss."""
    t0 = perf_counter()
    x, y = data.x_train[rows], data.y_train[rows]
    t1 = perf_counter()
    logits = model.forward(x, training=True)
    t2 = perf_counter()
    value, dlogits = loss.value_and_grad(logits, y, out=logits)
    t3 = perf_counter()
    grads = model.backward(dlogits)
    t4 = perf_counter()
    optimizer.step(grads)
    t5 = perf_counter()
    seconds.batch += t1 - t0
    seconds.forward += t2 - t1
    seconds.loss += t3 - t2
    seconds.backward += t4 - t3
    seconds.step += t5 - t4
    return float(value)
