"""``fastopt compare``: optimizers, or other choices, side by side on the same batches."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fastopt import train as ft
from fastopt.cli import axes as common
from fastopt.cli.common import (
    Folder,
    Threads,
    check_end,
    console,
    fail,
    one_line_errors,
    results_folder,
    say,
    use_threads,
    written,
)
from fastopt.train import experiments as fx
from fastopt.train.experiments.files import write_json, write_picture, write_table


def compare(
    optimizer: common.AllOptimizers = None,
    lr: common.LearningRates = None,
    batch_size: common.BatchSizes = None,
    weight_decay: common.WeightDecays = None,
    dropout: common.Dropouts = None,
    schedule: common.Schedules = None,
    loss: common.Losses = None,
    data: common.DataName = common.DEFAULTS.data,
    task: common.TaskName = None,
    epochs: common.Epochs = common.DEFAULTS.epochs,
    hidden: common.Hidden = "128,64",
    max_norm: common.MaxNorm = None,
    seed: common.Seed = 0,
    threads: Threads = None,
    output: Annotated[
        Path, Folder(help="Folder for compare.png, .csv and .json, and epochs.csv.")
    ] = Path("fastopt-compare"),
) -> None:
    """Train with each optimizer on the same data, weights and batches; compare the curves.

    Or compare another choice, by several values of one option that takes a LIST:

      fastopt compare --lr 0.001,0.01,0.1 --optimizer adam

    To vary two or more together, use fastopt sweep.
    """
    given = common.parse_axes(
        optimizer=optimizer,
        lr=lr,
        batch_size=batch_size,
        weight_decay=weight_decay,
        dropout=dropout,
        schedule=schedule,
        loss=loss,
    )
    several = []
    for name, values in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(values, fx.Range):
            fail(f"{option}: ranges are for fastopt sweep; give values such as 0.01,0.1")
        if len(values) > 1:
            several.append(option)
    if len(several) > 1:
        fail(f"{' and '.join(several)} have several values; to vary more than one: fastopt sweep")
    if not several and optimizer is None:
        given["optimizer"] = list(ft.OPTIMIZERS)
    with one_line_errors(output):
        space = common.make_space(
            given, data=data, task=task, epochs=epochs, hidden=hidden, max_norm=max_norm, seed=seed
        )
        configs = space.configs()
        dataset = space.base.load()
        common.check(configs, dataset)
        use_threads(threads)
    varied = several[0][2:].replace("-", "_") if several else "optimizer"
    names = ["optimizer", "lr"] if varied == "optimizer" else [varied]
    objective = ft.Objective(dataset.task, configs[0].loss)
    with results_folder(output):
        common.describe(dataset, space.base)
        runs: list[fx.Run] = []
        try:
            train_all(configs, dataset, names, objective, runs)
        finally:  # what has ended is kept, also when there is no memory for the next run
            if runs:
                fixed = fixed_choices(space, varied)
                report(output, runs, names, objective, dataset, fixed, varied)
    check_end(len(runs), len(configs), "run")
    if all(run.diverged for run in runs):
        say("all runs diverged: try a smaller --lr")
        raise typer.Exit(1)


def train_all(
    configs: list[ft.RunConfig],
    dataset: ft.Data,
    names: list[str],
    objective: ft.Objective,
    runs: list[fx.Run],
) -> None:
    """Add the runs to `runs` as they end, with live progress; after Ctrl-C, those that are done."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    lines = {c: progress.add_task(fx.label(c, names), False, c.epochs, state="") for c in configs}
    try:
        with (
            progress,
            closing(
                fx.compare(configs, dataset, lambda config: [Live(progress, lines[config])])
            ) as iterator,
        ):
            for run in iterator:
                runs.append(run)
                if not console.is_terminal:
                    say(f"{fx.label(run.config, names)}: {summary(run, objective)}")
    except KeyboardInterrupt:
        pass


def report(
    output: Path,
    runs: list[fx.Run],
    names: list[str],
    objective: ft.Objective,
    dataset: ft.Data,
    fixed: str,
    varied: str,
) -> None:
    """Write the files and print the table."""
    title = f"{dataset.name}: {fixed}"
    facts = common.folder_facts(objective, dataset) | {
        "varied": varied,
        "runs": [run.facts(dataset.task) for run in runs],
    }
    try:
        with ft.write_together(output) as folder:
            picture = fx.plot_comparison(runs, names, objective, title)
            files = [
                write_picture(folder / "compare.png", picture),
                write_table(folder / "compare.csv", facts["runs"]),
                write_table(folder / "epochs.csv", common.epoch_rows(runs, names, objective)),
                write_json(folder / "compare.json", facts),
            ]
    finally:
        console.print(common.result_table(title, runs, names, objective))
    written(output, files)


def fixed_choices(space: fx.Space, varied: str) -> str:
    """Return what all runs have in common, as the title of table and picture."""
    config = space.configs()[0]
    names = [n for n in ("optimizer", "lr", "batch_size") if n != varied]
    if varied == "optimizer" and config.lr is None:
        names.remove("lr")
    names += [n for n in space.axes if n not in names and n != varied]
    return fx.label(config, names)


def summary(run: fx.Run, objective: ft.Objective) -> str:
    """Return how a run went."""
    if run.diverged:
        return f"diverged in epoch {run.final.epoch}, stopped"
    score = f"{objective.score_name} {objective.format_score(run.final.val_score)}"
    return f"held-out loss {run.final.val_loss:.4f}, {score}, {run.history.seconds.total:.2f} s"


class Live(ft.Callback):
    """A line for each run."""

    def __init__(self, progress: Progress, line: TaskID) -> None:
        self._progress = progress
        self._line = line

    def on_fit_begin(self, trainer: ft.Trainer) -> None:
        """Start the clock of the line."""
        self._progress.start_task(self._line)

    def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
        """Show the epoch."""
        objective = trainer.objective
        score = f"{objective.score_name} {objective.format_score(epoch.val_score)}"
        loss = f"{epoch.train_loss:.4f}" if math.isfinite(epoch.train_loss) else "diverged"
        self._progress.update(
            self._line, completed=epoch.epoch, state=f"loss {loss}  held-out {score}"
        )

    def on_fit_end(self, trainer: ft.Trainer) -> None:
        """Stop the clock of the line."""
        self._progress.stop_task(self._line)
