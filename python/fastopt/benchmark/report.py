"""The results as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fastopt as fo
from fastopt.benchmark.timing import Bandwidth, Result, Suite
from fastopt.benchmark.update_cases import UpdateCase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The optimizers use the colors and markers in this order. Color-blind readers can distinguish them.
COLORS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#000000")
MARKERS = "o^DsvP*"
PEER_COLORS = {
    "torch": "#D55E00",
    "torch chunked": "#E69F00",
    "jitted optax": "#0072B2",
    "float32": "#000000",
    "torch cast": "#D55E00",
    "torch bf16": "#E69F00",
    "DeepSpeed cast": "#009E73",
    "DeepSpeed bf16": "#56B4E9",
    "ml_dtypes": "#CC79A7",
    "NumPy": "#0072B2",
}
_PEERS = ("torch", "deepspeed", "jax", "optax", "ml_dtypes")
TITLES = {
    "losses": "Loss and gradient, float32",
    "types": "Steps of AdamW",
    "torch": "AdamW and cross-entropy of fastopt.torch",
}


def table_head(suite: Suite[Any], peers: Sequence[str]) -> list[str]:
    """Return the heads of the columns; `peers` does not contain fastopt."""
    return ["case", *suite.columns, "us", "GB/s", _of(suite), *(f"{peer} / ours" for peer in peers)]


def _of(suite: Suite[Any]) -> str:
    return {"best": "of memory", "copy": "of copy"}[suite.yardstick]


def table_row(
    suite: Suite[Any], bandwidth: Bandwidth, result: Result, peers: Sequence[str]
) -> list[str]:
    """Return the row of one case."""
    speed = result.gigabytes_per_second
    ratios = [result.ratios.get(peer) for peer in peers]
    return [
        str(result.case),
        *(str(column(result.case)) for column in suite.columns.values()),
        f"{result.seconds['fastopt'] * 1e6:,.1f}",
        f"{speed:.1f}",
        f"{speed / getattr(bandwidth, suite.yardstick):.0%}",
        *("" if ratio is None else three_digits(ratio) for ratio in ratios),
    ]


def three_digits(ratio: float) -> str:
    """Return a ratio with three digits, or all digits before the point."""
    return f"{ratio:,.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the documentation."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def facts_of_run() -> dict[str, Any]:
    """Return the machine, the settings and the versions."""
    return {
        "config": fo.show_config().splitlines(),
        "processor": processor(),
        "versions": {
            "fastopt": fo.__version__,
            "numpy": np.__version__,
            **{name: peer_version(name) for name in _PEERS},
            "python": platform.python_version(),
        },
    }


def write_results(
    folder: Path,
    suite: Suite[Any],
    bandwidth: Bandwidth,
    results: Sequence[Result],
    peers: Sequence[str],
) -> list[Path]:
    """Write the results as JSON, as a table in Markdown and as a picture; return the paths."""
    facts = facts_of_run() | {
        "bandwidth_gb_per_s": asdict(bandwidth),
        "results": [
            {
                "case": str(result.case),
                "elements": result.case.elements,
                "bytes_moved": result.case.bytes_moved,
                **{name: column(result.case) for name, column in suite.columns.items()},
                "seconds": result.seconds,
                "gb_per_s": result.gigabytes_per_second,
                "peer_time_over_ours": result.ratios,
                "seconds_of_matmul_between": result.between,
            }
            for result in results
        ],
    }
    paths = [folder / f"{suite.stem}.{kind}" for kind in ("json", "md", "png")]
    data, table, picture = paths
    data.write_text(json.dumps(facts, indent=2) + "\n")
    rows = [table_row(suite, bandwidth, result, peers) for result in results]
    table.write_text(markdown(table_head(suite, peers), rows))
    figure = (
        plot_updates(bandwidth, results)
        if suite.name == "optimizers"
        else plot_ratios(suite, bandwidth, results)
    )
    figure.savefig(picture, dpi=150)
    return paths


def peer_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor, or its architecture if the system has no name."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def plot_updates(bandwidth: Bandwidth, results: Sequence[Result]) -> Figure:
    """Return a picture of the throughput of single tensors by size, with the memory bandwidth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Result]] = {}
    for result in results:
        if isinstance(result.case, UpdateCase) and result.case.is_plain:
            lines.setdefault(result.case.optimizer, []).append(result)
    for (name, mine), color, marker in zip(
        lines.items(), cycle(COLORS), cycle(MARKERS), strict=False
    ):
        for peer, style in (("fastopt", "-"), ("torch fused", "--"), ("torch foreach", ":")):
            known = [r for r in mine if peer in r.seconds]
            if not known or (peer == "torch foreach" and "torch fused" in known[0].seconds):
                continue
            axes.plot(
                [r.case.elements for r in known],
                [r.case.bytes_moved / r.seconds[peer] / 1e9 for r in known],
                style,
                marker=marker,
                markersize=6 if peer == "fastopt" else 4,
                color=color,
                alpha=1 if peer == "fastopt" else 0.6,
                label=f"{peer} {name}",
            )
    axes.axhline(bandwidth.best, color="black", lw=1, ls="-.", label="memory bandwidth (NumPy)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="parameters in one float32 tensor",
        ylabel="GB/s (bytes a step must move / time)",
        title=f"Optimizer steps, threads: {fo.get_num_threads()}, {fo.active_isa()}",
    )
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, ncols=2)
    return figure


