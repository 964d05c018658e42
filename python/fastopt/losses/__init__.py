"""The losses, with the names and options of ``torch.nn``."""

from __future__ import annotations

from fastopt.losses.cross_entropy import CrossEntropyLoss, CrossEntropyStats
from fastopt.losses.linear_cross_entropy import LinearCrossEntropyLoss
from fastopt.losses.nll import NLLLoss
from fastopt.losses.pointwise import (
    BCELoss,
    BCEWithLogitsLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
)

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "CrossEntropyStats",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LinearCrossEntropyLoss",
    "MSELoss",
    "NLLLoss",
    "SmoothL1Loss",
]
