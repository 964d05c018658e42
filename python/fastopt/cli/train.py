"""``fastopt train``: one run with live progress, a table, a picture and files."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Iterable, Set
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import typer

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted, digits
from fastopt.cli import common, ranks
from fastopt.cli.common import DEFAULTS, Number, Whole, console, say, say_fact
from fastopt.cli.resume import check_shapes, facts_to_save, saved_config

CHECKPOINT, MODEL = "checkpoint.safetensors", "model.safetensors"
WITH_MOMENTUM = ", ".join(
    name for name, choice in ft.OPTIMIZERS.items() if choice.momentum is not None
)


def train(
    context: typer.Context,
    data: common.DataName = DEFAULTS.data,
    task: common.TaskName = None,
    target: common.Target = None,
    drop: common.Drop = None,
    delimiter: common.Delimiter = None,
    header: common.Header = None,
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
    optimizer: Annotated[str, common.one_of("Optimizer", ft.OPTIMIZERS)] = DEFAULTS.optimizer,
    lr: Annotated[
        float | None, Number(help="Learning rate.", show_default=common.by_optimizer("lr"))
    ] = None,
    weight_decay: Annotated[
        float | None, Number(help="Weight decay.", show_default=common.by_optimizer("weight_decay"))
    ] = None,
    momentum: Annotated[
        float | None,
        Number(help=f"Momentum of {WITH_MOMENTUM}.", show_default=common.by_optimizer("momentum")),
    ] = None,
    batch_size: Annotated[int, Whole(help="Samples in a batch.")] = DEFAULTS.batch_size,
    epochs: common.Epochs = DEFAULTS.epochs,
    schedule: Annotated[
        str,
        common.one_of("Schedule of the learning rate", ft.SCHEDULES),
    ] = DEFAULTS.schedule,
    warmup: Annotated[
        int, Whole(help="First steps, in which the learning rate rises.")
    ] = DEFAULTS.warmup,
    max_norm: common.MaxNorm = None,
    accumulate: Annotated[
        int, Whole(help="Batches whose gradients are added for a step.")
    ] = DEFAULTS.accumulate,
    ema: Annotated[
        float | None,
        Number(help="Decay of averaged weights to evaluate, such as 0.99.", show_default="none"),
    ] = None,
    hidden: common.Hidden = common.HIDDEN,
    activation: Annotated[
        str, common.one_of("Function after each hidden layer", ft.ACTIVATIONS)
    ] = DEFAULTS.activation,
    dropout: Annotated[float, Number(help="Probability in [0, 1).")] = DEFAULTS.dropout,
    patience: Annotated[
        int | None,
        Whole(
            help="Stop when the held-out loss has not fallen for this many epochs.",
            show_default="never",
        ),
    ] = None,
    seed: common.Seed = DEFAULTS.seed,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Save the run after each epoch, for --resume.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the checkpoint in the output folder."),
    ] = False,
    threads: common.Threads = None,
    output: Annotated[
        Path, common.Folder(help="Folder for model.safetensors, run.json, metrics.csv, pictures.")
    ] = Path("fastopt-run"),
) -> None:
    """Train a small network on real data, show progress, print the result, write pictures.

    Your own table needs one option; its last column is predicted:

      fastopt train --data my.csv

    Another task and optimizer:

      fastopt train --data diabetes --optimizer sgd --lr 0.05

    A run that may be interrupted, and how it continues:

      fastopt train --epochs 500 --checkpoint

      fastopt train --resume

    In four processes, with MPI:

      mpiexec -n 4 fastopt train --batch-size 1024
    """
    path = output / CHECKPOINT
    common.use_threads(threads)
    comm = ranks.join(threads)
    with ExitStack() as stack:
        with ranks.ending_all(comm), common.one_line_errors(output):
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
                hidden=common.parse_hidden(hidden),
                activation=activation.lower(),
                dropout=dropout,
                patience=patience,
                seed=seed,
                target=target,
                drop=tuple(drop or ()),
                delimiter=delimiter,
                header=header,
            )
            given = _given(context) if resume else None
            config, dataset = ranks.on_first(comm, lambda: load(config, path, given))
            trainer = config.build(dataset, comm)
            if comm is not None:
                ranks.interrupt_on_signals(trainer.interrupt)
            divergence = ft.Divergence(trainer.evaluate()[0])
            if resume:
                resume_from(path, trainer, config)
            ranks.on_first(comm, lambda: stack.enter_context(common.results_folder(output)))
            common.describe_data(dataset)
            if not resume and any((output / name).exists() for name in ("run.json", CHECKPOINT)):
                say(f"replaces the run in {output}")
            checkpoint = checkpoint or resume
            code = fit(trainer, config, path, divergence, checkpoint=checkpoint, resumed=resume)
        if trainer.rank > 0:
            raise typer.Exit(0)
        if trainer.history.epochs:
            # A later --resume must not replace the new model by one from an old checkpoint.
            report(output, trainer, config, stale=() if checkpoint else (CHECKPOINT,))
    raise typer.Exit(code)


def load(config: ft.RunConfig, path: Path, given: Set[str] | None) -> tuple[ft.RunConfig, ft.Data]:
    """Return the configuration and the data of a run, or of one to resume with `given` fields."""
    if given is None:
        return config, config.load()
    config = saved_config(path, config, given)
    data = config.load()
    check_shapes(path, config, data)
    return config, data


def resume_from(path: Path, trainer: ft.Trainer, config: ft.RunConfig) -> None:
    """Continue from a checkpoint."""
    try:
        trainer.resume(path)
    except (KeyError, TypeError, ValueError) as error:
        common.fail(error.args[0])
    if (done := len(trainer.history.epochs)) > config.epochs:
        raise ft.ConfigError(
            "epochs",
            f"must be at least {done}, not {config.epochs}: the run to resume has "
            f"{counted(done, 'epoch')}",
        )


def fit(
    trainer: ft.Trainer,
    config: ft.RunConfig,
    path: Path,
    divergence: ft.Divergence,
    *,
    checkpoint: bool,
    resumed: bool,
) -> int:
    """Train with live progress, print how it ended, and return the exit code."""
    full, epochs, history = config.resolved(trainer.data.task), config.epochs, trainer.history
    say_fact("model", trainer.model)
    say_fact("loss", trainer.objective.loss_label)
    say_fact(
        "optimizer",
        f"{ft.OPTIMIZERS[full.optimizer].title}, lr {full.lr:g}, "
        f"weight decay {full.weight_decay:g}; batches of {config.batch_size}",
    )
    say_fact("kernels", f"{fo.active_isa()}, {counted(fo.get_num_threads(), 'thread')}")
    if trainer.ranks > 1:
        say_fact("ranks", f"{trainer.ranks}; the threads are those of each rank")
    if resumed and len(history.epochs) == epochs:
        say_fact(
            "resumed",
            f"the run already has {len(history.epochs)} of {counted(epochs, 'epoch')}; "
            "to continue, give a larger --epochs",
        )
    elif resumed:
        say_fact("resumed", f"after epoch {len(history.epochs)} of {epochs}")
    callbacks: list[ft.Callback] = [divergence]
    if trainer.rank == 0:
        callbacks.append(Live(epochs))
    if config.patience is not None:
        callbacks.append(ft.EarlyStopping(config.patience))
    if checkpoint:
        callbacks.append(ft.Checkpointer(path, extra=facts_to_save(config)))
    code = 0
    try:
        trainer.fit(epochs, callbacks)
    except KeyboardInterrupt:
        again = "; continue with --resume" if checkpoint else ""
        say(f"interrupted after epoch {len(history.epochs)} of {epochs}{again}")
        code = 130
    done, hint = len(history.epochs), "try a smaller --lr"
    if history.diverged and not math.isfinite(history.epochs[-1].train_loss):
        say(f"the loss is not finite since epoch {done}: {hint}")
    elif history.stop_reason:
        end = hint if history.diverged else "the model is that of this epoch"
        say(f"stopped after epoch {done}: {history.stop_reason}; {end}")
    return 1 if history.diverged else code


def report(output: Path, trainer: ft.Trainer, config: ft.RunConfig, stale: Iterable[str]) -> None:
    """Write the files, remove `stale` ones of an earlier run, and print the result."""
    before = [name for name in (MODEL, *stale) if (output / name).is_file()]
    try:
        paths = ft.write_report(output, trainer, _facts(config, trainer), stale)
    finally:
        for text in find_problems(trainer):
            say(f"warning: {text}")
        print_result(trainer)
        shown = trainer.data.task != "regression" and len(trainer.data.labels) <= 40
        if shown and not trainer.history.diverged:
            print_classes(trainer)
    common.written(output, paths)
    if removed := [name for name in before if not (output / name).exists()]:
        say(f"removed from {output}: {', '.join(removed)} of the earlier run")
    if any(path.name == MODEL for path in paths):
        say(f"for new rows: fastopt predict {shlex.quote(str(output))} NEW.csv")


def find_problems(trainer: ft.Trainer) -> list[str]:
    """Return what is wrong with the end of a run that did not diverge, with what may help."""
    history, problems = trainer.history, []
    if history.diverged:
        return []
    if (overfitting := ft.find_overfitting(history.epochs)) is not None:
        patience = "" if history.stop_reason else "--patience 5, "
        problems.append(f"{overfitting}; try {patience}--ema 0.99 or a larger --dropout")
    elif not history.stop_reason and ft.still_falls(history.epochs):
        problems.append("the held-out loss still falls: more --epochs may help")
    if trainer.data.task == "regression" and history.epochs[-1].val_score < 0:
        problems.append(
            "R² is below 0 on held-out data: the mean of the target predicts better than this "
            "model; try another --lr or more --epochs"
        )
    return problems


def _facts(config: ft.RunConfig, trainer: ft.Trainer) -> dict[str, Any]:
    """Return what ``run.json`` holds of a run beside its results."""
    full = config.resolved(trainer.data.task)
    return {
        "title": (
            f"{ft.OPTIMIZERS[full.optimizer].title}, lr {full.lr:g}, {full.loss}, "
            f"on {trainer.data.name}"
        ),
        "command": config.command(),
        "options": asdict(full),
        "data": str(trainer.data),
        "model": repr(trainer.model),
        "optimizer": {"class": ft.OPTIMIZERS[full.optimizer].make.__name__}
        | trainer.optimizer.defaults,
        "loss": trainer.objective.loss_label,
        "score": trainer.objective.score_name,
        "versions": {
            "fastopt": fo.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "instruction_set": fo.active_isa(),
        "threads": fo.get_num_threads(),
        "ranks": trainer.ranks,
    }


def _given(context: typer.Context) -> set[str]:
    """Return the names of the options on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


