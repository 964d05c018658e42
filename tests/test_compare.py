"""The command ``fastopt compare``."""

from __future__ import annotations

import csv
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from fastopt import train as ft
from fastopt.cli.app import app
from helpers import fastopt as run_fastopt
from helpers import fastopt_until

FILES = {"compare.png", "compare.csv", "compare.json", "epochs.csv"}


fastopt = partial(run_fastopt, "compare")


def test_every_optimizer_on_the_same_data(tmp_path: Path) -> None:
    result = fastopt("--data", "iris", "--epochs", "4", "--hidden", "8", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "fastopt-compare"
    assert {path.name for path in folder.iterdir()} == FILES
    facts = json.loads(
        (folder / "compare.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert facts["varied"] == "optimizer"
    assert [run["optimizer"] for run in facts["runs"]] == list(ft.OPTIMIZERS)
    with (folder / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "epochs.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 5 * 4
    for row, run, choice in zip(rows, facts["runs"], ft.OPTIMIZERS.values(), strict=True):
        config = ft.RunConfig(data="iris", epochs=4, hidden=(8,), optimizer=run["optimizer"])
        assert run["command"] == config.command()
        final = config.build().fit(4).epochs[-1]
        assert run["val_loss"] == final.val_loss == float(row["val_loss"])
        assert run["val_score"] == final.val_score == float(row["val_score"])
        last = [e for e in epochs if e["optimizer"] == run["optimizer"]][-1]
        assert float(last["train_loss"]) == final.train_loss
        assert f"{choice.title}, lr {choice.lr:g}" in result.stdout


def test_another_choice_than_the_optimizer(tmp_path: Path) -> None:
    result = fastopt("--data", "diabetes", "--optimizer", "sgd", "--lr", "0.01,1e30", "--epochs",
                     "3", "--output", "here", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "lr 1e+30: diverged in epoch 1, stopped" in result.stdout
    facts = json.loads(
        (tmp_path / "here/compare.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert facts["varied"] == "lr"
    assert [run["diverged"] for run in facts["runs"]] == [False, True]
    assert facts["runs"][1]["val_loss"] is None
    assert {run["optimizer"] for run in facts["runs"]} == {"sgd"}


def test_all_diverged(tmp_path: Path) -> None:
    result = fastopt("--data", "iris", "--optimizer", "sgd,momentum", "--lr", "1e30", "--epochs",
                     "3", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 1
    assert result.stdout.rstrip().endswith("all runs diverged: try a smaller --lr")
    assert "fastopt-compare/" not in result.stderr


def test_an_interrupted_comparison_keeps_what_has_ended(tmp_path: Path) -> None:
    stopped = fastopt_until(
        "SGD, lr", signal.SIGINT, "compare", "--data", "iris", "--epochs", "20", cwd=tmp_path
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    assert stopped.stdout.rstrip().splitlines()[-1] == "interrupted after 1 of 5 runs"
    folder = tmp_path / "fastopt-compare"
    assert {path.name for path in folder.iterdir()} == FILES
    (run,) = json.loads((folder / "compare.json").read_text())["runs"]
    assert run["optimizer"] == "sgd"
    assert run["epochs"] == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "sgd,nosuch"], "--optimizer must be one or more of sgd, momentum"),
        (["--lr", "0.1,x"], "--lr must be numbers such as 0.01,0.1"),
        (["--lr", "0.1,nan"], "--lr must be"),
        (["--batch-size", "8.5"], "--batch-size must be whole numbers"),
        (["--batch-size", "0,8"], "--batch-size must be"),
        (["--lr", "log:0.1:1"], "--lr: ranges are for fastopt sweep"),
        (["--lr", "0.1,0.2", "--loss", "mse,l1"], "--lr and --loss have several values"),
        (["--lr", "0.1,0.1"], "--lr has 0.1 twice"),
        (["--data", "diabetes", "--loss", "mse,cross-entropy"], "--loss must be one of mse"),
        (["--data", "iris", "--loss", "bce"], "--loss must be one of cross-entropy"),
        (["--data", "nothing.csv"], "nothing.csv"),
        (["--data", "ragged.csv"], "ragged.csv, line 3: 2 columns, 3 expected"),
        (["--epochs", "0"], "--epochs must be"),
        (["--hidden", "8,x"], "--hidden must be"),
        (["--hidden", "9999999999999"], "--hidden"),
        (["--task", "guess"], "--task must be 'classification'"),
        (["--output", "file/run"], "cannot write into file/run"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "ragged.csv").write_text("1,2,a\n3,4,b\n5,6\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("fastopt: error: ")
    assert words in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "ragged.csv"]


def test_memory_that_runs_out_keeps_what_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit, calls = ft.Trainer.fit, iter(range(2))

    def fails(self: ft.Trainer, *arguments: Any) -> ft.History:
        if next(calls, None) is None:
            raise MemoryError
        return fit(self, *arguments)

    monkeypatch.setattr(ft.Trainer, "fit", fails)
    result = CliRunner().invoke(app, ["compare", "--data", "iris", "--epochs", "1"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastopt: error: there is not enough memory")
    facts = json.loads((tmp_path / "fastopt-compare/compare.json").read_text())
    assert [run["optimizer"] for run in facts["runs"]] == ["sgd", "momentum"]
