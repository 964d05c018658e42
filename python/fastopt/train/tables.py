"""Tables from files as people bring them: CSV, TSV, .gz, Parquet and .npz become a DataFrame."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt._checks import counted, short_repr
from fastopt.train.arrays import check_unpacked, read_bytes, read_npz, reading
from fastopt.train.checks import DataError, from_extra, printable
from fastopt.train.preprocessing import GAPS, MISSING, TRUTH, factorize

if TYPE_CHECKING:
    import pandas as pd

TEXT_FILES = (".csv", ".tsv", ".txt", ".data")
SUFFIXES = (".npz", *TEXT_FILES, *(f"{suffix}.gz" for suffix in TEXT_FILES), ".parquet")
DELIMITERS = {"\t": "a tab", ";": "a semicolon", " ": "a space"}
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}
LINES = 50  # the first lines decide on delimiter, header and decimal mark

# A cell that is a value and no name of a column: missing, a number, a date, a time.
NO_TARGET = frozenset(["", "?", "NaN", "nan"])  # NA and None may be labels
MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?"
    r"|oct(ober)?|nov(ember)?|dec(ember)?)"
)
DATE = re.compile(
    r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T]\d.*)?|(19|20)\d\d[-/]\d{1,2}|\d{1,2}:\d\d(:\d\d.*)?"
    rf"|(\d{{1,2}}[ .-]*)?{MONTH}[ .,-]*(\d{{1,2}}, ?)?(\d{{4}}|\d\d)",
    re.IGNORECASE,
)
SIGN = "[-+\u2212]"  # minus as typed and as printed
MONEY = "[$€£]|EUR|USD|GBP|CHF"
UNIT = re.compile(rf"^({SIGN}?)(?:{MONEY}) ?| ?(?:%|{MONEY})$", re.MULTILINE)  # beside a number

# What separates thousands beside each decimal mark, and the numbers with this mark; but no
# addresses such as 192.168.100.101.
THOUSANDS = {mark: f"[{other} '\xa0\u2019\u202f]" for mark, other in (".,", ",.")}
NUMERALS = {
    mark: re.compile(
        r"(?!\d+\.\d+\.\d+\.\d+$)"
        rf"{SIGN}?(inf(inity)?|(?=[{mark}]?\d)([1-9]\d{{0,2}}({between}\d{{3}})+|\d*)"
        rf"([{mark}]\d*)?(e{SIGN}?\d+)?)",
        re.IGNORECASE,
    )
    for mark, between in THOUSANDS.items()
}


class Table(NamedTuple):
    """A table and how it was read.

    Attributes
    ----------
    frame : DataFrame
    notes : tuple of str
        What was decided while the table was read, a line for each decision.
    decimal : str
        The decimal mark.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]
    decimal: str = "."


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
    names: Collection[str] = (),
    rename: Callable[[list[str]], list[str]] | None = None,
) -> Table:
    """Read a table: .csv, .tsv, .txt or .data, plain or .gz; .parquet; or .npz.

    Text is in UTF-8, or in UTF-16 with its mark. If it is not UTF-8, it is read as Windows-1252.

    The index of the frame counts the rows from 1. Without a header, the columns are called x1, x2,
    ...; in a header, a first column without a name is called "column 1". The array ``y`` of a .npz
    file is the last column, ``target``. Columns of texts are categorical; so are the classes of
    one-hot rows. A column of true and false, in any case, with gaps, holds 1 and 0.

    Parameters
    ----------
    source : str or path
    delimiter : str, optional
        One character, or "tab", "comma", "semicolon" or "space". By default, the first of tab,
        ``;``, ``|``, ``,`` and space that cuts the first lines into equally many cells; or that of
        Excel's first line ``sep=;``.
    header : bool, optional
        Whether the first line holds the names of the columns. By default it does if a word stands
        above a column of numbers, or if all its cells are words that do not come again below.
        Numbers may be among the names if they increase. All names may be numbers if they count from
        0 and other values are below, or if they count up and the values below are not all whole.
    decimal : {".", ","}, optional
        The decimal mark if the first lines do not show it: 1,234.5 has a point, 0,125 a comma,
        1,234 may have either.
    text : collection of str
        Names of columns whose cells are texts as they are written: 007 is not 7. Names that the
        table does not have are ignored.
    target : str, optional
        Another such column, or its number if no column has this name. If it is not a column of
        numbers, only empty cells, ? and NaN are missing in it.
    names : collection of str
        Names of columns. By default, a first line that has all of them is the header.
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
    if suffix in (".xlsx", ".xls", ".xlsm", ".ods"):
        raise DataError(f"{path} is a spreadsheet; save it as CSV")
    if not is_table(path):
        raise DataError(f"{path}: expected a file whose name ends with {', '.join(SUFFIXES)}")
    if suffix in (".npz", ".parquet") and (delimiter is not None or header is not None):
        raise DataError(f"{path} has neither delimiter nor header; leave the options out")
    if decimal not in (None, ".", ","):
        raise DataError(f"the decimal mark must be . or , and not {short_repr(decimal)}")
    notes: list[str] = []
    mark = "."
    if suffix == ".npz":
        arrays = read_npz(path)
        names = [f"x{i + 1}" for i in range(arrays["X"].shape[1])]
        frame = pd.DataFrame(arrays["X"], columns=rename(names) if rename else names)
        if "y" in arrays:
            y = arrays["y"]
            if y.ndim == 2:
                frame["target"] = pd.Categorical(y.argmax(axis=1), ordered=True)
            else:
                frame["target"] = y.astype(object) if y.dtype.kind in "SU" else y
    elif suffix == ".parquet":
        with reading(path, "Parquet file"):
            frame = _read_parquet(path, notes)
            aim = find_column([*frame], target) if target and not rename else target
            mark = _read_words(frame, decimal, "", {*text, aim}, aim, notes)
    else:
        read = partial(
            _read_csv, path, delimiter, header, decimal, text, target, names, rename, notes
        )
        with reading(path, "CSV file"), saying_how_read(notes):
            try:
                frame, mark = read("utf-8")
            except UnicodeDecodeError:
                notes[:] = ["the file is not in UTF-8: read as Windows-1252, as Excel writes"]
                frame, mark = read("cp1252")
    if 0 in frame.shape:
        raise DataError(f"{path} holds no rows of data")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return Table(frame, tuple(notes), mark)


@contextmanager
def saying_how_read(notes: Sequence[str]) -> Iterator[None]:
    """Add to a DataError what `notes` say about encoding, delimiter, header and decimal mark."""
    try:
        yield
    except DataError as error:
        how = [n.partition(": ")[0] for n in notes if n.startswith(("the ", "line ", "numbers "))]
        raise DataError("; ".join([str(error), *how])) from error


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
    known: Collection[str],
    rename: Callable[[list[str]], list[str]] | None,
    notes: list[str],
    encoding: str,
) -> tuple[pd.DataFrame, str]:
    """Return the table in a CSV file, and its decimal mark; the parameters are `read_table`'s."""
    with _open_text(path, encoding) as file:
        lines = [*islice(file, LINES)]
        excel = re.fullmatch(r'"?sep=(.)"?\s*', lines[0], re.IGNORECASE) if lines else None
        skipped = int(excel is not None)
        lines = [*lines[skipped:], *islice(file, skipped)]
        rows, found = _cut(lines, delimiter or (excel and excel[1]), path)
        if delimiter is None and found != ",":
            notes.append(f"the delimiter is {DELIMITERS.get(found, short_repr(found))}")
        columns = max(map(len, rows[1:]), default=len(rows[0]))
        mark = _decimal_mark({cell for row in rows[1:] for cell in row}, found, decimal)
        file.seek(0)
        for _ in range(skipped):
            next(file)
        if header is None:
            _refuse_title(path, rows[0], columns)
            header = bool(known and {*known} <= {*rows[0]}) or _is_header(rows)
        if header:
            names, line = _next_row(file, found)
            start = skipped + line
            notes.append(f"line {start} is the header: {_listed(names)}")
            if len(names) == columns - 1:
                names.insert(0, "")  # the names of the rows have no name
            elif not names[-1] and not any(row[-1] for row in rows if len(row) == columns):
                names.pop()  # each line ends with a delimiter
        else:
            names, start = [f"x{i + 1}" for i in range(columns)], skipped
            notes.append(
                f"line {start + 1} holds values (--header if it holds names): "
                "the columns are x1, x2, ..."
            )
        names = _different(names, notes)
        if rename:
            names = rename(names)
        aim = find_column(names, target) if target and not rename else target
        as_text = {*text, aim}
        frame = _parse(
            path,
            file,
            start,
            names,
            sep=found,
            decimal=mark or ".",
            dtype={i: object for i, name in enumerate(names) if name in as_text},
            keep_default_na=False,
            na_values={
                i: NO_TARGET if name == aim else MISSING for i, name in enumerate([*names, ""])
            },
        )
    return frame, _read_words(frame, mark, found, as_text, aim, notes)


