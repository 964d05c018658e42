"""``fastopt sweep``: many configurations in parallel, the best of them and the way to repeat it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastopt as fo
from fastopt import experiments as fx
from fastopt import train as ft
from fastopt.cli import axes as common
from fastopt.cli.common import console, fail, one_line_errors, say
from fastopt.cli.compare import summary
from fastopt.cli.lists import one_line_interrupt
from fastopt.experiments.files import write_json, write_picture, write_table

DEFAULT_AXES: dict[str, list[Any] | fx.Range] = {
    "lr": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03],
    "batch_size": [16, 32, 64, 128, 256],
}
SHOWN = 10  # lines of the table


@one_line_interrupt()
def sweep(
    lr: common.LearningRates = None,
    batch_size: common.BatchSizes = None,
    optimizer: common.Optimizers = None,
    weight_decay: common.WeightDecays = None,
    dropout: common.Dropouts = None,
    schedule: common.Schedules = None,
    loss: common.Losses = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Draw so many combinations at random.", show_default="all, or 20 of ranges"
        ),
    ] = None,
    data: common.DataName = common.DEFAULTS.data,
    task: common.TaskName = None,
    epochs: common.Epochs = 20,
    hidden: common.Hidden = "128,64",
    max_norm: common.MaxNorm = None,
    seed: Annotated[int, typer.Option(help="Of split, weights, order, dropout and draws.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time.", show_default="one on each core")
    ] = None,
    output: Annotated[
        Path,
        typer.Option(help="Folder for sweep.csv and .json, map.png, curves.png and runs.jsonl."),
    ] = Path("fastopt-sweep"),
) -> None:
    """Try many configurations in parallel; end with the best and the command that repeats it.

    An option that takes a LIST may have several values; all combinations are
    tried, or as many as --trials says:

      fastopt sweep --lr 0.001,0.01,0.1 --batch-size 32,128 --optimizer sgd,adam

    A range is drawn from at random, evenly (lin) or by factors (log):

      fastopt sweep --lr log:1e-4:0.1 --dropout lin:0:0.5 --trials 40

    Without any of them, the learning rate and the batch size of AdamW vary.

    The best run has the highest held-out score after its last epoch. Interrupt
    it as you like: the same command goes on, and a larger --trials adds to it.
    """
    given = common.parse_axes(
        lr=lr,
        batch_size=batch_size,
        optimizer=optimizer,
        weight_decay=weight_decay,
        dropout=dropout,
        schedule=schedule,
        loss=loss,
    )
    if not given:
        given = DEFAULT_AXES
    for option, value in (("--trials", trials), ("--jobs", jobs)):
        if value is not None and not 1 <= value <= 100_000:
            fail(f"{option} must be in 1 ... 100000, not {value}")
    runs: list[fx.Run] = []
    interrupted = False
    with one_line_errors(output):
        space = common.make_space(
            given,
            data=data,
            task=task,
            epochs=epochs,
            hidden=hidden,
            max_norm=max_norm,
            seed=seed,
            trials=trials,
        )
        configs = space.configs()
        dataset = space.base.load()
        common.check(configs, dataset)
        ft.check_folder(output)
        objective = ft.Objective(dataset.task, configs[0].loss)
        names = list(space.axes)
        try:
            with fx.Journal(output / "runs.jsonl", space, dataset) as journal:
                missing = journal.missing(configs)
                jobs = min(jobs or fo.get_num_threads(), max(1, len(missing)))
                done = len(configs) - len(missing)
                again = f", {done} of them done before" if done else ""
                try:
                    common.describe(dataset, space.base)
                    say(f"runs       {len(configs)}{again}; {jobs} at a time")
                    run_all(missing, dataset, jobs, journal, done, names, objective)
                except KeyboardInterrupt:
                    interrupted = True
                ran = {run.config: run for run in journal.finished}
                runs = [ran[config] for config in configs if config in ran]
        except fx.JournalError as error:
            fail(error)
        except fx.RunError as error:
            fail(f"{error}; what has ended is kept, and the same command goes on")
        if runs:
            report(output, runs, space, dataset, objective)
    if interrupted:
        say(f"interrupted after {len(runs)} of {len(configs)} runs; the same command goes on")
        raise typer.Exit(130)
    if all(run.diverged for run in runs):
        say("all runs diverged: try smaller values of --lr")
        raise typer.Exit(1)


def run_all(
    configs: list[ft.RunConfig],
    dataset: ft.Data,
    jobs: int,
    journal: fx.Journal,
    done: int,
    names: list[str],
    objective: ft.Objective,
) -> None:
    """Run what is missing, with live progress; each run is kept as it ends."""
    total = done + len(configs)
    with (
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as progress,
        closing(fx.run_parallel(configs, dataset, jobs)) as iterator,
    ):
        line = progress.add_task("runs", total=total, completed=done, best="")
        for run in iterator:
            journal.add(run)
            done += 1
            best = min(journal.finished, key=lambda run: run.rank)
            text = f"best {objective.format_score(best.final.val_score)}"
            progress.update(line, completed=done, best=f"{text}: {fx.label(best.config, names)}")
            if not console.is_terminal or run.diverged:
                where = fx.label(run.config, names)
                progress.print(f"{done:>4}/{total}  {where}: {summary(run, objective)}")


def report(
    output: Path,
    runs: list[fx.Run],
    space: fx.Space,
    dataset: ft.Data,
    objective: ft.Objective,
) -> None:
    """Print the best runs and write the files."""
    names = list(space.axes)
    ranked = sorted(runs, key=lambda run: run.rank)
    diverged = sum(run.diverged for run in runs)
    count = f"{len(runs)} runs" + (f", {diverged} of them diverged" if diverged else "")
    title = f"{dataset.name}: the best of {count}"
    console.print(common.result_table(title, ranked[:SHOWN], names, objective))
    if diverged:
        say(f"{diverged} runs diverged and were stopped early")
    best = ranked[0]
    facts = common.folder_facts(objective, dataset) | {
        "space": space.facts() | {"trials": space.trials},
        "best": None if best.diverged else best.facts(dataset.task),
        "runs": [run.facts(dataset.task) for run in runs],
    }
    shown = f"{dataset.name}, {count}"
    files = [
        write_picture(output / "map.png", fx.plot_map(runs, space, objective, shown)),
        write_picture(output / "curves.png", fx.plot_sweep(runs, names, objective, shown)),
        write_table(output / "sweep.csv", facts["runs"]),
        write_json(output / "sweep.json", facts),
    ]
    common.written(output, [*files, output / "runs.jsonl"])
    if not best.diverged:
        score = f"{objective.score_name} {objective.format_score(best.final.val_score)}"
        say(f"best: {fx.label(best.config, names)}; held-out {score}; to repeat it:")
        say(f"  {best.config.command()}")
