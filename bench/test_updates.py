"""One step of each optimizer, of fastopt and of its peers; the answers are checked first."""

from __future__ import annotations

from typing import Any

import pytest

import fastopt as fo
from fastopt.benchmark import OPTIMIZERS, UpdateCase, measure_case

CASES = [
    pytest.param(case, marks=pytest.mark.slow if case.elements > 4 << 20 else [])
    for case in OPTIMIZERS.cases
]


@pytest.mark.parametrize("peer", OPTIMIZERS.peers)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(case: UpdateCase, peer: str, benchmark: Any) -> None:
    runner = OPTIMIZERS.peers[peer](case)
    if runner is None:
        pytest.skip(f"{peer} has no {case}")
    benchmark.group = str(case)
    benchmark(runner.run)
    if benchmark.stats is not None:
        speed = case.bytes_moved / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GB/s"] = round(speed, 2)
    benchmark.extra_info["instruction set"] = fo.active_isa()
    benchmark.extra_info["threads"] = fo.get_num_threads()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers(case: UpdateCase) -> None:
    result = measure_case(OPTIMIZERS, case, seconds=0)  # compares every peer with the reference
    assert set(result.seconds) >= {"fastopt", "reference"}
    assert set(result.ratios) == set(result.seconds) - {"fastopt"}
