"""What the ranks send each other: gradients to those who step them, and parameters to all.

The arrays are one-dimensional views. A part of an array is on one rank, and the parts of a rank
follow each other in a flat order. They are sent in pieces of a fixed size, so that the buffers stay
small, and while a piece is on its way the one before it is used and the next one is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

PIECE = 1 << 23  # bytes that a rank sends, and receives, at a time,
LEAST = 1 << 16  # but at least so many for each other rank: the latency of a message counts then


class Segment(NamedTuple):
    """A part of array number `array`."""

    array: int
    start: int
    stop: int


def piece_bytes(ranks: int) -> int:
    """Return the number of bytes that a rank sends to all at a time."""
    return max(PIECE, LEAST * ranks)


def in_pieces(parts: Sequence[slice], size: int) -> list[list[Segment]]:
    """Cut the parts of all arrays, one after the other, into pieces of `size` elements."""
    pieces: list[list[Segment]] = [[]]
    room = size
    for number, part in enumerate(parts):
        start = part.start
        while start < part.stop:
            if room == 0:
                pieces.append([])
                room = size
            stop = min(part.stop, start + room)
            pieces[-1].append(Segment(number, start, stop))
            room -= stop - start
            start = stop
    return pieces


class Order:
    """The order in which the elements of a dense array lie in memory."""

    def __init__(self, array: Array) -> None:
        axes = [axis for axis in range(array.ndim) if array.shape[axis] != 1]
        ones = [axis for axis in range(array.ndim) if array.shape[axis] == 1]
        axes.sort(key=lambda axis: -array.strides[axis])
        self.axes = axes  # from the slowest to the fastest
        self._transposed = None if axes == sorted(axes) else [*ones, *axes]

    def flat(self, array: Array) -> Array:
        """Return an array of the same shape in this order: a view if it lies in memory so."""
        if self._transposed is not None:
            array = array.transpose(self._transposed)
        return array.reshape(-1)


class Exchange:
    """The buffers and the order of all that the ranks send each other in a step.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    params : sequence of array
        The flat parameters.
    parts : sequence of sequence of slice
        For each rank its part of each parameter.
    given : sequence of bool
        Whether a parameter has a gradient.
    wire : dtype
        The type in which gradients are sent that are summed in float32.
    """

    def __init__(
        self,
        comm: Any,
        params: Sequence[Array],
        parts: Sequence[Sequence[slice]],
        given: Sequence[bool],
        wire: np.dtype[Any],
    ) -> None:
        self.given = list(given)
        self._alone = comm.size == 1
        self._sums: list[Array | None] = [None] * len(params)  # of this rank's parts
        self._reductions: list[tuple[list[int], Reduction, Array]] = []
        if self._alone:
            return
        numbers = [number for number, has in enumerate(given) if has]
        for dtype, sent in ((np.float32, wire), (np.float64, np.dtype(np.float64))):
            own = [n for n in numbers if (params[n].dtype == np.float64) == (dtype is np.float64)]
            if own:
                reduction = Reduction(comm, [[every[n] for n in own] for every in parts], sent)
                sums = np.empty(reduction.own, dtype)
                self._reductions.append((own, reduction, sums))
                place = 0
                for number in own:
                    part = parts[comm.rank][number]
                    size = part.stop - part.start
                    self._sums[number] = sums[place : place + size]
                    place += size
        self._bytes = [params[number].view(np.uint8) for number in numbers]
        sizes = [params[number].itemsize for number in numbers]
        bytes_of = [
            [
                slice(every[number].start * size, every[number].stop * size)
                for number, size in zip(numbers, sizes, strict=True)
            ]
            for every in parts
        ]
        self._gathering = Gathering(comm, bytes_of, np.uint8)

    def reduce(
        self, grads: Sequence[Array | None] | None, weights: Sequence[float] | None
    ) -> list[Array | None]:
        """Return the sums of the gradients over all ranks, for this rank's parts.

        Parameters
        ----------
        grads : sequence of array, optional
            The flat gradients of this rank; None if its weight is 0.
        weights : sequence of float, optional
            The weight of each rank.
        """
        if self._alone:
            return list(grads or ())
        for numbers, reduction, sums in self._reductions:
            arrays = [grad for n in numbers if (grad := grads[n]) is not None] if grads else None
            reduction.run(arrays, weights, sums)
        return self._sums

    def gather(self) -> None:
        """Give this rank's parts of the parameters to the other ranks, and take theirs."""
        if not self._alone:
            self._gathering.run(self._bytes)


