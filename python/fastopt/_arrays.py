"""Checked copies into many arrays at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastopt import _core
from fastopt._types import FloatArray


def writer_into(arrays: Mapping[str, FloatArray]) -> Callable[[Sequence[Any]], None]:
    """Return a function that copies other arrays into these, bit by bit, in one call.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not what an optimizer can update, here; if what is to be copied does not
        fit, there. Nothing has been written then.
    """
    group = {"params": tuple(arrays.values())}
    core = _core.Optimizer("copy")
    core.add_group(list(arrays), group["params"], group)

    def write(values: Sequence[Any]) -> None:
        core.step([group], values, None, 1.0, False, False)

    return write
