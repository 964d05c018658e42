"""The results as JSON and as a picture: throughput over size."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fastopt as fo
from fastopt.benchmark.timing import Bandwidth, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"SGD": "#0072B2", "RMSprop": "#009E73", "Adam": "#D55E00", "AdamW": "#CC79A7"}
MARKERS = {"SGD": "o", "RMSprop": "s", "Adam": "^", "AdamW": "D"}


def write_results(folder: Path, bandwidth: Bandwidth, results: Sequence[Result]) -> list[Path]:
    """Write ``bench.json`` and ``bench.png`` into `folder`; return the paths."""
    facts: dict[str, Any] = {
        "config": fo.show_config().splitlines(),
        "processor": processor(),
        "versions": {
            "fastopt": fo.__version__,
            "numpy": np.__version__,
            **{name: peer_version(name) for name in ("torch", "deepspeed", "jax", "optax")},
            "python": platform.python_version(),
        },
        "bandwidth_gb_per_s": asdict(bandwidth),
        "results": [
            {
                "case": str(result.case),
                "elements": result.case.elements,
                "bytes_moved": result.case.bytes_moved,
                "seconds": result.seconds,
                "gb_per_s": result.gigabytes_per_second,
                "peer_time_over_ours": result.ratios,
                "seconds_of_matmul_between": result.between,
            }
            for result in results
        ],
    }
    data, picture = folder / "bench.json", folder / "bench.png"
    data.write_text(json.dumps(facts, indent=2) + "\n")
    plot_results(bandwidth, results).savefig(picture, dpi=150)
    return [data, picture]


def peer_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def plot_results(bandwidth: Bandwidth, results: Sequence[Result]) -> Figure:
    """Return a picture of throughput over size, single tensors, with the bandwidth as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    singles = [r for r in results if r.case.is_plain]
    for name, color in COLORS.items():
        mine = [r for r in singles if r.case.optimizer == name]
        sizes = [r.case.elements for r in mine]
        if not mine:
            continue
        speeds = [r.gigabytes_per_second for r in mine]
        axes.plot(sizes, speeds, "-", marker=MARKERS[name], color=color, label=f"fastopt {name}")
        for peer, style in (("torch fused", "--"), ("torch foreach", ":")):
            known = [r for r in mine if peer in r.seconds]
            if known and (peer == "torch fused" or name == "RMSprop"):
                axes.plot(
                    [r.case.elements for r in known],
                    [r.case.bytes_moved / r.seconds[peer] / 1e9 for r in known],
                    style,
                    marker=MARKERS[name],
                    markersize=4,
                    color=color,
                    alpha=0.6,
                    label=f"{peer} {name}",
                )
    axes.axhline(bandwidth.best, color="black", lw=1, ls="-.", label="memory bandwidth (NumPy)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="parameters in one float32 tensor",
        ylabel="GB/s (bytes a step must move / time)",
        title=f"Optimizer steps, {fo.get_num_threads()} threads, {fo.active_isa()}",
    )
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, ncols=2)
    return figure
