"""The files of a comparison and of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastopt._files import write_together
from fastopt.train.data import Data
from fastopt.train.experiments.pictures import (
    plot_comparison,
    plot_map,
    plot_sweep,
    require_runs,
)
from fastopt.train.experiments.runs import Run
from fastopt.train.experiments.space import Space
from fastopt.train.formats import write_json, write_picture, write_table
from fastopt.train.objective import Objective


def write_comparison(
    folder: str | Path,
    runs: Sequence[Run],
    names: Sequence[str],
    objective: Objective,
    data: Data,
    title: str = "",
) -> list[Path]:
    """Write the results of runs on the same data; return the paths.

    The files are those of ``fastopt compare``: ``compare.png`` (see `plot_comparison`),
    ``compare.csv``, ``compare.json``, and ``epochs.csv``. They are written together; see
    `fastopt.train.write_together`.

    Parameters
    ----------
    folder : path
        Must exist.
    runs : sequence of Run
        At least one.
    names : sequence of str
        The fields in which the runs differ; at least one.
    objective : Objective
    data : Data
    title : str
        Of the picture.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    require_runs(runs)
    if not names:
        raise ValueError("names must hold at least one field")
    facts = _facts(runs, objective, data, varied=names[0])
    with write_together(folder) as parts:
        files = [
            write_picture(parts / "compare.png", plot_comparison(runs, names, objective, title)),
            write_table(parts / "compare.csv", facts["runs"]),
            write_table(parts / "epochs.csv", _epoch_rows(runs, names, objective)),
            write_json(parts / "compare.json", facts),
        ]
    return [Path(folder, file.name) for file in files]


def write_sweep(
    folder: str | Path,
    runs: Sequence[Run],
    space: Space,
    objective: Objective,
    data: Data,
    title: str = "",
) -> list[Path]:
    """Write the results of the runs of a space; return the paths.

    The files are those of ``fastopt sweep``: ``map.png`` (see `plot_map`), ``curves.png`` (see
    `plot_sweep`), ``sweep.csv`` and ``sweep.json``. They are written together; see
    `fastopt.train.write_together`.

    Parameters
    ----------
    folder : path
        Must exist.
    runs : sequence of Run
        At least one.
    space : Space
        That of the runs.
    objective : Objective
    data : Data
    title : str
        Of the pictures.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    require_runs(runs)
    best = min(runs, key=lambda run: run.rank)
    facts = _facts(
        runs,
        objective,
        data,
        space=space.facts() | {"trials": space.trials},
        best=None if best.diverged else best.facts(data.task),
    )
    with write_together(folder) as parts:
        curves = plot_sweep(runs, list(space.axes), objective, title)
        files = [
            write_picture(parts / "map.png", plot_map(runs, space, objective, title)),
            write_picture(parts / "curves.png", curves),
            write_table(parts / "sweep.csv", facts["runs"]),
            write_json(parts / "sweep.json", facts),
        ]
    return [Path(folder, file.name) for file in files]


def _facts(
    runs: Sequence[Run], objective: Objective, data: Data, **others: object
) -> dict[str, Any]:
    return {
        "data": str(data),
        "loss": objective.loss_label,
        "score": objective.score_name,
        **others,
        "runs": [run.facts(data.task) for run in runs],
    }


def _epoch_rows(
    runs: Sequence[Run], names: Sequence[str], objective: Objective
) -> list[dict[str, Any]]:
    """Return a row for each epoch of each run."""
    rows = []
    for run in runs:
        full = run.config.resolved(objective.task)
        for e in run.history.epochs:
            rows.append(
                {name: getattr(full, name) for name in names}
                | {
                    "epoch": e.epoch,
                    "train_loss": e.train_loss,
                    "val_loss": e.val_loss,
                    "train_score": e.train_score,
                    "val_score": e.val_score,
                    "lr_at_end": e.lr,
                }
            )
    return rows
