"""From the rows of a table to the inputs of a model: fill, scale, one input for each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._checks import counted, short_repr
from fastopt.train.checks import DataError, from_extra, ieee, plain_array

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = npt.NDArray[np.float64]

LARGEST = 1e100  # of the numbers in a table: the sum of their squares is finite
OTHER = "(other)"  # the level that joins the rare ones
RARE = 0.01  # of the training rows: rarer texts are joined
LEVELS = 50  # of a column: texts that are less frequent are joined
INPUTS = 2000  # that texts may become
TRUTH = {"false": 0.0, "true": 1.0}  # texts of any case that are numbers
# Texts that are missing values in a file, and those that are among numbers.
MISSING = frozenset(
    ["", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A", "<NA>"]
)
GAPS = MISSING | {"-", "--"}
CELLS = 1 << 19  # that are converted at once, which bounds the memory
COLUMNS = 64  # that are fitted at once


@dataclass(frozen=True)
class Column:
    """A column of a table and the inputs it becomes.

    A column of numbers becomes one input, ``(value - mean) / scale``. If the column is constant in
    the training part, `scale` is 0 and the input is always 0. A column of texts becomes an input
    for each of its `levels`, 1 where the text is that level and otherwise 0, and one for all other
    texts if `other` is true. A column without a text that is frequent enough has no inputs.
    """

    name: str
    kind: Literal["number", "text"]
    fill: float | str  # in place of a missing value: the median, or the most frequent text
    mean: float = 0.0
    scale: float = 0.0
    levels: tuple[str, ...] = ()
    other: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs."""
        if self.kind == "number":
            return (self.name,)
        levels = (*self.levels, OTHER) if self.other else self.levels
        return tuple(f"{self.name}={level}" for level in levels)


@dataclass(frozen=True)
class Preprocessing:
    """How the rows of a table become the inputs of a model; made by `fit_preprocessing`.

    The numbers are those of the training part, so new rows are treated as the rows in training.
    """

    columns: tuple[Column, ...]

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs: ``age``, ``city=Rome``, ``city=(other)``."""
        return tuple(name for column in self.columns for name in column.features)

    @ieee
    def transform(self, table: Any) -> npt.NDArray[np.float32]:
        """Return the inputs of the rows of a table.

        The arithmetic is float64, with one rounding to float32 at the end.

        Parameters
        ----------
        table : DataFrame or array
            A DataFrame has the columns by name, in any order; further columns are ignored. An array
            of shape (N, columns) has them by position. NaN and None are missing values, and so are
            the texts that are missing in a file, such as ?. Messages name a row by the index of the
            DataFrame; the rows of an array count from 1.

        Returns
        -------
        inputs : ndarray of float32, shape (N, features)

        Raises
        ------
        DataError
            If a column is missing, holds something else than in training, names appear twice, or a
            number is infinite or too large for float32.
        """
        frame = _frame(table, [column.name for column in self.columns])
        inputs = np.zeros((len(frame), len(self.features)), np.float32)
        rows = max(1, CELLS // frame.shape[1])
        for start in range(0, len(frame), rows):
            self._scale(frame.iloc[start : start + rows], inputs[start : start + rows])
        at = 0
        for column in self.columns:
            if column.kind == "text":
                codes, texts = factorize(frame[column.name])
                levels = {level: i for i, level in enumerate(column.levels)}
                fill = levels.get(str(column.fill), len(levels))
                found = [levels.get(t, fill if t in MISSING else len(levels)) for t in texts]
                level = np.array([*found, fill])[codes]  # the code of a missing text is -1
                known = np.flatnonzero(level < len(column.features))
                inputs[known, at + level[known]] = 1
            at += len(column.features)
        return inputs

    def _scale(self, frame: pd.DataFrame, inputs: npt.NDArray[np.float32]) -> None:
        """Write the inputs that are numbers."""
        starts = np.cumsum([0, *(len(column.features) for column in self.columns)])
        numbers = [(i, c) for i, c in zip(starts, self.columns, strict=False) if c.kind == "number"]
        at = [i for i, _ in numbers]
        mean, scale, fill = (
            np.array([getattr(column, name) for _, column in numbers], np.float64)
            for name in ("mean", "scale", "fill")
        )
        given = read_numbers(frame, [column.name for _, column in numbers])
        values = np.where(np.isnan(given), fill, given) - mean
        np.divide(values, scale, out=values, where=scale != 0)
        values[:, scale == 0] *= 0  # infinity becomes NaN
        inputs[:, at] = values
        for row, i in np.argwhere(~np.isfinite(inputs[:, at]))[:1]:
            value = given[row, i]
            problem = "infinite" if np.isinf(value) else "too far from the values in training"
            raise DataError(
                f"column {short_repr(numbers[i][1].name)}, row {frame.index[row]}: {value:g} is "
                f"{problem}; remove or change it"
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain values of JSON, from which `from_json` makes an equal object."""
        return {
            "columns": [asdict(column) | {"levels": [*column.levels]} for column in self.columns]
        }

    @classmethod
    def from_json(cls, values: Any) -> Preprocessing:
        """Return the object of which `to_json` has made these values.

        Raises
        ------
        ValueError
            If the values are anything else.
        """
        columns = values.get("columns") if isinstance(values, Mapping) else None
        if not isinstance(columns, list) or not columns:
            raise ValueError("a preprocessing must have a list of columns")
        made = tuple(_column_from_json(column) for column in columns)
        if len({column.name for column in made}) < len(made):
            raise ValueError("the columns of a preprocessing must have different names")
        return cls(made)


