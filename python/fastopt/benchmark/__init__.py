"""Timing fastopt beside its peers: what ``fastopt bench`` and ``bench/`` run."""

from __future__ import annotations

from typing import Any

from fastopt.benchmark.loss_cases import LossCase
from fastopt.benchmark.loss_peers import LOSSES
from fastopt.benchmark.report import table_head, table_row, write_results
from fastopt.benchmark.timing import (
    Bandwidth,
    Case,
    Result,
    Runner,
    Suite,
    measure_bandwidth,
    measure_case,
    torch,
)
from fastopt.benchmark.torch_peers import TORCH
from fastopt.benchmark.type_cases import TypeCase
from fastopt.benchmark.type_peers import TYPES
from fastopt.benchmark.update_cases import UpdateCase
from fastopt.benchmark.update_peers import OPTIMIZERS

_suites: list[Suite[Any]] = [OPTIMIZERS, TYPES, LOSSES, *([TORCH] if torch else [])]
SUITES: dict[str, Suite[Any]] = {suite.name: suite for suite in _suites}

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "SUITES",
    "TORCH",
    "TYPES",
    "Bandwidth",
    "Case",
    "LossCase",
    "Result",
    "Runner",
    "Suite",
    "TypeCase",
    "UpdateCase",
    "measure_bandwidth",
    "measure_case",
    "table_head",
    "table_row",
    "write_results",
]
