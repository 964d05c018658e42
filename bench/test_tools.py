"""The other programs of this folder run, and a step's overhead in instructions stays what it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

import instructions
import sweep
from fastopt import _core


def test_sweep(capsys: Any) -> None:
    names = ("chunk_size", "serial_size", "wake_size", "turn_size", "spin_ns")
    before = [getattr(_core.tuning, name) for name in names]
    sweep.main(rounds=1)
    assert [getattr(_core.tuning, name) for name in names] == before
    out = capsys.readouterr().out
    for title in ("chunk size", "serial or not", "direction", "spin time"):
        assert title in out


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_instructions() -> None:
    one = instructions.per_step("AdamW, 1 parameter")
    many = instructions.per_step("AdamW, 200 tensors of 1")
    assert 1000 < one < 13_000
    assert 100 < (many - one) / 199 < 900
