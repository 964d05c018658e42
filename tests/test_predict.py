"""``fastopt predict``: new rows by the names of their columns, the file, the score, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")
pytest.importorskip("typer")

import pandas as pd

from fastopt import train as ft
from fastopt.train.rows import Rows, read_rows
from fastopt.train.tables import read_table
from helpers import fastopt
from test_train_tables import FILES, A, B, lines

SIZE = ["low" if a < b else "high" for a, b in zip(A, B, strict=True)]
TOWN = [("Rome", "Oslo", "Bonn")[i % 3] for i in range(len(A))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run on the table ``mine.csv`` beside it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.csv").write_text(lines(A, TOWN, B, SIZE, head="a,town,b,size"))
    ran = fastopt("train", "--data", "mine.csv", "--epochs", "3", "--hidden", "4", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder


def predict(run: Path, text: str, *options: str) -> tuple[str, pd.DataFrame]:
    """Return what the command prints for a table, and its file."""
    (run / "new.csv").write_text(text)
    shutil.rmtree(run / "fastopt-predict", ignore_errors=True)
    ran = fastopt("predict", "fastopt-run", "new.csv", *options, cwd=run)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, pd.read_csv(run / "fastopt-predict/predictions.csv")


def test_from_a_table_to_predictions(run: Path) -> None:
    printed, found = predict(run, (run / "mine.csv").read_text())
    model = ft.load_model(run / "fastopt-run")
    probabilities = model.predict_proba(read_table(run / "mine.csv").frame)
    assert list(found) == ["predicted size", "probability of high", "probability of low"]
    np.testing.assert_array_equal(found.iloc[:, 1:].to_numpy(np.float32), probabilities)
    assert (
        found["predicted size"].tolist()
        == model.predict(read_table(run / "mine.csv").frame).tolist()
    )
    right = np.mean(found["predicted size"] == SIZE)
    assert f"score      accuracy {right:.2%}, loss " in printed
    assert "on 90 rows with a known size" in printed
    assert "wrote into fastopt-predict: predictions.csv" in printed


def test_columns_are_matched_by_name(run: Path) -> None:
    _, expected = predict(run, (run / "mine.csv").read_text())
    printed, found = predict(run, lines(B, range(90), A, TOWN, head="b;more;a;town", sep=";"))
    pd.testing.assert_frame_equal(found, expected)
    assert "not used: 'more'" in printed
    assert "score      none, because no row has a known size" in printed


def test_a_score_on_the_rows_of_training_is_too_good(run: Path) -> None:
    warning = "warning: the score is too good: the model was trained on most of these rows"
    head, *rows = (run / "mine.csv").read_text().splitlines()
    for part, own in ((rows[::-1], True), ([*rows, "1,Rome,2,"], True), (rows[1:], False)):
        assert (warning in predict(run, "\n".join([head, *part]))[0]) == own


def test_what_a_row_may_lack(run: Path) -> None:
    printed, found = predict(run, "a,town,b,size\n2000,Paris,,low\n2001,,1999,huge\n2002,Oslo,1,\n")
    assert len(found) == 3
    assert len(predict(run, "a,town,b\n2000,,1999\n")[1]) == 1  # a column without any text
    assert "filled 2 missing values, as in training" in printed
    assert (
        "column 'town': 1 row with a text that was rare or not there in training, such as 'P"
        in (printed)
    )
    assert "not scored: 1 row whose size was not in training, such as 'huge'" in printed
    assert "on 1 row with a known size" in printed


# New rows for each of the `FILES`, as a file and as the values that must be read from it.
NEW: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "text labels and gaps": (
        "town;size;length;width\nOslo;;1993,5;2007,25\n;low;2010;\nParis;;1999;1980\n",
        {
            "width": [2007.25, None, 1980],
            "town": ["Oslo", None, "Paris"],
            "length": [1993.5, 2010, 1999],
        },
    ),
    "semicolons and decimal commas": (
        "Länge;Breite\n1.150;2\n2.004;1998\n",
        {"Breite": [2, 1998], "Länge": [1150, 2004]},
    ),
    "no header": ("2000.5,1990.25\n1991,2012\n", {"x1": [2000.5, 1991], "x2": [1990.25, 2012]}),
    "header of numbers": ("1,0\n2007,1990\n1993,2012\n", {"0": [1990, 2012], "1": [2007, 1993]}),
    "index column": ("b\ta\n2007\t1990\n1993\t2012\n", {"a": [1990, 2012], "b": [2007, 1993]}),
    "target in the middle": (
        "b|size|a\n2007|high|1990\n1993|?|2012\n", {"a": [1990, 2012], "b": [2007, 1993]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_first_files_and_new_rows(name: str, tmp_path: Path) -> None:
    content, options, _, labels, _ = FILES[name]
    (tmp_path / "mine.csv").write_text(content, encoding="utf-8")
    (tmp_path / "new.csv").write_text(NEW[name][0], encoding="utf-8")
    more = [word for option, value in options.items() for word in (f"--{option}", value)]
    short = ["--epochs", "2", "--hidden", "4"]
    ran = fastopt("train", "--data", "mine.csv", *more, *short, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    ran = fastopt("predict", "fastopt-run", "new.csv", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    table = pd.read_csv(tmp_path / "fastopt-predict/predictions.csv", dtype=str)
    model = ft.load_model(tmp_path / "fastopt-run")
    rows = pd.DataFrame(NEW[name][1])
    assert len(set(model.outputs(rows)[:, 0])) == len(rows)  # the order of the rows is checked
    predicted = f"predicted {model.target}"
    assert list(table) == [predicted, *(f"probability of {label}" for label in labels)]
    if labels:
        assert table[predicted].tolist() == model.predict(rows).tolist()
        shares = table.iloc[:, 1:].astype(np.float32)
        np.testing.assert_array_equal(shares, model.predict_proba(rows))
    else:
        np.testing.assert_array_equal(table[predicted].astype(float), model.predict(rows))


def test_a_loaded_model_predicts_the_bits_of_the_trainer_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(FILES["text labels and gaps"][0])
    trainer = ft.RunConfig(data=str(path), hidden=(4,), epochs=2).build()
    trainer.fit(2)
    ft.save_model(tmp_path / "model.safetensors", trainer)
    model = ft.load_model(tmp_path)
    rows = read_rows(str(path), model)
    data = trainer.data
    assert data.preprocessing is not None
    inputs = data.preprocessing.transform(read_table(path).frame)
    both = np.concatenate([data.x_train, data.x_val])
    np.testing.assert_array_equal(inputs[np.lexsort(inputs.T)], both[np.lexsort(both.T)])
    assert rows.scored.all()
    outputs = trainer.predict(inputs)
    np.testing.assert_array_equal(model.outputs(rows.frame), outputs, strict=True)
    right = trainer.objective.predicted(outputs) == rows.targets
    assert right.mean() == trainer.objective.score(outputs, rows.targets)


def train_on(path: Path, text: str, **options: Any) -> ft.SavedModel:
    """Return a model of a table, after it was written to a file and read again."""
    path.write_text(text)
    trainer = ft.RunConfig(data=str(path), hidden=(4,), epochs=1, **options).build()
    ft.save_model(path.with_name("model.safetensors"), trainer)
    return ft.load_model(path.with_name("model.safetensors"))


def rows_of(path: Path, text: str, model: ft.SavedModel) -> Rows:
    path.write_text(text)
    return read_rows(str(path), model)


@pytest.mark.parametrize("gap", [False, True])
def test_booleans_are_numbers(gap: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    flags = ["" if gap and i % 9 == 4 else ("TRUE", "FALSE")[i % 2] for i in range(90)]
    model = train_on(path, lines(flags, A, B, head="flag,a,b"))
    for cells in (["true", "False"], ["TRUE", ""], ["1", "0"], ["", ""]):
        rows = rows_of(path, lines(cells, [1, 2], head="flag,a"), model)
        expected = {"flag": [{"t": 1.0, "1": 1.0, "": None}.get(cell[:1].lower(), 0.0)
                             for cell in cells], "a": [1, 2]}  # fmt: skip
        np.testing.assert_array_equal(
            model.outputs(rows.frame), model.outputs(pd.DataFrame(expected))
        )


def test_booleans_are_the_same_labels_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    model = train_on(path, lines(A, ["TRUE", "FALSE"] * 45, head="a,new"))
    rows = rows_of(path, "a,new\n1,true\n2,False\n3,no\n", model)
    assert (rows.scored.tolist(), rows.targets.tolist()) == ([True, True, False], [1, 0])


def test_a_regression_is_scored_in_its_units(tmp_path: Path) -> None:
    ran = fastopt("train", "--data", "diabetes", "--epochs", "2", cwd=tmp_path)
    assert ran.returncode == 0
    ran = fastopt("predict", "fastopt-run/model.safetensors", "diabetes", cwd=tmp_path)
    values = pd.read_csv(tmp_path / "fastopt-predict/predictions.csv").squeeze()
    from sklearn.datasets import load_diabetes
    from sklearn.metrics import r2_score

    true = load_diabetes().target
    error = np.sqrt(np.mean((true - values) ** 2))
    assert f"score      R² {r2_score(true, values):.3f}, loss " in ran.stdout
    assert f"error {error:.4g} (root mean square), on 442 rows" in ran.stdout
    frame = load_diabetes(as_frame=True).frame.iloc[:1]  # R² needs two different targets
    frame = frame.rename(columns={"target": "disease progression after one year"})
    frame.to_csv(tmp_path / "one.csv", index=False)
    ran = fastopt("predict", "fastopt-run", "one.csv", cwd=tmp_path)
    assert "score      loss " in ran.stdout


def test_a_table_without_names_may_lack_its_target(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    commas = [f"{a:.2f}".replace(".", ",") for a in A]
    codes = ["007", "ab", "cd"] * 30  # the new rows have the first only
    columns = [SIZE, commas, codes, commas[::-1], commas]
    model = train_on(path, lines(*columns, sep=";"), target="1", drop=("5",))
    whole = rows_of(path, lines(*columns, sep=";"), model)
    assert whole.scored.all()
    part = rows_of(path, lines(*(column[::3] for column in columns[1:]), sep=";"), model)
    np.testing.assert_array_equal(model.outputs(part.frame), model.outputs(whole.frame)[::3])
    assert not part.scored.any()
    for count in (3, 6):
        with pytest.raises(ft.DataError, match=f"{count} columns without names, .* trained on 5"):
            rows_of(path, lines(*[A] * count), model)


def test_a_new_file_of_an_npz_file_has_its_width(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    x, y = np.stack([A, B], axis=1), np.arange(90) % 2
    np.savez(path, X=x, y=y)
    model = ft.SavedModel.from_trainer(ft.RunConfig(data=str(path), hidden=(4,)).build())
    assert read_rows(str(path), model).scored.all()
    np.savez(path, X=x)
    assert not read_rows(str(path), model).scored.any()
    np.savez(path, X=np.hstack([x, x]), y=y)
    with pytest.raises(ft.DataError, match=r"4 columns without names, .* trained on 2"):
        read_rows(str(path), model)


def test_numbers_as_names_are_not_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    commas = [f"{a:.2f}".replace(".", ",") for a in A]
    columns = [commas, commas[::-1], commas, commas[::-1]]
    model = train_on(path, lines(*columns, SIZE, head="0;1;2;3;4", sep=";"))
    rows = rows_of(path, lines(*columns, head="0;1;2;3", sep=";"), model)
    assert rows.frame.dtypes.unique().tolist() == [np.float64]
    assert not rows.scored.any()


def test_targets_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    model = train_on(path, lines(A, B, head="a,price"))
    rows = rows_of(path, 'a,price\n1,12\n2,unknown\n3,"1,020.5"\n4,\n', model)
    assert rows.scored.tolist() == [True, False, True, False]
    targets = model.target_mean + rows.targets.astype(float) * model.target_deviation
    assert targets.ravel().tolist() == pytest.approx([12, 1020.5], rel=1e-4)
    assert (
        "not scored: 1 row whose price cannot be used as a number, such as 'unknown'" in rows.notes
    )


def test_one_feature_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(lines(A, B, head="a,b"))
    trainer = ft.RunConfig(data=str(path), hidden=(4,), epochs=2).build()
    path.write_text(lines(A, head="a"))
    rows = read_rows(str(path), ft.SavedModel.from_trainer(trainer))
    assert rows.frame["a"].tolist() == A.tolist()
    assert not rows.scored.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fastopt-run", "lacks.csv"],
            "lacks.csv: the table lacks 2 columns: 'town', 'b'; it has 'a', 'size'; line 1 is the",
        ),
        (
            ["fastopt-run", "text.csv"],
            "text.csv, row 2, column 'b': 'x' is not a number;",
        ),
        (["fastopt-run", "none.csv"], "cannot read none.csv: No such file or directory"),
        (["fastopt-run", "none"], "there is no file or folder none"),
        (["fastopt-run", "iris", "--delimiter", ","], "iris is not a table, so it takes no deli"),
        (["fastopt-run", "fastopt-run"], "fastopt-run has no t10k-images-idx*-ubyte file"),
        (["nowhere", "mine.csv"], "cannot read nowhere: No such file or directory; fastopt train "),
        ([".", "mine.csv"], "cannot read model.safetensors: No such file or directory"),
        (["mine.csv", "mine.csv"], "mine.csv is damaged or not a safetensors file"),
    ],
)
def test_what_is_refused(run: Path, arguments: list[str], message: str) -> None:
    (run / "lacks.csv").write_text("a,size\n1,low\n2,low\n")
    (run / "text.csv").write_text('a,town,b\n1,Rome,"1,000"\n2,Rome,x\n')
    shutil.rmtree(run / "fastopt-predict", ignore_errors=True)
    ran = fastopt("predict", *arguments, cwd=run)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (run / "fastopt-predict").exists()