def _read_parquet(path: Path, notes: list[str]) -> pd.DataFrame:
    """Return the columns of a Parquet file that are not nested; decimals become floats."""
    import pandas as pd

    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise DataError(f"{path} needs pyarrow: pip install pyarrow") from error
    with ParquetFile(path) as file:
        facts, schema = file.metadata, file.schema_arrow
    check_unpacked(path, 8 * facts.num_rows * facts.num_columns, path.stat().st_size)
    nested = [field.name for field in schema if pa.types.is_nested(field.type)]
    if nested:
        notes.append(f"left out, because the cells are lists: {_listed(nested)}")
    # With a dictionary, a text that is in many rows is in the memory once.
    texts = [f.name for f in schema if f.type in (pa.string(), pa.large_string(), pa.binary())]
    with ParquetFile(path, read_dictionary=texts) as file:
        kept = [name for name in schema.names if name not in nested] if nested else None
        table = file.read(columns=kept)
    schema = table.schema
    for i, field in enumerate(schema):
        if pa.types.is_decimal(field.type):
            schema = schema.set(i, field.with_type(pa.float64()))
    frame: pd.DataFrame = table.cast(schema).to_pandas()
    if not isinstance(frame.index, pd.RangeIndex):
        unnamed = "" if frame.index.nlevels == 1 else None
        frame = frame.reset_index(names=unnamed, allow_duplicates=True)
    frame.columns = pd.Index(_different(map(str, frame.columns), notes))
    return frame


