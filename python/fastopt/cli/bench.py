"""``fastopt bench``: this machine's times and errors beside the peers'."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

import fastopt as fo
from fastopt import train as ft
from fastopt.cli.common import console, fail, one_line_errors, say, wide_table


class BenchName(str, Enum):
    """What ``fastopt bench`` measures."""

    optimizers = "optimizers"
    losses = "losses"
    accuracy = "accuracy"


def bench(
    what: Annotated[
        BenchName, typer.Argument(help="What to measure.", case_sensitive=False)
    ] = BenchName.optimizers,
    largest: Annotated[
        int, typer.Option(help="Leave out cases of more parameters or logits than this.", min=1)
    ] = 1 << 27,
    seconds: Annotated[float, typer.Option(help="For each case, about.", min=0.01)] = 2.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Of fastopt, torch and DeepSpeed.", min=1, max=4096, show_default="all"),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the results: JSON, Markdown, a picture.")
    ] = Path("fastopt-bench"),
) -> None:
    """Time every optimizer, or loss, beside its peers on this machine; or compare their errors."""
    from fastopt import benchmark

    if threads is not None:
        fo.set_num_threads(threads)
    with one_line_errors(output):
        ft.check_folder(output)
    if what is BenchName.accuracy:
        bench_accuracy(output)
        return
    suite = benchmark.SUITES[what.value]
    cases = [case for case in suite.cases if case.elements <= largest]
    if not cases:
        smallest = min(case.elements for case in suite.cases)
        fail(f"no case is as small as {largest}; --largest must be at least {smallest}")
    say(fo.show_config())
    peers = [peer for peer in suite.peers if peer != "reference"]
    if len(peers) == 1:
        say("no peer is installed (torch, DeepSpeed, optax): beside the NumPy reference alone")
    peers.append("reference")
    bandwidth = benchmark.measure_bandwidth(min(256, max(64, largest >> 18)) << 20)
    say(f"memory     copy {bandwidth.copy:.1f} GB/s, scale in place {bandwidth.scale:.1f} GB/s")
    results = []
    # After the first time every library has started its threads.
    benchmark.measure_case(suite, cases[0], peers, seconds)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for case in progress.track(cases, description="timing"):
            # The reference takes seconds where the kernels take milliseconds.
            asked = peers if case.elements <= 1 << 20 else peers[:-1]
            results.append(benchmark.measure_case(suite, case, asked, seconds))
    others = peers[1:]
    console.print(
        wide_table(
            f"Time of one {suite.unit}; for each peer, its time over ours",
            benchmark.table_head(suite, others),
            [benchmark.table_row(suite, bandwidth, result, others) for result in results],
        )
    )
    for result in results:
        if result.between:
            times = (f"{peer} {seconds * 1e6:,.0f}" for peer, seconds in result.between.items())
            say(f"{result.case}: us of the matmul beside {', '.join(times)}")
    with one_line_errors(output):
        paths = benchmark.write_results(output, suite, bandwidth, results, others)
    say("wrote " + ", ".join(map(str, paths)))


def bench_accuracy(output: Path) -> None:
    """Print the errors of the losses beside their peers', and write them."""
    from fastopt.benchmark import accuracy

    say(fo.show_config())
    results = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for case in progress.track(accuracy.CASES, description="comparing"):
            results.append(accuracy.measure_errors(case))
    rows = accuracy.table_rows(results)
    console.print(wide_table(accuracy.TITLE, accuracy.table_head(), rows))
    with one_line_errors(output):
        paths = accuracy.write_errors(output, results)
    say("wrote " + ", ".join(map(str, paths)))
