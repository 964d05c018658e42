"""What a run leaves behind: metrics.csv, run.json and loss.png."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt.train.loop import Epoch, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by colour-blind readers too


def check_folder(folder: Path) -> None:
    """Create `folder` if need be and make sure that files can be written into it.

    Raises
    ------
    OSError
        If that is not so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".fastopt-probe"
    probe.touch()
    probe.unlink()


def write_report(folder: Path, history: History, facts: Mapping[str, Any]) -> list[Path]:
    """Write the run's metrics, facts and picture into `folder`; return the paths.

    Parameters
    ----------
    folder : path
        Must exist.
    history : History
    facts : mapping
        What ``run.json`` holds beside the results: options, versions, ...
    """
    metrics, run, picture = (folder / n for n in ("metrics.csv", "run.json", "loss.png"))
    with metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history.epochs)
    results = {
        "final": asdict(history.epochs[-1]),
        "best": asdict(history.best),
        "seconds": asdict(history.seconds),
    }
    run.write_text(json.dumps(_strict(dict(facts) | {"results": results}), indent=2) + "\n")
    plot_history(history, str(facts.get("title", ""))).savefig(picture, dpi=150)
    return [metrics, run, picture]


def plot_history(history: History, title: str) -> Figure:
    """Return a picture of the losses, on a log axis, and of the held-out accuracy."""
    from matplotlib.figure import Figure  # takes half a second: not for --help
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [e.epoch for e in history.epochs]
    train_loss = [e.train_loss for e in history.epochs]
    val_loss = [e.val_loss for e in history.epochs]
    marker = "o" if len(epochs) < 3 else None  # a line of one point cannot be seen
    losses.plot(epochs, train_loss, "-", marker=marker, color=BLUE, label="training")
    losses.plot(epochs, val_loss, "--", marker=marker, color=ORANGE, label="held out")
    losses.set(xlabel="epoch", ylabel="mean cross-entropy (nats)", title="Loss")
    if all(0 < value < math.inf for value in train_loss + val_loss):
        losses.set_yscale("log")
    else:
        text = "the loss is not finite:\nthe run diverged"
        losses.text(0.5, 0.5, text, ha="center", va="center", transform=losses.transAxes)
    losses.legend()
    best = history.best
    accuracy.plot(epochs, [e.val_accuracy for e in history.epochs], "-", color=GREEN)
    label = f"best: {best.val_accuracy:.2%} (epoch {best.epoch})"
    accuracy.plot(best.epoch, best.val_accuracy, "o", color=GREEN, label=label)
    accuracy.set(xlabel="epoch", ylabel="classified correctly", title="Accuracy on held-out data")
    accuracy.set_ylim(top=min(1.0, accuracy.get_ylim()[1]))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.legend(loc="lower right")
    for axes in (losses, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.grid(alpha=0.3, which="both")
    if title:
        figure.suptitle(title)
    return figure


def _strict(value: Any) -> Any:
    """Return `value` with NaN and infinity as None: JSON has neither."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
