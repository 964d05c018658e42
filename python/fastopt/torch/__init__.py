"""The optimizers of fastopt as classes of `torch.optim`, and its losses for torch's autograd.

The arithmetic is that of the optimizers and losses for NumPy, on the memory of the tensors.
`fastopt` itself never imports torch; this module does.
"""

from __future__ import annotations

import torch

if torch.optim.AdamW.__base__ is torch.optim.Optimizer:  # since 2.7 it is Adam
    raise ImportError(f"fastopt.torch needs torch 2.7 or newer, not {torch.__version__}")

from fastopt.torch import functional, losses
from fastopt.torch.losses import *  # noqa: F403
from fastopt.torch.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "functional"]
__all__ += losses.__all__