class Live(ft.Callback):
    """A live line of loss, score and speed; plain lines without a terminal."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._progress = common.progress(
            "epoch {task.fields[epoch]}/{task.fields[epochs]}",
            "{task.fields[state]}",
            "{task.fields[speed]}",
        )
        self._score = ""
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
            state="",
            speed="",
        )
        self._progress.start()

    def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
        """Update the line ten times a second."""
        self._samples += samples
        elapsed = perf_counter() - self._shown_at
        if elapsed > 0.1:
            self._show(loss, (self._samples - self._shown_samples) / elapsed)
            self._shown_samples, self._shown_at = self._samples, perf_counter()

    def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
        """Update the line; in a log, print the first epoch and every tenth of the epochs."""
        self._score = common.score_text(trainer.objective, epoch.val_score)
        self._progress.update(self._task, epoch=min(epoch.epoch + 1, self._epochs))
        self._show(epoch.train_loss, epoch.samples_per_second)
        every = max(1, self._epochs // 10)
        shown = epoch.epoch in (1, self._epochs) or epoch.epoch % every == 0
        if shown and not console.is_terminal:
            say(
                f"epoch {epoch.epoch:>4}/{self._epochs}  "
                f"loss {common.format_loss(epoch.train_loss)}  "
                f"held-out loss {common.format_loss(epoch.val_loss)}  {self._score}  "
                f"{epoch.samples_per_second:,.0f} samples/s"
            )

    def _show(self, loss: float, speed: float) -> None:
        self._progress.update(
            self._task,
            completed=self._samples,
            state=f"loss {common.format_loss(loss)}  {self._score}",
            speed=f"{speed:,.0f} samples/s",
        )

    def on_fit_end(self, trainer: ft.Trainer) -> None:
        """Keep the last line."""
        self._progress.stop()


def print_result(trainer: ft.Trainer) -> None:
    """Print the scores, the losses and the times."""
    history, objective = trainer.history, trainer.objective
    final, best, seconds = history.epochs[-1], history.best, history.seconds
    score = objective.score_name
    best_score = f"{objective.format_score(best.val_score)} (epoch {best.epoch})"
    losses = map(common.format_loss, (final.train_loss, final.val_loss))
    rows = [
        [f"final {score} on held-out data", objective.format_score(final.val_score)],
        [f"best {score} on held-out data", "-" if history.diverged else best_score],
        ["final loss, training / held-out", " / ".join(losses)],
    ]
    if objective.task == "regression" and not history.diverged:
        error = ft.root_mean_squared_error(trainer)
        rows.append([f"final error of {trainer.data.target}, root mean square", digits(error, 4)])
    common.print_table("Result", [], rows)
    times = {
        "optimizer step": seconds.step,
        "loss and its gradient": seconds.loss,
        "forward and backward": seconds.forward + seconds.backward,
        "evaluation": seconds.evaluation,
        "whole training": seconds.total,
    }
    rows = [
        [name, f"{value:.3f}", f"{value / seconds.total if seconds.total else 0:.1%}"]
        for name, value in times.items()
    ]
    common.print_table("Time", ["", "seconds", "share"], rows)


def print_classes(trainer: ft.Trainer) -> None:
    """Print the table of precision, recall and F1 of each class."""
    rows = [
        [score.label, *map(_percent, (score.precision, score.recall, score.f1)), str(score.samples)]
        for score in ft.score_classes(trainer)
    ]
    head = [trainer.data.target, "precision", "recall", "F1", "samples"]
    common.print_table("Classes on held-out data", head, rows)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
