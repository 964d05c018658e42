"""Tables as people bring them: what is read, what is refused, and what the notes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

import pandas as pd

from fastopt import train as ft
from fastopt.train.tables import read_table

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
         "10 values of 'width' by 1998.7, the median; 9 values of 'town' by 'Oslo', the most",
         "classification: 'size' has 2 different texts", "the last column, 'size'"],
    ),
    "semicolons and decimal commas": (
        lines(DECIMALS, [f"{int(a) // 1000}.{int(a) % 1000:03},5" for a in A], DECIMALS[::-1],
              head="Breite;Länge;Preis", sep=";"),
        {},
        ("Breite", "Länge"),
        (),
        ["numbers have decimal commas", "separators such as 1,234 are in: Länge",
         "regression: 'Preis' has numbers that are not whole"],
    ),
    "no header": (
        lines(A, B, CLASS), {}, ("x1", "x2"), ("high", "low"),
        ["no header: line 1 holds values"],
    ),
    "header of numbers": (
        lines(A, B, np.arange(90) % 3, head="0,1,2"), {}, ("0", "1"), ("0", "1", "2"),
        ["line 1 is the header: 0, 1, 2", "classification: '2' has 3 different whole numbers"],
    ),
    "index column": (
        pd.DataFrame({"a": A, "b": B, "c": CLASS}).sample(90, random_state=1).to_csv(),
        {}, ("a", "b"), ("high", "low"),
        ["column '' is left out: it only numbers or names the rows"],
    ),
    "target in the middle": (
        lines(A, CLASS, B, head="a,size,b"), {"target": "size"}, ("a", "b"), ("high", "low"), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_first_files_train_and_new_rows_are_matched_by_name(name: str, tmp_path: Path) -> None:
    content, options, features, labels, words = FILES[name]
    path = tmp_path / "mine.csv"
    path.write_text(content, encoding="utf-8")
    config = ft.RunConfig(data=str(path), hidden=(4,), epochs=2, **options)
    trainer = config.build()
    data = trainer.data
    assert trainer.fit(config.epochs).epochs[-1].val_loss > 0
    assert data.preprocessing is not None
    assert data.preprocessing.features == features
    assert data.labels == labels
    assert len(data.y_train) + len(data.y_val) == 90
    for word in words:
        assert any(word in note for note in data.notes), (word, data.notes)
    new = read_table(path).frame
    new = new[[*reversed(new.columns)]].drop(columns=data.target)  # in another order
    inputs = data.preprocessing.transform(new)
    both = np.concatenate([data.x_train, data.x_val])
    np.testing.assert_array_equal(np.unique(inputs, axis=0), np.unique(both, axis=0))
