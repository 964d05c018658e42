"""The common options and tables of ``fastopt compare`` and ``fastopt sweep``."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from fastopt import train as ft
from fastopt._checks import counted, short_repr
from fastopt.cli import common
from fastopt.cli.common import DEFAULTS
from fastopt.train import experiments as fx

EVERY_LOSS = tuple(dict.fromkeys(name for names in ft.LOSSES.values() for name in names))
CHOICES = {
    "optimizer": tuple(ft.OPTIMIZERS),
    "schedule": ft.SCHEDULES,
    "loss": EVERY_LOSS,
    "activation": ft.ACTIVATIONS,
}


def _numbers(text: str, default: object) -> Any:
    return typer.Option(metavar="LIST", help=text, show_default=str(default))


def _names(text: str, name: str, default: str) -> Any:
    return common.several(text, CHOICES[name], show_default=default)


Optimizers = Annotated[str | None, _names("Optimizers", "optimizer", DEFAULTS.optimizer)]
AllOptimizers = Annotated[str | None, _names("Optimizers", "optimizer", "all")]
LearningRates = Annotated[str | None, _numbers("Learning rates.", common.by_optimizer("lr"))]
BatchSizes = Annotated[str | None, _numbers("Samples in a batch.", DEFAULTS.batch_size)]
WeightDecays = Annotated[
    str | None, _numbers("Weight decays.", common.by_optimizer("weight_decay"))
]
Dropouts = Annotated[str | None, _numbers("Dropout probabilities.", DEFAULTS.dropout)]
Schedules = Annotated[str | None, _names("Schedules", "schedule", DEFAULTS.schedule)]
Losses = Annotated[str | None, _names("Losses", "loss", "that of the task")]
Activations = Annotated[
    str | None, _names("Functions after each hidden layer", "activation", DEFAULTS.activation)
]


def parse_axes(**texts: str | None) -> dict[str, list[Any] | fx.Range]:
    """Return the values of each given axis."""
    return {name: parse_axis(name, text) for name, text in texts.items() if text is not None}


def parse_axis(name: str, text: str) -> list[Any] | fx.Range:
    """Return the values or the range of a field of `RunConfig` from a text.

    The text is ``sgd,adam`` for a field in `CHOICES`, and ``0.01,0.1``, ``log:1e-4:0.1`` or
    ``lin:0:0.5`` for other fields.
    """
    option = f"--{name.replace('_', '-')}"
    if name in CHOICES:
        return list(common.parse_names(option, text, CHOICES[name]))
    kind = fx.AXES[name]
    parse = common.parse_whole if kind is int else common.parse_number
    scale, colon, ends = text.strip().partition(":")
    try:
        values = [parse(part) for part in (ends.split(":") if colon else text.split(","))]
        if colon and (len(values) != 2 or scale not in ("log", "lin")):
            raise ValueError(scale)
    except (ValueError, typer.BadParameter):
        common.fail(
            f"{option} must be {'whole numbers' if kind is int else 'numbers'} such as "
            f"{'32,128' if kind is int else '0.01,0.1'}, or a range such as "
            f"{'log:16:256' if kind is int else 'log:0.001:0.1'} to draw from, "
            f"not {short_repr(text)}"
        )
    if not colon:
        common.refuse_repeats(option, values)
        return values
    try:
        return fx.Range(values[0], values[1], log=scale == "log")
    except ValueError as error:
        common.fail(f"{option}: {error}")


def prepare(
    axes: dict[str, list[Any] | fx.Range],
    *,
    task: str | None,
    hidden: str,
    drop: list[str] | None,
    trials: int | None = None,
    **options: Any,
) -> tuple[fx.Space, list[ft.RunConfig], ft.Data]:
    """Return the space of the options, its configurations, and the data that all can run on.

    The other options are fields of `RunConfig`.
    """
    base = ft.RunConfig(
        task=cast("ft.Task | None", task),
        hidden=common.parse_hidden(hidden),
        drop=tuple(drop or ()),
        **options,
    )
    if axes.get("loss") == list(EVERY_LOSS):  # all means those of the task
        axes = axes | {"loss": list(ft.LOSSES[base.load().task])}
    space = fx.Space(base, axes, trials)
    configs, dataset = space.configs(), base.load()
    for config in configs:
        config.check(dataset)
    configs[0].build(dataset)  # raises without memory for the model
    return space, configs, dataset


def describe(dataset: ft.Data, base: ft.RunConfig) -> None:
    """Print the facts that all runs share."""
    common.describe_data(dataset)
    hidden = "-".join(map(str, base.hidden)) or "none"
    common.say_fact("hidden", f"{hidden}; {counted(base.epochs, 'epoch')}, seed {base.seed}")


def title_of(space: fx.Space, dataset: ft.Data) -> str:
    """Return the name of the data and the options that all runs share, for tables and pictures."""
    config = space.configs()[0]
    varied = {n for n, v in space.axes.items() if isinstance(v, fx.Range) or len(v) > 1}
    names = {"optimizer", "lr", "batch_size", "loss", *space.axes} - varied
    if "optimizer" in varied and config.lr is None:  # each optimizer has its own
        names.discard("lr")
    shared = fx.label(config.resolved(dataset.task), list(names))
    return f"{dataset.name}: {shared}" if shared else dataset.name


def summary(run: fx.Run, objective: ft.Objective) -> str:
    """Return the result of a run as text."""
    if run.diverged:
        return f"diverged in epoch {run.final.epoch}, stopped"
    score = common.score_text(objective, run.final.val_score)
    loss = common.format_loss(run.final.val_loss)
    return f"held-out loss {loss}, {score}, {run.history.seconds.total:.2f} s"


def print_runs(title: str, runs: list[fx.Run], names: list[str], objective: ft.Objective) -> None:
    """Print a table of runs."""
    score = objective.score_name
    losses = ["training loss", "held-out loss", "lowest held-out loss"]
    head = ["", *losses, score, "best (epoch)", "seconds"]
    rows = []
    for run in runs:
        name = fx.label(run.config, names)
        final, best = run.final, run.history.best
        if run.diverged:
            rows.append([name, "diverged", f"epoch {final.epoch}", *[""] * 4])
            continue
        lowest = run.facts(objective.task)["lowest_val_loss"]
        rows.append(
            [
                name,
                *map(common.format_loss, (final.train_loss, final.val_loss, lowest)),
                objective.format_score(final.val_score),
                f"{objective.format_score(best.val_score)} ({best.epoch})",
                f"{run.history.seconds.total:.2f}",
            ]
        )
    common.print_table(title, head, rows)
