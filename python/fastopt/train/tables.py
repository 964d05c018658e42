"""Tables from files as people bring them: CSV, TSV, .gz, Parquet and .npz become a DataFrame."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt._checks import short_repr
from fastopt.train.arrays import check_unpacked, read_bytes, read_npz, reading
from fastopt.train.checks import DataError, from_extra, printable
from fastopt.train.preprocessing import factorize

if TYPE_CHECKING:
    import pandas as pd

TEXT_FILES = (".csv", ".tsv", ".txt", ".data")
SUFFIXES = (".npz", *TEXT_FILES, *(f"{suffix}.gz" for suffix in TEXT_FILES), ".parquet")
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}
LINES = 50  # the first lines decide on delimiter, header and decimal mark

# A cell that is a value and no name of a column: missing, a number in any format, a date, a time.
MISSING = frozenset(
    ["", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A", "<NA>"]
)
DATE = re.compile(
    r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T]\d.*)?|\d{1,2}:\d\d(:\d\d.*)?"
    r"|(\d{1,2}[ -.])?[A-Z][a-z]{2,8}[ -.]+(\d{1,2},? )?\d{4}"
)
VALUE = re.compile(
    r"(?=.*\d)[-+$€£]*[\d.,' ]+(e[-+]?\d+)?[%$€£]?|0x[0-9a-f]+|[-+]?inf(inity)?", re.IGNORECASE
)

UNIT = re.compile(r"^([-+]?)[$€£] ?| ?[%$€£]$")  # beside a number

# Numbers with separators: the separator of thousands, the decimal mark, and the pattern.
FORMATS = (
    ("[,]", ".", re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?")),
    ("[.]", ",", re.compile(r"[-+]?(\d{1,3}(\.\d{3})+|\d+)(,\d*)?")),
    (
        r"[ '\xa0\u2019\u202f]",
        ",",
        re.compile(r"[-+]?\d{1,3}([ '\xa0\u2019\u202f]?\d{3})*([.,]\d*)?"),
    ),
)


class Table(NamedTuple):
    """A table and what was decided while it was read, one line for each decision."""

    frame: pd.DataFrame
    notes: tuple[str, ...]
    decimal: str = "."  # the decimal mark


def is_table(path: Path) -> bool:
    """Return whether the suffix is that of a table, in any case."""
    return path.name.lower().endswith(SUFFIXES)


def read_table(
    source: str | Path,
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    decimal: str | None = None,
    text: Collection[str] = (),
    target: str | None = None,
    rename: Callable[[list[str]], list[str]] | None = None,
) -> Table:
    """Read a table: .csv, .tsv, .txt or .data, plain or .gz; .parquet; or .npz.

    The index of the frame counts the rows from 1. Without a header, the columns are called x1, x2,
    ...; in a header, a first column without a name is called "column 1". The array ``y`` of a .npz
    file is the last column, ``target``. Columns of texts are categorical.

    Parameters
    ----------
    source : str or path
    delimiter : str, optional
        One character, or "tab", "comma", "semicolon" or "space". By default, the first of tab,
        ``;``, ``|``, ``,`` and space that cuts the first lines into equally many cells.
    header : bool, optional
        Whether the first line holds the names of the columns. By default it does if no cell is a
        number, a date or empty. Numbers may be names if they increase, and a text stands above a
        column of numbers ("2019", "2020", "total") or they count from 0.
    decimal : {".", ","}, optional
        The decimal mark. By default, the first lines decide.
    text : collection of str
        Names of columns whose cells are texts as they are written: 007 is not 7. Names that the
        table does not have are ignored.
    target : str, optional
        Another such column, or its number if no column has this name.
    rename : callable, optional
        Returns the names to use for those in a CSV or .npz file. `text` and `target` are then such
        names, and `target` is not a number.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    path = Path(source)
    with from_extra("read_table"):
        import pandas as pd

    suffix = path.suffix.lower()
    if not is_table(path):
        raise DataError(f"{path}: expected a file whose name ends with {', '.join(SUFFIXES)}")
    if suffix in (".npz", ".parquet") and (delimiter is not None or header is not None):
        raise DataError(f"{path} has neither delimiter nor header; leave the options out")
    notes: list[str] = []
    mark = "."
    if suffix == ".npz":
        arrays = read_npz(path)
        names = [f"x{i + 1}" for i in range(arrays["X"].shape[1])]
        frame = pd.DataFrame(arrays["X"], columns=rename(names) if rename else names)
        if "y" in arrays:
            y = arrays["y"]
            frame["target"] = y.astype(object) if y.dtype.kind in "SU" else y
    elif suffix == ".parquet":
        with reading(path, "Parquet file"):
            try:
                from pyarrow.parquet import read_metadata
            except ModuleNotFoundError as error:
                raise DataError(f"{path} needs pyarrow: pip install pyarrow") from error
            facts = read_metadata(path)
            check_unpacked(path, 8 * facts.num_rows * facts.num_columns, path.stat().st_size)
            frame = pd.read_parquet(path)
            if not isinstance(frame.index, pd.RangeIndex):
                frame = frame.reset_index(names="" if frame.index.nlevels == 1 else None)
            frame.columns = pd.Index(_different(map(str, frame.columns)))
            texts = [c for c in frame if isinstance(frame[c].dtype, pd.StringDtype)]
            for name in texts:
                frame[name] = as_categories(frame[name])  # a damaged text raises here
    else:
        with reading(path, "CSV file in UTF-8"):
            frame, mark = _read_csv(path, delimiter, header, decimal, text, target, rename, notes)
    if 0 in frame.shape:
        raise DataError(f"{path} holds no rows of data")
    names = [printable(name) or f"column {i}" for i, name in enumerate(frame.columns, 1)]
    frame.columns = pd.Index(_different(names))
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return Table(frame, tuple(notes), mark)