class Lane:
    """The pieces of some arrays, for all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    parts : sequence of sequence of slice
        For each rank its part of each array. All its elements are sent.
    dtype : dtype
        The type in which they are sent.
    """

    def __init__(self, comm: Any, parts: Sequence[Sequence[slice]], dtype: npt.DTypeLike) -> None:
        self._comm, self._rank = comm, comm.rank
        self._dtype = np.dtype(dtype)
        self._size = piece_bytes(comm.size) // comm.size // self._dtype.itemsize
        pieces = [in_pieces(part, self._size) for part in parts]
        self.own = sum(part.stop - part.start for part in parts[comm.rank])
        # For each piece, the segments of each rank and the number of their elements.
        self._segments = list(zip_longest(*pieces, fillvalue=[]))
        self._counts = [
            [sum(segment.stop - segment.start for segment in part) for part in piece]
            for piece in self._segments
        ]
        others = max(sum(counts) - counts[comm.rank] for counts in self._counts)
        self._others = [np.empty(others, self._dtype) for _ in range(2)]  # sent or received
        self._mine = [np.empty(min(self._size, self.own), self._dtype) for _ in range(2)]

    def _packed(self, arrays: Sequence[Array], segments: Sequence[Segment], buffer: Array) -> Array:
        """Return the elements of some segments as one array: a view, or copied into `buffer`."""
        views = [arrays[number][start:stop] for number, start, stop in segments]
        if len(views) == 1 and views[0].dtype == self._dtype and views[0].flags.c_contiguous:
            return views[0]
        buffer = buffer[: sum(map(len, views))]
        if views:
            np.concatenate(views, out=buffer, casting="unsafe")
        return buffer

    def _without_own(self, counts: Sequence[int]) -> list[int]:
        return [0 if rank == self._rank else count for rank, count in enumerate(counts)]

    def _pipeline(
        self, start: Callable[[int, int], Any], finish: Callable[[int, int], None]
    ) -> None:
        """Start each piece, in one of two slots, before the one before it is finished."""
        requests: list[Any] = [None, None]
        for piece in range(len(self._segments) + 1):
            if piece < len(self._segments):
                requests[piece % 2] = start(piece, piece % 2)
            if piece > 0:
                requests[(piece - 1) % 2].Wait()
                finish(piece - 1, (piece - 1) % 2)


class Reduction(Lane):
    """Sums gradients in the order of the ranks; each rank gets the sums of its part."""

    def __init__(self, comm: Any, parts: Sequence[Sequence[slice]], dtype: npt.DTypeLike) -> None:
        super().__init__(comm, parts, dtype)
        size = (comm.size - 1) * min(self._size, self.own)
        self._received = [np.empty(size, self._dtype) for _ in range(2)]

    def run(
        self, arrays: Sequence[Array] | None, weights: Sequence[float] | None, sums: Array
    ) -> None:
        """Fill `sums` with this rank's part of the sum over the ranks.

        Parameters
        ----------
        arrays : sequence of array, optional
            The gradients of this rank; None if its weight is 0.
        weights : sequence of float, optional
            The weight of each rank.
        sums : array of shape (own,)
        """
        mine: list[Array] = [sums[:0]] * 2

        def start(piece: int, slot: int) -> Any:
            counts, segments = self._counts[piece], self._segments[piece]
            own = counts[self._rank]
            send = self._others[slot]
            if arrays is not None:
                mine[slot] = self._packed(arrays, segments[self._rank], self._mine[slot])
                others = (part for rank, part in enumerate(segments) if rank != self._rank)
                send = self._packed(arrays, list(chain.from_iterable(others)), send)
            return self._comm.Ialltoallv(
                _message(send, self._without_own(counts)),
                _message(self._received[slot], self._without_own([own] * len(counts))),
            )

        def finish(piece: int, slot: int) -> None:
            own = self._counts[piece][self._rank]
            total = sums[piece * self._size :][:own]
            received = self._received[slot]
            parts: list[Array] = [
                received[place * own : (place + 1) * own] for place in range(self._comm.size - 1)
            ]
            parts.insert(self._rank, mine[slot])
            if weights is not None:
                parts = [
                    np.multiply(part, weight, dtype=sums.dtype, casting="unsafe")
                    for part, weight in zip(parts, weights, strict=True)
                    if weight != 0
                ]
            if len(parts) == 1:
                np.copyto(total, parts[0])
                return
            np.add(parts[0], parts[1], out=total, dtype=sums.dtype)
            for part in parts[2:]:
                np.add(total, part, out=total)

        with np.errstate(all="ignore"):  # NaN and inf follow IEEE
            self._pipeline(start, finish)


class Gathering(Lane):
    """Gives all ranks the parts of the others, as bytes."""

    def run(self, arrays: Sequence[Array]) -> None:
        """Write the parts of the other ranks into the arrays.

        Parameters
        ----------
        arrays : sequence of array of uint8
        """

        def start(piece: int, slot: int) -> Any:
            counts = self._counts[piece]
            send = self._packed(arrays, self._segments[piece][self._rank], self._mine[slot])
            everywhere = [len(send)] * len(counts)
            # All to all, because a gathering would also copy the own part.
            return self._comm.Ialltoallv(
                [send, (self._without_own(everywhere), [0] * len(counts)), "B"],
                _message(self._others[slot], self._without_own(counts)),
            )

        def finish(piece: int, slot: int) -> None:
            place = 0
            for rank, segments in enumerate(self._segments[piece]):
                if rank == self._rank:
                    continue
                for number, start, stop in segments:
                    arrays[number][start:stop] = self._others[slot][place:][: stop - start]
                    place += stop - start

        self._pipeline(start, finish)


def _message(buffer: Array, counts: Sequence[int]) -> list[Any]:
    """Return a buffer in the form of mpi4py, in bytes: MPI has no type of 16 bits."""
    return [buffer.view(np.uint8), [count * buffer.itemsize for count in counts], "B"]
