"""From the rows of a table to inputs: fill, scale, one-hot; a saved preprocessing does the same."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

import pandas as pd

from fastopt import train as ft
from fastopt.train.preprocessing import Preprocessing, fit_preprocessing

RNG = np.random.default_rng(2)
FRAME = pd.DataFrame(
    {
        "age": [20.0, np.nan, 40.0, 60.0, 30.0, 20.0],
        "city": ["Rome", "Oslo", None, "Rome", "Oslo", "Bonn"],
        "member": [True, False, True, True, False, True],
        "empty": [None] * 6,
    }
)


def test_columns_become_inputs() -> None:
    fitted = fit_preprocessing(FRAME)
    assert fitted.features == ("age", "city=Oslo", "city=Rome", "city=(other)", "member")
    inputs = fitted.transform(FRAME)
    assert inputs.dtype == np.float32
    age = np.array([20.0, 30, 40, 60, 30, 20])  # the median fills the gap
    np.testing.assert_allclose(inputs[:, 0], (age - age.mean()) / age.std(), rtol=1e-6)
    oslo, rome, other = inputs[:, 1:4].T.tolist()
    assert oslo == [0, 1, 1, 0, 1, 0]  # of the most frequent texts, the first in sorted order
    assert rome == [1, 0, 0, 1, 0, 0]
    assert other == [0, 0, 0, 0, 0, 1]


def test_new_rows_are_treated_as_those_in_training() -> None:
    fitted = fit_preprocessing(FRAME)
    new = pd.DataFrame({"member": [1], "empty": ["x"], "more": [3], "city": ["Wien"], "age": "40"})
    inputs = fitted.transform(new)
    np.testing.assert_array_equal(inputs[:, [0, 4]], fitted.transform(FRAME)[2:3, [0, 4]])
    assert inputs[0, 1:4].tolist() == [0, 0, 1]
    texts = fitted.transform(new.assign(age=pd.Categorical(["40"])))
    np.testing.assert_array_equal(texts, inputs)
    by_position = fitted.transform(np.array([[40, "Wien", True, None]], object))
    np.testing.assert_array_equal(by_position, inputs)
    gaps = new.assign(age="?", city="NA")
    for kind in (object, "category"):
        again = fitted.transform(gaps.astype(dict.fromkeys(gaps, kind)))
        np.testing.assert_array_equal(again, fitted.transform(new.assign(age=np.nan, city=None)))
    known = fit_preprocessing(pd.DataFrame({"city": ["Rome", "Oslo"] * 2}))
    assert known.transform(new).tolist() == [[0, 0]]  # no rare text in training


def test_booleans_with_gaps_are_numbers() -> None:
    fitted = fit_preprocessing(pd.DataFrame({"a": [True, None, False, True]}))
    assert fitted.features == ("a",)
    inputs = fitted.transform(pd.DataFrame({"a": [True, False, None]}))
    texts = fitted.transform(pd.DataFrame({"a": ["TRUE", "false", None]}))
    np.testing.assert_array_equal(texts, inputs)
    np.testing.assert_array_equal(fitted.transform(pd.DataFrame({"a": [1, 0, None]})), inputs)


def test_texts_become_a_bounded_number_of_inputs() -> None:
    texts = [f"t{i % 60}" for i in range(240)]
    assert len(fit_preprocessing(pd.DataFrame({"a": texts})).features) == 51
    wide = pd.DataFrame(dict.fromkeys(map(str, range(40)), texts))
    with pytest.raises(ft.DataError, match="40 columns become 2040 inputs, more than 2000; leave"):
        fit_preprocessing(wide)


def test_numbers_are_scaled_as_by_scikit_learn() -> None:
    from sklearn.preprocessing import StandardScaler

    x = RNG.normal(size=(5000, 70)) * 10.0 ** RNG.integers(-9, 9, 70)
    x[:, 0] = 1.7e12 + 4e4 * RNG.random(5000)  # an epoch in ms over 40 s: not constant
    x[:, 1] = 0.1
    fitted = fit_preprocessing(x)
    assert fitted.features[69] == "x70"
    inputs = fitted.transform(x)
    np.testing.assert_array_equal(
        inputs[:, 2:], StandardScaler().fit_transform(x)[:, 2:].astype(np.float32)
    )
    assert inputs[:, 0].std() == pytest.approx(1, rel=1e-6)
    assert not inputs[:, 1].any()
    x[7, 1] = 0.9
    assert not fitted.transform(x)[:, 1].any()  # nothing was learned from this column


def test_rare_texts_are_joined() -> None:
    texts = ["a"] * 500 + ["b"] * 480 + ["c"] * 10 + ["d"] * 9 + ["(other)"]
    fitted = fit_preprocessing(pd.DataFrame({"t": texts, "name": [f"n{i}" for i in range(1000)]}))
    assert fitted.features == ("t=a", "t=b", "t=c", "t=(other)")


def test_a_saved_preprocessing_gives_the_same_bits() -> None:
    frame = pd.concat([FRAME, pd.DataFrame(RNG.normal(size=(6, 3)) * 1e-7)], axis=1)
    fitted = fit_preprocessing(frame)
    again = Preprocessing.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.transform(frame).tobytes() == fitted.transform(frame).tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": []}, "list of columns"),
        ({"columns": [{}]}, "a column must have"),
        ({"name": 3}, "cannot be"),
        ({"kind": "date"}, "cannot be"),
        ({"mean": float("nan")}, "cannot be"),
        ({"scale": -1.0}, "cannot be"),
        ({"fill": "x"}, "cannot be"),
        ({"levels": ["a"]}, "cannot be"),
        ({"kind": "text", "fill": "a", "levels": ["a", "a"]}, "cannot be"),
        ({"name": "city"}, "different names"),
    ],
)
def test_strange_values_are_no_preprocessing(change: dict[str, Any], words: str) -> None:
    values = fit_preprocessing(FRAME).to_json()
    if "columns" in change:
        values = change
    else:
        values["columns"][0] |= change
    with pytest.raises(ValueError, match=words):
        Preprocessing.from_json(values)
    nonsense: Any
    for nonsense in (None, [], "x", 3, {"columns": {}}, {"columns": [None]}):
        with pytest.raises(ValueError, match="must have"):
            Preprocessing.from_json(nonsense)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (FRAME[["city", "age"]], "the table lacks 2 columns: 'member', 'empty'"),
        (FRAME.assign(age="old"), "column 'age', row 0: 'old' is not a number"),
        (FRAME.assign(age=pd.Categorical(["1", "2", "x"] * 2)), "row 2: 'x' is not a number"),
        (FRAME.assign(age=[1, 2, np.inf, 4, 5, 6]), "column 'age', row 2: inf is infinite"),
        (FRAME.assign(age=1e300), "column 'age', row 0: 1e+300 is too far from the values in"),
        (FRAME.assign(age=pd.Timestamp("2024-01-05")), "column 'age' holds dates or times"),
        (FRAME.assign(age=pd.Period("2024-01")), "column 'age' holds dates or times"),
        (FRAME.assign(age=1j), "column 'age' holds values of complex128"),
        (pd.concat([FRAME, FRAME], axis=1), "two columns have the name 'age'; rename one"),
        (np.zeros((3, 5)), "a DataFrame or an array of shape (N, 4), not shape (3, 5)"),
        ({"age": [1]}, "a DataFrame or an array of shape (N, 4), not {'age': [1]}"),
    ],
)
def test_other_tables_are_refused(frame: Any, words: str) -> None:
    with pytest.raises(ft.DataError, match=re.escape(words)):
        fit_preprocessing(FRAME).transform(frame)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (FRAME.assign(age=pd.Timestamp("2024-01-05")), "column 'age' holds dates or times"),
        (FRAME.assign(age=pd.Timestamp("2024-01-05").date()), "column 'age' holds dates or times"),
        (FRAME.assign(age=1j), "column 'age' holds values of complex128"),
        (FRAME.assign(age=[1, 2, -1e101, 4, 5, 6]), "column 'age', row 2: -1e+101 is not within"),
        (FRAME.iloc[:0], "it must hold rows and columns"),
        (FRAME.set_axis(list("abca"), axis=1), "two columns have the name 'a'"),
        (FRAME[["empty"]], "no column holds numbers"),
        (np.zeros(4), "an array of shape (N, columns), not shape (4,)"),
    ],
)
def test_tables_that_cannot_be_learned_from(frame: Any, words: str) -> None:
    with pytest.raises(ft.DataError, match=re.escape(words)):
        fit_preprocessing(frame)


def test_what_is_no_table_is_refused() -> None:
    table: Any
    for table, words in (
        ([[1, 2], [3]], "table must be an array of shape .N, columns., or a DataFrame; NumPy"),
        (np.ma.masked_array([[1.0]], [[True]]), "table must not have a mask"),
    ):
        with pytest.raises(TypeError, match=words):
            fit_preprocessing(table)
