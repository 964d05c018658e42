"""``fastopt predict``: new rows by the names of their columns, the file, the score, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")
pytest.importorskip("typer")

import pandas as pd

from fastopt import train as ft
from fastopt.train.rows import read_rows
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
    assert list(found) == ["class", "probability of high", "probability of low"]
    np.testing.assert_array_equal(found.iloc[:, 1:].to_numpy(np.float32), probabilities)
    assert found["class"].tolist() == model.predict(read_table(run / "mine.csv").frame).tolist()
    right = np.mean(found["class"] == SIZE)
    assert f"score      accuracy {right:.2%}, loss " in printed
    assert "on 90 rows with a known size" in printed
    assert "wrote into fastopt-predict: predictions.csv" in printed


def test_columns_are_matched_by_name(run: Path) -> None:
    _, expected = predict(run, (run / "mine.csv").read_text())
    printed, found = predict(run, lines(B, range(90), A, TOWN, head="b;more;a;town", sep=";"))
    pd.testing.assert_frame_equal(found, expected)
    assert "not used: 'more'" in printed
    assert "score      none, because no row has a known size" in printed


def test_what_a_row_may_lack(run: Path) -> None:
    printed, found = predict(run, "a,town,b,size\n2000,Paris,,low\n2001,,1999,huge\n2002,Oslo,1,\n")
    assert len(found) == 3
    assert len(predict(run, "a,town,b\n2000,,1999\n")[1]) == 1  # a column without any text
    assert "filled 2 missing values, as in training" in printed
    assert (
        "column 'town': 1 row with a text that was rare or not there in training, such as 'P"
        in (printed)
    )
    assert "not scored: 1 row with a size that the model does not know, such as 'huge'" in printed
    assert "on 1 row with a known size" in printed


@pytest.mark.parametrize("name", FILES)
def test_first_files_predict_as_the_trainer_does(name: str, tmp_path: Path) -> None:
    content, options, *_ = FILES[name]
    path = tmp_path / "mine.csv"
    path.write_text(content, encoding="utf-8")
    trainer = ft.RunConfig(data=str(path), hidden=(4,), epochs=2, **options).build()
    trainer.fit(2)
    ft.save_model(tmp_path / "model.safetensors", trainer)
    model = ft.load_model(tmp_path)
    rows = read_rows(str(path), model)
    data = trainer.data
    assert rows.scored.all()
    # The table has both parts of the data, in another order.
    y = np.concatenate([data.y_train, data.y_val])
    np.testing.assert_array_equal(np.sort(rows.targets, axis=0), np.sort(y, axis=0))
    x = np.concatenate([data.x_train, data.x_val])
    live, found = trainer.predict(x)[:, 0], model.outputs(rows.frame)[:, 0]
    np.testing.assert_allclose(np.sort(found), np.sort(live), rtol=1e-4, atol=1e-6)


def test_a_regression_is_scored_in_its_units(tmp_path: Path) -> None:
    ran = fastopt("train", "--data", "diabetes", "--epochs", "2", cwd=tmp_path)
    assert ran.returncode == 0
    ran = fastopt("predict", "fastopt-run/model.safetensors", "diabetes", cwd=tmp_path)
    values = pd.read_csv(tmp_path / "fastopt-predict/predictions.csv")["value"]
    from sklearn.datasets import load_diabetes
    from sklearn.metrics import r2_score

    true = load_diabetes().target
    error = np.sqrt(np.mean((true - values) ** 2))
    assert f"score      R² {r2_score(true, values):.3f}, loss " in ran.stdout
    assert f"error {error:.4g} (root mean square), on 442 rows" in ran.stdout


def test_a_table_without_names_may_lack_its_target(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(lines(A, SIZE, B))
    trainer = ft.RunConfig(data=str(path), target="2", hidden=(4,), epochs=2).build()
    model = ft.SavedModel.from_trainer(trainer)
    whole = model.outputs(read_rows(str(path), model).frame)
    path.write_text(lines(A, B))
    np.testing.assert_array_equal(model.outputs(read_rows(str(path), model).frame), whole)


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
            "lacks.csv: the table lacks 2 columns: 'town', 'b'; it has 'a'\n",
        ),
        (["fastopt-run", "text.csv"], "text.csv: column 'b', row 1: 'x' is not a number"),
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
    (run / "text.csv").write_text("a,town,b\n1,Rome,x\n2,Rome,y\n")
    shutil.rmtree(run / "fastopt-predict", ignore_errors=True)
    ran = fastopt("predict", *arguments, cwd=run)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (run / "fastopt-predict").exists()
