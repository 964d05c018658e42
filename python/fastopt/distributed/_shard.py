"""Which elements belong to which rank."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

from fastopt._checks import integer

BLOCK = 256  # parts begin at multiples of it, so that two ranks share no line of the cache


def shard(sizes: Iterable[int], ranks: int, rank: int) -> list[slice]:
    """Return the part of each array that a rank steps.

    All arrays one after the other are cut into `ranks` parts of almost the same size. A cut within
    an array is at a multiple of 256 elements. So a rank may have no element of an array, and few
    small arrays may be on one rank.

    Parameters
    ----------
    sizes : iterable of int
        The number of elements of each array.
    ranks : int
        The number of parts, at least 1.
    rank : int
        In [0, ranks).

    Returns
    -------
    list of slice
        For each array, the elements of the rank in the order of the memory; ``slice(0, 0)`` if it
        has none.

    Examples
    --------
    Two ranks step their parts of two parameters, and clip to the norm of both:

    >>> import math, numpy as np, fastopt as fo
    >>> from fastopt import distributed
    >>> params = {"w": np.ones((30, 40), np.float32), "b": np.ones(10, np.float32)}
    >>> grads = {name: np.full_like(array, 0.5) for name, array in params.items()}
    >>> parts = [distributed.shard([1200, 10], ranks=2, rank=r) for r in range(2)]
    >>> parts[0]
    [slice(0, 512, None), slice(0, 0, None)]
    >>> def part_of(arrays, slices):
    ...     return {n: a.reshape(-1)[s] for (n, a), s in zip(arrays.items(), slices)}
    >>> norms = [fo.grad_norm(part_of(grads, part)) for part in parts]
    >>> for part in parts:
    ...     optimizer = fo.SGD(part_of(params, part), lr=1.0)
    ...     info = optimizer.step(
    ...         part_of(grads, part), max_norm=1.0, total_norm=math.hypot(*norms)
    ...     )
    >>> round(info.grad_norm, 4) == round(0.5 * math.sqrt(1210), 4)
    True
    """
    counts = [integer(0)(f"sizes[{i}]", size) for i, size in enumerate(sizes)]
    ranks = integer(1)("ranks", ranks)
    rank = integer(0, ranks - 1)("rank", rank)
    ends = list(accumulate(counts))
    begin, end = (_cut(counts, ends, number, ranks) for number in (rank, rank + 1))
    parts = []
    for size, last in zip(counts, ends, strict=True):
        start, stop = (min(max(place - (last - size), 0), size) for place in (begin, end))
        parts.append(slice(start, stop) if start < stop else slice(0, 0))
    return parts


def _cut(sizes: list[int], ends: list[int], number: int, ranks: int) -> int:
    """Return the first element of part `number`, counted over all arrays."""
    total = ends[-1] if ends else 0
    place = total * number // ranks
    if place == total:
        return total
    array = bisect_right(ends, place)
    first = ends[array] - sizes[array]
    return first + min((place - first + BLOCK // 2) // BLOCK * BLOCK, sizes[array])
