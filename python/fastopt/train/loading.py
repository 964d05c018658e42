"""Loading data to train on: scikit-learn's bundled sets, tables, .npz, and MNIST's idx files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastopt._checks import counted, digits, list_of, short_repr
from fastopt.train.arrays import read_idx, reading
from fastopt.train.checks import DataError, from_extra, ieee, printable, seed32, text
from fastopt.train.data import TASKS, Data, Task
from fastopt.train.preprocessing import (
    LARGEST,
    LEVELS,
    TRUTH,
    Preprocessing,
    count_texts,
    factorize,
    fit_preprocessing,
    is_number,
    rarest,
    read_texts,
)
from fastopt.train.tables import (
    DATE,
    NUMERALS,
    Table,
    find_column,
    is_numeral,
    is_table,
    read_table,
    saying_how_read,
    to_numbers,
    unit_of,
)

if TYPE_CHECKING:
    import pandas as pd

# The data sets that come with scikit-learn: the function that loads each, and its task.
BUNDLED: dict[str, tuple[str, Task]] = {
    "digits": ("load_digits", "classification"),
    "wine": ("load_wine", "classification"),
    "iris": ("load_iris", "classification"),
    "breast-cancer": ("load_breast_cancer", "binary"),
    "diabetes": ("load_diabetes", "regression"),
}

CLASSES = 20  # whole numbers are labels by default if they have at most so many different values
LONGEST = 200  # characters of a label
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d+)?")  # as numbers are usually written
INDEX = re.compile(r"column 1|Unnamed: 0|(?i:index|row|n[or]\.?|(.*[^a-z])?id)|.*[a-z]I[dD]")


@ieee
def load_data(
    source: str | Path | None = None,
    task: Task | None = None,
    seed: int = 0,
    *,
    target: str | None = None,
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    header: bool | None = None,
) -> Data:
    """Load data and hold out a part of it.

    `Data.notes` says what was decided: the header, the task, columns that are left out, and missing
    values that are filled.

    Parameters
    ----------
    source : str or path, optional
        One of these:

        - ``"digits"`` (the default), ``"wine"``, ``"iris"``, ``"breast-cancer"`` (binary) or
          ``"diabetes"`` (regression), which come with scikit-learn
        - a table: ``.csv`` or ``.tsv``, plain or ``.gz``, or ``.parquet`` (with pyarrow)
        - a ``.npz`` file with ``X`` (N, ...) and ``y``, of shape (N,) or (N, 1) or one-hot
        - a folder with MNIST's four idx files, plain or ``.gz``, whose test files are held out
    task : {"classification", "binary", "regression"}, optional
        The kind of the targets. By default, the targets of a file are classes if they are texts,
        one-hot rows, whole numbers of which one begins with 0 (007), or at most 20 different whole
        numbers, each in two rows on average; otherwise it is a regression. "binary" takes two
        labels, in sorted order.
    seed : int
        Selects the fifth that is held out.
    target : str, optional
        The column to predict: its name or its number, from 1 on. By default the last.
    drop : sequence of str
        Names or numbers of columns to leave out. A first column that only numbers or names the
        rows is left out by itself.
    delimiter, header
        Of a CSV file; see `read_table`.

    Raises
    ------
    DataError
        If the data cannot be read or used.

    Notes
    -----
    Labels are texts as they are in the file: 007 is not 7. They are in the order of numbers if all
    are numbers, and otherwise in that of texts. Control characters in them are shown as escapes.

    A table becomes inputs as `fit_preprocessing` says. A row without a target is left out.

    Examples
    --------
    >>> from fastopt import train
    >>> data = train.load_data("diabetes")
    >>> data.task, data.y_train.shape, round(data.target_mean)
    ('regression', (353, 1), 152)
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    seed = seed32("seed", seed)
    source = "digits" if source is None else source
    path = Path(source)
    given = {"target": target, "drop": drop, "delimiter": delimiter, "header": header}
    try:
        if isinstance(source, str) and source in BUNDLED:
            refuse_options(source, given)
            return _load_bundled(source, task, seed)
        with reading(path, "path"):
            folder = path.is_dir()
        if folder:
            refuse_options(str(path), given)
            data = _load_idx(path, task or "classification")
            return replace(data, unnamed=data.features)
        require_path(path)
        return _load_table(path, task, seed, target, drop, delimiter, header)
    except MemoryError as error:
        raise DataError(f"{source} does not fit into memory") from error


