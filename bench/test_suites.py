"""Each case of the suites, of fastopt and of its peers; the answers are checked first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import pytest

import fastopt as fo
from fastopt.benchmark import SUITES, LossCase, Suite, TypeCase, UpdateCase, measure_case

AnyCase: TypeAlias = UpdateCase | TypeCase | LossCase

LARGE = {
    "optimizers": 4 << 20,
    "types": 1 << 17,
    "losses": 1 << 24,
    "torch": 1 << 20,
}  # elements: cases beyond them are slow
CASES = [
    pytest.param(
        suite, case, marks=pytest.mark.slow if case.elements > LARGE[name] else [], id=str(case)
    )
    for name, suite in SUITES.items()
    for case in suite.cases
]
PEERS = dict.fromkeys(peer for suite in SUITES.values() for peer in suite.peers)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("suite", "case"), CASES)
def test_call(suite: Suite[Any], case: AnyCase, peer: str, benchmark: Any) -> None:
    runner = suite.peers[peer](case) if peer in suite.peers else None
    if runner is None:
        pytest.skip(f"{peer} has no {case}")
    benchmark.group = str(case)
    if runner.prepare is None:
        benchmark(runner.run)
    else:  # logits that a call overwrites are restored, which is not timed
        benchmark.pedantic(runner.run, setup=runner.prepare, rounds=20, warmup_rounds=1)
    if benchmark.stats is not None:
        speed = case.bytes_moved / benchmark.stats["median"] / 1e9
        benchmark.extra_info["GB/s"] = round(speed, 2)
    benchmark.extra_info["instruction set"] = fo.active_isa()
    benchmark.extra_info["threads"] = fo.get_num_threads()


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_answers(suite: Suite[Any], case: AnyCase) -> None:
    if isinstance(case, LossCase) and case.elements > 1 << 22:
        # The truth is computed by NumPy in float64: a part of the batch is enough.
        case = replace(case, shape=(max(1, case.shape[0] >> 4), *case.shape[1:]))
    result = measure_case(suite, case, seconds=0)  # compares every peer with the truth
    assert set(result.seconds) >= {"fastopt", "reference"}
    assert set(result.ratios) == set(result.seconds) - {"fastopt"}
