"""The sweep that chose the numbers in ``cpp/runtime/tuning.hpp``: ``python bench/sweep.py``.

Everything is AdamW on float32, in microseconds per step: medians over rounds in which all settings
take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter, sleep
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import fastopt as fo
from fastopt import _core
from fastopt.benchmark import OPTIMIZERS

K = 1 << 10
CHUNKS = [2 * K, 4 * K, 8 * K, 16 * K, 32 * K, 64 * K]
SIZES = [4 * K, 8 * K, 16 * K, 24 * K, 32 * K, 48 * K, 64 * K, 128 * K, 256 * K]
SPINS = [0, 10, 20, 50, 100, 200, 500]  # us
Gap = Callable[[], object]


def optimizer_step(
    shapes: Sequence[tuple[int, ...]],
    max_norm: float | None = None,
    order: Literal["C", "F"] = "C",
) -> Gap:
    """Return a step over new arrays; their plan is made with the settings of now."""
    params = [np.ones(shape, np.float32) for shape in shapes]
    grads = [np.full(shape, 0.1, np.float32, order=order) for shape in shapes]
    optimizer = fo.AdamW(params)
    optimizer.step(grads, max_norm=max_norm)
    return lambda: optimizer.step(grads, max_norm=max_norm)


def time_step(step: Gap, gap: Gap | None, calls: int) -> float:
    """Return the microseconds of a step; `gap` runs before each, untimed."""
    seconds = []
    for _ in range(3):
        step()
    for _ in range(calls):
        if gap is not None:
            gap()
        begin = perf_counter()
        step()
        seconds.append(perf_counter() - begin)
    return 1e6 * median(seconds)


def busy(microseconds: float) -> Gap:
    """Return a call that keeps the calling thread busy, as Python code between steps does."""

    def wait() -> None:
        end = perf_counter() + 1e-6 * microseconds
        while perf_counter() < end:
            pass

    return wait


def matmul(side: int) -> Gap:
    a, b, out = (np.ones((side, side), np.float32) for _ in range(3))
    return lambda: np.matmul(a, b, out=out)


def show(title: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, justify="right")
    for label, values in rows:
        best = min(values)
        cells = (f"[bold]{v:,.1f}[/]" if v < 1.03 * best else f"{v:,.1f}" for v in values)
        table.add_row(label, *cells)
    Console(width=110).print(table, "bold: within 3 % of the best of the row\n")


def sweep_chunks(rounds: int) -> None:
    before = _core.tuning.chunk_size
    rows = []
    (mlp,) = (case.shapes for case in OPTIMIZERS.cases if "MLP" in case.label)
    cases: list[tuple[str, Any, float | None]] = [
        ("64 K", [(64 * K,)], None),
        ("1 M", [(K * K,)], None),
        ("1 M, clipped", [(K * K,)], 1.0),
        ("16 M", [(16 * K * K,)], None),
        ("MLP", mlp, None),
        ("1000 of 64", [(64,)] * 1000, None),
        ("4 M and 1000 of 64", [(4 * K * K,), *[(64,)] * 1000], None),
        ("4 M, transposed", [(2 * K, 2 * K)], None),
    ]
    for label, shapes, max_norm in cases:
        order: Literal["C", "F"] = "F" if "transposed" in label else "C"
        steps = []
        for chunk in CHUNKS:
            _core.tuning.chunk_size = chunk
            steps.append(optimizer_step(shapes, max_norm, order))
        times: list[list[float]] = [[] for _ in CHUNKS]
        calls = 3 if "16 M" in label else 20
        for _ in range(rounds):
            for i, step in enumerate(steps):
                _core.tuning.chunk_size = CHUNKS[i]
                times[i].append(time_step(step, None, calls))
        rows.append((label, [median(t) for t in times]))
    _core.tuning.chunk_size = before
    show("chunk size in elements", ["parameters", *map(str, CHUNKS)], rows)


def sweep_serial(rounds: int) -> None:
    before = _core.tuning.serial_size, _core.tuning.wake_size
    gaps = {"back to back": None, "20 us between": busy(20), "2 ms of sleep": lambda: sleep(2e-3)}
    rows = []
    for label, gap in gaps.items():
        times: dict[tuple[int, bool], list[float]] = {}
        for size in SIZES:
            step = optimizer_step([(size,)])
            for _ in range(rounds):
                for serial in (True, False):
                    _core.tuning.serial_size = 1 << 40 if serial else 0
                    _core.tuning.wake_size = 0
                    times.setdefault((size, serial), []).append(time_step(step, gap, 40))
        for serial in (True, False):
            threads = "one thread" if serial else "all threads"
            rows.append((f"{label}, {threads}", [median(times[size, serial]) for size in SIZES]))
    _core.tuning.serial_size, _core.tuning.wake_size = before
    show("serial or not, by size", ["", *(f"{s // K} K" for s in SIZES)], rows)


def sweep_turn(rounds: int) -> None:
    before = _core.tuning.turn_size
    sizes = [128 * K, 512 * K, K * K, 2 * K * K, 4 * K * K, 8 * K * K, 16 * K * K, 64 * K * K]
    times: dict[tuple[int, bool], list[float]] = {}
    for size in sizes:
        step = optimizer_step([(size,)])
        for _ in range(rounds):
            for turn in (False, True):
                _core.tuning.turn_size = 1 << 40 if turn else 0
                calls = max(4, 20 * K * K // size)
                times.setdefault((size, turn), []).append(time_step(step, None, calls))
    _core.tuning.turn_size = before
    rows = [
        (label, [median(times[size, turn]) for size in sizes])
        for label, turn in (("always forwards", False), ("every other time backwards", True))
    ]
    show("direction, by size", ["", *(f"{s // K:,} K" for s in sizes)], rows)


def sweep_spin(rounds: int) -> None:
    before = _core.tuning.spin_ns
    gaps: dict[str, Gap | None] = {
        "back to back": None,
        **{f"{gap} us of Python between": busy(gap) for gap in (10, 30, 80, 150, 400)},
        "matmul of 64 between": matmul(64),
        "matmul of 128 between": matmul(128),
        "matmul of 512 between": matmul(512),
    }
    rows = []
    step = optimizer_step([(128 * K,)])
    for label, gap in gaps.items():
        times: list[list[float]] = [[] for _ in SPINS]
        for _ in range(rounds):
            for i, spin in enumerate(SPINS):
                _core.tuning.spin_ns = 1000 * spin
                step()
                times[i].append(time_step(step, gap, 40))
        rows.append((label, [median(t) for t in times]))
    _core.tuning.spin_ns = before
    show("128 K parameters, by spin time in us", ["", *map(str, SPINS)], rows)


def main(rounds: int = 15, only: str = "") -> None:
    print(fo.show_config())
    for sweep in (sweep_chunks, sweep_serial, sweep_turn, sweep_spin):
        if only in sweep.__name__:
            sweep(rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=["chunks", "serial", "turn", "spin"], default="")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.only)
