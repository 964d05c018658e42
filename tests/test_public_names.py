"""Which names are public, and which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt as fo
from fastopt import _settings

PACKAGE = Path(fo.__file__).parent
TOOLS = ("train", "cli", "benchmark")  # they use the public names
CORE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in (*TOOLS, "__init__.py", "__main__.py")
]


def test_public_are_the_names_of_these_modules() -> None:
    modules = {"checkpoint", "functional", "losses", "optim", "reference", "schedules", "testing"}
    names = {"__version__", "Checkpoint", "CheckpointError", "load", "save"}
    for module in (fo.optim, fo.losses, fo.schedules, _settings):
        names.update(module.__all__)
    assert set(fo.__all__) == modules | names
    assert len(fo.__all__) == len(set(fo.__all__))


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_of_the_core_imports_what_stands_above_it(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module != "fastopt", "import from the module itself"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "fastopt" not in names


def test_train_is_there_when_it_is_used() -> None:
    code = "import sys, fastopt as fo; assert 'fastopt.train' not in sys.modules; fo.train.Trainer"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_says_what_to_install() -> None:
    code = """
import sys
sys.modules["threadpoolctl"] = None
import fastopt as fo
try:
    fo.train
except ModuleNotFoundError as error:
    assert "pip install 'fastopt[train]'" in str(error), error
else:
    raise AssertionError("there is no threadpoolctl")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