def require_path(path: Path) -> None:
    """Raise DataError if there is no such path, which may be a misspelt name."""
    if not is_table(path) and not path.exists():
        raise DataError(
            f"there is no file or folder {path}; bundled with scikit-learn are {', '.join(BUNDLED)}"
        )


def refuse_options(source: str, given: Mapping[str, object]) -> None:
    """Raise DataError if an option is given that the data do not take."""
    for name, value in given.items():
        if value is not None and value != ():
            raise DataError(f"{source} is not a table, so it takes no {name}")


def _load_bundled(name: str, task: Task | None, seed: int) -> Data:
    task = task or BUNDLED[name][1]
    frame = bundled_table(name, task)
    y = frame.pop(frame.columns[-1])
    return _split(f"{name} (scikit-learn)", frame, y, task, seed, [])


def bundled_table(name: str, task: Task) -> pd.DataFrame:
    """Return a data set of `BUNDLED`; its last column is the target."""
    with from_extra("load_data"):
        import pandas as pd
        from sklearn import datasets  # takes a second, which --help does not need

    bunch = getattr(datasets, BUNDLED[name][0])()
    y, target = bunch.target, "class"
    if name == "diabetes":
        target = "disease progression after one year"
    elif name != "digits" and task != "regression":
        y = np.asarray(bunch.target_names)[y].astype(object)
    frame = pd.DataFrame(bunch.data, columns=[*map(str, bunch.feature_names)])
    frame[target] = y
    table: pd.DataFrame = frame
    return table


def idx_table(folder: Path, part: str) -> pd.DataFrame:
    """Return the "train" or "t10k" part of MNIST's files; the last column is the class."""
    with from_extra("load_data"):
        import pandas as pd

    what = {"train": "training", "t10k": "held-out"}[part]
    x, y = read_idx(folder, f"{part}-images"), read_idx(folder, f"{part}-labels")
    if y.shape[1] != 1:
        raise DataError(f"{folder}: the {what} labels must be one number each")
    if len(x) != len(y):
        raise DataError(
            f"{folder}: {counted(len(x), f'{what} input')} but {counted(len(y), 'label')}"
        )
    frame: pd.DataFrame = pd.DataFrame(x, columns=[f"x{i + 1}" for i in range(x.shape[1])])
    frame["class"] = y[:, 0]
    return frame


def _load_idx(folder: Path, task: Task) -> Data:
    train, held = idx_table(folder, "train"), idx_table(folder, "t10k")
    y_train, y_val = train.pop("class"), held.pop("class")
    if train.shape[1] != held.shape[1]:
        raise DataError(f"{folder}: {train.shape[1]} and {counted(held.shape[1], 'feature')}")
    if task == "regression":
        numbers = y_train.to_numpy(np.float64), y_val.to_numpy(np.float64)
        return _prepare(folder.name, task, train, numbers[0], held, numbers[1], (), "class", [])
    labels, codes = _encode(folder.name, y_train)
    strange = ~y_val.isin(y_train)
    if strange.any():
        raise DataError(
            f"{folder}: the held-out label {y_val[strange].iloc[0]} is not in the training part"
        )
    held_codes = y_val.map(dict(zip(y_train, codes, strict=True))).to_numpy(np.int64)
    return _prepare(folder.name, task, train, codes, held, held_codes, labels, "class", [])


def _load_table(
    path: Path,
    task: Task | None,
    seed: int,
    target: str | None,
    drop: Sequence[str],
    delimiter: str | None,
    header: bool | None,
) -> Data:
    wanted = "-1" if target is None else text("target", target)
    table = read_table(path, delimiter=delimiter, header=header, target=wanted)
    with saying_how_read(table.notes):
        return _from_table(path, table, task, seed, target, drop)


