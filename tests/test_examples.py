"""Each program in ``examples/`` runs, reaches the score that it asserts, and is on the site."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import pages

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text("utf-8")
    if "pip install '.[train]'" in text:
        for package in ("matplotlib", "sklearn", "threadpoolctl"):
            pytest.importorskip(package)
    if "Needs torch and matplotlib" in text:
        for package in ("matplotlib", "torch"):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
            sys.modules["matplotlib"].rcdefaults()
    for picture in tmp_path.glob("*.png"):
        shown = ROOT / "docs" / "pictures" / picture.name
        assert pages.same_picture(shown, picture), f"{shown} is old; run: python docs/pages.py"


def test_the_site_lists_every_example() -> None:
    text = (ROOT / "docs" / "examples.md").read_text("utf-8")
    assert [p.name for p in EXAMPLES if f"(../examples/{p.name})" not in text] == []
