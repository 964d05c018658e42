"""The formats of results (CSV, JSON, PNG), and the check of the folder for them."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._checks import as_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Fonts of Linux, Windows and macOS with the scripts that matplotlib's own font does not have.
FALLBACKS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)


def check_folder(folder: str | Path) -> None:
    """Create `folder` if it does not exist; OSError if files cannot be written into it."""
    folder = as_path("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` in the form of `to_csv`; return the path."""
    path.write_bytes(to_csv(rows).encode())
    return path


def write_json(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write `facts` in the form of `to_json`; return the path."""
    path.write_bytes(to_json(facts).encode())
    return path


def write_picture(path: Path, figure: Figure) -> Path:
    """Write `figure` as PNG; return the path."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    installed = {font.name for font in fontManager.ttflist}
    fallbacks = [name for name in FALLBACKS if name in installed]
    for shown in figure.findobj(Text) if fallbacks else ():
        assert isinstance(shown, Text)
        shown.set_fontfamily([*shown.get_fontfamily(), *fallbacks])
    png = io.BytesIO()
    with warnings.catch_warnings():
        # A picture shows a box for a character that no font has.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(png, dpi=150, format="png")
    path.write_bytes(png.getvalue())
    return path


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return `rows`, at least one and all with the same keys, as CSV with a header.

    Cells are written as they are: a spreadsheet takes a label such as =1+1 for a formula.
    """
    if not rows:
        raise ValueError("rows must hold at least one row")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(facts: Mapping[str, Any]) -> str:
    """Return `facts` as JSON with a line end; NaN and infinity become null."""
    return json.dumps(_strict(facts), indent=2, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """Return `value` in the types of JSON, with None for NaN and infinity."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
