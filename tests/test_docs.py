"""The site: every code block runs and shows what is true, every public name has an entry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pages

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
SITE = [page.relative_to(DOCS).as_posix() for page in PAGES]

# Packages beyond NumPy that a page's blocks import.
NEEDS = {
    "lessons/gradient-descent.md": ["matplotlib"],
    "lessons/losses.md": ["matplotlib"],
    "lessons/neuron.md": ["matplotlib"],
    "lessons/optimizers.md": ["matplotlib"],
    "tour.md": ["safetensors"],
}


def blocks(name: str, language: str) -> list[pages.Block]:
    return [b for b in pages.read_blocks(DOCS / name) if b.language == language]


@pytest.mark.parametrize("name", [name for name in SITE if blocks(name, "python")])
def test_the_python_blocks_run_and_print_what_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pages.run_python(DOCS / name, tmp_path)
    shown = pages.pictures(DOCS / name)
    assert all(alt for alt, _ in shown)
    assert sorted(path for _, path in shown) == sorted(
        f"pictures/{file.name}" for file in tmp_path.iterdir() if file.suffix == ".png"
    )
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