def _column_from_json(values: Any) -> Column:
    """Return a column; ValueError if the values are not those of one."""
    plain = Column("", "number", 0.0)
    if not isinstance(values, Mapping) or values.keys() != asdict(plain).keys():
        raise ValueError(f"a column must have {', '.join(asdict(plain))}")
    kind, levels = values["kind"], values["levels"]
    wanted = {"name": str, "mean": float, "scale": float, "levels": list, "other": bool}
    wanted["fill"] = str if kind == "text" else float
    numbers = [value for value in values.values() if isinstance(value, float)]
    if (
        kind not in ("number", "text")
        or any(type(values[name]) is not type_ for name, type_ in wanted.items())
        or any(type(level) is not str for level in levels)
        or len(set(levels)) < len(levels)
        or not all(isfinite(number) for number in numbers)
        or values["scale"] < 0
        or (kind == "number" and (levels or values["other"]))
        or (values["other"] and not levels)
    ):
        raise ValueError(f"a column of a preprocessing cannot be {short_repr(values)}")
    return Column(**{**values, "levels": tuple(levels)})


@ieee
def fit_preprocessing(table: Any) -> Preprocessing:
    """Return the preprocessing for a table of training rows.

    Missing numbers become the median, missing texts the most frequent text. Numbers are
    standardized; true and false are 1 and 0. A column of texts has an input for each of the 50 most
    frequent texts, and one for all others. Those in fewer than 1 % of the rows, or in one row only,
    are among the others.

    Parameters
    ----------
    table : DataFrame or array
        A DataFrame with columns of numbers, booleans and texts, or an array of shape (N, columns),
        whose columns get the names x1, x2, ...

    Raises
    ------
    DataError
        If there are no rows or columns, names appear twice, a column holds dates, infinity or
        something else that is neither number nor text, or texts become more than 2000 inputs.
    """
    frame = _frame(table)
    if 0 in frame.shape:
        raise DataError(f"the table has shape {frame.shape}: it must hold rows and columns")
    made: dict[str, Column] = {}
    empty = frame.isna().all()
    numbers = [str(name) for name in frame if is_number(frame[name]) and not empty[name]]
    for start in range(0, len(numbers), COLUMNS):
        made |= _fit_numbers(frame, numbers[start : start + COLUMNS])
    made = {str(name): made.get(str(name)) or _fit_text(frame[name]) for name in frame}
    fitted = Preprocessing(tuple(made.values()))
    texts = {column.name: len(column.features) for column in made.values() if column.kind == "text"}
    if sum(texts.values()) > INPUTS:
        most = max(texts, key=texts.__getitem__)
        raise DataError(
            f"the texts of {counted(len(texts), 'column')} become {sum(texts.values())} inputs, "
            f"more than {INPUTS}; leave columns out, such as {short_repr(most)} with {texts[most]}"
        )
    if not fitted.features:
        raise DataError("no column holds numbers, or a text that is in several rows")
    return fitted


def _fit_numbers(frame: pd.DataFrame, names: list[str]) -> dict[str, Column]:
    with from_extra("fit_preprocessing"):
        from sklearn.preprocessing import StandardScaler

    values = read_numbers(frame, names)
    large = np.abs(values) > LARGEST
    if large.any():
        row, i = np.argwhere(large)[0]
        raise DataError(
            f"column {short_repr(names[i])}, row {frame.index[row]}: {values[row, i]:g} is not "
            f"within {LARGEST:g}; remove or change it"
        )
    missing = np.isnan(values)
    fill = (np.nanmedian if missing.any() else np.median)(values, axis=0)
    scaler = StandardScaler().fit(np.where(missing, fill, values))
    # scikit-learn gives a constant column the scale 1. Nothing is learned from such a column, so
    # another value in a new row must not change the output.
    constant = scaler.scale_ != np.sqrt(scaler.var_)
    scale = np.where(constant, 0, scaler.scale_)
    return {
        name: Column(name, "number", *numbers)
        for name, *numbers in zip(
            names, fill.tolist(), scaler.mean_.tolist(), scale.tolist(), strict=True
        )
    }


def rarest(rows: int) -> int:
    """Return in how many of the training rows a text must be to become an input."""
    return max(2, ceil(RARE * rows))


