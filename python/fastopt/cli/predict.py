"""``fastopt predict``: apply a saved model to new rows, and score it where the target is known."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fastopt as fo
from fastopt import train as ft
from fastopt._checks import counted, digits
from fastopt.cli import common
from fastopt.cli.common import say, say_fact

FILE = "predictions.csv"
MOST = 10  # classes that are listed


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="File model.safetensors of a run, or the folder of the run."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="New rows: a table with the columns of the training data, by name and in any "
            "order; or anything else that train --data takes.",
        ),
    ],
    delimiter: common.Delimiter = None,
    header: common.Header = None,
    output: Annotated[Path, common.Folder(help=f"Folder for {FILE}.")] = Path("fastopt-predict"),
) -> None:
    """Predict the target of new rows with a trained model; score it if the target is there.

    With the model of the last run:

      fastopt predict fastopt-run new.csv

    The columns of the new rows are found by their names.
    """
    with common.one_line_errors(output):
        saved = _load(model)
        rows = ft.read_rows(data, saved, delimiter=delimiter, header=header)
        try:
            outputs = saved.outputs(rows.frame)
            known = rows.scored.any() and saved.knows(rows.frame[rows.scored])
        except ft.DataError as error:
            raise ft.DataError(f"{data}: {error}") from None
    with common.results_folder(output), ft.write_together(output) as parts:
        columns, summary = _columns(saved, outputs)
        _write(parts / FILE, columns)
    say_fact("model", f"{model}: {saved}")
    say_fact("data", f"{data}: {counted(len(outputs), 'row')}")
    for note in rows.notes:
        say_fact("", note)
    say_fact("predicted", summary)
    say_fact("score", _score(saved, outputs, rows))
    if known:
        say("warning: the score is too good: the model was trained on most of these rows")
    common.written(output, [output / FILE])


def _load(path: Path) -> ft.SavedModel:
    try:
        return ft.load_model(path)
    except OSError as error:
        reason = f"cannot read {error.filename or path}: {error.strerror or error}"
        raise fo.CheckpointError(f"{reason}; fastopt train writes a model") from error


def _columns(saved: ft.SavedModel, outputs: Any) -> tuple[dict[str, Any], str]:
    """Return the columns of the file, and a line about the predictions."""
    predicted = saved.from_outputs(outputs)
    columns = {f"predicted {saved.target}": predicted}
    if saved.objective.task == "regression":
        low, middle, high = np.percentile(predicted, [0, 50, 100])
        return columns, (
            f"{saved.target} from {digits(low, 6)} to {digits(high, 6)}, median {digits(middle, 6)}"
        )
    shares = saved.objective.probabilities(outputs)
    columns |= {f"probability of {label}": shares[:, i] for i, label in enumerate(saved.labels)}
    counts = Counter(predicted.tolist()).most_common()
    listed = ", ".join(f"{label} ({count})" for label, count in counts[:MOST])
    return columns, f"{saved.target}: {listed}{', ...' * (len(counts) > MOST)}"


def _write(path: Path, columns: dict[str, Any]) -> None:
    import pandas as pd

    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n")


def _score(saved: ft.SavedModel, outputs: Any, rows: ft.Rows) -> str:
    """Return the scores on the rows with a known target."""
    objective, count = saved.objective, len(rows.targets)
    if not count:
        return f"none, because no row has a known {saved.target}"
    outputs = outputs[rows.scored]
    score = objective.score(outputs, rows.targets)
    text = f"loss {objective.value(outputs, rows.targets):.4f}"
    if not math.isnan(score):  # R² needs targets that differ
        text = f"{common.score_text(objective, score)}, {text}"
    if objective.task == "regression":
        error = math.sqrt(-objective.points(outputs, rows.targets) / count)
        text += f", error {digits(error * saved.target_deviation, 4)} (root mean square)"
    return f"{text}, on {counted(count, 'row')} with a known {saved.target}"