def _parse(
    path: Path, file: io.TextIOWrapper, start: int, names: list[str], **options: Any
) -> pd.DataFrame:
    """Return the table behind the header, which ends in line `start`."""
    import pandas as pd

    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):  # later versions always do this
        options["float_precision"] = "round_trip"
    try:
        frame: pd.DataFrame = pd.read_csv(
            file,
            header=None,
            skipinitialspace=True,
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
            f"{path}, line {line + start}: {counted(found, 'column')}, {wanted} expected"
        ) from error
    if len(names) == frame.shape[1] - 1 and frame.iloc[:, -1].isna().all():
        frame = frame.iloc[:, :-1]
    if len(names) != frame.shape[1]:
        raise DataError(
            f"{path}: the header has {counted(len(names), 'column')}, the rows have "
            f"{frame.shape[1]}"
        )
    if frame.iloc[:, -1].isna().any():  # pandas fills a row with too few cells
        file.seek(0)
        reader = csv.reader(file, delimiter=options["sep"], skipinitialspace=True)
        for row in reader:
            if row and len(row) < len(names) and reader.line_num > start:
                raise DataError(
                    f"{path}, line {reader.line_num}: {counted(len(row), 'column')}, "
                    f"{len(names)} expected"
                )
    frame.columns = pd.Index(names)
    together: pd.DataFrame = frame.copy()  # the columns of a type in one array: fast rows
    return together


