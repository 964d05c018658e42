"""A small transformer in torch, trained twice: with torch's AdamW and loss, and with fastopt's.

It learns the characters of the lessons in ``docs``. Both runs begin with the same weights and see
the same batches. The program prints the times of a step and draws the losses into
torch_char_lm.png.

Needs torch and matplotlib. Run it with: python examples/torch_char_lm.py
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import fastopt.torch

CONTEXT, WIDTH, LAYERS, BATCH, STEPS = 64, 64, 2, 16, 300

lessons = sorted((Path(__file__).parent.parent / "docs" / "lessons").glob("*.md"))
text = "".join(path.read_text("utf-8") for path in lessons)
characters = sorted(set(text))
codes = torch.tensor([characters.index(c) for c in text])

torch.manual_seed(0)
block = nn.TransformerEncoderLayer(
    WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
)
first = nn.ModuleDict(
    {
        "token": nn.Embedding(len(characters), WIDTH),
        "place": nn.Embedding(CONTEXT, WIDTH),
        "blocks": nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False),
        "head": nn.Linear(WIDTH, len(characters)),
    }
)
mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)


def predict(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the logits (batch, characters, CONTEXT) of the character after each one of x."""
    h = model["token"](x) + model["place"].weight
    return model["head"](model["blocks"](h, mask=mask, is_causal=True)).transpose(1, 2)


def train(make_optimizer: Any, cross_entropy: Any) -> tuple[list[float], float]:
    """Return the loss of each step, and the median time of a step in milliseconds."""
    model = copy.deepcopy(first)
    optimizer = make_optimizer(model.parameters(), lr=1e-3, weight_decay=0.1)
    batches = torch.Generator().manual_seed(0)
    losses, times = [], []
    for _ in range(STEPS):
        starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1), generator=batches)
        rows = codes[starts + torch.arange(CONTEXT + 1)]
        began = time.perf_counter()
        loss = cross_entropy(predict(model, rows[:, :-1]), rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(1000 * (time.perf_counter() - began))
        losses.append(loss.item())
    return losses, float(np.median(times))
