"""The losses, with the names and options of ``torch.nn``."""

from __future__ import annotations

from fastopt.losses.cross_entropy import CrossEntropyLoss

__all__ = ["CrossEntropyLoss"]
