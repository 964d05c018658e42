"""``fastopt sweep``: many configurations in parallel, and the command that repeats the best."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted, short_repr
from fastopt.cli import axes, common, ranks
from fastopt.train import experiments as fx

DEFAULT_AXES: dict[str, list[Any] | fx.Range] = {
    "lr": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03],
    "batch_size": [16, 32, 64, 128, 256],
}
SHOWN = 10  # rows of the table
WORKERS = ("processes", "mpi")

Train = Callable[[list[ft.RunConfig], ft.Data], Generator[fx.Run, None, None]]


def sweep(
    lr: axes.LearningRates = None,
    batch_size: axes.BatchSizes = None,
    optimizer: axes.Optimizers = None,
    weight_decay: axes.WeightDecays = None,
    dropout: axes.Dropouts = None,
    schedule: axes.Schedules = None,
    loss: axes.Losses = None,
    activation: axes.Activations = None,
    trials: Annotated[
        int | None,
        common.Whole(
            help="Number of combinations to draw at random.", show_default="all, or 20 of ranges"
        ),
    ] = None,
    data: common.DataName = common.DEFAULTS.data,
    task: common.TaskName = None,
    target: common.Target = None,
    drop: common.Drop = None,
    delimiter: common.Delimiter = None,
    header: common.Header = None,
    epochs: common.Epochs = 20,
    hidden: common.Hidden = common.HIDDEN,
    max_norm: common.MaxNorm = None,
    seed: common.Seed = 0,
    workers: Annotated[
        str,
        common.one_of("What trains the runs: new processes, or the ranks of mpiexec", WORKERS),
    ] = WORKERS[0],
    jobs: Annotated[
        int | None,
        common.Whole(help="Number of processes.", show_default="one on each core"),
    ] = None,
    output: Annotated[
        Path,
        common.Folder(help="Folder for sweep.csv and .json, map.png, curves.png and runs.jsonl."),
    ] = Path("fastopt-sweep"),
) -> None:
    """Train many configurations in parallel; print the best and the command that repeats it.

    An option that takes a LIST may have several values. All
    combinations are tried, or --trials of them at random:

      fastopt sweep --lr 0.001,0.01 --optimizer sgd,adam

    An option may be a range, from which values are drawn at
    random. lin draws the value uniformly, log its logarithm:

      fastopt sweep --lr log:1e-4:0.1 --dropout lin:0:0.5

    Without such options, the learning rate and the batch size
    of AdamW vary.

    The best run has the highest held-out score after its last
    epoch. You may interrupt a sweep: the same command
    continues it. A larger --trials adds runs.

    On one machine or several, MPI starts the command. Rank 0
    hands out the runs; each further rank trains one at a time:

      mpiexec -n 5 fastopt sweep --workers mpi
    """
    with workers_of(workers, jobs) as (count, train):
        given = axes.parse_axes(
            lr=lr,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            dropout=dropout,
            schedule=schedule,
            loss=loss,
            activation=activation,
        )
        common.check_range("--trials", trials, 1, 100_000)
        with common.one_line_errors(output):
            space, configs, dataset = axes.prepare(
                given or DEFAULT_AXES,
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
                trials=trials,
            )
        objective = ft.Objective(dataset.task, configs[0].loss)
        with common.results_folder(output):
            try:
                with journal_of(output / "runs.jsonl", space, dataset) as journal:
                    missing = journal.missing(configs)
                    count = min(count, max(1, len(missing)))
                    done = len(configs) - len(missing)
                    again = f", {done} of them done before" if done else ""
                    try:
                        axes.describe(dataset, space.base)
                        common.say_fact("runs", f"{len(configs)}{again}; {count} at a time")
                        iterator = train(missing, dataset)
                        run_all(iterator, len(configs), journal, list(space.axes), objective)
                    except KeyboardInterrupt:
                        pass
                    ran = {run.config: run for run in journal.finished}
            except fx.JournalError as error:
                common.fail(error)
            except fx.RunError as error:
                common.fail(f"{error}; the finished runs are kept, and the same command continues")
            runs = [ran[config] for config in configs if config in ran]
            if runs:
                report(output, runs, space, dataset, objective)
        common.check_end(len(runs), len(configs), "run", "; the same command continues")
        if all(run.diverged for run in runs):
            common.say("all runs diverged: try smaller values of --lr")
            raise typer.Exit(1)


@contextmanager
def workers_of(workers: str, jobs: int | None) -> Iterator[tuple[int, Train]]:
    """Yield the number of runs at a time and what trains; a rank that trains exits at the end."""
    common.check_range("--jobs", jobs, 1, 100_000)
    if workers == "processes":
        if (size := ranks.launched()[1]) > 1:
            common.fail(f"{size} processes were started; let them train with --workers mpi")
        jobs = jobs or fo.get_num_threads()
        yield jobs, partial(fx.run_parallel, jobs=jobs)
        return
    if workers != "mpi":
        common.fail(f"--workers must be one of {', '.join(WORKERS)}, not {short_repr(workers)}")
    # Until all ranks have begun, a signal ends this one at once, and so mpiexec ends the others.
    handlers = handle(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL))
    try:
        mpi = fx.MPIWorkers()
    except (ModuleNotFoundError, RuntimeError) as error:
        handle(handlers)
        common.fail(f"--workers mpi: {error}")
    with mpi as first:
        if first is None:
            raise typer.Exit
        handle(handlers)
        if jobs is not None:
            common.fail("--jobs is for --workers processes; with mpi, mpiexec -n sets the number")
        yield first.count, first.run


def handle(handlers: Mapping[signal.Signals, Any]) -> dict[signal.Signals, Any]:
    """Set handlers of signals, and return those before."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}


