"""New rows for a saved model: a table read by the names of its columns, and its targets."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastopt._checks import counted, short_repr
from fastopt.train.arrays import reading
from fastopt.train.checks import DataError, ieee, kind, printable
from fastopt.train.data import Targets
from fastopt.train.loading import (
    BUNDLED,
    NUMBER,
    as_numbers,
    bundled_table,
    count_unnamed,
    idx_table,
    refuse_options,
    require_path,
)
from fastopt.train.preprocessing import (
    GAPS,
    TRUTH,
    Preprocessing,
    count_texts,
    factorize,
    read_texts,
    require_columns,
)
from fastopt.train.saved import SavedModel
from fastopt.train.tables import Table, is_numeral, read_table, saying_how_read

if TYPE_CHECKING:
    import pandas as pd


class Rows(NamedTuple):
    """New rows for a model, and their targets as far as they are known.

    Attributes
    ----------
    frame : DataFrame
        The rows without the target, for `SavedModel.predict`.
    scored : ndarray of bool, shape (N,)
        Whether a row has a target that the model knows.
    targets : ndarray
        The targets of these rows, in the form of `Data`.
    notes : tuple of str
        What was decided while the rows were read, a line for each.
    """

    frame: pd.DataFrame
    scored: npt.NDArray[np.bool_]
    targets: Targets
    notes: tuple[str, ...]


@ieee
def read_rows(
    source: str | Path,
    model: SavedModel,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
) -> Rows:
    """Read new rows for a model, as ``fastopt predict`` does.

    The columns are found by their names. Numbers, texts and missing values are read as in training.

    Parameters
    ----------
    source : str or path
        Anything that `load_data` reads; of MNIST's files, those held out.
    model : SavedModel
        Of a table.
    delimiter, header
        Of a CSV file; see `read_table`.

    Raises
    ------
    DataError
        If the rows cannot be read, or the model does not take tables.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="iris", lr=0.01).build()
    >>> history = trainer.fit(30)
    >>> model = train.SavedModel.from_trainer(trainer)
    >>> rows = train.read_rows("iris", model)
    >>> len(rows.targets), model.objective.score(model.outputs(rows.frame), rows.targets) > 0.9
    (150, True)
    """
    kind("model", model, SavedModel)
    if model.preprocessing is None:
        raise DataError(
            "the model was trained on arrays, not on a table; use SavedModel.predict in Python"
        )
    frame, read_notes, decimal = _read(source, model, delimiter, header)
    with saying_how_read(read_notes):
        try:
            require_columns(frame, [column.name for column in model.preprocessing.columns])
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        _refuse_words(source, frame, model.preprocessing, decimal)
    notes = [*read_notes, *_notes(frame, model)]
    if model.unnamed and model.target not in frame:
        names = f"{', '.join(frame.columns[:8])}{', ...' * (frame.shape[1] > 8)}"
        notes.append(f"{model.target}, the target, is missing; the columns are {names}")
    targets: Targets = np.empty(0, np.int64)
    scored = np.zeros(len(frame), np.bool_)
    if model.target in frame:
        y = frame.pop(model.target)
        find = _values if model.objective.task == "regression" else _classes
        targets, scored = find(y, model, decimal)
        lost = y.notna() & ~scored
        if lost.any():
            problem = "cannot be used as a number" if find is _values else "was not in training"
            notes.append(
                f"not scored: {counted(int(lost.sum()), 'row')} whose {model.target} {problem}, "
                f"such as {short_repr(str(y[lost].iloc[0]))}"
            )
    return Rows(frame, scored, targets, tuple(notes))


def _read(
    source: str | Path, model: SavedModel, delimiter: str | None, header: bool | None
) -> Table:
    """Read a table with the target, if there is one."""
    assert model.preprocessing is not None

    def rename(names: list[str]) -> list[str]:
        return _names(source, names, model)

    if isinstance(source, str) and source in BUNDLED:
        refuse_options(source, {"delimiter": delimiter, "header": header})
        return Table(bundled_table(source, model.objective.task), ())
    path = Path(source)
    with reading(path, "path"):
        folder = path.is_dir()
    if folder:
        refuse_options(str(source), {"delimiter": delimiter, "header": header})
        frame = idx_table(path, "t10k")
        *names, label = frame.columns
        return Table(frame.set_axis([*rename(names), label], axis=1), ())
    require_path(path)
    columns = model.preprocessing.columns
    texts = [column.name for column in columns if column.kind == "text"]
    names = [column.name for column in columns if not model.unnamed]
    return read_table(
        path,
        delimiter=delimiter,
        header=header,
        decimal=model.decimal,
        text=texts,
        target=model.target,
        names=names,
        rename=rename,
    )


def _names(source: str | Path, names: list[str], model: SavedModel) -> list[str]:
    """Return the names that the columns of `source` had in training.

    A table without names has the columns of training, or all but the target. Without the target,
    the columns behind it have a higher number in training.
    """
    found, wanted = count_unnamed(names, model.target), model.unnamed
    if found in (0, wanted) or not wanted:
        return names
    without_target = [f"x{i + 1}" for i in range(wanted) if model.target != f"x{i + 1}"]
    if found != len(without_target):
        raise DataError(
            f"{source}: {counted(found, 'column')} without names, but the model was trained on "
            f"{wanted}"
        )
    return without_target


def _refuse_words(
    source: str | Path, frame: pd.DataFrame, preprocessing: Preprocessing, decimal: str
) -> None:
    """Raise DataError for the first cell in a column of numbers that is not one."""
    import pandas as pd

    for column in preprocessing.columns:
        if column.kind == "text" or column.name not in frame:
            continue
        cells = frame[column.name]
        if isinstance(cells.dtype, pd.CategoricalDtype):
            texts = map(str, cells.cat.categories)
            words = [
                t for t in texts if not (is_numeral(t, decimal) or t in GAPS or t.lower() in TRUTH)
            ]
            bad = cells[cells.isin(words)]
            if len(bad):
                raise DataError(
                    f"{source}, row {bad.index[0]}, column {short_repr(column.name)}: "
                    f"{short_repr(bad.iloc[0])} is not a number; empty the cell if the value is "
                    "missing"
                )


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
            counts = count_texts(frame[name])
            new = [text for text in counts if text not in column.levels]
            if new:
                rows = sum(map(counts.__getitem__, new))
                notes.append(
                    f"column {short_repr(name)}: {counted(rows, 'row')} with a text that was rare "
                    f"or not there in training, such as {short_repr(new[0])}"
                )
    return notes


_Found = tuple[Targets, npt.NDArray[np.bool_]]


def _classes(y: pd.Series[Any], model: SavedModel, decimal: str) -> _Found:
    """Return the classes of the rows whose label the model knows, and which rows these are."""
    codes, texts = factorize(y)
    labels: list[Any] = [*map(printable, texts)]
    index: dict[Any, int] = {label: i for i, label in enumerate(model.labels)}
    if all(map(NUMBER.fullmatch, index)):  # 9 and 9.0 are the same label
        index = {Decimal(label): i for label, i in index.items()}
        labels = [Decimal(text) if NUMBER.fullmatch(text) else text for text in texts]
    elif sorted(map(str.lower, index)) == sorted(TRUTH):  # TRUE and true too
        index = {label.lower(): i for label, i in index.items()}
        labels = [*map(str.lower, texts)]
    found = np.array([*(index.get(label, -1) for label in labels), -1])[codes]
    scored = found >= 0
    classes = found[scored]
    if model.objective.task == "binary":
        return classes.astype(np.float32)[:, None], scored
    return classes, scored


def _values(y: pd.Series[Any], model: SavedModel, decimal: str) -> _Found:
    """Return the standardized targets of the rows with a number, and which rows these are."""
    numbers = as_numbers(y, decimal)
    if numbers is None:  # take the cells that are numbers
        texts = read_texts(y).dropna()
        numbers = as_numbers(texts[[is_numeral(text, decimal) for text in texts]], decimal)
    if numbers is None:
        return np.empty((0, 1), np.float32), np.zeros(len(y), np.bool_)
    values = numbers.reindex(y.index).to_numpy(np.float64, na_value=np.nan)
    standardized = ((values - model.target_mean) / model.target_deviation).astype(np.float32)
    scored = np.isfinite(standardized)
    return standardized[scored][:, None], scored
