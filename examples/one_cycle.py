"""A torch script with parameter groups and OneCycleLR, ported line by line.

A comment shows the line of torch where it differs. There is no autograd here: the function
`backward` takes the place of ``loss.backward()``.

Needs NumPy alone. Run it with: python examples/one_cycle.py
"""

from __future__ import annotations

import numpy as np

import fastopt as fo
from fastopt import functional as F

rng = np.random.default_rng(0)
x = rng.standard_normal((2048, 4), dtype=np.float32)
y = (np.sin(x[:, 0] * 2) + x[:, 1] > 0).astype(np.int64)
x_val, y_val = x[1536:], y[1536:]
x, y = x[:1536], y[:1536]

# model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
params = {
    "0.weight": rng.uniform(-0.5, 0.5, (64, 4)).astype(np.float32),
    "0.bias": np.zeros(64, np.float32),
    "2.weight": rng.uniform(-0.125, 0.125, (2, 64)).astype(np.float32),
    "2.bias": np.zeros(2, np.float32),
}


def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden values and the logits."""
    h = F.relu(x @ params["0.weight"].T + params["0.bias"])
    return h, h @ params["2.weight"].T + params["2.bias"]


def backward(x: np.ndarray, h: np.ndarray, dlogits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gradient of each parameter."""
    dz = F.relu_backward(dlogits @ params["2.weight"], h)
    return {
        "0.weight": dz.T @ x,
        "0.bias": dz.sum(axis=0),
        "2.weight": dlogits.T @ h,
        "2.bias": dlogits.sum(axis=0),
    }


BATCH, EPOCHS = 64, 12
criterion = fo.CrossEntropyLoss(label_smoothing=0.05)  # nn.CrossEntropyLoss(label_smoothing=0.05)
groups = [  # the same list of dictionaries; here "params" maps names to arrays
    {"params": {n: p for n, p in params.items() if n.endswith("weight")}, "weight_decay": 0.01},
    {"params": {n: p for n, p in params.items() if n.endswith("bias")}, "weight_decay": 0.0},
]
optimizer = fo.AdamW(groups, lr=0.001)  # torch.optim.AdamW(groups, lr=0.001)
scheduler = fo.OneCycleLR(  # torch.optim.lr_scheduler.OneCycleLR
    optimizer, max_lr=[0.02, 0.01], epochs=EPOCHS, steps_per_epoch=len(x) // BATCH
)

for epoch in range(1, EPOCHS + 1):
    order = rng.permutation(len(x))
    for start in range(0, len(x), BATCH):
        rows = order[start : start + BATCH]
        h, logits = forward(x[rows])  # logits = model(x)
        loss, dlogits = criterion.value_and_grad(logits, y[rows])  # loss = criterion(logits, y)
        grads = backward(x[rows], h, dlogits)  # optimizer.zero_grad(); loss.backward()
        optimizer.step(grads, max_norm=1.0)  # clip_grad_norm_(..., 1.0); optimizer.step()
        scheduler.step()
    if epoch % 3 == 0:
        rates = [f"{group['lr']:.5f}" for group in optimizer.param_groups]
        print(f"epoch {epoch:2d}  rates {' '.join(rates)}  loss {loss:.3f}")

right = (forward(x_val)[1].argmax(axis=1) == y_val).mean()
print(f"{right:.1%} of the other 512 points are right")
assert right > 0.93
