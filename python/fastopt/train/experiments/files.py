"""Tables, facts and pictures as files, written whole or not at all."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt._files import write_whole
from fastopt.train.report import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return _write(path, text.getvalue())


def write_json(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write `facts` as strict JSON: NaN and infinity become null."""
    return _write(path, to_json(facts))


def write_picture(path: Path, figure: Figure) -> Path:
    """Write `figure` as PNG."""
    with warnings.catch_warnings():
        # A picture shows a box for a character that the font does not have.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        write_whole(path, lambda file: figure.savefig(file, dpi=150, format="png"))
    return path


def _write(path: Path, text: str) -> Path:
    write_whole(path, lambda file: file.write(text.encode()))
    return path