def _read_words(
    frame: pd.DataFrame,
    mark: str | None,
    delimiter: str,
    as_text: Collection[str | None],
    aim: str | None,
    notes: list[str],
) -> str:
    """Make columns of texts categories, or numbers if they are; return the decimal mark."""
    texts = {}  # of the columns that may hold numbers in another form
    for name, dtype in frame.dtypes.items():
        if dtype.kind == "O":
            column = as_categories(frame[name], NO_TARGET if name == aim else MISSING)
            cells = column.categories.tolist()
            # Among numbers alone, more texts are missing: a dash, and in a target also NA.
            values = [cell for cell in cells if cell not in GAPS]
            may_be_numbers = values if name == aim else name not in as_text
            if len(values) < len(cells) and may_be_numbers and all(map(is_numeral, values)):
                column, cells = column.set_categories(values), values
            frame[name] = column
            if name not in as_text and all(is_numeral(c) or c.lower() in TRUTH for c in cells):
                texts[str(name)] = cells
    if mark is None and not any((frame[c] % 1 > 0).any() for c in frame.select_dtypes("float")):
        mark = _decimal_mark({cell for cells in texts.values() for cell in cells}, delimiter)
    mark = mark or "."
    if mark == ",":
        notes.append("numbers have decimal commas")
    read = []
    plain = re.compile(r"[-+]?\d*\.?\d*(e[-+]?\d+)?" if mark == "." else r"[-+]?\d+", re.IGNORECASE)
    for name, cells in texts.items():
        numbers = to_numbers(frame[name], mark)
        if numbers is not None:
            for cell in sorted((c for c in cells if not plain.fullmatch(c)), key=len)[-1:]:
                value = numbers[(frame[name] == cell).idxmax()]
                read.append(f"{short_repr(cell)} in {short_repr(name)} as {value:.15g}")
            frame[name] = numbers
    if read:
        notes.append(f"read as numbers: {'; '.join(read[:8])}{'; ...' * (len(read) > 8)}")
    return mark


def as_categories(column: pd.Series[Any], missing: Collection[str] = ("",)) -> Any:
    """Return a column of texts without space around them, each different text stored once."""
    import pandas as pd

    codes, texts = factorize(column)
    used = np.bincount(codes + 1, minlength=len(texts) + 1)[1:]  # Parquet has unused texts too
    bare = [text.strip() if n else "" for text, n in zip(texts, used, strict=True)]
    stripped, categories = pd.factorize(
        np.array([None if t in missing else t for t in bare], object)
    )
    return pd.Categorical.from_codes(np.append(stripped, -1)[codes], pd.Index(categories))


def is_numeral(cell: str, marks: str = ".,") -> bool:
    """Return whether a cell is a number with one of the decimal marks, and perhaps a unit."""
    if NUMERALS[marks[0]].fullmatch(cell):
        return True
    bare = UNIT.sub(r"\1", cell)
    return any(NUMERALS[mark].fullmatch(bare) for mark in marks)


def unit_of(cell: str) -> str:
    """Return the unit beside a number, or nothing."""
    return "".join(re.findall(f"%|{MONEY}", cell))


def to_numbers(texts: pd.Series[Any], decimal: str = ".") -> pd.Series[Any] | None:
    """Return a column of texts as numbers, or None if one is not, or if the units differ."""
    import pandas as pd

    codes, cells = factorize(texts)
    together = "\n".join(cells)  # for one substitution instead of one for each cell
    if all(cell.lower() in TRUTH for cell in cells):
        numbers = [TRUTH[cell.lower()] for cell in cells]
    elif unit_of(together) and len(set(map(unit_of, cells))) > 1:
        return None
    else:
        bare = UNIT.sub(r"\1", together)
        lines = bare.split("\n")  # more than cells if a cell has several
        if len(lines) != len(cells) or not all(map(NUMERALS[decimal].fullmatch, lines)):
            return None
        plain = re.sub(THOUSANDS[decimal], "", bare).replace(decimal, ".").replace("\u2212", "-")
        numbers = [*map(float, plain.split("\n"))]
    values: pd.Series[Any] = pd.Series(
        np.append(numbers, np.nan)[codes], texts.index, name=texts.name
    )
    return values


