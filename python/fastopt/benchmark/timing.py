"""Interleaved timing: all peers in turn, round after round, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter, sleep

import numpy as np

import fastopt as fo
from fastopt._types import FloatArray
from fastopt.benchmark.cases import Case
from fastopt.benchmark.peers import PEERS, make_step, torch

BLOCK_SECONDS = 1e-2  # calls of one peer are timed in blocks of about this
WARM_CALLS = 5  # before each block, to have threads awake and data where it lies in a loop
PAUSE_SECONDS = 3e-2  # before each block: OpenMP threads of the peer before spin for 15 ms here


@dataclass(frozen=True)
class Bandwidth:
    """GB/s of bytes read plus written, by NumPy on as many threads as a step has."""

    copy: float  # from one array into another
    scale: float  # of an array in place

    @property
    def best(self) -> float:
        """The larger of the two."""
        return max(self.copy, self.scale)


@dataclass(frozen=True)
class Result:
    """The medians of one case."""

    case: Case
    seconds: dict[str, float]  # of one step, by peer
    ratios: dict[str, float]  # the peer's time over fastopt's, by peer
    between: dict[str, float] = field(default_factory=dict)  # seconds of the matmul, by peer

    @property
    def gigabytes_per_second(self) -> float:
        """What fastopt moved."""
        return self.case.bytes_moved / self.seconds["fastopt"] / 1e9


def measure_bandwidth(elements: int = 256 << 20, rounds: int = 9) -> Bandwidth:
    """Measure how fast this machine's memory is, with arrays of `elements` float32."""
    x, y = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    team = fo.get_num_threads()
    parts = [slice(i * elements // team, (i + 1) * elements // team) for i in range(team)]
    factor = np.float32(1.0)
    with ThreadPoolExecutor(team) as pool:

        def time(work: Callable[[slice], object]) -> float:
            seconds = []
            for _ in range(rounds):
                begin = perf_counter()
                list(pool.map(work, parts))  # NumPy releases the GIL
                seconds.append(perf_counter() - begin)
            return 8 * elements / median(seconds) / 1e9

        return Bandwidth(
            copy=time(lambda part: np.copyto(y[part], x[part])),
            scale=time(lambda part: np.multiply(x[part], factor, out=x[part])),
        )


def measure_case(case: Case, peers: Iterable[str] = PEERS, seconds: float = 2.0) -> Result:
    """Time a step of `case` by all `peers` that have it, for about `seconds` in all.

    Before that, two steps of each are compared with the reference: fastopt's must be equal.
    """
    steps: dict[str, Callable[[], object]] = {}
    expected: list[FloatArray] = []
    for peer in peers:
        runner = make_step(peer, case, make_params(case), make_grads(case))
        if runner is None:
            continue
        if not expected:
            expected = _expected(case)
        if peer.startswith("torch"):
            # Its first call on a team of threads has been seen to give roots of 12 bits.
            small = replace(case, shapes=[(1 << 16,)])
            warm = make_step(peer, small, make_params(small), make_grads(small))
            assert warm is not None
            warm.step()
        for _ in range(2):
            runner.step()
        _compare(peer, [p.ravel()[:: _stride(p)] for p in runner.params()], expected)
        steps[peer] = runner.step
    return _time(case, steps, seconds)


def _time(case: Case, steps: dict[str, Callable[[], object]], seconds: float) -> Result:
    matmul = _matmul(case.between)
    calls = {peer: _calls(step) for peer, step in steps.items()}
    times: dict[str, list[float]] = {peer: [] for peer in steps}
    others: dict[str, list[float]] = {peer: [] for peer in ([*steps, "alone"] if matmul else [])}
    begin = perf_counter()
    while len(times["fastopt"]) < 5 or perf_counter() - begin < seconds:
        for peer, step in steps.items():
            sleep(PAUSE_SECONDS)
            for _ in range(min(calls[peer], WARM_CALLS)):
                step()
            if matmul is None:
                times[peer].append(_block(step, calls[peer]))
                continue
            pairs = [(_block(matmul, 1), _block(step, 1)) for _ in range(2 * calls[peer])]
            others[peer].append(median(pair[0] for pair in pairs))
            times[peer].append(median(pair[1] for pair in pairs))
        if matmul is not None:
            sleep(PAUSE_SECONDS)
            matmul()
            others["alone"].append(median(_block(matmul, 1) for _ in range(2 * calls["fastopt"])))
    ratios = {
        peer: median(t / ours for t, ours in zip(times[peer], times["fastopt"], strict=True))
        for peer in steps
        if peer != "fastopt"
    }
    return Result(
        case,
        {peer: median(values) for peer, values in times.items()},
        ratios,
        {peer: median(values) for peer, values in others.items()},
    )


def _block(call: Callable[[], object], calls: int) -> float:
    """Return the seconds of one of some calls in a row."""
    begin = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - begin) / calls


def _matmul(whose: str | None) -> Callable[[], object] | None:
    a, b, out = (np.ones((512, 512), np.float32) for _ in range(3))
    if whose == "torch":
        x, y, z = map(torch.from_numpy, (a, b, out))
        return lambda: torch.mm(x, y, out=z)
    return None if whose is None else lambda: np.matmul(a, b, out=out)


def make_params(case: Case) -> list[FloatArray]:
    """Return parameters for `case`, the same ones in every call."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in case.shapes]


def make_grads(case: Case) -> list[FloatArray]:
    """Return gradients for `case`, the same ones in every call."""
    rng = np.random.default_rng(1)
    grads = [rng.standard_normal(shape, dtype=np.float32) for shape in case.shapes]
    return [np.asfortranarray(grad) for grad in grads] if case.transposed else grads


def _stride(array: FloatArray) -> int:
    return max(1, array.size // 100_000)


def _expected(case: Case) -> list[FloatArray]:
    """Return what two steps make of a sample of the elements; with clipping, of all of them."""
    params, grads = make_params(case), make_grads(case)
    if case.max_norm is None:
        params = [p.ravel()[:: _stride(p)].copy() for p in params]
        grads = [g.ravel()[:: _stride(g)].copy() for g in grads]
    runner = make_step("reference", case, params, grads)
    assert runner is not None
    for _ in range(2):
        runner.step()
    if case.max_norm is None:
        return params
    return [p.ravel()[:: _stride(p)] for p in params]


def _compare(peer: str, got: Sequence[FloatArray], expected: Sequence[FloatArray]) -> None:
    for x, y in zip(got, expected, strict=True):
        if peer in ("fastopt", "reference"):
            np.testing.assert_array_equal(x, y, err_msg=peer)
        else:
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=peer)


def _calls(step: Callable[[], object]) -> int:
    seconds = min(_block(step, 1) for _ in range(3))
    return max(1, round(BLOCK_SECONDS / max(seconds, 1e-7)))