def _fit_text(column: pd.Series[Any]) -> Column:
    # The most frequent first; of equally frequent ones, the first in sorted order.
    found = sorted((-count, text) for text, count in count_texts(column).items())
    least = rarest(len(column))
    frequent = [text for count, text in found if -count >= least and text != OTHER]
    levels = tuple(sorted(frequent[:LEVELS]))
    fill = found[0][1] if found else ""
    return Column(str(column.name), "text", fill, levels=levels, other=0 < len(levels) < len(found))


def is_number(column: pd.Series[Any]) -> bool:
    """Return whether a column holds numbers, not texts; DataError if it holds something else."""
    from pandas.api import types

    if column.dtype.kind in "biuf":
        return True
    kind = types.infer_dtype(column, skipna=True)
    if kind in ("boolean", "decimal"):
        return True
    if kind in ("string", "bytes", "categorical", "empty") or "mixed" in kind:
        return False
    dates = kind.startswith(("date", "time", "period"))
    raise DataError(
        f"column {short_repr(str(column.name))} holds "
        f"{'dates or times' if dates else f'values of {column.dtype}'}; leave it out"
        + ", or turn it into numbers such as days"
        * dates
    )


def read_numbers(frame: pd.DataFrame, names: list[str]) -> Floats:
    """Return columns of numbers as float64 of shape (N, columns), with NaN for missing values."""
    import pandas as pd

    part = frame[names]
    if any(dtype.kind not in "biuf" for dtype in part.dtypes):
        converted = {}
        for name, column in part.items():
            if not is_number(column):  # which refuses dates
                column = read_texts(column).map(
                    lambda text: np.nan if text in GAPS else TRUTH.get(text.lower(), text),
                    na_action="ignore",
                )
            numbers = pd.to_numeric(column, errors="coerce")
            lost = numbers.isna() & column.notna()
            if lost.any():
                raise DataError(
                    f"column {short_repr(name)}, row {lost.idxmax()}: "
                    f"{short_repr(column[lost].iloc[0])} is not a number"
                )
            converted[name] = numbers
        part = pd.DataFrame(converted, index=frame.index)
    values: Floats = part.to_numpy(np.float64, na_value=np.nan)
    return values


def factorize(column: pd.Series[Any]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the different texts of a column, and the index of that of each row; -1 if missing."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories.tolist()
        return np.asarray(column.cat.codes, np.int64), [*map(_as_text, categories)]
    if pd.api.types.infer_dtype(column, skipna=True) != "string":
        column = read_texts(column)
    codes, texts = pd.factorize(column)
    return codes, [*map(str, texts.tolist())]


def count_texts(column: pd.Series[Any]) -> dict[str, int]:
    """Return the different texts of a column, and in how many rows each is."""
    codes, texts = factorize(column)
    counts = np.bincount(codes + 1, minlength=len(texts) + 1)[1:].tolist()
    return {text: count for text, count in zip(texts, counts, strict=True) if count}


def read_texts(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column as Python strings, with NaN for missing values; 7.0 is the text 7."""
    if column.dtype in (np.float16, np.float32):
        column = column.astype(str).astype(np.float64)  # 0.1, not 0.10000000149
    # If all values are missing, map returns floats.
    return column.astype(object).map(_as_text, na_action="ignore").astype(object)


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def require_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise DataError if columns of these names are missing."""
    missing = [name for name in names if name not in frame]
    if missing:
        lacked, there = (
            ", ".join(map(short_repr, some[:5])) + ", ..." * (len(some) > 5)
            for some in (missing, [*frame])
        )
        raise DataError(
            f"the table lacks {counted(len(missing), 'column')}: {lacked}; it has {there}"
        )


def _frame(table: Any, names: list[str] | None = None) -> pd.DataFrame:
    """Return the table as a DataFrame whose names are texts, with the columns `names`."""
    with from_extra("a table"):
        import pandas as pd

    if isinstance(table, pd.DataFrame):
        frame = table.set_axis([str(name) for name in table], axis=1)
        require_columns(frame, names or ())
    else:
        shape = f"shape (N, {'columns' if names is None else len(names)})"
        array = plain_array("table", table, f"{shape}, or a DataFrame", "biufcSUOmM")
        if array.ndim != 2 or (names is not None and array.shape[1] != len(names)):
            found = f"shape {array.shape}" if array.ndim else short_repr(table)
            raise DataError(f"the table must be a DataFrame or an array of {shape}, not {found}")
        names = names or [f"x{i + 1}" for i in range(array.shape[1])]
        frame = pd.DataFrame(array, columns=names, index=pd.RangeIndex(1, len(array) + 1))
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"two columns have the name {short_repr(str(twice[0]))}; rename one")
    inferred: pd.DataFrame = frame.infer_objects() if object in frame.dtypes.values else frame
    return inferred
