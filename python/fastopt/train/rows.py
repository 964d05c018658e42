"""New rows for a saved model: a table read by the names of its columns, and its targets."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt._checks import counted, short_repr
from fastopt.train.arrays import read_idx, reading
from fastopt.train.checks import DataError, from_extra, ieee, printable
from fastopt.train.data import Targets
from fastopt.train.loading import (
    BUNDLED,
    NUMBER,
    as_numbers,
    bundled_table,
    refuse_options,
    require_path,
)
from fastopt.train.preprocessing import Preprocessing, read_texts
from fastopt.train.saved import SavedModel
from fastopt.train.tables import Table, read_table

if TYPE_CHECKING:
    import pandas as pd


class Rows(NamedTuple):
    """New rows for a model."""

    frame: pd.DataFrame
    scored: npt.NDArray[np.bool_]  # whether a row has a target that the model knows (N,)
    targets: Targets  # of the rows with one, in the form of `Data`
    notes: tuple[str, ...]  # what was decided, a line for each


@ieee
def read_rows(
    source: str, model: SavedModel, *, delimiter: str | None = None, header: bool | None = None
) -> Rows:
    """Read the rows of anything that `load_data` reads; of MNIST's files, those held out.

    Raises
    ------
    DataError
        If the rows cannot be read, or the model does not take tables.
    """
    if model.preprocessing is None:
        raise DataError(
            "the model was trained on arrays, not on a table; use SavedModel.predict in Python"
        )
    frame, read_notes, decimal = _read(source, model, delimiter, header)
    frame = _with_names(frame, model.target, model.preprocessing)
    notes = [*read_notes, *_notes(frame, model)]
    targets: Targets = np.empty(0, np.int64)
    scored = np.zeros(len(frame), np.bool_)
    if model.target in frame:
        y = frame.pop(model.target)
        find = _values if model.objective.task == "regression" else _classes
        targets, scored = find(y, model, decimal)
        lost = y.notna() & ~scored
        if lost.any():
            notes.append(
                f"not scored: {counted(int(lost.sum()), 'row')} with a {model.target} that the "
                f"model does not know, such as {short_repr(str(y[lost].iloc[0]))}"
            )
    return Rows(frame, scored, targets, tuple(notes))


def _read(source: str, model: SavedModel, delimiter: str | None, header: bool | None) -> Table:
    """Read a table with the target, if there is one."""
    assert model.preprocessing is not None
    with from_extra("a table"):
        import pandas as pd

    if source in BUNDLED:
        refuse_options(source, {"delimiter": delimiter, "header": header})
        return Table(bundled_table(source, model.objective.task), ())
    path = Path(source)
    with reading(path, "path"):
        folder = path.is_dir()
    if folder:
        refuse_options(source, {"delimiter": delimiter, "header": header})
        x, y = read_idx(path, "t10k-images"), read_idx(path, "t10k-labels")
        if y.shape != (len(x), 1):
            raise DataError(f"{path}: {len(x)} held-out inputs but labels of shape {y.shape}")
        frame = pd.DataFrame(x, columns=[f"x{i + 1}" for i in range(x.shape[1])])
        frame["class"] = y[:, 0]
        return Table(frame, ())
    require_path(path)
    texts = [column.name for column in model.preprocessing.columns if column.kind == "text"]
    if model.objective.task != "regression":
        texts.append(model.target)
    return read_table(path, delimiter=delimiter, header=header, text=texts)


def _with_names(frame: pd.DataFrame, target: str, preprocessing: Preprocessing) -> pd.DataFrame:
    """Return the frame with the names that `load_data` gives to columns without one.

    If such a table was trained with a target among its columns, that column may be missing. The
    columns behind it then have a higher number.
    """
    import pandas as pd

    names = list(frame.columns)
    if "" in names:
        names[names.index("")] = f"x{names.index('') + 1}"
    known = [column.name for column in preprocessing.columns] + [target]
    numbers = [int(name[1:]) for name in known if re.fullmatch(r"x\d{1,9}", name)]
    unnamed = names == [f"x{i + 1}" for i in range(len(names))]
    if unnamed and target in names and len(names) == max(numbers) - 1:
        place = int(target[1:])
        names = [f"x{i + (i >= place)}" for i in range(1, len(names) + 1)]
    frame.columns = pd.Index(names)
    return frame


def _notes(frame: pd.DataFrame, model: SavedModel) -> list[str]:
    """Return what happens to further columns, missing values and new texts."""
    assert model.preprocessing is not None
    notes = []
    columns = {column.name: column for column in model.preprocessing.columns}
    unused = [short_repr(name) for name in frame if name not in {model.target, *columns}]
    if unused:
        notes.append(f"not used: {', '.join(unused[:8])}{', ...' * (len(unused) > 8)}")
    filled = int(frame[[name for name in columns if name in frame]].isna().sum().sum())
    if filled:
        notes.append(f"filled {counted(filled, 'missing value')}, as in training")
    for name, column in columns.items():
        if column.kind == "text" and name in frame:
            texts = read_texts(frame[name])
            new = texts.notna() & ~texts.isin(column.levels)
            if new.any():
                notes.append(
                    f"column {short_repr(name)}: {counted(int(new.sum()), 'row')} with a text that "
                    f"was rare or not there in training, such as {short_repr(texts[new].iloc[0])}"
                )
    return notes


_Found = tuple[Targets, npt.NDArray[np.bool_]]


def _classes(y: pd.Series[Any], model: SavedModel, decimal: str) -> _Found:
    """Return the classes of the rows whose label the model knows, and which rows these are."""
    texts = read_texts(y)
    label_of: dict[str, Any] = {text: printable(text) for text in texts.dropna().unique()}
    index: dict[Any, int] = {label: i for i, label in enumerate(model.labels)}
    if all(map(NUMBER.fullmatch, index)):  # 9 and 9.0 are the same label
        index = {Decimal(label): i for label, i in index.items()}
        label_of = {text: Decimal(text) for text in label_of if NUMBER.fullmatch(text)}
    codes = texts.map({text: index.get(label) for text, label in label_of.items()})
    scored = codes.notna().to_numpy(np.bool_)
    classes = codes[scored].to_numpy(np.int64)
    if model.objective.task == "binary":
        return classes.astype(np.float32)[:, None], scored
    return classes, scored


def _values(y: pd.Series[Any], model: SavedModel, decimal: str) -> _Found:
    """Return the standardized targets of the rows with a number, and which rows these are."""
    numbers = as_numbers(y, decimal)
    if numbers is None:
        return np.empty((0, 1), np.float32), np.zeros(len(y), np.bool_)
    values = numbers.to_numpy(np.float64, na_value=np.nan)
    standardized = ((values - model.target_mean) / model.target_deviation).astype(np.float32)
    scored = np.isfinite(standardized)
    return standardized[scored][:, None], scored
