"""The command ``fastopt`` and its subcommands; `fastopt.train` does the work."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

import fastopt as fo
from fastopt.cli import ranks
from fastopt.cli.bench import bench
from fastopt.cli.common import fail, say
from fastopt.cli.compare import compare
from fastopt.cli.landscape import landscape
from fastopt.cli.predict import predict
from fastopt.cli.sweep import sweep
from fastopt.cli.train import train
from fastopt.train.experiments import AXES

# The base of BadParameter in click; some versions of typer contain a copy of click.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


# The groups of options in the help of a command that reads data.
GROUPS = {
    "Values to try": "trials",
    "Data": "data task target drop",
    "CSV files": "delimiter header",
    "Model and loss": "hidden activation dropout loss label_smoothing",
    "Optimizer": "optimizer lr weight_decay momentum schedule warmup accumulate ema",
    "Training": "batch_size epochs max_norm patience seed",
    "Run and results": "checkpoint resume workers jobs threads output help",
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}


def for_help(options: list[Any]) -> list[Any]:
    """Put options into their groups, and show flags without a type."""
    reads_data = any(option.name == "data" for option in options)
    for option in options:
        if getattr(option, "is_flag", False):
            option.metavar = ""
        if reads_data and option.param_type_name == "option":
            varies = option.metavar == "LIST" and option.name in AXES
            option.rich_help_panel = "Values to try" if varies else GROUP_OF.get(option.name)
    return options


class Command(TyperCommand):
    """A command with groups of options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its options."""
        return for_help(super().get_params(ctx))


class Commands(TyperGroup):
    """All commands; refused options and Ctrl-C end them with one line."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options that come before a command."""
        return for_help(super().get_params(ctx))

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run one of them and exit."""
        try:
            sys.exit(super().main(*args, **options | {"standalone_mode": False}))
        except UsageError as error:
            try:
                if text := _text(error):
                    fail(text)
            except typer.Exit:
                pass
            sys.exit(2)

    def invoke(self, context: Any) -> Any:
        """Run one of them."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None


def _text(error: typer.BadParameter) -> str:
    """Return the error of the command line; nothing if it was empty and help was printed."""
    param = getattr(error, "param", None)
    if param is not None and error.message:
        return f"{max(param.opts, key=len)} {error.message}"
    text = error.format_message()
    return f"{text} (see {error.ctx.command_path} --help)" if text and error.ctx else text


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
    if wanted:
        say(f"fastopt {fo.__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Train models from NumPy with fastopt's optimizers and losses.

    To begin:

      fastopt train --data iris

    Each command has a --help with its options and examples.
    """
    size = ranks.launched()[1]
    if size > 1 and (name := context.invoked_subcommand) not in ("train", "sweep", "bench", "info"):
        fail(
            f"{name} runs in one process, not in {size}; train, sweep, bench distributed and info "
            "take mpiexec"
        )


@app.command(cls=Command)
def info() -> None:
    """Print versions, instruction sets and threads, for a bug report."""
    say(fo.show_config())


for command in (train, predict, compare, sweep, landscape, bench):
    app.command(cls=Command)(command)