def plot_ratios(suite: Suite[Any], bandwidth: Bandwidth, results: Sequence[Result]) -> Figure:
    """Return a picture of how many times as long each peer takes, case by case.

    Of the types, it has the cases of the largest size.
    """
    from matplotlib.figure import Figure

    if suite.name == "types":
        largest = max(result.case.elements for result in results)
        results = [result for result in results if result.case.elements == largest]
    peers = [peer for peer in PEER_COLORS if any(peer in r.ratios for r in results)]
    peers = peers or ["reference"]
    figure = Figure(
        figsize=(9, 1.5 + max(0.62, 0.2 * len(peers)) * len(results)), layout="constrained"
    )
    axes = figure.subplots()
    height = 0.8 / len(peers)
    for peer in peers:
        places, ratios = [], []
        for at, result in enumerate(results):
            known = [peer for peer in peers if peer in result.ratios]
            if peer in known:
                places.append(at + (known.index(peer) - (len(known) - 1) / 2) * height)
                ratios.append(result.ratios[peer])
        bars = axes.barh(
            places,
            [ratio - 1 for ratio in ratios],  # a bar begins at 1: the same time
            height,
            left=1,
            color=PEER_COLORS.get(peer, "#999999"),
            label=peer,
        )
        axes.bar_label(bars, list(map(three_digits, ratios)), padding=3, fontsize=11)
    labels = [
        f"{r.case}\n{r.seconds['fastopt'] * 1e6:,.0f} us, "
        f"{r.gigabytes_per_second / getattr(bandwidth, suite.yardstick):.0%} {_of(suite)}"
        for r in results
    ]
    axes.set_yticks(range(len(results)), labels, fontsize=11)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.axvline(1, color="black", lw=1.5)
    axes.set_xscale("log")
    shown = [r.ratios[peer] for r in results for peer in peers if peer in r.ratios]
    axes.set_xlim(min(0.9, 0.6 * min(shown, default=1.0)), 1.6 * max(shown, default=1.0))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", labelsize=11)
    axes.set_xlabel("time of the peer / time of fastopt", fontsize=12)
    axes.set_title(
        f"{TITLES[suite.name]}, threads: {fo.get_num_threads()}, {fo.active_isa()}",
        fontsize=13,
    )
    axes.grid(alpha=0.3, axis="x", which="both")
    axes.set_axisbelow(True)
    figure.legend(fontsize=11, loc="outside lower center", ncols=min(3, len(peers)))
    return figure
