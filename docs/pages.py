"""Runs the code blocks of a page, for the tests and for the pictures of the site.

``python docs/pages.py`` draws the pictures again; ``python docs/pages.py PAGE ...`` those of pages.

The Python blocks of a page run in order and share one namespace. A ``text`` block shows the output
of the Python block before it. Only the last digit of a fraction or a percentage may differ by one,
because BLAS libraries and libm round differently.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]\d+)?|-?\d+(?:e[+-]\d+|(?=%))")

# Pictures that a command writes: its arguments to Python, and the file.
EXAMPLES = Path(__file__).parent.parent / "examples"
BY_COMMANDS = {
    "spiral.png": (f"{EXAMPLES}/spiral.py", "spiral.png"),
    "torch_char_lm.png": (f"{EXAMPLES}/torch_char_lm.py", "torch_char_lm.png"),
    "train.png": ("-m fastopt train", "fastopt-run/loss.png"),
}

PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+\.(?:png|gif|svg))\)")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    code: str
    line: int  # of its first line of code, from 1


class PageError(AssertionError):
    """A block of a page fails or prints something else; the message names page and line."""


def read_blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a Markdown page, without directives such as ``{math}``."""
    fence, language, first = "", "", 0
    lines: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if not fence:
            if opening := re.fullmatch(r"(```+)(.*)", line):
                fence, language = opening[1], opening[2].strip()
                first, lines = number + 1, []
        elif line == fence:
            if not language.startswith("{"):
                yield Block(language, "".join(f"{line}\n" for line in lines), first)
            fence = ""
        else:
            lines.append(line)
    if fence:
        raise PageError(f"{page}:{first - 1}: the block is not closed")


def run_python(page: Path, folder: Path) -> None:
    """Run the Python blocks of a page in `folder`, with warnings as errors.

    Raises
    ------
    PageError
        If a block fails, or if its output differs from that on the page.
    """
    blocks = list(read_blocks(page))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with _working_in(folder), warnings.catch_warnings():
        warnings.simplefilter("error")
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            if block.language != "python":
                continue
            where = f"{page}:{block.line}"
            # The blank lines give tracebacks the line numbers of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec(code, namespace)
            except Exception as error:
                raise PageError(f"{where}: {type(error).__name__}: {error}") from error
            shown = after.code if after is not None and after.language == "text" else ""
            if not same_output(printed.getvalue(), shown):
                raise PageError(
                    f"{where}: the block prints\n{printed.getvalue()}\nbut the page shows\n{shown}"
                )


def same_output(printed: str, shown: str) -> bool:
    """Return whether texts are equal, up to one unit in the last digit of each `NUMBER`."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(
        a == b or abs(Decimal(a) - Decimal(b)) <= Decimal(1).scaleb(Decimal(b).as_tuple().exponent)  # type: ignore[arg-type]
        for a, b in pairs
    )


def pictures(page: Path) -> list[tuple[str, str]]:
    """Return the pictures of a page: the alternative text and the path of each."""
    return PICTURE.findall(page.read_text("utf-8"))


def draw(page: Path, folder: Path) -> list[Path]:
    """Run a page in `folder`; return the pictures that it wrote there."""
    run_python(page, folder)
    return sorted(folder.glob("*.png"))


def same_picture(a: Path, b: Path) -> bool:
    """Return whether two pictures look the same from afar; fonts and last digits may differ."""
    from PIL import Image  # it comes with matplotlib

    sizes, small = set(), []
    for path in a, b:
        with Image.open(path) as picture:
            sizes.add(picture.size)
            small.append(np.asarray(picture.convert("L").resize((96, 48), Image.Resampling.BOX)))
    difference = np.abs(small[0].astype(float) - small[1])
    return len(sizes) == 1 and bool(difference.mean() < 1)


def main() -> None:
    """Draw the pictures of all pages again, or of the pages that are named."""
    docs = Path(__file__).parent
    for page in [Path(name) for name in sys.argv[1:]] or sorted(docs.rglob("*.md")):
        if {Path(path).name for _, path in pictures(page)} - {*BY_COMMANDS}:
            print(page, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                for path in draw(page, Path(folder)):
                    _keep(path, page.parent / "pictures" / path.name)
    for picture, (command, file) in BY_COMMANDS.items() if not sys.argv[1:] else ():
        print(command, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, *command.split()], cwd=folder, check=True)
            _keep(Path(folder, file), docs / "pictures" / picture)


def _keep(path: Path, place: Path) -> None:
    """Put a picture into the repository, as a small file."""
    from PIL import Image  # it comes with matplotlib

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(64).save(place, optimize=True)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "Agg"
    main()
