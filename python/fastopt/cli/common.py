"""What the commands share: the console, one-line errors, tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastopt import train as ft

# Wide tables in logs; a label or path such as ":red:x" is no emoji.
console = Console(width=None if sys.stdout.isatty() else 140, emoji=False)


def say(text: str) -> None:
    """Print plain text."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def fail(message: object) -> NoReturn:
    """Print a one-line error and exit with code 2."""
    Console(stderr=True, soft_wrap=True, highlight=False, emoji=False).print(
        f"fastopt: error: {message}", style="bold red", markup=False
    )
    raise typer.Exit(2)


def parse_hidden(text: str) -> tuple[int, ...]:
    """Return the widths in a text such as ``128,64``; ``none`` is no hidden layer."""
    if text.strip().lower() == "none":
        return ()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if min(widths) < 1:
        fail(f"--hidden must be widths such as 128,64, or none, not {text!r}")
    return widths


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn what the user can mend into a message without a traceback."""
    try:
        yield
    except ft.ConfigError as error:
        fail(f"--{error.name.replace('_', '-')} {error.problem}")
    except ft.DataError as error:
        fail(error)
    except OSError as error:
        fail(f"cannot write into {folder}: {error.strerror or error}; choose another --output")


def wide_table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    """Return a table of names and numbers; the names are shown as they are, brackets and all."""
    table = Table(title=title, title_justify="left")
    table.add_column(Text(head[0]), no_wrap=True)
    for name in head[1:]:
        table.add_column(Text(name), justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