def _open_text(path: Path, encoding: str) -> io.TextIOWrapper:
    """Open a text file; a mark of UTF-8 or UTF-16 at its start decides the encoding."""
    raw = io.BytesIO(read_bytes(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    start = raw.read(3)
    raw.seek(0)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif start == codecs.BOM_UTF8:
        encoding = "utf-8-sig"
    return io.TextIOWrapper(raw, encoding, newline="")


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
        try:
            rows = [
                row for row in csv.reader(lines, delimiter=candidate, skipinitialspace=True) if row
            ]
        except csv.Error:  # a cell is longer than the module reads: a line without this delimiter
            if delimiter or candidate == " ":
                raise
            continue
        if not rows:
            raise DataError(f"{path} holds no rows of data")
        rows = [[cell.strip() for cell in row] for row in rows]
        if len(lines) == LINES and len(rows) > 2:
            rows.pop()  # it may continue in the next line
        widths = set(map(len, rows[1:])) or {len(rows[0])}
        first_width, width = len(rows[0]), max(widths)
        # R writes no name for the names of the rows: its header has a cell less.
        header = first_width > 1 and width - first_width in (0, 1)
        title = first_width == 1 and width > 2 and candidate != " "
        if delimiter or (len(widths) == 1 and (header or title)):
            return rows, candidate
        if len(rows[0]) > 1 or candidate in ", ":
            first = first or (rows, candidate)
    assert first is not None
    return first  # some line is too long or too short, which reading it will say


def _refuse_title(path: Path, first: list[str], columns: int) -> None:
    """Raise DataError if the first line is a title: it has words in its first cell alone."""
    title, *others = first
    if columns > 2 and not (any(others) or title in MISSING or is_numeral(title)):
        raise DataError(
            f"{path}: the first line has one cell, {short_repr(title)}, the rows have {columns}; "
            "remove what is above the header, or give --no-header"
        )


def _is_header(rows: list[list[str]]) -> bool:
    """Return whether the first row holds names; see `read_table`."""
    first, below = rows[0], rows[1:]
    if below and len(below[0]) == len(first) + 1:
        return True
    columns = [[row[i] for row in below if i < len(row)] for i in range(len(first))]
    names = [
        (cell, column)
        for i, (cell, column) in enumerate(zip(first, columns, strict=True))
        if cell or (i > 0 and any(column))
    ]
    numbers = [  # EUR 2024 is a name above cells without EUR
        cell
        for cell, column in names
        if is_numeral(cell) and (not re.search("[A-Z]{3}", cell) or any(map(unit_of, column)))
    ]
    word_above_numbers = any(
        re.search(r"[^\W\d]", cell) and not (cell in MISSING or cell in numbers)
        and any(map(is_numeral, column)) and all(c in GAPS or is_numeral(c) for c in column)
        for cell, column in names
    )  # fmt: skip
    if not numbers:
        return word_above_numbers or not any(
            cell in MISSING or DATE.fullmatch(cell) or cell in column for cell, column in names
        )
    if not all(re.fullmatch(r"\d{1,9}", cell) for cell in numbers):
        return False
    counts = [*map(int, numbers)]
    if counts != sorted(set(counts)):
        return False
    only_numbers = len(numbers) == len(names) > 1 and counts == [*range(len(counts))]
    values = {cell for column in columns for cell in column}
    # Years above other numbers than whole ones.
    years = len(counts) > 2 and counts == [*range(counts[0], counts[0] + len(counts))]
    other = all(
        any(not re.fullmatch(r"-?\d*", cell) for cell in column)
        for cell, column in names
        if cell in numbers
    )
    return word_above_numbers or (only_numbers and not values <= set(first)) or (years and other)


def _next_row(file: Iterable[str], delimiter: str) -> tuple[list[str], int]:
    """Return the cells of the next line that is not empty, and the number of its last line."""
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    row = next(row for row in reader if row)
    return [cell.strip() for cell in row], reader.line_num


def _decimal_mark(cells: Collection[str], delimiter: str, given: str | None = None) -> str | None:
    """Return the decimal mark that the cells show, or else the given one; None without both."""
    bare = {UNIT.sub(r"\1", cell) for cell in cells}
    point, comma = ({c for c in bare if NUMERALS[mark].fullmatch(c)} for mark in ".,")
    if point != comma:
        return "." if len(point - comma) >= len(comma - point) else ","
    if given and given != delimiter:
        return given
    marked = {mark for cell in point for mark in ".," if mark in cell}
    return "," if delimiter == ";" and marked == {","} else None


def _different(given: Iterable[str], notes: list[str]) -> list[str]:
    """Return names that are all different, for a terminal; a column without one gets a number."""
    names = [*map(printable, given)]
    taken, made = set(names), dict[str, None]()
    renamed = []
    for i, name in enumerate(names, 1):
        free, number = name or f"column {i}", i
        while free in made or (free != name and free in taken):
            free, number = f"{name or f'column {i}'}.{number}", number + 1
        made[free] = None
        if name not in ("", free):
            renamed.append(f"{short_repr(name)} in column {i} is {short_repr(free)}")
    if renamed:
        notes.append(f"names that are there twice: {'; '.join(renamed[:8])}")
    return list(made)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = [printable(name) or "(no name)" for name in islice(names, most)]
    return ", ".join(shown) + (f", ... ({len(names)} columns)" if len(names) > most else "")
