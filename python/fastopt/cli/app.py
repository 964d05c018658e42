"""The command ``fastopt`` and its subcommands; the work is done in `fastopt.train`."""

from __future__ import annotations

from typing import Annotated

import typer

import fastopt as fo
from fastopt.cli.bench import bench
from fastopt.cli.common import console, say
from fastopt.cli.compare import compare
from fastopt.cli.landscape import landscape
from fastopt.cli.sweep import sweep
from fastopt.cli.train import train

app = typer.Typer(
    help="Train models from NumPy with fastopt's optimizers and losses.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that is wanted."""
    if wanted:
        console.print(f"fastopt {fo.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Train models from NumPy with fastopt's optimizers and losses."""


@app.command()
def info() -> None:
    """Print versions, instruction sets and threads: what a report of a problem needs."""
    say(fo.show_config())


app.command()(train)
app.command()(compare)
app.command()(sweep)
app.command()(landscape)
app.command()(bench)
