"""What ``fastopt compare`` and ``fastopt sweep`` have in common: their options and their tables."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer
from rich.table import Table

from fastopt import train as ft
from fastopt._checks import counted
from fastopt.cli.common import (
    Number,
    Whole,
    choices,
    describe_data,
    parse_hidden,
    say,
    wide_table,
)
from fastopt.cli.lists import parse_axis
from fastopt.cli.train import DATA_HELP, LR_DEFAULTS
from fastopt.train import experiments as fx

DEFAULTS = ft.RunConfig()
EVERY_LOSS = tuple(dict.fromkeys(name for names in ft.LOSSES.values() for name in names))
CHOICES = {"optimizer": tuple(ft.OPTIMIZERS), "schedule": ft.SCHEDULES, "loss": EVERY_LOSS}


def _axis(help_text: str, default: str, metavar: str = "LIST") -> Any:
    return typer.Option(metavar=metavar, help=help_text, show_default=default)


Optimizers = Annotated[
    str | None, _axis(f"Of {', '.join(ft.OPTIMIZERS)}; or all.", DEFAULTS.optimizer)
]
AllOptimizers = Annotated[str | None, _axis(f"Of {', '.join(ft.OPTIMIZERS)}; or all.", "all")]
LearningRates = Annotated[str | None, _axis("Learning rates.", LR_DEFAULTS)]
BatchSizes = Annotated[str | None, _axis("Samples in a batch.", str(DEFAULTS.batch_size))]
WeightDecays = Annotated[str | None, _axis("Weight decays.", "0.01 adamw, 0 others")]
Dropouts = Annotated[str | None, _axis("Dropout probabilities.", str(DEFAULTS.dropout))]
Schedules = Annotated[str | None, _axis(f"Of {', '.join(ft.SCHEDULES)}.", DEFAULTS.schedule)]
Losses = Annotated[str | None, _axis(f"Of {', '.join(EVERY_LOSS)}.", "that of the task")]

DataName = Annotated[str, typer.Option(help=DATA_HELP)]
TaskName = Annotated[
    str | None,
    choices("What to learn", ft.TASKS, show_default="that of the data"),
]
Epochs = Annotated[int, Whole(help="Passes over the training data.")]
Seed = Annotated[int, Whole(help="Of split, weights, order, dropout and draws.")]
Hidden = Annotated[str, typer.Option(help="Widths of the hidden layers, or none.")]
MaxNorm = Annotated[
    float | None, Number(help="Clip gradients to this norm.", show_default="no clipping")
]


def parse_axes(**texts: str | None) -> dict[str, list[Any] | fx.Range]:
    """Return the values of each axis that was given."""
    return {
        name: parse_axis(name, text, CHOICES) for name, text in texts.items() if text is not None
    }


def make_space(
    axes: dict[str, list[Any] | fx.Range],
    *,
    data: str,
    task: str | None,
    epochs: int,
    hidden: str,
    max_norm: float | None,
    seed: int,
    trials: int | None = None,
) -> fx.Space:
    """Return the space of the options."""
    base = ft.RunConfig(
        data=data,
        task=cast("ft.Task | None", task),
        epochs=epochs,
        hidden=parse_hidden(hidden),
        max_norm=max_norm,
        seed=seed,
    )
    return fx.Space(base, axes, trials)


def check(configs: list[ft.RunConfig], dataset: ft.Data) -> None:
    """Raise if a configuration cannot be run on the data."""
    for config in configs:
        config.check(dataset)
    configs[0].build(dataset)  # whether there is memory for the model


def describe(dataset: ft.Data, base: ft.RunConfig) -> None:
    """Say what all runs share."""
    describe_data(dataset)
    hidden = "-".join(map(str, base.hidden)) or "none"
    say(f"hidden     {hidden}; {counted(base.epochs, 'epoch')}, seed {base.seed}")


def result_table(
    title: str, runs: list[fx.Run], names: list[str], objective: ft.Objective
) -> Table:
    """Return a table of runs."""
    score = objective.score_name
    head = ["", "training loss", "held-out loss", "its lowest", score, "best (epoch)", "time"]
    rows = []
    for run in runs:
        name = fx.label(run.config, names)
        final, best = run.final, run.history.best
        if run.diverged:
            rows.append([name, "diverged", f"in epoch {final.epoch}", "", "", "", ""])
            continue
        lowest = run.facts(objective.task)["lowest_val_loss"]
        rows.append(
            [
                name,
                f"{final.train_loss:.4f}",
                f"{final.val_loss:.4f}",
                f"{lowest:.4f}",
                objective.format_score(final.val_score),
                f"{objective.format_score(best.val_score)} ({best.epoch})",
                f"{run.history.seconds.total:.2f} s",
            ]
        )
    return wide_table(title, head, rows)


def epoch_rows(
    runs: list[fx.Run], names: list[str], objective: ft.Objective
) -> list[dict[str, Any]]:
    """Return a row for each epoch of each run."""
    rows = []
    for run in runs:
        full = run.config.resolved(objective.task)
        for e in run.history.epochs:
            rows.append(
                {name: getattr(full, name) for name in names}
                | {
                    "epoch": e.epoch,
                    "train_loss": e.train_loss,
                    "val_loss": e.val_loss,
                    "train_score": e.train_score,
                    "val_score": e.val_score,
                    "lr_at_end": e.lr,
                }
            )
    return rows


def folder_facts(objective: ft.Objective, dataset: ft.Data) -> dict[str, Any]:
    """Return what the JSON files of both commands hold beside the runs."""
    return {
        "data": str(dataset),
        "loss": objective.loss_label,
        "score": objective.score_name,
    }