def _from_table(
    path: Path, table: Table, task: Task | None, seed: int, target: str | None, drop: Sequence[str]
) -> Data:
    frame, read_notes, decimal = table
    names, notes = list(frame.columns), list(read_notes)
    if len(names) < 2:
        raise DataError(
            f"{path} has one column; it needs features and a target. If it has more, give "
            "their --delimiter"
        )
    name = _column(path, names, "-1" if target is None else target, "target")
    if path.suffix.lower() == ".npz" and "target" not in names:
        raise DataError(f"{path} holds X; it needs X and y")
    if target is None and path.suffix.lower() != ".npz":
        notes.append(f"the target is the last column, {short_repr(name)}; --target names another")
    y = frame.pop(name)
    dropped = {_column(path, names, column, "drop") for column in list_of(text)("drop", drop)}
    if name in dropped:
        raise DataError(f"{path}: the target {short_repr(name)} cannot be left out")
    first = names[0]
    if first in frame and _names_rows(frame[first]):
        dropped.add(first)
        notes.append(f"column {short_repr(first)} is left out: it only numbers or names the rows")
    if dropped:
        frame = frame.drop(columns=sorted(dropped))
    if not frame.shape[1]:
        raise DataError(f"{path} has no columns left; it needs features and a target")
    missing = y.isna()
    if missing.any():
        lost = counted(int(missing.sum()), "row")
        notes.append(
            f"left out {lost} without a target (empty, ?, NaN; among numbers also NA and -)"
        )
        frame, y = frame[~missing], y[~missing]
        for column in frame.select_dtypes("category"):  # the word was in such a row
            numbers = to_numbers(frame[column].cat.remove_unused_categories(), decimal)
            if numbers is not None:
                frame = frame.assign(**{column: numbers})
    for column in frame:
        _check_texts(path, frame[column], decimal)
    numbers = as_numbers(y, decimal)
    if numbers is None and task is None:
        counts = count_texts(y)
        if date := _date_among(counts):
            raise DataError(
                f"{path}: the target {short_repr(name)} holds dates or times such as "
                f"{short_repr(date)}; turn it into numbers such as days, or give "
                "--task classification if they are classes"
            )
        if all(map(is_numeral, counts)):
            task = "regression"
    if task is None:
        task, reason = _choose_task(y, numbers)
        notes.append(f"{task}: {short_repr(name)} has {reason}; --task overrides this")
    if task == "regression":
        if numbers is None:
            row, value, problem = _first_word(y, decimal)
            raise DataError(
                f"{path}, row {row}, target {short_repr(name)}: {short_repr(value)} {problem}"
            )
        y = numbers
    data = _split(path.name, frame, y, task, seed, notes)
    return replace(data, decimal=decimal, unnamed=count_unnamed(names, name))


def count_unnamed(names: Sequence[str], target: str) -> int:
    """Return how many columns are called x1, x2, ..., as in a table without names; else 0.

    The target may have another name, if it is the last.
    """
    count = len(names) - (names[-1] == target != f"x{len(names)}")
    return count if list(names[:count]) == [f"x{i + 1}" for i in range(count)] else 0


def _column(path: Path, names: list[str], wanted: str, option: str) -> str:
    """Return the name of a column that the user has named or numbered."""
    name = find_column(names, wanted)
    if name is None:
        shown = ", ".join(map(short_repr, names[:8])) + ", ..." * (len(names) > 8)
        raise DataError(
            f"{path} has no column {short_repr(wanted)} ({option}); it has {len(names)}: {shown}"
        )
    return name


def _names_rows(column: pd.Series[Any]) -> bool:
    """Return whether a first column is an index: by its name, and its values are all different."""
    return bool(INDEX.fullmatch(str(column.name)) and column.dtype.kind != "f" and column.is_unique)


def _check_texts(path: Path, column: pd.Series[Any], decimal: str) -> None:
    """Raise DataError if a column holds dates, or numbers with other texts among them."""
    name = short_repr(str(column.name))
    out = f"--drop {printable(shlex.quote(str(column.name)))}"
    try:
        if is_number(column):
            return
    except DataError as error:
        raise DataError(f"{path}: {error} ({out})") from None
    counts = count_texts(column)
    if date := _date_among(counts):
        raise DataError(
            f"{path}: column {name} holds dates or times such as {short_repr(date)}; leave it out "
            f"({out}), or turn it into numbers such as days"
        )
    total = sum(counts.values())
    numerals = sum(count for text, count in counts.items() if is_numeral(text))
    # With more words, such as A/5 21171 among the tickets of a ship, it is a column of texts.
    if numerals and total - numerals <= max(2, total / 10):
        row, value, problem = _first_word(column, decimal)
        raise DataError(
            f"{path}, row {row}, column {name}: {short_repr(value)} {problem}, or leave the column "
            f"out ({out})"
        )


