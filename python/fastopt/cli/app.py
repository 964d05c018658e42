"""The command ``fastopt`` and its subcommands; `fastopt.train` does the work."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperGroup

import fastopt as fo
from fastopt.cli.bench import bench
from fastopt.cli.common import console, fail, say
from fastopt.cli.compare import compare
from fastopt.cli.landscape import landscape
from fastopt.cli.predict import predict
from fastopt.cli.sweep import sweep
from fastopt.cli.train import train

# The base of BadParameter in click; some versions of typer contain a copy of click.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


class Commands(TyperGroup):
    """All commands; refused options and Ctrl-C end them with one line."""

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
    help="Train models from NumPy with fastopt's optimizers and losses.",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(wanted: bool) -> None:
    """Print the version and exit, if `wanted`."""
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
    """Print versions, instruction sets and threads, for a bug report."""
    say(fo.show_config())


app.command()(train)
app.command()(predict)
app.command()(compare)
app.command()(sweep)
app.command()(landscape)
app.command()(bench)