def find_column(names: Sequence[str], wanted: str) -> str | None:
    """Return the column of this name, or of this number from 1 on (-1 is the last); else None."""
    if wanted in names:
        return wanted
    if re.fullmatch(r"-?[1-9]\d{0,8}", wanted) and -len(names) <= int(wanted) <= len(names):
        return names[int(wanted) - (int(wanted) > 0)]
    return None


def _read_csv(
    path: Path,
    delimiter: str | None,
    header: bool | None,
    decimal: str | None,
    text: Collection[str],
    target: str | None,
    rename: Callable[[list[str]], list[str]] | None,
    notes: list[str],
) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    with _open_text(path) as file:
        rows, delimiter = _cut([*islice(file, LINES)], delimiter, path)
        columns = max(map(len, rows[1:]), default=len(rows[0]))
        if decimal is None or decimal == delimiter:
            decimal = "," if delimiter != "," and _has_decimal_commas(rows[1:]) else "."
        file.seek(0)
        if _is_header(rows) if header is None else header:
            names, start = _next_row(file, delimiter)
            notes.append(f"line {start} is the header: {_listed(names)}")
            if len(names) == columns - 1:
                names.insert(0, "")  # the names of the rows have no name
            elif not names[-1] and not any(row[-1] for row in rows if len(row) == columns):
                names.pop()  # each line ends with a delimiter
        else:
            names, start = [f"x{i + 1}" for i in range(columns)], 0
            notes.append("no header: line 1 holds values; the columns are x1, x2, ...")
        if decimal == ",":
            notes.append("numbers have decimal commas")
        names = _different(map(printable, names))
        as_text = {*text, target}
        if rename:
            names = rename(names)
        elif target:
            as_text.add(find_column(names, target))
        frame = _parse(
            path,
            file,
            start,
            names,
            sep=delimiter,
            decimal=decimal,
            dtype={i: object for i, name in enumerate(names) if name in as_text},
        )
    separated = []
    for name, dtype in frame.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            frame[name] = as_categories(frame[name])
            numbers = None if name in as_text else to_numbers(frame[name], decimal)
            if numbers is not None:
                frame[name] = numbers
            separated += [str(name)] * (numbers is not None)
    if separated:
        notes.append(f"numbers such as 1,234 or 5 % are in: {_listed(separated)}")
    return frame, decimal


def _parse(
    path: Path, file: io.TextIOWrapper, start: int, names: list[str], **options: Any
) -> pd.DataFrame:
    """Return the table behind the header, which ends in line `start`."""
    import pandas as pd

    try:
        frame: pd.DataFrame = pd.read_csv(
            file,
            header=None,
            na_values=["?"],
            skipinitialspace=True,
            float_precision="round_trip",
            low_memory=False,  # a column has one type
            **options,
        )
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} holds no rows of data") from None
    except pd.errors.ParserError as error:
        ragged = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if ragged is None:
            raise
        wanted, line, found = map(int, ragged.groups())
        raise DataError(
            f"{path}, line {line + start}: {found} columns, {wanted} expected"
        ) from error
    if len(names) == frame.shape[1] - 1 and frame.iloc[:, -1].isna().all():
        frame = frame.iloc[:, :-1]
    if len(names) != frame.shape[1]:
        raise DataError(
            f"{path}: the header has {len(names)} columns, the rows have {frame.shape[1]}"
        )
    if frame.iloc[:, -1].isna().any():  # pandas fills a row with too few cells
        file.seek(0)
        reader = csv.reader(file, delimiter=options["sep"], skipinitialspace=True)
        for row in reader:
            if row and len(row) < len(names) and reader.line_num > start:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, {len(names)} expected"
                )
    frame.columns = pd.Index(names)
    together: pd.DataFrame = frame.copy()  # the columns of a type in one array: fast rows
    return together


def as_categories(column: pd.Series[Any]) -> Any:
    """Return a column of texts without space around them, each different text stored once."""
    import pandas as pd

    codes, texts = factorize(column)
    stripped, categories = pd.factorize(np.array([text.strip() for text in texts], object))
    return pd.Categorical.from_codes(np.append(stripped, -1)[codes], pd.Index(categories))


