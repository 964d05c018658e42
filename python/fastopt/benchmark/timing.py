"""Interleaved timing: all peers take turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from time import perf_counter, sleep
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

import fastopt as fo

torch: Any = import_module("torch") if find_spec("torch") else None

BLOCK_SECONDS = 1e-2  # calls of one peer are timed in blocks of about this
WARM_CALLS = 5  # before each block: threads wake up, and caches fill as in a loop
PAUSE_SECONDS = 3e-2  # before each block: the OpenMP threads of the last peer spin for 15 ms


class Case(Protocol):
    """A call that is timed; its string is its name."""

    @property
    def elements(self) -> int:
        """The number of parameters or logits."""

    @property
    def bytes_moved(self) -> int:
        """The bytes that a call must read and write if nothing stays in cache."""

    @property
    def between(self) -> str | None:
        """The library whose matmul runs before each call."""


class Runner(NamedTuple):
    """The call of one peer, with its arrays."""

    run: Callable[[], Any]  # the call that is timed
    # Returns the computed arrays from the result of `run`.
    read: Callable[[Any], Sequence[Any]] = lambda answer: answer
    prepare: Callable[[], object] | None = None  # before each call, not timed


C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class Suite(Generic[C]):
    """Cases, and the peers that run them."""

    name: str
    cases: Sequence[C]
    peers: Mapping[str, Callable[[C], Runner | None]]  # None: the peer cannot do it
    check: Callable[[C, Mapping[str, Runner]], None]  # raises if an answer is wrong
    unit: str  # the word for a call
    yardstick: Literal["best", "copy"] = "best"  # the bandwidth that a case is compared with
    # Further columns of the table, after the name of a case.
    columns: Mapping[str, Callable[[C], int]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return "bench" if self.name == "optimizers" else f"bench-{self.name}"


@dataclass(frozen=True)
class Bandwidth:
    """GB/s (bytes read plus bytes written) of NumPy, on as many threads as a step."""

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
    seconds: dict[str, float]  # of one call, by peer
    ratios: dict[str, float]  # the peer's time over fastopt's, by peer
    between: dict[str, float] = field(default_factory=dict)  # seconds of the matmul, by peer

    @property
    def gigabytes_per_second(self) -> float:
        """The throughput of fastopt."""
        return self.case.bytes_moved / self.seconds["fastopt"] / 1e9


def measure_bandwidth(elements: int = 256 << 20, rounds: int = 9) -> Bandwidth:
    """Measure the bandwidth of the memory with arrays of `elements` float32."""
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


def measure_case(
    suite: Suite[C], case: C, peers: Iterable[str] | None = None, seconds: float = 2.0
) -> Result:
    """Check the answers of all `peers` that have `case`, then time them for about `seconds`."""
    made = {peer: suite.peers[peer](case) for peer in (suite.peers if peers is None else peers)}
    runners = {peer: runner for peer, runner in made.items() if runner is not None}
    suite.check(case, runners)
    return _time(case, runners, seconds)


def _time(case: Case, runners: Mapping[str, Runner], seconds: float) -> Result:
    matmul = _matmul(case.between)
    before = {peer: matmul or runner.prepare for peer, runner in runners.items()}
    calls = {peer: _calls(runner) for peer, runner in runners.items()}
    times: dict[str, list[float]] = {peer: [] for peer in runners}
    others: dict[str, list[float]] = {peer: [] for peer in ([*runners, "alone"] if matmul else [])}
    begin = perf_counter()
    while len(times["fastopt"]) < 5 or perf_counter() - begin < seconds:
        for peer, runner in runners.items():
            sleep(PAUSE_SECONDS)
            for _ in range(min(calls[peer], WARM_CALLS)):
                if runner.prepare is not None:
                    runner.prepare()
                runner.run()
            first = before[peer]
            if first is None:
                times[peer].append(_block(runner.run, calls[peer]))
                continue
            pairs = [(_block(first, 1), _block(runner.run, 1)) for _ in range(2 * calls[peer])]
            times[peer].append(median(pair[1] for pair in pairs))
            if matmul is not None:
                others[peer].append(median(pair[0] for pair in pairs))
        if matmul is not None:
            sleep(PAUSE_SECONDS)
            matmul()
            others["alone"].append(median(_block(matmul, 1) for _ in range(2 * calls["fastopt"])))
    ratios = {
        peer: median(t / ours for t, ours in zip(times[peer], times["fastopt"], strict=True))
        for peer in runners
        if peer != "fastopt"
    }
    return Result(
        case,
        {peer: median(values) for peer, values in times.items()},
        ratios,
        {peer: median(values) for peer, values in others.items()},
    )


def _block(call: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of a call, of `calls` calls."""
    begin = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - begin) / calls


def _calls(runner: Runner) -> int:
    seconds = []
    for _ in range(3):
        if runner.prepare is not None:
            runner.prepare()
        seconds.append(_block(runner.run, 1))
    return max(1, round(BLOCK_SECONDS / max(min(seconds), 1e-7)))


def _matmul(whose: str | None) -> Callable[[], object] | None:
    a, b, out = (np.ones((512, 512), np.float32) for _ in range(3))
    if whose == "torch":
        x, y, z = map(torch.from_numpy, (a, b, out))
        return lambda: torch.mm(x, y, out=z)
    return None if whose is None else lambda: np.matmul(a, b, out=out)
