"""What a run leaves behind: metrics.csv, run.json and loss.png."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt.train.callbacks import write_epochs
from fastopt.train.history import History
from fastopt.train.loop import Trainer
from fastopt.train.objective import Objective
from fastopt.train.palette import BLUE, GREEN, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def write_report(folder: Path, trainer: Trainer, facts: Mapping[str, Any]) -> list[Path]:
    """Write the run's metrics, facts and picture into `folder`; return the paths.

    Parameters
    ----------
    folder : path
        Must exist.
    trainer : Trainer
        With at least one epoch in its history.
    facts : mapping
        What ``run.json`` holds beside the results: options, versions, ...
    """
    history = trainer.history
    metrics, run, picture = (folder / n for n in ("metrics.csv", "run.json", "loss.png"))
    with metrics.open("w", newline="", encoding="utf-8") as file:
        write_epochs(file, history.epochs)
    results = {
        "final": asdict(history.epochs[-1]),
        "best": asdict(history.best),
        "seconds": asdict(history.seconds),
        "stop_reason": history.stop_reason,
    }
    run.write_text(to_json(dict(facts) | {"results": results}), encoding="utf-8")
    title = str(facts.get("title", ""))
    plot_history(history, trainer.objective, title).savefig(picture, dpi=150)
    return [metrics, run, picture]


def plot_history(history: History, objective: Objective, title: str) -> Figure:
    """Return a picture of the losses, on a log axis, and of the held-out score."""
    from matplotlib.figure import Figure  # takes half a second: not for --help
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [e.epoch for e in history.epochs]
    train_loss = [e.train_loss for e in history.epochs]
    val_loss = [e.val_loss for e in history.epochs]
    marker = "o" if len(epochs) < 3 else None  # a line of one point cannot be seen
    losses.plot(epochs, train_loss, "-", marker=marker, color=BLUE, label="training")
    losses.plot(epochs, val_loss, "--", marker=marker, color=ORANGE, label="held out")
    losses.set(xlabel="epoch", ylabel=objective.loss_label, title="Loss")
    if all(0 < value < math.inf for value in train_loss + val_loss):
        losses.set_yscale("log")
    else:
        text = "the loss is not finite:\nthe run diverged"
        losses.text(0.5, 0.5, text, ha="center", va="center", transform=losses.transAxes)
    losses.legend()
    best = history.best
    scores.plot(epochs, [e.val_score for e in history.epochs], "-", color=GREEN)
    label = f"best: {objective.format_score(best.val_score)} (epoch {best.epoch})"
    scores.plot(best.epoch, best.val_score, "o", color=GREEN, label=label)
    name = objective.score_name[0].upper() + objective.score_name[1:]
    scores.set(xlabel="epoch", ylabel=objective.score_label, title=f"{name} on held-out data")
    scores.set_ylim(top=min(1.0, scores.get_ylim()[1]))
    if objective.task != "regression":
        scores.yaxis.set_major_formatter(PercentFormatter(1.0))
    scores.legend(loc="lower right")
    for axes in (losses, scores):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.grid(alpha=0.3, which="both")
    if title:
        figure.suptitle(title)
    return figure


def to_json(facts: Mapping[str, Any]) -> str:
    """Return `facts` as JSON with a line's end; NaN and infinity, which it lacks, become null."""
    return json.dumps(_strict(facts), indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """Return `value` with NaN and infinity as None: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
