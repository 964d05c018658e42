"""The losses of fastopt for torch's autograd."""

from __future__ import annotations

from fastopt.torch import losses
from fastopt.torch.losses import *  # noqa: F403

__all__: list[str] = []
__all__ += losses.__all__