def _date_among(counts: Mapping[str, int]) -> str | None:
    """Return a date or time if more than half of the texts in a column are some; else None."""
    dates = [text for text in counts if DATE.fullmatch(text)]
    return dates[0] if sum(map(counts.__getitem__, dates)) > sum(counts.values()) / 2 else None


def _first_word(cells: pd.Series[Any], decimal: str) -> tuple[Any, str, str]:
    """Return the row and the text of the first cell that is no number here, and what is wrong."""
    texts = read_texts(cells).dropna()
    problem = "is not a number; empty the cell if the value is missing"
    words = texts[~texts.map(is_numeral).astype(bool)]
    if not len(words):
        problem = "has another unit than the first cells of the column; use one unit"
        words = texts[texts.map(unit_of) != unit_of(texts.iloc[0])]
    if not len(words):
        problem = f"is not a number with the decimal mark {decimal!r} of the table; use this mark"
        words = texts[texts.map(NUMERALS[decimal].fullmatch).isna()]
    return words.index[0], str(words.iloc[0]), problem


def as_numbers(y: pd.Series[Any], decimal: str) -> pd.Series[Any] | None:
    """Return targets as float64, or None if a text is not a number."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(y.dtype):
        return y.astype(np.float64)
    return to_numbers(y, decimal)


def _choose_task(y: pd.Series[Any], numbers: pd.Series[Any] | None) -> tuple[Task, str]:
    """Return the task that follows from the targets, and the reason."""
    different = y.nunique()
    if numbers is None:
        return "classification", counted(different, "different text")
    if y.dtype.kind not in "fiu":
        if getattr(y.dtype, "ordered", False):
            return "classification", f"{counted(different, 'class', 'classes')} in one-hot rows"
        texts = factorize(y)[1]
        if all(text.lower() in TRUTH for text in texts):
            return "classification", "the values true and false"
        if re.search(r"^-?0\d", "\n".join(texts), re.MULTILINE):
            return "classification", f"{counted(different, 'different code')} that begin with 0"
    if (numbers % 1 != 0).any():
        return "regression", "numbers that are not whole"
    found = f"{different} different whole numbers"
    if different > CLASSES:
        return "regression", f"{found}, more than {CLASSES}"
    if different > len(y) // 2:
        return "regression", f"{found} in {counted(len(y), 'row')}"
    return "classification", f"{found}, at most {CLASSES}"


def _encode(name: str, y: pd.Series[Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the labels in order, and the number of the label of each row."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(y.dtype):
        values, codes = np.unique(y.to_numpy(), return_inverse=True)
        labels = [*map(str, values)]
        if not all(map(NUMBER.fullmatch, labels)):  # 1e-05: read_rows compares texts
            labels = [*read_texts(pd.Series(values))]
        return labels, codes.astype(np.int64)
    codes, labels = factorize(y)
    longest = max(labels, key=len)
    if len(longest) > LONGEST:
        raise DataError(
            f"{name}: a label has {len(longest)} characters, more than {LONGEST}; is column "
            f"{short_repr(str(y.name))} the target? --target names another"
        )
    order: dict[str, Any] = {label: label for label in labels}
    if all(map(NUMBER.fullmatch, labels)):
        order = {label: Decimal(label) for label in labels}
    first = {order[label]: label for label in reversed(labels)}  # 9 and 9.0 are the same number
    index = {value: i for i, value in enumerate(sorted(first))}
    return [first[value] for value in index], np.array([index[order[t]] for t in labels])[codes]


def _split(
    name: str, frame: pd.DataFrame, y: pd.Series[Any], task: Task, seed: int, notes: list[str]
) -> Data:
    """Hold out a fifth of the rows, of each class if there are enough."""
    with from_extra("load_data"):
        from sklearn.model_selection import train_test_split

    if len(y) < 5:
        raise DataError(f"{name}: {counted(len(y), 'sample')}; at least 5 are needed")
    labels: list[str] = []
    stratify = None
    if task == "regression":
        targets: npt.NDArray[Any] = y.to_numpy(np.float64)
    else:
        labels, targets = _encode(name, y)
        if len(labels) < 2:
            raise DataError(
                f"{name}: all labels are {short_repr(labels[0])}; at least 2 classes are needed"
            )
        if len(labels) > len(y) // 2:
            raise DataError(
                f"{name}: {len(labels)} different labels in {len(y)} samples; are these classes? "
                "If they are numbers to predict, give --task regression"
            )
        if np.bincount(targets).min() > 1 and len(labels) <= len(y) // 5:
            stratify = targets
    train, held = train_test_split(
        np.arange(len(y)), test_size=0.2, random_state=seed, stratify=stratify
    )
    parts = frame.iloc[train], targets[train], frame.iloc[held], targets[held]
    return _prepare(name, task, *parts, labels, str(y.name), notes)


def _prepare(
    name: str,
    task: Task,
    train: pd.DataFrame,
    y_train: npt.NDArray[Any],
    held: pd.DataFrame,
    y_val: npt.NDArray[Any],
    labels: Sequence[str],
    target: str,
    notes: list[str],
) -> Data:
    """Fit the preprocessing to the training part, and apply it to both."""
    mean, deviation = 0.0, 1.0
    if task == "regression":
        for y in (y_train, y_val):
            if not (largest := np.abs(y).max()) <= LARGEST:
                raise DataError(
                    f"{name}: the target holds {largest:g}, beyond {LARGEST:g}; remove or scale it"
                )
        mean, deviation = float(y_train.mean()), float(y_train.std())
        if deviation <= len(y_train) * np.finfo(np.float64).eps * abs(mean):
            raise DataError(f"{name}: all targets are {mean:g}: there is nothing to learn")
        y_train, y_val = ((y[:, None] - mean) / deviation for y in (y_train, y_val))
    elif task == "binary":
        if len(labels) != 2:
            raise DataError(
                f"{name}: {counted(len(labels), 'class', 'classes')}; the task binary takes 2, "
                "classification any number"
            )
        y_train, y_val = y_train[:, None], y_val[:, None]
    try:
        fitted = fit_preprocessing(train)
        notes = [*notes, *_notes(fitted, train, held)]
        fitted = Preprocessing(tuple(column for column in fitted.columns if column.features))
        inputs = fitted.transform(train), fitted.transform(held)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    return Data(
        name, task, inputs[0], y_train, inputs[1], y_val, labels, target, mean, deviation,
        preprocessing=fitted, notes=tuple(notes),
    )  # fmt: skip


def _notes(fitted: Preprocessing, train: pd.DataFrame, held: pd.DataFrame) -> list[str]:
    """Return what happens to missing values and rare texts."""
    notes = []
    missing = (train.isna().sum() + held.isna().sum()).to_dict()
    filled = [
        f"{missing[c.name]} in {short_repr(c.name)} by "
        + (
            f"{digits(c.fill, 6)}, the median"
            if isinstance(c.fill, float)
            else f"{short_repr(c.fill)}, the most frequent"
        )
        for c in fitted.columns
        if c.features and missing[c.name]
    ]
    if filled:
        more = f"; and in {counted(len(filled) - 5, 'more column')}" if len(filled) > 5 else ""
        total = sum(missing[c.name] for c in fitted.columns if c.features)
        notes.append(
            f"filled {counted(total, 'missing value')} (empty, ?, -, NA, NaN, null or None): "
            f"{'; '.join(filled[:5])}{more}"
        )
    least = rarest(len(train))
    for wanted, problem in (
        (lambda c: c.features and c.kind == "text", "texts, with an input for each:"),
        (
            lambda c: c.other,
            f"texts in fewer than {least} rows or beyond the {LEVELS} most frequent are joined in",
        ),
        (lambda c: not c.features, "left out, because all values are missing or rare texts:"),
    ):
        named = [short_repr(c.name) for c in fitted.columns if wanted(c)]
        if named:
            notes.append(f"{problem} {', '.join(named[:8])}{', ...' * (len(named) > 8)}")
    return notes
