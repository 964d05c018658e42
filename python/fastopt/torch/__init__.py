"""The optimizers of fastopt for torch: classes of `torch.optim`, and functions over lists.

The arithmetic is that of the NumPy optimizers, on the memory of the tensors. `fastopt` itself never
imports torch; this module does.
"""

from __future__ import annotations

from fastopt.torch import functional
from fastopt.torch.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "functional"]
