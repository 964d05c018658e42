"""Runs the code blocks of a page, for the tests and for the pictures of the site.

The Python blocks of a page run in order and share one namespace. A ``text`` block shows the output
of the Python block before it. Only the last digit of a fraction or a percentage may differ by one,
because BLAS libraries and libm round differently.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]\d+)?|-?\d+(?:e[+-]\d+|(?=%))")
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


def make_pictures(docs: Path, say: Callable[[str], object]) -> None:
    """Run each page that has pictures; they are written into the folder ``pictures`` beside it."""
    for page in sorted(docs.rglob("*.md")):
        if "_build" in page.parts or not pictures(page):
            continue
        say(f"pictures of {page.relative_to(docs)}")
        folder = page.parent / "pictures"
        folder.mkdir(exist_ok=True)
        run_python(page, folder)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
