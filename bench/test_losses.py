"""Each loss with its gradient, of fastopt and of its peers; the answers are checked first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import fastopt as fo
from fastopt.benchmark import LOSSES, LossCase, measure_case

CASES = [
    pytest.param(case, marks=pytest.mark.slow if case.elements > 1 << 24 else [])
    for case in LOSSES.cases
]


@pytest.mark.parametrize("peer", LOSSES.peers)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_grad(case: LossCase, peer: str, benchmark: Any) -> None:
    runner = LOSSES.peers[peer](case)
    if runner is None:
        pytest.skip(f"{peer} has no {case}")
    benchmark.group = str(case)
    if runner.prepare is None:
        benchmark(runner.run)
    else:  # logits that a call spends are restored beside the clock
        benchmark.pedantic(runner.run, setup=runner.prepare, rounds=20, warmup_rounds=1)
    if benchmark.stats is not None:
        speed = case.bytes_moved / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GB/s"] = round(speed, 2)
    benchmark.extra_info["instruction set"] = fo.active_isa()
    benchmark.extra_info["threads"] = fo.get_num_threads()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers(case: LossCase) -> None:
    if case.elements > 1 << 22:  # the truth takes float64 and NumPy: a part of the batch will do
        case = replace(case, shape=(max(1, case.shape[0] >> 4), *case.shape[1:]))
    result = measure_case(LOSSES, case, seconds=0)  # compares every peer with float64
    assert set(result.seconds) >= {"fastopt", "reference"}
    assert set(result.ratios) == set(result.seconds) - {"fastopt"}
