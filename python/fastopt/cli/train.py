"""``fastopt train``: one run with live progress, a table, a picture and files."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Annotated, cast

import numpy as np
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted
from fastopt.cli.common import (
    Folder,
    Number,
    Threads,
    Whole,
    choices,
    console,
    describe_data,
    fail,
    one_line_errors,
    parse_hidden,
    results_folder,
    say,
    use_threads,
    wide_table,
    written,
)

DEFAULTS = ft.RunConfig()
LR_DEFAULTS = "0.1 sgd, 0.02 momentum, 0.001 others"
BUNDLED = ", ".join(ft.BUNDLED)
DATA_HELP = f"{BUNDLED}; .npz (X, y), .csv (target last), folder of MNIST's idx files."


CHECKPOINT = "checkpoint.safetensors"


def train(
    context: typer.Context,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = DEFAULTS.data,
    task: Annotated[
        str | None,
        choices("What to learn", ft.TASKS, show_default="that of the data"),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="; ".join(f"{task}: {', '.join(names)}" for task, names in ft.LOSSES.items()),
            show_default="the first",
        ),
    ] = None,
    label_smoothing: Annotated[
        float, Number(help="For cross-entropy, in [0, 1].")
    ] = DEFAULTS.label_smoothing,
    optimizer: Annotated[str, choices("What takes the steps", ft.OPTIMIZERS)] = DEFAULTS.optimizer,
    lr: Annotated[float | None, Number(help="Learning rate.", show_default=LR_DEFAULTS)] = None,
    weight_decay: Annotated[
        float | None, Number(help="Weight decay.", show_default="0.01 adamw, 0 others")
    ] = None,
    momentum: Annotated[
        float | None,
        Number(help="Of SGD and RMSprop.", show_default="0.9 momentum, 0 others"),
    ] = None,
    batch_size: Annotated[int, Whole(help="Samples in a batch.")] = DEFAULTS.batch_size,
    epochs: Annotated[int, Whole(help="Passes over the training data.")] = DEFAULTS.epochs,
    schedule: Annotated[
        str,
        choices("How the learning rate changes", ft.SCHEDULES),
    ] = DEFAULTS.schedule,
    warmup: Annotated[
        int, Whole(help="Steps in which the learning rate rises first.")
    ] = DEFAULTS.warmup,
    max_norm: Annotated[
        float | None,
        Number(help="Clip the gradients to this norm.", show_default="no clipping"),
    ] = None,
    accumulate: Annotated[
        int, Whole(help="Batches whose gradients make one step.")
    ] = DEFAULTS.accumulate,
    ema: Annotated[
        float | None,
        Number(help="Decay of averaged weights to evaluate, such as 0.99.", show_default="none"),
    ] = None,
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden layers, such as 128,64, or none.")
    ] = ",".join(map(str, DEFAULTS.hidden)),
    dropout: Annotated[float, Number(help="Probability in [0, 1).")] = DEFAULTS.dropout,
    patience: Annotated[
        int | None,
        Whole(
            help="Stop when the held-out loss has not fallen for this many epochs.",
            show_default="never",
        ),
    ] = None,
    seed: Annotated[int, Whole(help="Of split, weights, order, dropout.")] = DEFAULTS.seed,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Save the run after each epoch, for --resume.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint in the output folder."),
    ] = False,
    threads: Threads = None,
    output: Annotated[Path, Folder(help="Folder for pictures, metrics.csv, run.json.")] = Path(
        "fastopt-run"
    ),
) -> None:
    """Train a small network on real data, show progress, print the result, write the picture."""
    path = output / CHECKPOINT
    with one_line_errors(output):
        config = ft.RunConfig(
            data=data,
            task=cast("ft.Task | None", task),
            loss=loss,
            label_smoothing=label_smoothing,
            optimizer=optimizer.lower(),
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            batch_size=batch_size,
            epochs=epochs,
            schedule=schedule.lower(),
            warmup=warmup,
            max_norm=max_norm,
            accumulate=accumulate,
            ema=ema,
            hidden=parse_hidden(hidden),
            dropout=dropout,
            patience=patience,
            seed=seed,
        )
        if resume:
            config = _saved_config(path, config, _given(context))
        dataset = config.load()
        if resume:
            _check_shapes(path, config, dataset)
        use_threads(threads)
        trainer = config.build(dataset)
        divergence = ft.Divergence(trainer.evaluate()[0])
        if resume:
            try:
                trainer.resume(path)
            except (KeyError, TypeError, ValueError) as error:
                fail(error.args[0])
            if (done := len(trainer.history.epochs)) > config.epochs:
                fail(
                    f"--epochs must be at least {done}, not {config.epochs}: the run to resume "
                    "has had so many epochs"
                )
    with results_folder(output):
        code = fit(
            trainer, config, path, divergence, checkpoint=checkpoint or resume, resumed=resume
        )
        if trainer.history.epochs:
            report(output, trainer, config)
    raise typer.Exit(code)


def fit(
    trainer: ft.Trainer,
    config: ft.RunConfig,
    path: Path,
    divergence: ft.Divergence,
    *,
    checkpoint: bool,
    resumed: bool,
) -> int:
    """Train with live progress, say how it ended, and return the exit code."""
    full, epochs, history = config.resolved(trainer.data.task), config.epochs, trainer.history
    describe_data(trainer.data)
    say(
        f"model      {trainer.model}\n"
        f"loss       {trainer.objective.loss_label}\n"
        f"optimizer  {ft.OPTIMIZERS[full.optimizer].title}, lr {full.lr:g}, "
        f"weight decay {full.weight_decay:g}; batches of {config.batch_size}\n"
        f"kernels    {fo.active_isa()}, {counted(fo.get_num_threads(), 'thread')}"
    )
    if resumed and len(history.epochs) == epochs:
        say(
            f"resumed    nothing to train: the run has had its {counted(epochs, 'epoch')}; "
            "to go on, give a larger --epochs"
        )
    elif resumed:
        say(f"resumed    after epoch {len(history.epochs)} of {epochs}")
    callbacks: list[ft.Callback] = [divergence, Live(epochs)]
    if config.patience is not None:
        callbacks.append(ft.EarlyStopping(config.patience))
    if checkpoint:
        callbacks.append(ft.Checkpointer(path, extra=asdict(config)))
    code = 0
    try:
        trainer.fit(epochs, callbacks)
    except KeyboardInterrupt:
        again = "; go on with --resume" if checkpoint else ""
        say(f"interrupted after epoch {len(history.epochs)} of {epochs}{again}")
        code = 130
    done, hint = len(history.epochs), "try a smaller --lr"
    if history.diverged and not math.isfinite(history.epochs[-1].train_loss):
        say(f"the loss is not finite since epoch {done}: {hint}")
    elif history.stop_reason:
        end = f"; {hint}" if history.diverged else ""
        say(f"stopped after epoch {done}: {history.stop_reason}{end}")
    return 1 if history.diverged else code


def report(output: Path, trainer: ft.Trainer, config: ft.RunConfig) -> None:
    """Write the files and print the result."""
    full, dataset = config.resolved(trainer.data.task), trainer.data
    facts = {
        "title": f"{ft.OPTIMIZERS[full.optimizer].title}, lr {full.lr:g}, on {dataset.name}",
        "command": config.command(),
        "options": asdict(full),
        "data": str(dataset),
        "model": repr(trainer.model),
        "optimizer": {"class": type(trainer.optimizer).__name__} | trainer.optimizer.defaults,
        "loss": trainer.objective.loss_label,
        "score": trainer.objective.score_name,
        "versions": {
            "fastopt": fo.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "instruction_set": fo.active_isa(),
        "threads": fo.get_num_threads(),
    }
    try:
        paths = ft.write_report(output, trainer, facts)
    finally:
        if (overfitting := ft.find_overfitting(trainer.history.epochs)) is not None:
            say(f"warning: {overfitting}")
        console.print(result_table(trainer))
        if dataset.task != "regression" and len(dataset.labels) <= 40:
            console.print(class_table(trainer))
    written(output, paths)


def _given(context: typer.Context) -> set[str]:
    """Return the names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _saved_config(path: Path, config: ft.RunConfig, given: set[str]) -> ft.RunConfig:
    """Return the configuration of the run to resume; what is given must not contradict it."""
    try:
        saved = ft.RunConfig(**fo.load(path).extra["extra"])
    except FileNotFoundError:
        fail(f"there is no {path} to resume; begin with --checkpoint")
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror or error}")
    except (KeyError, TypeError, ValueError) as error:
        fail(error if isinstance(error, fo.CheckpointError) else f"{path} is of another program")
    wanted, before = asdict(config.resolved()), asdict(saved.resolved())
    for name in given & wanted.keys():
        if wanted[name] == before[name]:
            continue
        if name == "data":  # they may have moved: `Trainer.resume` compares what is in them
            saved = replace(saved, data=config.data)
            continue
        if name != "epochs":
            option = f"--{name.replace('_', '-')}"
            fail(
                f"the run to resume was made without {option}; leave it out"
                if before[name] is None
                else f"{option} was {before[name]} in the run to resume, not {wanted[name]}; "
                "leave it out"
            )
        if saved.schedule != "constant":
            fail(
                f"--epochs must stay {saved.epochs}: the schedule {saved.schedule} is made for them"
            )
        saved = replace(saved, epochs=config.epochs)
    if saved.data not in ft.BUNDLED and not Path(saved.data).exists():
        if "data" in given:
            fail(f"--data: there is no file or folder {saved.data}")
        fail(f"the data of the run to resume are not at {saved.data}; give their place with --data")
    return saved


