"""The 16-bit types by name."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether this is bfloat16, of whatever package."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def bfloat16() -> np.dtype[Any]:
    """Return the dtype bfloat16 of ml_dtypes."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ModuleNotFoundError(
            "arrays of bfloat16 need the package ml_dtypes: pip install ml_dtypes"
        ) from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
