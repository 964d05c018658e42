"""A small transformer in torch, trained twice: two lines make fastopt of torch's AdamW and loss.

It learns to continue the text of the lessons in ``docs``, character by character. Both runs begin
with the same weights and see the same batches. The program prints the times of a step and draws the
losses into torch_char_lm.png.

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

CONTEXT, WIDTH, LAYERS, BATCH, STEPS = 32, 64, 2, 16, 300

lessons = (Path(__file__).parent.parent / "docs" / "lessons").glob("*.md")
text = "".join(path.read_text("utf-8") for path in sorted(lessons))
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
    """Return logits (batch * CONTEXT, characters) of the characters that follow those of `x`."""
    h = model["token"](x) + model["place"].weight
    return model["head"](model["blocks"](h, mask=mask, is_causal=True)).flatten(0, 1)


def train(make_optimizer: Any, cross_entropy: Any) -> list[float]:
    """Return the loss of each step; print the last ones and the median times of a step."""
    model = copy.deepcopy(first)
    batches = torch.Generator().manual_seed(0)
    losses, times = [], []
    optimizer = make_optimizer(model.parameters(), lr=3e-3)  # the first line that differs
    for _ in range(STEPS):
        starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1), generator=batches)
        rows = codes[starts + torch.arange(CONTEXT + 1)]
        began = time.perf_counter()
        logits = predict(model, rows[:, :-1])
        loss = cross_entropy(logits, rows[:, 1:].flatten())  # the second
        optimizer.zero_grad()
        loss.backward()
        computed = time.perf_counter()
        optimizer.step()
        done = time.perf_counter()
        losses.append(loss.item())
        times.append([1000 * (done - began), 1000 * (done - computed)])
    step, update = np.median(times, axis=0)
    name = make_optimizer.__module__.partition(".")[0]
    print(f"{name:8s} loss {np.mean(losses[-20:]):.2f}", end="  ")
    print(f"a step takes {step:.1f} ms, of which AdamW {update:.2f} ms")
    return losses


theirs = train(torch.optim.AdamW, nn.functional.cross_entropy)
ours = train(fastopt.torch.AdamW, fastopt.torch.cross_entropy)
difference = np.abs(np.subtract(ours, theirs)).max()
print(f"the losses differ by at most {difference:.4f}")
assert difference < 0.1

plt.style.use("tableau-colorblind10")
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
steps = np.arange(20, STEPS + 1)
for losses, label, color, width in (theirs, "torch", "C1", 4), (ours, "fastopt.torch", "C0", 1.5):
    mean = np.convolve(losses, np.full(20, 1 / 20), "valid")
    ax.plot(steps, mean, color=color, linewidth=width, label=label)
ax.set(title="A character transformer", xlabel="step", ylabel="loss, mean of 20 steps", ylim=(0, 5))
ax.legend()
fig.savefig("torch_char_lm.png", dpi=100)
print("wrote torch_char_lm.png")
