"""Which names are public."""

from __future__ import annotations

import subprocess
import sys

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
