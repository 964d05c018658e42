"""One step of each optimizer, of fastopt and of its peers; the answers are checked first."""

from __future__ import annotations

from typing import Any

import pytest

import fastopt as fo
from fastopt.benchmark import CASES, PEERS, Case, make_grads, make_params, make_step, measure_case


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.elements > 4 << 20 else []) for c in CASES],
    ids=str,
)
def test_step(case: Case, peer: str, benchmark: Any) -> None:
    runner = make_step(peer, case, make_params(case), make_grads(case))
    if runner is None:
        pytest.skip(f"{peer} has no {case}")
    benchmark.group = str(case)
    benchmark(runner.step)
    if benchmark.stats is not None:
        speed = case.bytes_moved / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GB/s"] = round(speed, 2)
    benchmark.extra_info["instruction set"] = fo.active_isa()
    benchmark.extra_info["threads"] = fo.get_num_threads()


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.elements > 4 << 20 else []) for c in CASES],
    ids=str,
)
def test_answers(case: Case) -> None:
    result = measure_case(case, seconds=0)  # compares every peer with the reference
    assert set(result.seconds) >= {"fastopt", "reference"}
    assert set(result.ratios) == set(result.seconds) - {"fastopt"}
