"""The errors of the losses of fastopt and of its peers.

The inputs are float32 arrays. The true value is `fastopt.reference` in float64, whose formulas
subtract nothing from 1; tests compare it with 100 digits. Each `LossCase` in `CASES` is a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmark.loss_cases import (
    KINDS,
    Arrays,
    LossCase,
    Shape,
    logits_and_classes,
    logits_and_probabilities,
    predictions,
)
from fastopt.benchmark.loss_peers import PEERS
from fastopt.benchmark.report import facts_of_run, markdown

ULP = 2.0**-23
TITLE = (
    "Errors against float64. Loss: relative, the largest (the mean) of all rows; gradient: the "
    "largest, in 2^-23 of the largest entry of its row"
)
NAMES = [peer for peer in PEERS if peer not in ("reference", "torch chunked")]


@dataclass(frozen=True)
class Errors:
    """The errors of one peer."""

    loss_max: float  # relative
    loss_mean: float
    grad_max: float  # in 2^-23 of the largest true entry of its row


@dataclass(frozen=True)
class Accuracy:
    """One case, and the errors of each peer."""

    case: LossCase
    errors: dict[str, Errors]


def sure(shape: Shape) -> Arrays:
    """Return logits of a sure model: the one of the target is 5 to 30 above all others."""
    logits, targets = logits_and_classes(shape)
    rows = np.arange(shape[0])
    gap = np.random.default_rng(1).uniform(5, 30, shape[0])
    logits[rows, targets] = logits.max(axis=1) + gap
    return logits, targets


def offset(shape: Shape) -> Arrays:
    """Return logits far from 0; the loss depends only on their differences."""
    logits, targets = logits_and_classes(shape)
    return logits + np.float32(1e4), targets


def flat(shape: Shape) -> Arrays:
    """Return logits in [-1, 1]: the sum of the exponentials has the most terms."""
    logits = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return logits, logits_and_classes(shape)[1]


def sure_logits(shape: Shape) -> Arrays:
    """Return logits between 5 and 30, negative where the target is 0 and not 1."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, shape).astype(np.float32)
    return (2 * targets - 1) * rng.uniform(5, 30, shape).astype(np.float32), targets


def soft_targets(shape: Shape) -> Arrays:
    """Return logits, and for each row the probabilities of another model."""
    logits, _ = logits_and_classes(shape)
    e = np.exp(3 * np.random.default_rng(2).standard_normal(shape))
    return logits, (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


def _cross_entropy(
    words: str, shape: Shape, draw: Callable[[Shape], Arrays], **options: Any
) -> LossCase:
    options["reduction"] = "none"
    label = f"cross-entropy {shape[0]} x {shape[1]}, {words}"
    return LossCase("CrossEntropyLoss", shape, options=options, label=label, draw=draw)


CASES = [
    _cross_entropy("3 * normal", (128, 10), logits_and_classes),
    _cross_entropy("3 * normal", (8192, 1000), logits_and_classes),
    _cross_entropy("3 * normal", (256, 32000), logits_and_classes),
    _cross_entropy("in [-1, 1]", (256, 32000), flat),
    _cross_entropy("sure model", (8192, 10), sure),
    _cross_entropy("sure model", (8192, 1000), sure),
    _cross_entropy("sure model", (256, 32000), sure),
    _cross_entropy("3 * normal + 10000", (8192, 1000), offset),
    _cross_entropy("smoothing 0.1", (8192, 1000), logits_and_classes, label_smoothing=0.1),
    _cross_entropy("soft targets", (8192, 1000), soft_targets),
]


# With an axis of 1 each prediction is a row: the error of its gradient is relative to itself. With
# "3 * normal" the gradient is a difference of two probabilities and may be tiny: its rows are long.
CASES += [
    LossCase(
        loss,
        shape,
        options={"reduction": "none"},
        label=f"{KINDS[loss].name} {shape[0] * shape[1] >> 20} M, {words}",
        draw=draw,
    )
    for loss, shape, words, draw in (
        ("MSELoss", (1 << 20, 1), "normal", predictions),
        ("SmoothL1Loss", (1 << 20, 1), "normal", predictions),
        ("HuberLoss", (1 << 20, 1), "normal", predictions),
        ("BCEWithLogitsLoss", (1 << 10, 1 << 10), "3 * normal", logits_and_probabilities),
        ("BCEWithLogitsLoss", (1 << 20, 1), "sure model", sure_logits),
    )
]


def measure_errors(case: LossCase, peers: Sequence[str] = NAMES) -> Accuracy:
    """Compare the losses and the gradients of each peer with the true values."""
    truth = getattr(fo.reference, case.loss)(**case.options)
    true_loss, true_grad = truth.value_and_grad(*case.arrays)
    largest = abs(true_grad).max(axis=-1, keepdims=True)
    if np.any(true_loss <= 0) or np.any(largest <= 0):
        raise ValueError(f"relative errors need a loss and a gradient in every row: {case}")
    errors = {}
    for peer in peers:
        runner = PEERS[peer](case)
        if runner is not None:
            loss, grad = runner.read(runner.run())
            off = abs(loss - true_loss) / true_loss
            worst = (abs(grad - true_grad) / largest).max() / ULP
            errors[peer] = Errors(float(off.max()), float(off.mean()), float(worst))
    return Accuracy(case, errors)


def table_head() -> list[str]:
    """Return the heads of the columns."""
    return ["case", *(f"{what}: {peer}" for what in ("loss", "gradient") for peer in NAMES)]


def table_rows(results: Sequence[Accuracy]) -> list[list[str]]:
    """Return a row for each case; a cell is empty if the peer does not have this loss."""
    rows = []
    for result in results:
        known = [result.errors.get(peer) for peer in NAMES]
        cells = [f"{e.loss_max:.1e} ({e.loss_mean:.1e})" if e else "" for e in known]
        cells += [f"{e.grad_max:.3g}" if e else "" for e in known]
        rows.append([str(result.case), *cells])
    return rows


def write_errors(folder: Path, results: Sequence[Accuracy]) -> list[Path]:
    """Write ``accuracy.json`` and ``accuracy.md`` into `folder`; return the paths."""
    rows = [
        {"case": str(r.case), "errors": {peer: vars(e) for peer, e in r.errors.items()}}
        for r in results
    ]
    data, table = folder / "accuracy.json", folder / "accuracy.md"
    data.write_text(json.dumps(facts_of_run() | {"results": rows}, indent=2) + "\n")
    table.write_text(markdown(table_head(), table_rows(results)))
    return [data, table]
