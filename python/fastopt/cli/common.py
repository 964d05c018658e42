"""What the commands share: the console, options, one-line errors, the folder of results, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted, short_repr
from fastopt.train.checks import pip_name

T = TypeVar("T")
R = TypeVar("R")

# Wide tables in logs; a label or path such as ":red:x" is no emoji.
console = Console(width=None if sys.stdout and sys.stdout.isatty() else 140, emoji=False)


def say(text: str) -> None:
    """Print plain text."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def fail(message: object) -> NoReturn:
    """Print a one-line error and exit with code 2."""
    Console(stderr=True, soft_wrap=True, highlight=False, emoji=False).print(
        f"fastopt: error: {message}", style="bold red", markup=False
    )
    raise typer.Exit(2)


def parse_whole(text: str | int) -> int:
    """Return the whole number in a text."""
    try:
        number = int(text)
    except ValueError:
        number = 2**63
    if not abs(number) < 2**63:
        raise typer.BadParameter(f"must be a whole number of 64 bits, not {short_repr(text)}")
    return number


def parse_number(text: str | float) -> float:
    """Return the number in a text."""
    try:
        return float(text) + 0.0  # -0 is 0
    except ValueError:
        raise typer.BadParameter(f"must be a number, not {short_repr(text)}") from None


def parse_folder(text: str | Path) -> Path:
    """Return the path in a text."""
    if not str(text) or "\0" in str(text):
        raise typer.BadParameter(f"must be the path of a folder, not {short_repr(text)}")
    return Path(text)


# Options by kind; what typer would say of another text depends on its version.
Whole: Any = partial(typer.Option, parser=parse_whole, metavar="INTEGER")
Number: Any = partial(typer.Option, parser=parse_number, metavar="FLOAT")
Folder: Any = partial(typer.Option, parser=parse_folder, metavar="PATH")


def choices(text: str, names: Iterable[str], **options: Any) -> Any:
    """Return an option that takes one of `names`; they stand in the help, which may be narrow."""
    return typer.Option(metavar="NAME", help=f"{text}: {', '.join(names)}.", **options)


def check_range(option: str, value: float | None, least: float, most: float) -> None:
    """Fail if an option that was given is out of range."""
    if value is not None and not least <= value <= most:
        fail(f"{option} must be in {least} ... {most}, not {value}")


Threads = Annotated[
    int | None, Whole(help="Threads of fastopt's kernels, at most 4096.", show_default="all")
]


def use_threads(threads: int | None) -> None:
    """Set the number of threads, if it was given."""
    check_range("--threads", threads, 1, 4096)
    if threads is not None:
        fo.set_num_threads(threads)


def parse_hidden(text: str) -> tuple[int, ...]:
    """Return the widths in a text such as ``128,64``; ``none`` is no hidden layer."""
    if text.strip().lower() == "none":
        return ()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if not all(1 <= width < 2**31 for width in widths):
        fail(f"--hidden must be widths such as 128,64, or none, not {short_repr(text)}")
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
    except MemoryError:
        fail("there is not enough memory; choose smaller sizes or less data")
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        fail(f"cannot write into {folder}: {reason or error}; choose another --output")


@contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Make sure that results can be written into `folder`; it does not stay if there are none."""
    for package in ("matplotlib", "sklearn"):  # they are imported when the work is done
        if find_spec(package) is None:
            fail(
                f"the command needs {pip_name(package)}; install it with: "
                "pip install 'fastopt[train]' (in a checkout: '.[train]')"
            )
    made: list[Path] = []
    try:
        with one_line_errors(folder):
            made += [path for path in (folder, *folder.parents) if not path.exists()]
            ft.check_folder(folder)
            yield
    finally:
        try:
            for path in made:
                path.rmdir()
        except OSError:
            pass  # it is not empty


FEW = 5  # samples of a class, on average: with fewer the targets may be numbers to predict


def describe_data(data: ft.Data) -> None:
    """Say what the data are; warn if the classes may be numbers."""
    say(f"data       {data}")
    samples = len(data.y_train) + len(data.y_val)
    if data.task == "classification" and samples < FEW * len(data.labels):
        say(
            f"warning: {len(data.labels)} classes in {samples} samples, fewer than {FEW} samples a "
            "class; if the targets are numbers to predict, use --task regression"
        )


def each(items: Sequence[T], what: str, call: Callable[[T], R]) -> list[R]:
    """Return what `call` gives for each item; after Ctrl-C, for those that are done."""
    results: list[R] = []
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            for item in progress.track(items, description=what):
                results.append(call(item))
    except KeyboardInterrupt:
        if not results:
            raise
    return results


def check_end(done: int, wanted: int, noun: str, hint: str = "") -> None:
    """Say that Ctrl-C left something out, and exit with code 130, if it did."""
    if done < wanted:
        say(f"interrupted after {done} of {counted(wanted, noun)}{hint}")
        raise typer.Exit(130)


def written(folder: Path, files: list[Path]) -> None:
    """Say which files there are now."""
    say(f"wrote into {folder}: " + ", ".join(file.name for file in files))


def wide_table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    """Return a table of names and numbers; the names are shown as they are, brackets and all."""
    table = Table(title=title, title_justify="left")
    table.add_column(Text(head[0]), no_wrap=True)
    for name in head[1:]:
        table.add_column(Text(name), justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
