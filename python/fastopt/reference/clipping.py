"""Gradient norms, in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np

from fastopt._types import FloatArray
from fastopt.reference.storage import widen

CHUNK = 16384  # elements of one partial sum
LANES = 32  # partial sums of squares in a chunk


def grad_norm(grads: Sequence[FloatArray], norm_type: float = 2.0) -> float:
    """Return the norm of all elements of all arrays, in float64.

    The arrays may have any types. `norm_type` is 2, or inf for the largest magnitude. The additions
    have the order of the kernels, and therefore the same bits. Each array is cut into chunks in the
    order of its memory. Each chunk is summed in `LANES` lanes. The sums of the chunks are added in
    order.
    """
    with np.errstate(all="ignore"):
        if norm_type == inf:
            return float(
                np.max([np.max(abs(widen(grad))) for grad in grads if grad.size], initial=0.0)
            )
        plain = _sum_of_squares(grads, 1.0)
        if 2.0**-900 < plain < 2.0**1000:
            return sqrt(plain)
        for scale in (2.0**700, 2.0**-600):  # the squares of float64 overflow or underflow
            total = _sum_of_squares(grads, scale)
            if 2.0**-900 < total < 2.0**1000:
                return float(np.float64(sqrt(total)) / scale)
        return float(np.sqrt(plain))


def memory_order(array: FloatArray) -> list[int]:
    """Return the axes from the slowest to the fastest in memory."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def _sum_of_squares(grads: Sequence[FloatArray], scale: float) -> float:
    total = 0.0
    for grad in grads:
        flat = grad.transpose(memory_order(grad)).ravel()
        wide = widen(flat).astype(np.float64) * scale
        for start in range(0, wide.size, CHUNK):
            squares = wide[start : start + CHUNK] ** 2
            rows = np.zeros((-(-squares.size // LANES), LANES))
            rows.ravel()[: squares.size] = squares
            lanes = np.add.reduce(rows, axis=0)
            while lanes.size > 1:
                lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
            total += float(lanes[0])
    return total
