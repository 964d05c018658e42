"""``fastopt compare``: optimizers, or values of another option, on the same batches."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID

from fastopt import train as ft
from fastopt.cli import axes, common
from fastopt.train import experiments as fx


def compare(
    optimizer: axes.AllOptimizers = None,
    lr: axes.LearningRates = None,
    batch_size: axes.BatchSizes = None,
    weight_decay: axes.WeightDecays = None,
    dropout: axes.Dropouts = None,
    schedule: axes.Schedules = None,
    loss: axes.Losses = None,
    activation: axes.Activations = None,
    data: common.DataName = common.DEFAULTS.data,
    task: common.TaskName = None,
    target: common.Target = None,
    drop: common.Drop = None,
    delimiter: common.Delimiter = None,
    header: common.Header = None,
    epochs: common.Epochs = common.DEFAULTS.epochs,
    hidden: common.Hidden = common.HIDDEN,
    max_norm: common.MaxNorm = None,
    seed: common.Seed = 0,
    threads: common.Threads = None,
    output: Annotated[
        Path, common.Folder(help="Folder for compare.png, .csv and .json, and epochs.csv.")
    ] = Path("fastopt-compare"),
) -> None:
    """Train with each optimizer on the same data, weights and batches; compare the curves.

    Two optimizers on a table of yours:

      fastopt compare --optimizer sgd,adam --data my.csv

    To compare something else, give several values to one
    option that takes a LIST:

      fastopt compare --lr 0.001,0.01,0.1 --optimizer adam

    To vary two or more together, use fastopt sweep.
    """
    given = axes.parse_axes(
        optimizer=optimizer,
        lr=lr,
        batch_size=batch_size,
        weight_decay=weight_decay,
        dropout=dropout,
        schedule=schedule,
        loss=loss,
        activation=activation,
    )
    several = []
    for name, values in given.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(values, fx.Range):
            common.fail(f"{option}: ranges are for fastopt sweep; give values such as 0.01,0.1")
        if len(values) > 1:
            several.append(name)
    if len(several) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in several)
        common.fail(f"{options} have several values; to vary more than one: fastopt sweep")
    if not several and optimizer is None:
        given["optimizer"] = list(ft.OPTIMIZERS)
    with common.one_line_errors(output):
        space, configs, dataset = axes.prepare(
            given,
            data=data,
            task=task,
            target=target,
            drop=drop,
            delimiter=delimiter,
            header=header,
            epochs=epochs,
            hidden=hidden,
            max_norm=max_norm,
            seed=seed,
        )
        common.use_threads(threads)
    varied = several[0] if several else "optimizer"
    names = ["optimizer", "lr"] if varied == "optimizer" else [varied]
    objective = ft.Objective(dataset.task, configs[0].loss)
    title = axes.title_of(space, dataset)
    runs: list[fx.Run] = []
    with common.results_folder(output):
        axes.describe(dataset, space.base)
        try:
            train_all(configs, dataset, names, objective, runs)
        finally:  # finished runs are kept, also if memory for the next run is missing
            if runs:
                try:
                    files = fx.write_comparison(output, runs, names, objective, dataset, title)
                finally:
                    axes.print_runs(title, runs, names, objective)
                common.written(output, files)
    common.check_end(len(runs), len(configs), "run")
    if all(run.diverged for run in runs):
        common.say("all runs diverged: try a smaller --lr")
        raise typer.Exit(1)


def train_all(
    configs: list[ft.RunConfig],
    dataset: ft.Data,
    names: list[str],
    objective: ft.Objective,
    runs: list[fx.Run],
) -> None:
    """Add each run to `runs` as it ends, with live progress; Ctrl-C ends it."""
    progress = common.progress("{task.description}", "{task.fields[state]}")
    lines = {c: progress.add_task(fx.label(c, names), False, c.epochs, state="") for c in configs}
    iterator = fx.compare(configs, dataset, lambda config: [Live(progress, lines[config])])
    try:
        with progress, closing(iterator):
            for run in iterator:
                runs.append(run)
                if not common.console.is_terminal:
                    common.say(f"{fx.label(run.config, names)}: {axes.summary(run, objective)}")
    except KeyboardInterrupt:
        pass


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
        score = common.score_text(trainer.objective, epoch.val_score)
        loss = epoch.train_loss
        state = f"loss {common.format_loss(loss)}  {score}" if math.isfinite(loss) else "diverged"
        self._progress.update(self._line, completed=epoch.epoch, state=state)

    def on_fit_end(self, trainer: ft.Trainer) -> None:
        """Stop the clock of the line."""
        self._progress.stop_task(self._line)
