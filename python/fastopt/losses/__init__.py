"""The losses, with the names and options of ``torch.nn``."""

from __future__ import annotations

from fastopt.losses.cross_entropy import CrossEntropyLoss
from fastopt.losses.linear_cross_entropy import LinearCrossEntropyLoss
from fastopt.losses.nll import NLLLoss

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "NLLLoss"]
