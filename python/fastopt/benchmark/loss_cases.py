"""The losses that are timed: the value and the gradient of float32 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Arrays: TypeAlias = tuple[Any, ...]  # the arguments of a loss: logits and targets, ...
# The memory of the gradient. "without out": a large gradient reuses the memory of the last one,
# which has been dropped. "new memory": `np.empty` for each call.
Buffer: TypeAlias = Literal["in place", "reused buffer", "without out", "new memory"]


def logits_and_classes(shape: Shape) -> Arrays:
    """Return logits from a normal distribution of deviation 3, and class indices."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape, dtype=np.float32)
    logits *= 3
    return logits, rng.integers(0, shape[1], shape[:1] + shape[2:])


def predictions(shape: Shape) -> Arrays:
    """Return predictions and their targets, both from a normal distribution."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)


def logits_and_probabilities(shape: Shape) -> Arrays:
    """Return logits, and probabilities as targets."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape, np.float32)
    logits *= 3
    return logits, rng.random(shape, np.float32)


def logits_alone(shape: Shape) -> Arrays:
    """Return logits from a normal distribution of deviation 3."""
    return logits_and_classes(shape)[:1]


def hidden_and_weight(shape: Shape) -> Arrays:
    """Return hidden states (N, D), the weight (V, D) of the last layer, and class indices."""
    n, d, v = shape
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, d), np.float32)
    weight = rng.standard_normal((v, d), np.float32)
    weight *= np.float32(3 / math.sqrt(d))  # logits like those of cross-entropy
    return hidden, weight, rng.integers(0, v, n)


class Kind(NamedTuple):
    """The properties that all cases of one loss share."""

    name: str
    draw: Callable[[Shape], Arrays]
    bytes_moved: Callable[[Shape], int]  # what must be read and written, out of cache
    elements: Callable[[Shape], int] = math.prod


def _pointwise(shape: Shape) -> int:
    return 12 * math.prod(shape)  # input and target are read, the gradient is written


KINDS = {
    # The logits are read, their gradient is written.
    "CrossEntropyLoss": Kind("cross-entropy", logits_and_classes, lambda s: 8 * math.prod(s)),
    # The products take most of the time. Both matrices are read, and their gradients written.
    "LinearCrossEntropyLoss": Kind(
        "linear cross-entropy",
        hidden_and_weight,
        lambda s: 8 * (s[0] + s[2]) * s[1],
        lambda s: s[0] * s[2],
    ),
    "log_softmax": Kind("log_softmax", logits_alone, lambda s: 8 * math.prod(s)),
    "MSELoss": Kind("MSE", predictions, _pointwise),
    "L1Loss": Kind("L1", predictions, _pointwise),
    "SmoothL1Loss": Kind("SmoothL1", predictions, _pointwise),
    "HuberLoss": Kind("Huber", predictions, _pointwise),
    "BCEWithLogitsLoss": Kind("BCE with logits", logits_and_probabilities, _pointwise),
}


@dataclass(frozen=True)
class LossCase:
    """One loss of one batch."""

    loss: str  # a class of fastopt, fastopt.reference and torch.nn, or a function
    shape: Shape
    buffer: Buffer = "reused buffer"
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    draw: Callable[[Shape], Arrays] | None = None  # if not that of its kind

    @property
    def elements(self) -> int:
        """The number of logits, or of predictions."""
        return KINDS[self.loss].elements(self.shape)

    @property
    def bytes_moved(self) -> int:
        """The bytes that must be read and written if nothing stays in cache."""
        return KINDS[self.loss].bytes_moved(self.shape)

    @property
    def between(self) -> str | None:
        """Nothing runs between two calls."""
        return None

    @property
    def arrays(self) -> Arrays:
        """The arguments of the loss. Cases share them: do not write to them."""
        return _drawn(self.draw or KINDS[self.loss].draw, self.shape)

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape)) if len(self.shape) > 1 else _short(self.elements)
        return self.label or f"{KINDS[self.loss].name} {size}, {self.buffer}"


@lru_cache(maxsize=1)  # the cases of one shape follow one another
def _drawn(draw: Callable[[Shape], Arrays], shape: Shape) -> Arrays:
    return draw(shape)


def _short(elements: int) -> str:
    return f"{elements >> 20} M" if elements >= 1 << 20 else str(elements)


BUFFERS: tuple[Buffer, ...] = ("in place", "reused buffer", "without out", "new memory")

CASES = [
    LossCase("CrossEntropyLoss", (128, 10)),
    LossCase("CrossEntropyLoss", (32768, 10)),
    LossCase("CrossEntropyLoss", (8192, 1000)),
    LossCase(
        "CrossEntropyLoss",
        (8192, 1000),
        options={"label_smoothing": 0.1},
        label="cross-entropy 8192 x 1000, smoothing 0.1",
    ),
    LossCase("CrossEntropyLoss", (8, 21, 256, 256)),  # a class for each pixel
    *(LossCase("CrossEntropyLoss", (2048, 32000), buffer) for buffer in BUFFERS),
    *(LossCase("CrossEntropyLoss", (1024, 128256), buffer) for buffer in BUFFERS),
    LossCase(
        "LinearCrossEntropyLoss",
        (2048, 512, 32000),
        "without out",
        label="linear cross-entropy 2048 x 512 into 32000",
    ),
    LossCase("log_softmax", (2048, 32000)),
    LossCase("log_softmax", (2048, 32000), "without out"),
    LossCase("MSELoss", (16 << 20,)),
    LossCase("L1Loss", (16 << 20,)),
    LossCase("HuberLoss", (16 << 20,)),
    LossCase("BCEWithLogitsLoss", (16 << 20,)),
]
