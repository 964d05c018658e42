"""Which names are public."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any, get_type_hints

import pytest

import fastopt as fo
from fastopt import _settings


def test_public_are_the_names_of_these_modules() -> None:
    modules = {"checkpoint", "functional", "losses", "optim", "reference", "schedules", "testing"}
    names = {"__version__", "Checkpoint", "CheckpointError", "load", "save"}
    for module in (fo.optim, fo.losses, fo.schedules, _settings):
        names.update(module.__all__)
    assert set(fo.__all__) == modules | names
    assert len(fo.__all__) == len(set(fo.__all__))


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


def functions_of(thing: Any) -> list[Any]:
    """The function itself, or the constructor and the public methods of the class."""
    if not inspect.isclass(thing):
        return [thing] if inspect.isfunction(thing) else []
    names = [n for n in dir(thing) if not n.startswith("_") or n in ("__init__", "__call__")]
    members = (inspect.getattr_static(thing, name) for name in names)
    found = (getattr(m, "fget", None) or getattr(m, "__func__", m) for m in members)
    return [function for function in found if inspect.isfunction(function)]


@pytest.mark.parametrize(
    "module",
    [
        "",
        "functional",
        "checkpoint",
        "reference",
        "testing",
        "torch",
        "torch.functional",
        "train",
        "train.experiments",
    ],
)
def test_type_hints_can_be_evaluated(module: str) -> None:
    if module.startswith("torch"):
        pytest.importorskip("torch")
    imported = import_module(f"fastopt.{module}".rstrip("."))
    for name in imported.__all__:
        for function in functions_of(getattr(imported, name)):
            # Types of matplotlib and MPI, which are imported when they are used, are passed here.
            get_type_hints(function, localns={"Figure": object, "Sharded": object})
