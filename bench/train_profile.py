"""Where the time of ``fastopt train`` goes, and torch beside it: ``python bench/train_profile.py``.

The default run on digits: MLP 64-128-64-10 with dropout, AdamW, batches of 64. The calls of NumPy's
matmul, of fastopt and of the gather are timed one by one, less what a timer costs; what remains of
an epoch that is not timed so is Python and NumPy's other calls. Then epochs, evaluation included,
take turns with those of the same model in torch, if that is installed; times are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

import fastopt as fo
from fastopt import train as ft
from fastopt.train import model as model_module

EPOCHS = 4  # in a turn


class Clock:
    """Adds up the time of the calls that are wrapped, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._cost = 0.0
        rounds = 20_000
        nothing = self.wrap("nothing", lambda: None)
        for _ in range(rounds):
            nothing()
        self._cost = self.seconds.pop("nothing") / rounds  # what a timer adds to what it measures

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.seconds[name] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name] += perf_counter() - begin - self._cost
            return result

        return timed


class Wrapped:
    """An array, a module or an object of which some functions are timed."""

    def __init__(self, inner: Any, **timed: Callable[..., Any]) -> None:
        self._inner = inner
        vars(self).update(timed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __getitem__(self, rows: Any) -> Any:
        return self._inner[rows]

    def __len__(self) -> int:
        return len(self._inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["call"](*args, **kwargs)


def shares(config: ft.RunConfig, rounds: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of an epoch, and of those, the ones that each part takes."""
    plain, watched = config.build(), config.build()
    clock = Clock()
    matmul = clock.wrap("NumPy's matmul", np.matmul)
    activations = {
        name: clock.wrap("fastopt: activations", getattr(fo.functional, name))
        for name in ("relu", "relu_backward", "dropout")
    }
    loss = watched.objective.loss
    watched.objective.loss = Wrapped(
        loss,
        value_and_grad=clock.wrap("fastopt: loss", loss.value_and_grad),
        call=clock.wrap("fastopt: loss", loss),
    )
    watched.optimizer.step = clock.wrap(  # type: ignore[method-assign]
        "fastopt: optimizer step", watched.optimizer.step
    )
    x, y = watched.data.x_train, watched.data.y_train
    gathered: Any = [Wrapped(a, take=clock.wrap("gather of the batch", a.take)) for a in (x, y)]
    watched.data = replace(watched.data, x_train=gathered[0], y_train=gathered[1])
    namespace: Any = model_module
    times: list[float] = []
    parts: list[dict[str, float]] = []
    for _ in range(rounds):
        times.append(seconds_of(plain))
        clock.seconds = dict.fromkeys(clock.seconds, 0.0)
        try:
            namespace.np = Wrapped(np, matmul=matmul)
            namespace.functional = Wrapped(fo.functional, **activations)
            seconds_of(watched)
        finally:
            namespace.np, namespace.functional = np, fo.functional
        parts.append({name: value / EPOCHS for name, value in clock.seconds.items()})
    for name, param in plain.model.params.items():  # they did the same
        np.testing.assert_array_equal(param, watched.model.params[name])
    epoch = median(times)
    return epoch, {name: median(p[name] for p in parts) for name in parts[0]}


def seconds_of(trainer: ft.Trainer) -> float:
    """Train for some epochs and return the seconds of one."""
    before = trainer.history.seconds.total
    trainer.fit(len(trainer.history.epochs) + EPOCHS)
    return (trainer.history.seconds.total - before) / EPOCHS


def torch_trainer(config: ft.RunConfig, data: ft.Data) -> Callable[[], float]:
    """Return a function that trains for some epochs in torch and returns the loss of the last."""
    import torch
    from torch import nn

    torch.manual_seed(config.seed)
    torch.set_num_threads(fo.get_num_threads())
    layers: list[nn.Module] = []
    width = data.features
    for n in config.hidden:
        layers += [nn.Linear(width, n), nn.ReLU(), nn.Dropout(config.dropout)]
        width = n
    net = nn.Sequential(*layers, nn.Linear(width, data.outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2, fused=True)
    criterion = nn.CrossEntropyLoss()
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    x_val, y_val = torch.from_numpy(data.x_val), torch.from_numpy(data.y_val)

    def train() -> float:
        total = 0.0
        for _ in range(EPOCHS):
            net.train()
            order, total, right = torch.randperm(len(y)), 0.0, 0
            for start in range(0, len(y), config.batch_size):
                rows = order[start : start + config.batch_size]
                targets = y[rows]
                outputs = net(x[rows])
                loss = criterion(outputs, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
                right += int((outputs.argmax(1) == targets).sum())
            net.eval()
            with torch.no_grad():
                outputs = net(x_val)
                criterion(outputs, y_val).item()
                int((outputs.argmax(1) == y_val).sum())
        return total / len(y)

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    fo.set_num_threads(options.threads)
    config = ft.RunConfig(dropout=options.dropout)
    epoch, parts = shares(config, options.rounds)
    print(f"one epoch of digits, dropout {options.dropout:g}: {epoch * 1e3:.2f} ms")
    parts["the rest"] = epoch - sum(parts.values())
    for name, seconds in parts.items():
        print(f"  {name:<28} {seconds * 1e3:6.2f} ms  {seconds / epoch:6.1%}")
    try:
        import torch
    except ModuleNotFoundError:
        print("torch is not installed: no comparison")
        return
    trainer = config.build()
    peer = torch_trainer(config, trainer.data)
    ours, theirs, loss = [], [], 0.0
    for _ in range(options.rounds):
        ours.append(seconds_of(trainer))
        sleep(0.05)  # torch's threads go to sleep
        begin = perf_counter()
        loss = peer()
        theirs.append((perf_counter() - begin) / EPOCHS)
        sleep(0.05)
    last = trainer.history.epochs[-1].train_loss
    print(
        f"fastopt {median(ours) * 1e3:.2f} ms, torch {torch.__version__} "
        f"{median(theirs) * 1e3:.2f} ms an epoch, {options.threads} threads each: ratio "
        f"{median(t / o for t, o in zip(theirs, ours, strict=True)):.2f} "
        f"(training loss {last:.1e} and {loss:.1e})"
    )


if __name__ == "__main__":
    main()