def to_numbers(texts: pd.Series[Any], decimal: str = ".") -> pd.Series[Any] | None:
    """Return a column of texts as numbers in one of the `FORMATS`, or None if one is not.

    Formats with the same decimal mark as the rest of the table are tried first.
    """
    cells = {cell: UNIT.sub(r"\1", cell) for cell in texts.dropna().unique()}
    for thousands, mark, pattern in sorted(FORMATS, key=lambda form: form[1] != decimal):
        if cells and all(map(pattern.fullmatch, cells.values())):
            plain = {
                cell: float(re.sub(thousands, "", bare).replace(mark, "."))
                for cell, bare in cells.items()
            }
            return texts.astype(object).map(plain).astype(np.float64)
    return None


def _open_text(path: Path) -> io.TextIOWrapper:
    """Open a text file in UTF-8 or with the mark of UTF-16."""
    raw = io.BytesIO(read_bytes(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    start = raw.read(2)
    raw.seek(0)
    utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return io.TextIOWrapper(raw, "utf-16" if utf16 else "utf-8-sig", newline="")


def _cut(lines: list[str], delimiter: str | None, path: Path) -> tuple[list[list[str]], str]:
    """Return the cells of the first lines, and the delimiter."""
    if delimiter is not None:
        delimiter = NAMED_DELIMITERS.get(delimiter, delimiter)
        if len(delimiter) != 1 or delimiter in '\r\n"' or delimiter.isalnum():
            raise DataError(
                f"the delimiter must be one character, or tab, comma, semicolon or space, not "
                f"{short_repr(delimiter)}"
            )
    first: tuple[list[list[str]], str] | None = None
    for candidate in (delimiter,) if delimiter else "\t;|, ":
        rows = [row for row in csv.reader(lines, delimiter=candidate, skipinitialspace=True) if row]
        if not rows:
            raise DataError(f"{path} holds no rows of data")
        rows = [[cell.strip() for cell in row] for row in rows]
        if len(lines) == LINES and len(rows) > 2:
            rows.pop()  # it may continue in the next line
        widths = set(map(len, rows[1:])) or {len(rows[0])}
        # R writes no name for the names of the rows: its header has a cell less.
        if delimiter or (
            len(widths) == 1 and len(rows[0]) > 1 and max(widths) - len(rows[0]) in (0, 1)
        ):
            return rows, candidate
        if len(rows[0]) > 1 or candidate == ",":
            first = first or (rows, candidate)
    assert first is not None
    return first  # some line is too long or too short, which reading it will say


def _is_header(rows: list[list[str]]) -> bool:
    """Return whether the first row holds names; see `read_table`."""
    first, below = rows[0], rows[1:]
    columns = [[row[i] for row in below if i < len(row)] for i in range(len(first))]
    if below and len(below[0]) == len(first) + 1:
        return True
    unnamed = {i for i, cell in enumerate(first) if not cell and (i == 0 or not any(columns[i]))}
    values = [i for i, cell in enumerate(first) if _is_value(cell) and i not in unnamed]
    if not values:
        return not any(cell in column for cell, column in zip(first, columns, strict=True) if cell)
    if not all(re.fullmatch(r"\d{1,9}", first[i]) for i in values):
        return False
    numbers = [int(first[i]) for i in values]
    if numbers != sorted(set(numbers)):
        return False
    if len(values) + len(unnamed) == len(first):
        return numbers == list(range(len(numbers))) and len(numbers) > 1
    return any(
        columns[i] and all(map(_is_value, columns[i]))
        for i in range(len(first))
        if i not in unnamed and i not in values
    )


def _is_value(cell: str) -> bool:
    return bool(cell in MISSING or VALUE.fullmatch(cell) or DATE.fullmatch(cell))


def _next_row(file: Iterable[str], delimiter: str) -> tuple[list[str], int]:
    """Return the cells of the next line that is not empty, and the number of its last line."""
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    row = next(row for row in reader if row)
    return [cell.strip() for cell in row], reader.line_num


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    """Return whether numbers such as 1,5 are in the rows, and none such as 1.5."""
    cells = {cell for row in rows for cell in row}
    return any(
        re.fullmatch(r"[-+]?(\d{1,3}(\.\d{3})+|\d*),\d+", cell) for cell in cells
    ) and not any(
        re.fullmatch(r"[-+]?\d*\.\d+", cell) and not re.fullmatch(r"[-+]?\d{1,3}(\.\d{3})+", cell)
        for cell in cells
    )


def _different(names: Iterable[str]) -> list[str]:
    """Return the names, with the number of the column where a name appears again."""
    made: dict[str, None] = {}
    for i, name in enumerate(names):
        made[f"{name}.{i + 1}" if name in made else name] = None
    return list(made)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = [printable(name) or "(no name)" for name in islice(names, most)]
    return ", ".join(shown) + (f", ... ({len(names)} columns)" if len(names) > most else "")
