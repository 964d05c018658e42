"""All ranks go on, or all raise."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def agree(
    comm: Any, error: BaseException | None, facts: Mapping[str, object], hint: str = ""
) -> None:
    """Raise on all ranks if one of them has an error, or if their facts differ.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    error : BaseException, optional
        What this rank has raised.
    facts : mapping of str to object
        What must be equal on all ranks. Values are equal if they have the same `repr`.
    hint : str
        The end of the message for the other ranks.

    Raises
    ------
    ValueError
        If the facts differ: with the first name that differs.
    RuntimeError
        With the error of another rank. The rank with the error raises this error itself.
    """
    text = ""
    try:
        text = repr(facts)
    except Exception as raised:
        error = error or raised
    digest = blake2b(text.encode(), digest_size=8).digest()
    own = np.array([error is not None, int.from_bytes(digest, "little", signed=True)], np.int64)
    everyone = np.empty((comm.size, 2), np.int64)
    comm.Allgather(own, everyone)
    if everyone[:, 0].any():
        texts = comm.allgather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank = next(rank for rank, text in enumerate(texts) if text is not None)
        raise RuntimeError(f"rank {rank} raised {texts[rank]}{hint}")
    if (everyone[:, 1] != everyone[0, 1]).any():
        values = comm.allgather({name: repr(value) for name, value in facts.items()})
        raise ValueError(_difference(values))


def _difference(facts: list[dict[str, str]]) -> str:
    """Describe the first fact of rank 0 in which another rank differs."""
    for name in dict.fromkeys(name for every in facts for name in every):
        values = [every.get(name, "absent") for every in facts]
        for rank, value in enumerate(values):
            if value != values[0]:
                return (
                    f"{name} differs between the ranks: {values[0]} on rank 0, {value} on rank "
                    f"{rank}; all ranks must do the same"
                )
    return "the ranks do the same in another order"


def on_first_rank(comm: Any, function: Callable[[], T]) -> T:
    """Call a function on rank 0, and return its result on all ranks; or all raise its error."""
    buffers: list[Any] = []
    sent: Any = None
    if comm.rank == 0:
        try:
            # The contents of arrays are not copied into the pickle.
            data = pickle.dumps(
                (True, function()), 5, buffer_callback=lambda buffer: buffers.append(buffer.raw())
            )
        except Exception as error:
            buffers.clear()
            data = pickle.dumps((False, error))
        sent = data, [buffer.nbytes for buffer in buffers]
    data, sizes = comm.bcast(sent)
    if comm.rank > 0:
        buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        comm.Bcast([buffer, "B"])
    done, result = pickle.loads(data, buffers=buffers)
    if not done:
        raise result
    return result  # type: ignore[no-any-return]
