"""The other programs of this folder run, and a step's overhead in instructions stays what it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

import instructions
import sweep
from fastopt import _core


def test_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, tuple[Any, Any]] = {}
    monkeypatch.setattr(sweep, "K", 64)  # small arrays
    monkeypatch.setattr(sweep, "show", lambda title, *table: tables.update({title: table}))
    names = ("chunk_size", "serial_size", "wake_size", "turn_size", "spin_ns")
    before = [getattr(_core.tuning, name) for name in names]
    sweep.main(rounds=1)
    assert [getattr(_core.tuning, name) for name in names] == before
    assert len(tables) == 4
    for head, rows in tables.values():
        assert rows
        for label, values in rows:
            assert len(values) == len(head) - 1, label
            assert all(0 < value < float("inf") for value in values), label


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_instructions() -> None:
    one = instructions.per_step("AdamW, 1 parameter")
    many = instructions.per_step("AdamW, 200 tensors of 1")
    assert 1000 < one < 13_000
    assert 100 < (many - one) / 199 < 900
