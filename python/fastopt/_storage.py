"""The type bfloat16, which NumPy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np


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
