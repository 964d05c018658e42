"""Experiments on top of `fastopt.train`: what ``fastopt landscape``, ``compare`` and ``sweep`` do.

Needs the extra ``fastopt[train]``.
"""

from __future__ import annotations

from fastopt.experiments.landscape import (
    LANDSCAPES,
    Descent,
    Landscape,
    animate,
    descend,
    plot_paths,
    plot_rates,
    tune_lr,
    vary_lr,
)

__all__ = [
    "LANDSCAPES",
    "Descent",
    "Landscape",
    "animate",
    "descend",
    "plot_paths",
    "plot_rates",
    "tune_lr",
    "vary_lr",
]
