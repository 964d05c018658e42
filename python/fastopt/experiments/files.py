"""Files that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt import train as ft

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which becomes `path` if nothing goes wrong."""
    part = path.with_name(f".part-{path.name}")  # the ending tells Pillow the format
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows`, which have the same keys, as CSV."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write `facts` as strict JSON: NaN and infinity become null."""
    with replacing(path) as part:
        part.write_text(ft.to_json(facts), encoding="utf-8")
    return path


def write_picture(path: Path, figure: Figure) -> Path:
    """Write `figure` as PNG."""
    with replacing(path) as part, warnings.catch_warnings():
        # A name in a script that the font lacks is a box in the picture.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(part, dpi=150)
    return path
