"""The ranks of an MPI job that train together: the part of each, and what all must know."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import numpy as np


class Ranks:
    """The ranks of `comm`, a communicator of mpi4py. All of them call the methods but `share`."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._own = np.empty(3)
        self._all = np.empty((self.size, 3))

    def share(self, count: int) -> slice:
        """Return this rank's part of `count` things: the parts are in order, and almost equal."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add(self, loss: float, points: float, signal: int) -> tuple[float, float, int]:
        """Return the sums of two numbers, in the order of the ranks, and the largest signal."""
        self._own[:] = loss, points, signal
        self.comm.Allgather(self._own, self._all)
        losses, scores, signals = self._all.T.tolist()
        return sum(losses), sum(scores), int(max(signals))

    def agree(self, signal: int, text: str) -> tuple[int, str]:
        """Return the largest signal, and the first text that is not empty."""
        signals, texts = zip(*self.comm.allgather((signal, text)), strict=True)
        return max(signals), next(filter(None, texts), "")

    def require_equal(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError on all ranks if a setting differs between them."""
        first, *others = self.comm.allgather({name: repr(own) for name, own in settings.items()})
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    here, there = _part(value, other[name]), _part(other[name], value)
                    values = f"{here} on rank 0, {there} on rank {rank}"
                    raise ValueError(f"all ranks must have the same {name}, not {values}")


def _part(text: str, other: str) -> str:
    """Return the part of a long text in which it begins to differ from another."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    start = max(0, min(sum(1 for _ in equal) - 30, len(text) - 60))
    return "..." * (start > 0) + text[start : start + 60] + "..." * (start + 60 < len(text))