def _check_shapes(path: Path, config: ft.RunConfig, dataset: ft.Data) -> None:
    """Fail unless a checkpoint's arrays have the shapes that its configuration gives a model.

    They are compared before the model is made: a damaged configuration may describe a huge one.
    """
    widths = [dataset.features, *config.hidden, dataset.outputs]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (n_out, n_in), f"{i}.bias": (n_out,)}
    saved = fo.load(path).params or {}
    if {name: array.shape for name, array in saved.items()} != shapes:
        fail(
            f"{path} is of a model of other shapes than {'-'.join(map(str, widths))}: "
            "either --data are not the data of that run, or the checkpoint is damaged"
        )


class Live(ft.Callback):
    """A live line of loss, score and speed; plain lines if this is no terminal."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[score]}"),
            TextColumn("{task.fields[speed]:,.0f} samples/s"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._samples = self._shown_samples = 0
        self._shown_at = perf_counter()

    def on_fit_begin(self, trainer: ft.Trainer) -> None:
        """Show the line."""
        done = len(trainer.history.epochs)
        self._samples = self._shown_samples = done * len(trainer.data.y_train)
        self._task = self._progress.add_task(
            "",
            total=self._epochs * len(trainer.data.y_train),
            completed=self._samples,
            epochs=self._epochs,
            epoch=done + 1,
            loss=math.nan,
            score="",
            speed=0.0,
        )
        self._progress.start()

    def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
        """Update the line ten times a second."""
        self._samples += samples
        elapsed = perf_counter() - self._shown_at
        if elapsed > 0.1:
            speed = (self._samples - self._shown_samples) / elapsed
            self._progress.update(self._task, completed=self._samples, loss=loss, speed=speed)
            self._shown_samples, self._shown_at = self._samples, perf_counter()

    def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
        """Update the line, or print one for every tenth of the epochs."""
        objective = trainer.objective
        score = f"{objective.score_name} {objective.format_score(epoch.val_score)}"
        self._progress.update(
            self._task,
            completed=self._samples,
            epoch=min(epoch.epoch + 1, self._epochs),
            loss=epoch.train_loss,
            score=f"held-out {score}",
            speed=epoch.samples_per_second,
        )
        every = max(1, self._epochs // 10)
        if not console.is_terminal and (epoch.epoch % every == 0 or epoch.epoch == self._epochs):
            say(
                f"epoch {epoch.epoch:>4}/{self._epochs}  loss {epoch.train_loss:.4f}  "
                f"held-out loss {epoch.val_loss:.4f}  {score}  "
                f"{epoch.samples_per_second:,.0f} samples/s"
            )

    def on_fit_end(self, trainer: ft.Trainer) -> None:
        """Leave the line as it is."""
        self._progress.stop()


def result_table(trainer: ft.Trainer) -> Table:
    """Return the table that a run ends with."""
    history, objective = trainer.history, trainer.objective
    final, best, seconds = history.epochs[-1], history.best, history.seconds
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    score = objective.score_name
    best_score = f"{objective.format_score(best.val_score)} (epoch {best.epoch})"
    table.add_row(f"final {score} on held-out data", objective.format_score(final.val_score))
    table.add_row(f"best {score} on held-out data", "-" if history.diverged else best_score)
    table.add_row(
        "final loss, training / held-out", f"{final.train_loss:.4f} / {final.val_loss:.4f}"
    )
    if objective.task == "regression":
        error = ft.root_mean_squared_error(trainer)
        what = f"final error of the {trainer.data.target}, root mean square"
        table.add_row(Text(what), f"{error:.4g}")  # the name may hold brackets
    table.add_section()
    for name, value in (
        ("time in the optimizer step", seconds.step),
        ("time in the loss and its gradient", seconds.loss),
        ("time in forward and backward", seconds.forward + seconds.backward),
        ("time in evaluation", seconds.evaluation),
        ("whole training", seconds.total),
    ):
        share = value / seconds.total if seconds.total else 0.0
        table.add_row(name, f"{value:.3f} s ({share:.1%})")
    return table


def class_table(trainer: ft.Trainer) -> Table:
    """Return the table of precision, recall and F1 of each class."""
    rows = [
        [score.label, *map(_percent, (score.precision, score.recall, score.f1)), str(score.samples)]
        for score in ft.score_classes(trainer)
    ]
    head = [trainer.data.target, "precision", "recall", "F1", "samples"]
    return wide_table("Classes on held-out data", head, rows)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
