"""Experiments with `fastopt.train`: the library of ``fastopt landscape``, ``compare``, ``sweep``.

Needs the extra ``fastopt[train]``, and `run_mpi` also ``fastopt[mpi]``.
"""

from __future__ import annotations

from fastopt.train.experiments.journal import Journal, JournalError
from fastopt.train.experiments.landscape import (
    LANDSCAPES,
    Descent,
    Landscape,
    animate,
    descend,
    plot_paths,
    plot_rates,
    tune_lr,
    vary_lr,
    write_landscape,
)
from fastopt.train.experiments.mpi import MPIWorkers, run_mpi
from fastopt.train.experiments.parallel import RunError, run_parallel
from fastopt.train.experiments.pictures import plot_comparison, plot_map, plot_sweep
from fastopt.train.experiments.results import write_comparison, write_sweep
from fastopt.train.experiments.runs import AXES, Run, compare, label, run
from fastopt.train.experiments.space import Range, Space

__all__ = [
    "AXES",
    "LANDSCAPES",
    "Descent",
    "Journal",
    "JournalError",
    "Landscape",
    "MPIWorkers",
    "Range",
    "Run",
    "RunError",
    "Space",
    "animate",
    "compare",
    "descend",
    "label",
    "plot_comparison",
    "plot_map",
    "plot_paths",
    "plot_rates",
    "plot_sweep",
    "run",
    "run_mpi",
    "run_parallel",
    "tune_lr",
    "vary_lr",
    "write_comparison",
    "write_landscape",
    "write_sweep",
]
