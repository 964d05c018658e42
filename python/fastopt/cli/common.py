"""The common parts of the commands: console, options, errors, the folder of results, tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted, short_repr

T = TypeVar("T")
R = TypeVar("R")

LOG = 1 << 16  # columns: the lines of a log are not wrapped
console = Console(width=None if sys.stdout and sys.stdout.isatty() else LOG)


def plain(text: object) -> Text:
    """Return a line for the terminal: brackets are not styles, control characters are escaped."""
    chars = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return Text("".join(chars))


def say(text: object) -> None:
    """Print lines of text; a terminal gets whole words."""
    for line in str(text).split("\n"):
        console.print(plain(line))


def say_fact(name: str, text: object) -> None:
    """Print a named fact of a run; further lines are indented."""
    grid = Table.grid(Column(width=10), Column(overflow="fold"), padding=(0, 1))
    grid.add_row(name, plain(text))
    console.print(grid)


def say_command(command: str) -> None:
    """Print a command line; on a narrow terminal, its lines end with a backslash."""
    lines = ["  "]
    for word in shlex.split(command):
        if len(lines[-1]) + cell_len(word := shlex.quote(word)) > console.width - 3:
            lines[-1] += "\\"
            lines.append("    ")
        lines[-1] += f"{word} "
    say("\n".join(lines).rstrip())


def fail(message: object) -> NoReturn:
    """Print a one-line error and exit with code 2."""
    errors = Console(width=None if sys.stderr and sys.stderr.isatty() else LOG, stderr=True)
    errors.print(plain(f"fastopt: error: {message}"), style="bold red")
    raise typer.Exit(2)


def parse_whole(text: str | int) -> int:
    """Return the integer in a text."""
    try:
        number = int(text)
    except ValueError:
        number = 2**63
    if not abs(number) < 2**63:
        raise typer.BadParameter(f"must be an integer of 64 bits, not {short_repr(text)}")
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


def parse_data(text: str) -> str:
    """Return the name or the path in a text."""
    if "://" in text:
        raise typer.BadParameter(
            f"must be a name or a path, not the URL {short_repr(text)}; download the file first"
        )
    return text


def parse_hidden(text: str) -> tuple[int, ...]:
    """Return the widths in a text such as ``128,64``; ``none`` means no hidden layer."""
    if text.strip().lower() == "none":
        return ()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if not all(1 <= width < 2**31 for width in widths):
        fail(f"--hidden must be widths such as 128,64, or none, not {short_repr(text)}")
    return widths


def parse_names(option: str, text: str, names: Iterable[str]) -> list[str]:
    """Return the names in a text such as ``sgd,adam``; ``all`` means all `names`."""
    names = list(names)
    found = [part.strip().lower() for part in text.split(",")]
    if found == ["all"]:
        return names
    for name in found:
        if name not in names:
            taken = f"one or more of {', '.join(names)}, or all"
            fail(f"{option} must be {taken}, not {short_repr(name)}")
    refuse_repeats(option, found)
    return found


def refuse_repeats(option: str, values: Iterable[object]) -> None:
    """Fail if a value appears twice."""
    seen = set()
    for value in values:
        if value in seen:
            fail(f"{option} has {value} twice")
        seen.add(value)


def check_range(option: str, value: float | None, least: float, most: float) -> None:
    """Fail if a given option is out of range."""
    if value is not None and not least <= value <= most:
        fail(f"{option} must be in {least:.10g} ... {most:.10g}, not {value}")


# Options by kind, because the messages of typer depend on its version.
Whole: Any = partial(typer.Option, parser=parse_whole, metavar="INTEGER")
Number: Any = partial(typer.Option, parser=parse_number, metavar="FLOAT")
Folder: Any = partial(typer.Option, parser=parse_folder, metavar="PATH")


def one_of(text: str, names: Iterable[str], **options: Any) -> Any:
    """Return an option that takes one of `names`. The help lists them: it may break the list."""
    return typer.Option(metavar="NAME", help=f"{text}: {', '.join(names)}.", **options)


def several(text: str, names: Iterable[str], more: str = "", **options: Any) -> Any:
    """Return an option that takes several of `names`, for `parse_names`."""
    text = f"{text}: {', '.join(names)}; or all. {more}"
    return typer.Option(metavar="LIST", help=text.rstrip(), **options)


def by_optimizer(name: str) -> str:
    """Return the defaults of the optimizers for an option: 0.01 adamw, 0 others."""
    own = {key: getattr(choice, name) for key, choice in ft.OPTIMIZERS.items()}
    own = {key: value for key, value in own.items() if value is not None}
    usual = max(own.values(), key=list(own.values()).count)
    special = [f"{value:g} {key}" for key, value in own.items() if value != usual]
    return ", ".join([*special, f"{usual:g} others"])


DEFAULTS = ft.RunConfig()
HIDDEN = ",".join(map(str, DEFAULTS.hidden))
DataName = Annotated[
    str,
    typer.Option(
        parser=parse_data,
        metavar="NAME|PATH",
        help=f"{', '.join(ft.BUNDLED)}; a table (.csv, .tsv, .gz, .parquet); .npz (X, y); a folder "
        "of MNIST's idx files.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of the table to predict: its name, or its number from 1 on.",
        show_default="the last",
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN", help="Column to leave out; give the option again for each further one."
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        metavar="CHAR",
        help="Delimiter of a CSV file: a character, or tab, comma, semicolon, space.",
        show_default="found",
    ),
]
Header = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether line 1 of a CSV file names the columns.",
        show_default="found",
    ),
]
TaskName = Annotated[str | None, one_of("Task", ft.TASKS, show_default="that of the data")]
Epochs = Annotated[int, Whole(help="Passes over the training data.")]
Hidden = Annotated[
    str,
    typer.Option(metavar="WIDTHS", help="Widths of the hidden layers, such as 128,64, or none."),
]
MaxNorm = Annotated[
    float | None, Number(help="Clip the gradients to this norm.", show_default="no clipping")
]
Seed = Annotated[
    int, Whole(help="Seed of all random numbers: split, weights, order, dropout, draws.")
]
Threads = Annotated[
    int | None, Whole(help="Threads of fastopt's kernels, at most 4096.", show_default="all")
]


def use_threads(threads: int | None) -> None:
    """Set the number of threads, if it is given."""
    check_range("--threads", threads, 1, 4096)
    if threads is not None:
        fo.set_num_threads(threads)


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Print an error that the user can correct in one line, and exit with code 2."""
    try:
        yield
    except ft.ConfigError as error:
        fail(f"--{error.name.replace('_', '-')} {error.problem}")
    except (ft.DataError, fo.CheckpointError, ModuleNotFoundError) as error:
        fail(error)
    except MemoryError:
        fail("there is not enough memory; choose smaller sizes or less data")
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        fail(f"cannot write into {folder}: {reason or error}; choose another --output")


@contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Check that results can be written into `folder`; remove the folder if there are none."""
    # They are imported at the end of the work.
    for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if find_spec(module) is None:
            fail(
                f"the command needs {package}; install it with: "
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
            pass  # the folder is not empty


FEW = 5  # samples of a class, on average: with fewer the targets may be numbers to predict


def describe_data(data: ft.Data) -> None:
    """Print a description of the data; warn if the classes may be numbers."""
    say_fact("data", data)
    for note in data.notes:
        say_fact("", note)
    samples = len(data.y_train) + len(data.y_val)
    if data.task == "classification" and samples < FEW * len(data.labels):
        say(
            f"warning: {len(data.labels)} classes in {samples} samples, fewer than {FEW} samples a "
            "class; if the targets are numbers to predict, use --task regression"
        )


def score_text(objective: ft.Objective, score: float) -> str:
    """Return a score with its name."""
    return f"{objective.score_name} {objective.format_score(score)}"


def format_loss(loss: float) -> str:
    """Return a loss with four decimals, or with an exponent if it is huge."""
    return f"{loss:.4g}" if abs(loss) >= 1e5 else f"{loss:.4f}"


def progress(name: str, state: str, more: str = "") -> Progress:
    """Return lines of live progress, which a log does not get; names are folded.

    The texts are formats of `rich.progress.TextColumn`. A narrow terminal does not show `more`.
    """
    columns = [
        TextColumn(name, table_column=Column()),
        BarColumn(),
        TextColumn(state),
        *([TextColumn(more)] if more and console.width >= 80 else []),
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=console, disable=not console.is_terminal)


def each(
    items: Sequence[T], what: str, call: Callable[[T], R]
) -> tuple[list[R], BaseException | None]:
    """Return the results of `call` for the items, and the exception that has ended this early."""
    results: list[R] = []
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for item in bar.track(items, description=what):
                if not console.is_terminal:
                    say(f"{what} {len(results) + 1}/{len(items)}: {item}")
                results.append(call(item))
    except (KeyboardInterrupt, MemoryError) as error:
        if not results:
            raise
        return results, error
    return results, None


def check_end(
    done: int, wanted: int, noun: str, hint: str = "", error: BaseException | None = None
) -> None:
    """If results are missing, print this and exit, with code 130 after Ctrl-C."""
    if isinstance(error, MemoryError):
        fail(f"there is not enough memory; {done} of {counted(wanted, noun)} are written")
    if done < wanted:
        say(f"interrupted after {done} of {counted(wanted, noun)}{hint}")
        raise typer.Exit(130)


def written(folder: Path, files: list[Path]) -> None:
    """Print the names of the written files."""
    say(f"wrote into {folder}: " + ", ".join(file.name for file in files))


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of names and numbers; without a `head` it has only rows.

    Numbers are never cut: names are folded, and columns that do not fit form another table below.
    """
    lines = [[plain(cell) for cell in line] for line in (head or [""] * len(rows[0]), *rows)]
    names, *numbers = zip(*lines, strict=True)
    longest = max(name.cell_len for name in names)
    words = (cell_len(word) for name in names for word in name.plain.split())
    least = min(longest, max(words, default=1), 20)
    widths = [
        max(map(cell_len, [*top.plain.split(), *(cell.plain for cell in cells)]))
        for top, *cells in numbers
    ]
    parts: list[list[int]] = []
    room = 0
    for i, width in enumerate(widths, 1):
        if not parts or width + 3 > room:  # the padding and the line of a cell take 3
            parts.append([])
            room = console.width - least - 4
        parts[-1].append(i)
        room -= width + 3
    console.print(plain(title), style="table.title")
    for part in parts:
        room = console.width - 4 - sum(widths[i - 1] + 3 for i in part)
        table = Table(show_header=bool(head))
        table.add_column(names[0], width=min(longest, max(least, room)), overflow="fold")
        for i in part:
            table.add_column(lines[0][i], width=widths[i - 1], justify="right", overflow="fold")
        for line in lines[1:]:
            table.add_row(line[0], *(line[i] for i in part))
        console.print(table)
