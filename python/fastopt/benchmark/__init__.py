"""Timing the optimizers beside their peers: what ``fastopt bench`` and ``bench/`` run."""

from __future__ import annotations

from fastopt.benchmark.cases import CASES, Case
from fastopt.benchmark.peers import PEERS, make_step
from fastopt.benchmark.report import plot_results, write_results
from fastopt.benchmark.timing import (
    Bandwidth,
    Result,
    make_grads,
    make_params,
    measure_bandwidth,
    measure_case,
)

__all__ = [
    "CASES",
    "PEERS",
    "Bandwidth",
    "Case",
    "Result",
    "make_grads",
    "make_params",
    "make_step",
    "measure_bandwidth",
    "measure_case",
    "plot_results",
    "write_results",
]