@contextmanager
def journal_of(path: Path, space: fx.Space, dataset: ft.Data) -> Iterator[fx.Journal]:
    """Open the journal; remove it if it holds no run at the end."""
    with fx.Journal(path, space, dataset) as journal:
        try:
            yield journal
        finally:
            if not journal.finished:
                path.unlink()


def run_all(
    iterator: Generator[fx.Run, None, None],
    total: int,
    journal: fx.Journal,
    names: list[str],
    objective: ft.Objective,
) -> None:
    """Run the missing configurations, with live progress; each run is kept as it ends."""
    done = len(journal.finished)
    with (
        common.progress("{task.fields[best]}", "{task.completed}/{task.total}") as progress,
        closing(iterator),
    ):
        line = progress.add_task("", total=total, completed=done, best="runs")
        for run in iterator:
            journal.add(run)
            done += 1
            best = min(journal.finished, key=lambda run: run.rank)
            score = "diverged" if best.diverged else objective.format_score(best.final.val_score)
            text = f"best {score}: {fx.label(best.config, names)}"
            progress.update(line, completed=done, best=text)
            if not common.console.is_terminal or run.diverged:
                where = fx.label(run.config, names)
                common.say(f"{done:>4}/{total}  {where}: {axes.summary(run, objective)}")


def report(
    output: Path,
    runs: list[fx.Run],
    space: fx.Space,
    dataset: ft.Data,
    objective: ft.Objective,
) -> None:
    """Write the files and print the best runs."""
    names = list(space.axes)
    ranked = sorted(runs, key=lambda run: run.rank)
    best = ranked[0]
    diverged = sum(run.diverged for run in runs)
    runs_text = counted(len(runs), "run") + (f", {diverged} of them diverged" if diverged else "")
    title = f"{axes.title_of(space, dataset)}; {runs_text}"
    try:
        files = fx.write_sweep(output, runs, space, objective, dataset, title)
    finally:
        title = f"{dataset.name}: the best of {runs_text}"
        axes.print_runs(title, ranked[:SHOWN], names, objective)
        if diverged:
            were = "was" if diverged == 1 else "were"
            common.say(f"{counted(diverged, 'run')} diverged and {were} stopped early")
    common.written(output, [*files, output / "runs.jsonl"])
    if not best.diverged:
        score = common.score_text(objective, best.final.val_score)
        common.say(f"best: {fx.label(best.config, names)}; held-out {score}; to repeat it:")
        common.say_command(best.config.command())
