"""``fastopt bench``: times and errors of fastopt and its peers on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import short_repr
from fastopt.cli import common

if TYPE_CHECKING:
    from fastopt import benchmark


NAMES = ("optimizers", "types", "losses", "torch", "accuracy")
NEEDS = {"types": ["ml_dtypes"], "torch": ["torch", "ml_dtypes"]}  # packages
LARGEST, SECONDS = 1 << 27, 2.0


def bench(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help=f"What to measure: {', '.join(NAMES)}.")
    ] = NAMES[0],
    largest: Annotated[
        int | None,
        common.Whole(
            help="Skip cases of more parameters or logits.",
            show_default=str(LARGEST),
        ),
    ] = None,
    seconds: Annotated[
        float | None, common.Number(help="Seconds for each case, about.", show_default=str(SECONDS))
    ] = None,
    threads: common.Threads = None,
    output: Annotated[
        Path, common.Folder(help="Folder for the results: JSON, Markdown, a picture.")
    ] = Path("fastopt-bench"),
) -> None:
    """Time optimizers or losses and their peers on this machine, or compare their errors.

    A quick look:

      fastopt bench --largest 1000000 --seconds 0.2

    AdamW over arrays of 16 and 32 bits:

      fastopt bench types

    The optimizers and losses for torch:

      fastopt bench torch

    The losses, and their errors instead of their times:

      fastopt bench losses

      fastopt bench accuracy
    """
    from fastopt import benchmark

    name = what.lower()
    if name not in NAMES:
        common.fail(f"WHAT must be one of {', '.join(NAMES)}, not {short_repr(what)}")
    common.check_range("--seconds", seconds, 0.01, 1e6)
    common.use_threads(threads)
    if name == "accuracy":
        for option, value in (("--largest", largest), ("--seconds", seconds)):
            if value is not None:
                common.fail(
                    f"{option} is for bench {', '.join(NAMES[:-1])}, not for bench accuracy"
                )
        with common.results_folder(output):
            bench_accuracy(output)
        return
    for package in NEEDS.get(name, []):
        if find_spec(package) is None:
            common.fail(f"bench {name} needs {package}; run: pip install {package}")
    suite = benchmark.SUITES[name]
    largest = LARGEST if largest is None else largest
    seconds = SECONDS if seconds is None else seconds
    cases = [case for case in suite.cases if case.elements <= largest]
    if not cases:
        smallest = min(case.elements for case in suite.cases)
        common.fail(f"no case is as small as {largest}; --largest must be at least {smallest}")
    with common.results_folder(output):
        bench_suite(output, suite, cases, seconds, largest)


def bench_suite(
    output: Path, suite: benchmark.Suite[Any], cases: list[Any], seconds: float, largest: int
) -> None:
    """Time cases, write the results and print them."""
    from fastopt import benchmark

    common.say(fo.show_config())
    peers = [peer for peer in suite.peers if peer != "reference"]
    if len(peers) == 1:
        common.say("no peer is installed (torch, DeepSpeed, optax): only the NumPy reference")
    peers.append("reference")
    bandwidth = benchmark.measure_bandwidth(min(256, max(64, largest >> 18)) << 20)
    common.say_fact(
        "memory", f"copy {bandwidth.copy:.1f} GB/s, scale in place {bandwidth.scale:.1f} GB/s"
    )
    # After the first measurement, every library has started its threads.
    benchmark.measure_case(suite, cases[0], peers, seconds)

    def time(case: benchmark.Case) -> benchmark.Result:
        # The reference takes seconds for cases that take the kernels milliseconds.
        asked = peers if case.elements <= 1 << 20 else peers[:-1]
        return benchmark.measure_case(suite, case, asked, seconds)

    results, ended = common.each(cases, "timing", time)
    others = peers[1:]
    try:
        with ft.write_together(output) as folder:
            paths = benchmark.write_results(folder, suite, bandwidth, results, others)
    finally:
        common.print_table(
            f"Time of one {suite.unit}; for each peer, its time over ours",
            benchmark.table_head(suite, others),
            [benchmark.table_row(suite, bandwidth, result, others) for result in results],
        )
        for result in results:
            if result.between:
                times = (f"{peer} {took * 1e6:,.0f}" for peer, took in result.between.items())
                common.say(f"{result.case}: us of the matmul beside {', '.join(times)}")
    common.written(output, paths)
    common.check_end(len(results), len(cases), "case", error=ended)


def bench_accuracy(output: Path) -> None:
    """Write and print the errors of the losses and of their peers."""
    from fastopt.benchmark import accuracy

    common.say(fo.show_config())
    results, ended = common.each(accuracy.CASES, "comparing", accuracy.measure_errors)
    try:
        with ft.write_together(output) as folder:
            paths = accuracy.write_errors(folder, results)
    finally:
        common.print_table(accuracy.TITLE, accuracy.table_head(), accuracy.table_rows(results))
    common.written(output, paths)
    common.check_end(len(results), len(accuracy.CASES), "case", error=ended)
