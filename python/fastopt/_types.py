"""The types that public signatures share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
Group: TypeAlias = dict[str, Any]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
BatchReduction: TypeAlias = Literal["mean", "sum", "none", "batchmean"]

Arrays: TypeAlias = (
    Mapping[str, FloatArray] | Iterable[FloatArray] | Iterable[tuple[str, FloatArray]]
)
Params: TypeAlias = Arrays | Iterable[Mapping[str, Any]]
Grads: TypeAlias = Mapping[str, FloatArray | None] | Sequence[Any]
