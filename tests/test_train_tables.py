"""Tables as people bring them: what is read, what is refused, and what the notes say."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

import pandas as pd

from fastopt import train as ft
from fastopt.train.preprocessing import read_texts
from fastopt.train.tables import read_table
from helpers import fastopt

RNG = np.random.default_rng(4)
A, B = RNG.normal(size=(2, 90)) * 9 + 2000
CITIES = ["Rome", "Oslo", "Bonn"]


def lines(*columns: Any, head: str = "", sep: str = ",") -> str:
    rows = [sep.join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([head, *rows] if head else rows) + "\n"


CLASS = ["low" if a < b else "high" for a, b in zip(A, B, strict=True)]
GAPS = ["" if i % 9 == 4 else f"{a:.4f}" for i, a in enumerate(A)]
DECIMALS = [f"{a:.4f}".replace(".", ",") for a in A]
TOWN = [CITIES[i % 3] if i % 10 else "NA" for i in range(90)]

# A file, its options, its inputs, its labels (none for a regression), and words of the notes.
FILES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...], list[str]]] = {
    "text labels and gaps": (
        lines(GAPS, TOWN, B, CLASS, head="width,town,length,size"),
        {},
        ("width", "town=Bonn", "town=Oslo", "town=Rome", "length"),
        ("high", "low"),
        ["line 1 is the header: width, town, length, size", "filled 19 missing values",
         "10 in 'width' by 1998.7, the median; 9 in 'town' by 'Oslo', the most frequent",
         "classification: 'size' has 2 different texts", "the last column, 'size'"],
    ),
    "semicolons and decimal commas": (
        lines(DECIMALS, [f"{int(a) // 1000}.{int(a) % 1000:03},5" for a in A], DECIMALS[::-1],
              head="Breite;Länge;Preis", sep=";"),
        {},
        ("Breite", "Länge"),
        (),
        ["numbers have decimal commas", "the delimiter is a semicolon",
         "regression: 'Preis' has numbers that are not whole"],
    ),
    "no header": (
        lines(A, B, CLASS), {}, ("x1", "x2"), ("high", "low"),
        ["line 1 holds values (--header if it holds names): the columns are x1"],
    ),
    "header of numbers": (
        lines(A, B, np.arange(90) % 3, head="0,1,2"), {}, ("0", "1"), ("0", "1", "2"),
        ["line 1 is the header: 0, 1, 2", "classification: '2' has 3 different whole numbers"],
    ),
    "index column": (
        pd.DataFrame({"a": A, "b": B, "c": CLASS}).sample(90, random_state=1).to_csv(),
        {}, ("a", "b"), ("high", "low"),
        ["column 'column 1' is left out: it only numbers or names the rows"],
    ),
    "target in the middle": (
        lines(A, CLASS, B, head="a,size,b"), {"target": "size"}, ("a", "b"), ("high", "low"), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_first_files(name: str, tmp_path: Path) -> None:
    content, options, features, labels, words = FILES[name]
    path = tmp_path / "mine.csv"
    path.write_text(content, encoding="utf-8")
    data = ft.load_data(path, **options)
    assert data.preprocessing is not None
    assert data.preprocessing.features == features
    assert data.labels == labels
    assert len(data.y_train) + len(data.y_val) == 90
    for word in words:
        assert any(word in note for note in data.notes), (word, data.notes)


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


NUMBERS = [f"{i % 7}.5" for i in range(40)]
BITS = [i % 2 for i in range(40)]
XY = ["xy"[i % 2] for i in range(40)]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lines(NUMBERS, BITS, head="a,b"), ["a", "b"]),
        (lines(NUMBERS, BITS, head="0,1"), ["0", "1"]),
        (lines(NUMBERS, BITS, head="2019,2020"), ["x1", "x2"]),
        (lines(NUMBERS, BITS, NUMBERS, head="2019,2020,total"), ["2019", "2020", "total"]),
        (lines(NUMBERS, BITS, NUMBERS, head="2020,2019,total"), ["x1", "x2", "x3"]),
        (lines(NUMBERS, NUMBERS, XY, head="1x1,1x2,label"), ["1x1", "1x2", "label"]),
        (lines(NUMBERS, BITS, head="?,0"), ["x1", "x2"]),
        (lines(NUMBERS, NUMBERS, XY, head="a,b,y"), ["a", "b", "y"]),  # y comes again
        (lines(NUMBERS, NUMBERS, XY, head="NA,K,Type"), ["NA", "K", "Type"]),  # sodium
        (lines(NUMBERS, NUMBERS, XY, head="EUR 2023,2024 EUR,y"), ["EUR 2023", "2024 EUR", "y"]),
        (lines([f"{i} EUR" for i in range(40)], NUMBERS), ["x1", "x2"]),
        (lines(NUMBERS, NUMBERS, XY, head="Jan 2024,Feb 2024,y"), ["Jan 2024", "Feb 2024", "y"]),
        (lines([0, 0, 1, 1] * 10, [0, 1] * 20), ["x1", "x2"]),  # no header 0,0 or 0,1
        (lines([0, 1] * 20, [1, 0] * 20), ["x1", "x2"]),  # a truth table
        (
            lines(NUMBERS, NUMBERS, XY, head=",column 1.3,column 1"),
            ["column 1.1", "column 1.3", "column 1"],
        ),
        (lines(NUMBERS, NUMBERS, XY, head="a.3,a,a"), ["a.3", "a", "a.4"]),
        (lines(NUMBERS, BITS, head="12:30,0"), ["x1", "x2"]),
        (lines(NUMBERS, BITS, head="a,a"), ["a", "a.2"]),
        (lines(XY, XY), ["x1", "x2"]),  # the first x comes again
        (lines(XY, XY, head="a,b"), ["a", "b"]),
        (lines(NUMBERS, BITS, [""] * 40, head="a,b,"), ["a", "b"]),
        (lines(NUMBERS, BITS, XY, head="a b", sep=" "), ["column 1", "a", "b"]),  # as R writes it
    ],
)
def test_the_header_is_found(content: str, names: list[str], tmp_path: Path) -> None:
    frame = read_table(write(tmp_path, content)).frame
    assert list(frame) == names
    assert len(frame) == content.count("\n") - ("x1" not in names)


def test_the_header_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "150,4,setosa\n" + lines(NUMBERS, NUMBERS, BITS))
    assert list(read_table(path, header=True).frame) == ["150", "4", "setosa"]
    path = write(tmp_path, lines(XY[:1], [7], head="a,b"))
    assert len(read_table(path, header=False).frame) == 2


@pytest.mark.parametrize("sep", [",", ";", "\t", "|", " ", "#"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(sep: str, end: str, tmp_path: Path) -> None:
    text = lines(NUMBERS, [f'"t{sep}{i}"' for i in range(40)], XY, head=f"a{sep}b{sep}c", sep=sep)
    path = write(tmp_path, "\ufeff" + text.replace("\n", end), "A.TXT")
    frame = read_table(path, delimiter="#" if sep == "#" else None).frame
    assert list(frame) == ["a", "b", "c"]
    assert frame.b.iloc[7] == f"t{sep}7"
    assert frame.c.tolist() == XY


def test_the_first_lines_may_end_inside_a_cell(tmp_path: Path) -> None:
    text = lines(NUMBERS * 2, [f'"{i}\nend"' for i in range(80)], XY * 2, head="a,b,c")
    frame = read_table(write(tmp_path, text)).frame
    assert frame.shape == (80, 3)
    assert frame.b.iloc[79] == "79\nend"


def test_a_line_of_excel_names_the_delimiter(tmp_path: Path) -> None:
    text = "sep=;\n" + lines(NUMBERS * 2, XY * 2, head="a;b", sep=",").replace(",", ";")
    frame, notes, _ = read_table(write(tmp_path, text))
    assert list(frame) == ["a", "b"]
    assert len(frame) == 80
    assert notes == ("the delimiter is a semicolon", "line 2 is the header: a, b")
    short = write(tmp_path, text + "1.5\n")
    with pytest.raises(ft.DataError, match="line 83: 1 column, 2 expected"):
        read_table(short)


def test_packed_and_other_files_hold_the_same(tmp_path: Path) -> None:
    text = lines(NUMBERS, BITS, XY, head="a\tb\tc", sep="\t")
    expected = read_table(write(tmp_path, text, "a.tsv")).frame
    files = [
        write(tmp_path, gzip.compress(text.encode()), "A.TSV.GZ"),
        write(tmp_path, text.encode("utf-16"), "b.csv"),
    ]
    if find_spec("pyarrow"):
        expected.to_parquet(tmp_path / "a.Parquet", index=False)
        files.append(tmp_path / "a.Parquet")
    for path in files:
        pd.testing.assert_frame_equal(read_table(path).frame, expected, check_dtype=False)


def test_a_file_of_excel_in_windows_1252_is_read(tmp_path: Path) -> None:
    cities = ["München", "Zürich"] * 20
    text = lines(NUMBERS, cities, head="Größe;Stadt", sep=";")
    for late in ("", "1.5;Rom\n" * 60_000 + "1.5;Málaga\n"):
        table = read_table(write(tmp_path, (late or text).encode("cp1252")))
        assert table.notes[0] == "the file is not in UTF-8: read as Windows-1252, as Excel writes"
        assert table.frame.iloc[-1, 1] == ("Málaga" if late else "Zürich")
    assert list(read_table(write(tmp_path, text.encode("cp1252"))).frame) == ["Größe", "Stadt"]
    for broken in (text.encode("cp1252") + b"\x81", text.encode("utf-8-sig") + b"1;\xe9\n"):
        with pytest.raises(ft.DataError, match=r"not a readable CSV file: save it as text in UTF"):
            read_table(write(tmp_path, broken))
    with pytest.raises(ft.DataError, match=r"a\.XLSX is a spreadsheet; save it as CSV"):
        ft.load_data(write(tmp_path, b"PK", "a.XLSX"))


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (['"1,234"', '"1,234,567.5"', "12"], [1234, 1234567.5, 12]),
        (['"1,5"', '"2,25"', "3"], [1.5, 2.25, 3]),
        (["1 234", "1'234", "12"], [1234, 1234, 12]),
        (["5 %", "12%", "-1 %"], [5, 12, -1]),
        (['"$1,000"', "$5", "-$7.5"], [1000, 5, -7.5]),
        (["5 EUR", "EUR 7", "\u22121 EUR"], [5, 7, -1]),
        (["\u22121.5", "-", "2"], [-1.5, np.nan, 2]),
        (["5 %", "--", "7 %"], [5, np.nan, 7]),
        (["0.1", "1e-3", " 2 "], [0.1, 1e-3, 2]),
        (["?", "NA", "1"], [np.nan, np.nan, 1]),
        (['"0,100"', '"0,125"', '"1,000"'], [0.1, 0.125, 1]),
        (['"1.234,5"', '"1.234"', '"0,5"'], [1234.5, 1234, 0.5]),
        (["TRUE", "NA", "false"], [1, np.nan, 0]),
        (["True", "TRUE", "false"], [1, 1, 0]),
        (['" "', "NA ", "7"], [np.nan, np.nan, 7]),
    ],
)
def test_numbers_as_people_write_them(cells: list[str], numbers: Any, tmp_path: Path) -> None:
    path = write(tmp_path, lines(cells * 5, XY[:15], head="a,b"))
    np.testing.assert_array_equal(read_table(path).frame.a[:3].to_numpy(float), numbers)
    text = lines([cell.strip('"') for cell in cells * 5], XY[:15], head="a;b", sep=";")
    np.testing.assert_array_equal(
        read_table(write(tmp_path, text)).frame.a[:3].to_numpy(float), numbers
    )


def test_a_table_has_one_decimal_mark(tmp_path: Path) -> None:
    late = lines([*range(60), "0,060"], range(61), head="a\tb", sep="\t")
    assert read_table(write(tmp_path, late)).frame.a[61] == 0.06
    path = write(tmp_path, lines(["1.150"] * 9, range(9), head="a;b", sep=";"))
    assert read_table(path).frame.a[1] == 1.15
    assert read_table(path, decimal=",").frame.a[1] == 1150
    thousands = lines(['"1,234"', '"12,345"'] * 9, NUMBERS[:18], head="a,b")
    assert read_table(write(tmp_path, thousands)).notes[-1] == (
        "read as numbers: '12,345' in 'a' as 12345"
    )
    two = write(tmp_path, lines(['"1\n2"', "3"] * 9, NUMBERS[:18], head="a,b"))
    assert read_table(two).frame.a.tolist() == ["1\n2", "3"] * 9
    addresses = write(
        tmp_path, lines([f"192.168.100.1{i}" for i in range(10, 50)], XY, head="ip,b")
    )
    assert read_table(addresses).frame.ip[1] == "192.168.100.110"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["5 %", "0.05", "$5"], "row 2, column 'a': '0.05' has another unit"),
        (["5 EUR", "EUR 5", "5 USD"], "row 3, column 'a': '5 USD' has another unit"),
        (["1.5", '"2,5"', "3.5"], "'2,5' is not a number with the decimal mark '.'"),
        (["2024-01", "2024-02", "2023-12"], "column 'a' holds dates or times such as '2024-01'"),
        (
            ["Jan-24", "1-Feb-24", "March 2024"],
            "column 'a' holds dates or times such as 'Jan-24'",
        ),
    ],
)
def test_columns_that_are_no_numbers(cells: list[str], words: str, tmp_path: Path) -> None:
    path = write(tmp_path, lines(cells * 13, range(39), XY[:39], head="a,b,c"))
    with pytest.raises(ft.DataError, match=re.escape(words)):
        ft.load_data(path)
    with pytest.raises(
        ft.DataError, match="holds dates or times" if "dates" in words else "unit|mark"
    ):
        ft.load_data(path, target="a")


def test_words_with_numbers_are_no_dates(tmp_path: Path) -> None:
    rooms = ["Room 1001", "Item-1001", "Peugeot 2008", "Decor 12"] * 10
    data = ft.load_data(write(tmp_path, lines(rooms, NUMBERS, XY, head="a,b,c")))
    assert data.features == 5


def test_line_1_may_have_been_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, lines(NUMBERS, NUMBERS, XY, head="a,5.1,c"))
    with pytest.raises(
        ft.DataError, match=r"row 1, column 'x1': 'a' .*; line 1 holds values \(--he"
    ):
        ft.load_data(path)


def test_an_error_says_how_the_file_was_read(tmp_path: Path) -> None:
    text = lines(
        DECIMALS, [*NUMBERS, "5x", *NUMBERS, *NUMBERS[:9]], CLASS, head="a\tb\tc", sep="\t"
    )
    path = write(tmp_path, text.replace("high", "hoch/älter").encode("cp1252"))
    how = "the file is not in UTF-8; the delimiter is a tab; line 1 is the header"
    with pytest.raises(
        ft.DataError, match=f"'5x' is not a .*; {how}; numbers have decimal commas$"
    ):
        ft.load_data(path)
    path.write_bytes(path.read_bytes() + b"1\t2\t3\t4\n")
    with pytest.raises(ft.DataError, match=f"line 92: 4 columns, 3 expected; {how}$"):
        ft.load_data(path)


@pytest.mark.parametrize(
    "text",
    [
        "Report,,\n" + lines(NUMBERS, NUMBERS, XY, head="a,b,c"),
        "Report\n\n" + lines(NUMBERS, NUMBERS, XY, head="a,b,c"),
        "Report\n" + lines(DECIMALS, DECIMALS, DECIMALS, head="a;b;c", sep=";"),
    ],
)
def test_a_title_above_the_header_is_named(tmp_path: Path, text: str) -> None:
    words = "one cell, 'Report', the rows have 3; remove what is above the header, or give --no-h"
    with pytest.raises(ft.DataError, match=words):
        ft.load_data(write(tmp_path, text))


def test_numbers_that_are_written_as_usual_need_no_note(tmp_path: Path) -> None:
    path = write(tmp_path, lines(["7.5", "-", "12.25", "2"], ["5 %", "-", "7", "2"][:1] * 4))
    assert [n for n in read_table(path).notes if "read" in n] == [
        "read as numbers: '5 %' in 'x2' as 5"
    ]
    path = write(tmp_path, lines(["1.500", "-", "2.000"], ["0,5", "1,5", "2,5"], sep=";"))
    assert read_table(path).notes[-1] == "read as numbers: '2.000' in 'x1' as 2000"


def test_words_may_be_labels_that_mean_missing_elsewhere(tmp_path: Path) -> None:
    levels = ["None", "NA", "mild", ""] * 10
    path = write(tmp_path, lines(NUMBERS, levels, levels, head="a,b,c"))
    data = ft.load_data(path)
    assert data.labels == ("NA", "None", "mild")
    assert (
        "left out 10 rows without a target (empty, ?, NaN; among numbers also NA and -)"
        in data.notes
    )
    assert any("filled 20 missing values (empty, ?, -, NA," in note for note in data.notes)
    path = write(tmp_path, lines(NUMBERS, ["1", "2", "NA", "3"] * 10, head="a,c"))
    assert ft.load_data(path).labels == ("1", "2", "3")


def test_labels_of_float32_are_those_of_new_rows(tmp_path: Path) -> None:
    y = np.array([0.1, 0.2], np.float32)[BITS]
    np.savez(tmp_path / "a.npz", X=RNG.normal(size=(40, 2)), y=y)
    assert ft.load_data(tmp_path / "a.npz", "classification").labels == ("0.1", "0.2")
    assert read_texts(read_table(tmp_path / "a.npz").frame.target).tolist() == [*map(str, y)]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "text": pa.array(["long" * 1000] * 40_000),
        "price": pa.array([Decimal("1.50"), None] * 20_000),
        "flag": pa.array([True, None] * 20_000),
        "tags": pa.array([["a", "b"]] * 40_000),
        "when": pa.array([datetime(2024, 1, 5)] * 40_000),
    }
    unused = pd.DataFrame({"a": [1.5, 2.5] * 9, "b": pd.Categorical(["x", "y"] * 9, list("xyz"))})
    unused.to_parquet(tmp_path / "b.parquet")
    assert ft.load_data(tmp_path / "b.parquet").labels == ("x", "y")
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    frame, notes, _ = read_table(tmp_path / "a.parquet")
    assert frame.memory_usage(deep=True).sum() < 2e6  # the texts are 160 MB
    assert frame.price[1] == 1.5
    assert frame.flag[1] == 1
    assert "left out, because the cells are lists: tags" in notes
    with pytest.raises(ft.DataError, match="column 'when' holds dates or times"):
        ft.load_data(tmp_path / "a.parquet", target="flag")


@pytest.mark.parametrize(
    ("labels", "taken", "words"),
    [
        (["007", "7", "12"], ("007", "12", "7"), "3 different codes that begin with 0"),
        (["9.0", "10.0", "2.0"], ("2.0", "9.0", "10.0"), "3 different whole numbers"),
        (["+1", "-1"], ("-1", "+1"), "2 different whole numbers"),
        (["True", "False"], ("False", "True"), "the values true and false"),
        (["1_0", "10", "20"], ("10", "1_0", "20"), "3 different texts"),
    ],
)
def test_labels_are_as_they_are_written(
    labels: list[str], taken: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = write(
        tmp_path, lines(range(60), [i % 7 for i in range(60)], labels * (60 // len(labels)))
    )
    data = ft.load_data(path)
    assert data.labels == taken
    assert any(words in note for note in data.notes)


def test_the_task_follows_from_the_targets(tmp_path: Path) -> None:
    for last, task in (
        ([i % 20 for i in range(60)], "classification"),
        ([i % 21 for i in range(60)], "regression"),
        ([i % 2 + 0.5 for i in range(60)], "regression"),
        (["ab"[i % 2] for i in range(60)], "classification"),
    ):
        path = write(tmp_path, lines(range(60), last))
        assert ft.load_data(path).task == task
    few = ft.load_data(write(tmp_path, lines(range(30), [i % 16 for i in range(30)])))
    assert any("'x2' has 16 different whole numbers in 30 rows" in note for note in few.notes)
    path = write(tmp_path, lines(range(60), ["ab"[i % 2] for i in range(60)]))
    assert ft.load_data(path, "binary").task == "binary"


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.eye(3)[np.arange(60) % 3], ("0", "1", "2")),
        (np.eye(25)[np.arange(60) % 25], tuple(map(str, range(25)))),
        (np.arange(60)[:, None] % 2 == 0, ("False", "True")),
        (np.array([b"ant", b"bee"])[np.arange(60) % 2], ("ant", "bee")),
    ],
)
def test_targets_of_npz_files(y: Any, labels: tuple[str, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.NPZ.npz", X=RNG.normal(size=(60, 2, 2)), y=y)
    data = ft.load_data(tmp_path / "a.NPZ.npz")
    assert data.labels == labels
    assert data.features == 4


def test_columns_may_be_left_out(tmp_path: Path) -> None:
    days = [f"2024-01-{i % 28 + 1:02}" for i in range(40)]
    path = write(tmp_path, lines(range(40), days, NUMBERS, XY, head="userId,day,a,b"))
    with pytest.raises(ft.DataError, match=r"column 'day' holds dates .* '2024-01-01'.*--drop day"):
        ft.load_data(path)
    data = ft.load_data(path, drop=["2"])
    assert data.preprocessing is not None
    assert data.preprocessing.features == ("a",)
    assert ft.load_data(path, drop=["day", "a"], target="userId", task="regression").features == 2
    for options, words in (
        ({"target": "c"}, "has no column 'c' (target); it has 4: 'userId', 'day', 'a', 'b'"),
        ({"drop": ["9"]}, "has no column '9' (drop)"),
        ({"drop": ["b"]}, "the target 'b' cannot be left out"),
        ({"drop": ["day", "a"]}, "it needs features and a target"),
        ({"delimiter": "ab"}, "must be one character, or tab, comma, semicolon or space"),
    ):
        with pytest.raises(ft.DataError, match=re.escape(words)):
            ft.load_data(path, **options)
    with pytest.raises(ft.DataError, match="iris is not a table, so it takes no header"):
        ft.load_data("iris", header=True)


def test_rows_without_a_target_and_rare_texts_are_named(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(40)]
    towns = ["Rome"] * 30 + names[:10]
    path = write(tmp_path, lines(NUMBERS, names, towns, ["", *XY[1:]], head="a,name,town,b"))
    data = ft.load_data(path)
    assert len(data.y_train) + len(data.y_val) == 39
    for words in (
        "left out 1 row without a target",
        "texts in fewer than 2 rows or beyond the 50 most frequent are joined in 'town'",
        "left out, because all values are missing or rare texts: 'name'",
    ):
        assert any(words in note for note in data.notes), data.notes


def test_text_of_a_file_does_not_command_a_terminal(tmp_path: Path) -> None:
    labels = [f"{label}\x1b]0;owned\x07" for label in XY]
    path = write(tmp_path, lines(NUMBERS, labels, head="a\x1b[31m,\x1b[2J"), "a\x1b.csv")
    data = ft.load_data(path)
    assert data.labels == (r"x\x1b]0;owned\x07", r"y\x1b]0;owned\x07")
    assert data.preprocessing is not None
    for text in (data.name, data.target, *data.notes, *data.preprocessing.features):
        assert text.isprintable()


def test_files_that_unpack_to_very_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastopt.train.arrays.FREE", 0)
    path = write(tmp_path, gzip.compress(b"1,2\n" * 50_000), "a.csv.gz")
    with pytest.raises(ft.DataError, match="unpacks to more than 200 times its size"):
        ft.load_data(path)
    np.savez_compressed(tmp_path / "a.npz", X=np.zeros((90_000, 1)), y=np.zeros(90_000))
    with pytest.raises(ft.DataError, match="unpacks to more than 200 times its size"):
        ft.load_data(tmp_path / "a.npz")


def test_a_label_may_not_be_a_whole_text(tmp_path: Path) -> None:
    path = write(tmp_path, lines(NUMBERS, XY) + "1.5," + "z" * 5000)
    with pytest.raises(ft.DataError, match="a label has 5000 characters, more than 200"):
        ft.load_data(path)


def test_too_little_memory_is_an_error_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pd, "read_csv", fail)
    with pytest.raises(ft.DataError, match=r"a\.csv does not fit into memory"):
        ft.load_data(write(tmp_path, lines(NUMBERS, XY)))


def test_the_command_takes_the_options_of_a_table(tmp_path: Path) -> None:
    path = write(tmp_path, lines(NUMBERS, XY, DECIMALS[:40], head="1;2;3", sep=";"))
    options = ["--target", "2", "--drop", "1", "--delimiter", ";", "--no-header"]
    ran = fastopt("train", "--data", path.name, *options, "--epochs", "1", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "classification: 'x2' has 3 different texts" in ran.stdout
    facts = json.loads((tmp_path / "fastopt-run/run.json").read_text())
    assert (
        facts["command"] == "fastopt train --data a.csv --epochs 1 --target 2 --drop 1 "
        "--delimiter ';' --no-header"
    )
    again = shlex.split(facts["command"].replace("--target 2", "--target nothing"))
    ran = fastopt(*again[1:], cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == (
        "fastopt: error: a.csv has no column 'nothing' (target); it has 3: 'x1', 'x2', 'x3'; "
        "line 1 holds values (--header if it holds names); numbers have decimal commas\n"
    )


def test_the_help_does_not_wait_for_pandas() -> None:
    code = "import sys, fastopt.cli.app; assert not {'pandas', 'sklearn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_years_are_a_header_and_a_column_of_many_words_is_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{i}.5,{i * i % 7}.25,{'A/5 ' * (i % 3 == 0)}{i % 2},{i % 5}.5" for i in range(60)]
    path.write_text("\n".join(["2018,2019,2020,2021", *rows]))
    data = ft.load_data(path)
    assert data.preprocessing is not None
    assert data.preprocessing.features == (
        "2018",
        "2019",
        "2020=0",
        "2020=1",
        "2020=A/5 0",
        "2020=A/5 1",
    )
    assert (data.target, len(data.y_train) + len(data.y_val)) == ("2021", 60)
    assert "texts, with an input for each: '2020'" in data.notes


def test_a_line_longer_than_a_cell_may_be_is_cut_at_its_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = ",".join(f"a_very_long_name_of_a_gene_{i}" for i in range(5000))
    path.write_text(
        "\n".join([f"{names},y", *(",".join([f"{i}.5"] * 5000 + ["ab"[i % 2]]) for i in range(20))])
    )
    assert path.read_text().index("\n") > 131072
    assert ft.load_data(path).features == 5000


def test_a_long_line_below_a_single_cell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n" + "1 " * 70_000 + "\n")
    with pytest.raises(ft.DataError, match="the first line has one cell, 'x', the rows have 70001"):
        ft.load_data(path)
