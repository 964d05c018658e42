"""What the ranks send each other: gradients to those who step them, and parameters to all.

The arrays are one-dimensional views. A part of an array is on one rank, and the parts of a rank
follow each other in a flat order. They are sent in pieces of a fixed size, so that the buffers stay
small, and while a piece is on its way the one before it is used and the next one is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

PIECE = 1 << 23  # bytes that a rank sends, and receives, at a time


class Segment(NamedTuple):
    """A part of array number `array`."""

    array: int
    start: int
    stop: int


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


def axes_of(param: Array) -> list[int]:
    """Return the axes with more than one element, from the slowest to the fastest in memory."""
    axes = [axis for axis in range(param.ndim) if param.shape[axis] != 1]
    return sorted(axes, key=lambda axis: -abs(param.strides[axis]))


def in_order_of(param: Array, array: Array) -> Array:
    """Return an array as one dimension, in the order in which `param` lies in memory.

    It is a view if `array` lies in memory in this order.
    """
    axes = axes_of(param)
    ones = [axis for axis in range(param.ndim) if axis not in axes]
    flat: Array = array.transpose([*ones, *axes]).reshape(-1)
    return flat


def flat_view(param: Array) -> Array:
    """Return a dense array as one dimension, in the order in which it lies in memory."""
    flat = in_order_of(param, param)
    if flat.size and not np.shares_memory(flat, param):
        raise ValueError("a parameter with a negative stride cannot be cut into parts; copy it")
    return flat


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
        self._sums: list[Array | None] = [None] * len(params)
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
        self._gathering = Gathering(comm, bytes_of)

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
    """Pieces of the arrays of one type, for all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    parts : sequence of sequence of slice
        For each rank its part of each array, whose elements are all sent.
    wire : dtype
        The type in which elements are sent.
    """

    def __init__(self, comm: Any, parts: Sequence[Sequence[slice]], wire: npt.DTypeLike) -> None:
        self._comm, self._rank, ranks = comm, comm.rank, comm.size
        self._wire = np.dtype(wire)
        self._size = max(1, PIECE // (ranks * self._wire.itemsize))
        self._pieces = [in_pieces(own, self._size) for own in parts]
        self._count = max(map(len, self._pieces))
        self.own = sum(part.stop - part.start for part in parts[self._rank])

    def _of(self, rank: int, piece: int) -> list[Segment]:
        pieces = self._pieces[rank]
        return pieces[piece] if piece < len(pieces) else []

    def _counts(self, piece: int) -> list[int]:
        """Return the number of elements of a piece that each rank has."""
        ranks = range(len(self._pieces))
        return [sum(s.stop - s.start for s in self._of(rank, piece)) for rank in ranks]

    def _pipeline(
        self, start: Callable[[int, int], Any], finish: Callable[[int, int], None]
    ) -> None:
        """Start each piece, in one of two slots, before the one before it is finished."""
        requests: list[Any] = [None, None]
        for piece in range(self._count + 1):
            if piece < self._count:
                requests[piece % 2] = start(piece, piece % 2)
            if piece > 0:
                requests[(piece - 1) % 2].Wait()
                finish(piece - 1, (piece - 1) % 2)


class Reduction(Lane):
    """Sums gradients in the order of the ranks; each rank gets the sums of its part."""

    def __init__(self, comm: Any, parts: Sequence[Sequence[slice]], wire: npt.DTypeLike) -> None:
        super().__init__(comm, parts, wire)
        ranks = len(parts)
        largest = max(sum(self._counts(piece)) for piece in range(self._count))
        own = min(self._size, self.own)
        self._send = [np.empty(largest, self._wire) for _ in range(2)]
        self._receive = [np.empty(ranks * own, self._wire) for _ in range(2)]

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
        counts_of = [self._counts(piece) for piece in range(self._count)]
        scaled = np.empty(min(self._size, self.own), sums.dtype) if weights is not None else sums

        def start(piece: int, slot: int) -> Any:
            counts = counts_of[piece]
            send, own = self._send[slot][: sum(counts)], counts[self._rank]
            if arrays is not None:
                views = [
                    arrays[number][first:last]
                    for rank in range(len(counts))
                    for number, first, last in self._of(rank, piece)
                ]
                if views:
                    np.concatenate(views, out=send, casting="unsafe")
            return self._comm.Ialltoallv(
                _message(send, counts), _message(self._receive[slot], [own] * len(counts))
            )

        def finish(piece: int, slot: int) -> None:
            own = counts_of[piece][self._rank]
            total = sums[piece * self._size :][:own]
            first = True
            for rank in range(len(self._pieces)):
                part: Array = self._receive[slot][rank * own : (rank + 1) * own]
                if weights is not None:
                    if weights[rank] == 0:
                        continue
                    part = np.multiply(part, weights[rank], out=scaled[:own], casting="unsafe")
                if first:
                    np.copyto(total, part)
                    first = False
                else:
                    np.add(total, part, out=total)

        with np.errstate(all="ignore"):  # NaN and inf follow IEEE
            self._pipeline(start, finish)


class Gathering(Lane):
    """Gives all ranks the parts of the others, as bytes."""

    def __init__(self, comm: Any, parts: Sequence[Sequence[slice]]) -> None:
        super().__init__(comm, parts, np.uint8)
        largest = max(sum(self._counts(piece)) for piece in range(self._count))
        self._send = [np.empty(min(self._size, self.own), np.uint8) for _ in range(2)]
        self._receive = [np.empty(largest, np.uint8) for _ in range(2)]

    def run(self, arrays: Sequence[Array]) -> None:
        """Write the parts of the other ranks into the arrays.

        Parameters
        ----------
        arrays : sequence of array of uint8
        """
        counts_of = [self._counts(piece) for piece in range(self._count)]

        def start(piece: int, slot: int) -> Any:
            counts = counts_of[piece]
            views = [arrays[number][a:b] for number, a, b in self._of(self._rank, piece)]
            send = self._send[slot][: counts[self._rank]]
            if len(views) == 1:
                send = views[0]  # needs no copy
            elif views:
                np.concatenate(views, out=send)
            return self._comm.Iallgatherv(
                _message(send, None), _message(self._receive[slot][: sum(counts)], counts)
            )

        def finish(piece: int, slot: int) -> None:
            place = 0
            for rank in range(len(self._pieces)):
                for number, first, last in self._of(rank, piece):
                    if rank != self._rank:
                        arrays[number][first:last] = self._receive[slot][place:][: last - first]
                    place += last - first

        self._pipeline(start, finish)


def _message(buffer: Array, counts: Sequence[int] | None) -> list[Any]:
    """Return a buffer in the form of mpi4py, in bytes: MPI has no type of 16 bits."""
    from mpi4py import MPI

    size = buffer.itemsize
    data = buffer.view(np.uint8)
    if counts is None:
        return [data, MPI.BYTE]
    bytes_of = [count * size for count in counts]
    return [data[: sum(bytes_of)], bytes_of, MPI.BYTE]
