"""The command ``fastopt sweep``: its results, and interrupts at any place."""

from __future__ import annotations

import csv
import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from fastopt import train as ft
from fastopt.cli.app import app
from helpers import fastopt, fastopt_until

FILES = {"sweep.csv", "sweep.json", "map.png", "curves.png", "runs.jsonl"}
# Twelve short runs.
LONG = [
    "--data", "iris", "--lr", "1e-4,3e-4,0.001,0.003", "--batch-size", "16,32,64",
    "--epochs", "2", "--hidden", "8", "--output", "here",
]  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(c))
    return facts


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The runs of the long sweep without an interrupt."""
    folder = tmp_path_factory.mktemp("whole")
    result = fastopt("sweep", *LONG, "--jobs", "1", cwd=folder)
    assert result.returncode == 0, result.stderr
    return without_times(read_json(folder / "here/sweep.json")["runs"])


def test_the_best_and_the_command_that_repeats_it(tmp_path: Path) -> None:
    result = fastopt("sweep", "--data", "wine", "--lr", "0.0001,0.01", "--optimizer", "sgd,adam",
                     "--loss", "cross-entropy,mse", "--schedule", "cosine", "--epochs", "6",
                     "--hidden", "16", "--jobs", "1", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "fastopt-sweep"
    assert {path.name for path in folder.iterdir()} == FILES
    facts = read_json(folder / "sweep.json")
    best = facts["best"]
    assert len(facts["runs"]) == 8
    ranked = sorted(facts["runs"], key=lambda run: (-run["val_score"], run["val_loss"]))
    assert best == ranked[0]
    assert ranked[0]["val_score"] > ranked[-1]["val_score"]
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [r["val_loss"] for r in facts["runs"]]
    *_, line = result.stdout.rstrip().splitlines()
    assert line.strip() == best["command"]
    name, *arguments = shlex.split(line)
    assert name == "fastopt"
    again = fastopt(*arguments, "--output", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    final = read_json(tmp_path / "again/run.json")["results"]["final"]
    for figure in ("train_loss", "train_score", "val_loss", "val_score"):
        assert final[figure] == best[figure]


def test_draws_from_ranges_and_more_of_them(tmp_path: Path) -> None:
    options = ["sweep", "--data", "diabetes", "--lr", "log:1e-4:0.1", "--batch-size", "log:8:64",
               "--epochs", "2"]  # fmt: skip
    result = fastopt(*options, "--trials", "3", "--jobs", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "fastopt-sweep"
    few = read_json(folder / "sweep.json")
    lines = (folder / "runs.jsonl").read_bytes()
    result = fastopt(*options, "--trials", "5", "--jobs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runs       5, 3 of them done before; 1 at a time" in result.stdout
    assert (folder / "runs.jsonl").read_bytes().startswith(lines)
    many = read_json(folder / "sweep.json")
    assert many["runs"][:3] == few["runs"]
    assert len({run["lr"] for run in many["runs"]}) == 5
    assert all(1e-4 <= run["lr"] <= 0.1 and 8 <= run["batch_size"] <= 64 for run in many["runs"])
    assert many["score"] == "R²"


def test_diverged_runs_are_stopped_and_told(tmp_path: Path) -> None:
    result = fastopt("sweep", "--data", "diabetes", "--optimizer", "sgd", "--lr", "0.01,1,1e30",
                     "--max-norm", "1e4", "--epochs", "40", "--jobs", "1",
                     cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    facts = read_json(tmp_path / "fastopt-sweep/sweep.json")
    assert [run["diverged"] for run in facts["runs"]] == [False, True, True]
    assert facts["runs"][0]["epochs"] == 40
    assert all(run["epochs"] < 10 for run in facts["runs"][1:])
    assert "2 runs diverged and were stopped early" in result.stdout
    assert "lr 1e+30: diverged in epoch 1, stopped" in result.stdout
    assert facts["best"]["lr"] == 0.01


def test_all_diverged(tmp_path: Path) -> None:
    result = fastopt("sweep", "--data", "iris", "--optimizer", "sgd", "--lr", "1e25,1e30",
                     "--epochs", "3", "--jobs", "1", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 1
    assert result.stdout.rstrip().endswith("all runs diverged: try smaller values of --lr")
    assert "to repeat it" not in result.stdout
    assert read_json(tmp_path / "fastopt-sweep/sweep.json")["best"] is None


def test_a_killed_sweep_goes_on(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    killed = fastopt_until(
        "/12  ", signal.SIGKILL, "sweep", *LONG, "--jobs", "2", cwd=tmp_path, times=5
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "here"
    assert {path.name for path in folder.iterdir()} == {"runs.jsonl"}
    kept = (folder / "runs.jsonl").read_bytes()
    assert kept.count(b"\n") == 1 + 5
    with (folder / "runs.jsonl").open("ab") as file:
        file.write(b'{"config": {"da')  # as if killed while writing
    result = fastopt("sweep", *LONG, "--jobs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runs       12, 5 of them done before" in result.stdout
    assert (folder / "runs.jsonl").read_bytes().startswith(kept)
    assert without_times(read_json(folder / "sweep.json")["runs"]) == whole


def test_an_interrupted_sweep_goes_on(tmp_path: Path, whole: list[dict[str, Any]]) -> None:
    stopped = fastopt_until(
        "/12  ", signal.SIGINT, "sweep", *LONG, "--jobs", "2", cwd=tmp_path, times=3
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    folder = tmp_path / "here"
    assert {path.name for path in folder.iterdir()} == FILES
    assert len(read_json(folder / "sweep.json")["runs"]) == 3
    *_, last = stopped.stdout.rstrip().splitlines()
    assert last == "interrupted after 3 of 12 runs; the same command continues"
    result = fastopt("sweep", *LONG, "--jobs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "runs       12, 3 of them done before" in result.stdout
    assert without_times(read_json(folder / "sweep.json")["runs"]) == whole


def test_ctrl_c_while_the_processes_start(tmp_path: Path) -> None:
    endless = ["sweep", "--data", "iris", "--lr", "0.1,0.01", "--epochs", "100000", "--jobs", "2"]
    stopped = fastopt_until("runs  ", signal.SIGINT, *endless, cwd=tmp_path)
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    assert stopped.stdout.rstrip().splitlines()[-1].startswith("interrupted after 0 of 2 runs")


def test_a_sweep_that_is_done_is_not_repeated(tmp_path: Path) -> None:
    options = ["sweep", "--data", "iris", "--lr", "0.01,0.1", "--epochs", "2", "--jobs", "1"]
    for _ in range(2):
        result = fastopt(*options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert "runs       2, 2 of them done before" in result.stdout
    assert (tmp_path / "fastopt-sweep/runs.jsonl").read_bytes().count(b"\n") == 3


def test_a_sweep_goes_on_from_data_that_have_moved(tmp_path: Path) -> None:
    rows = "".join(f"{i % 2 + i / 100},{i % 7},{i % 2}\n" for i in range(60))
    (tmp_path / "x.csv").write_text(rows)
    (tmp_path / "there").mkdir()
    options = ["sweep", "--epochs", "1", "--lr", "0.01,0.1", "--hidden", "4", "--jobs", "1",
               "--output", str(tmp_path / "out"), "--data"]  # fmt: skip
    assert fastopt(*options, "x.csv", cwd=tmp_path).returncode == 0
    for data in ("./x.csv", str(tmp_path / "x.csv"), "there/y.csv"):
        result = fastopt(*options, data, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "runs       2, 2 of them done before" in result.stdout
        assert f"--data {data} " in result.stdout  # the command that repeats the best
        (tmp_path / "there/y.csv").write_text(rows)
    (tmp_path / "x.csv").write_text(rows + "9,9,1\n")
    result = fastopt(*options, "x.csv", cwd=tmp_path)
    assert (result.returncode, "the data have changed" in result.stderr) == (2, True)


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    options = ["sweep", "--data", "iris", "--epochs", "2", "--lr"]
    assert fastopt(*options, "0.01", cwd=tmp_path).returncode == 0
    folder = tmp_path / "fastopt-sweep"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for arguments, words in (
        (["0.1"], "lr was 0.01, now 0.1"),
        (["0.01", "--seed", "1"], "seed was 0, now 1"),
    ):
        result = fastopt(*options, *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert words in result.stderr
        assert "choose another --output or remove the file" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "sgd,nosuch"], "--optimizer must be one or more of sgd, momentum"),
        (["--lr", "0.1,x"], "--lr must be numbers such as 0.01,0.1, or a range"),
        (["--lr", "log:0.1"], "--lr must be numbers such as 0.01,0.1, or a range"),
        (["--lr", "exp:0.1:1"], "--lr must be numbers such as 0.01,0.1, or a range"),
        (["--lr", "log:0:1"], "--lr: a log range must begin above 0, not at 0"),
        (["--lr", "lin:1:0.1"], "--lr: a range must go up, not from 1 to 0.1"),
        (["--lr", "-1"], "--lr must be"),
        (["--dropout", "lin:0:1"], "--dropout must be in [0, 1)"),
        (["--batch-size", "log:0.5:8"], "--batch-size must be whole numbers"),
        (["--trials", "0"], "--trials must be"),
        (["--jobs", "0"], "--jobs must be"),
        (["--data", "diabetes", "--loss", "mse,cross-entropy"], "--loss must be one of mse"),
        (["--data", "cut.npz"], "cut.npz"),
        (["--seed", "-1"], "--seed must be"),
        (["--output", "file"], "cannot write into file"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["sweep", *arguments])
    assert result.exit_code == 2, result.stdout + result.stderr
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("fastopt: error: ")
    assert words in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.npz", "file"]


def test_the_help_tells_how_to_write_lists_and_ranges(tmp_path: Path) -> None:
    text = fastopt("sweep", "-h", cwd=tmp_path).stdout
    assert "fastopt sweep --lr 0.001,0.01 --optimizer sgd,adam" in text
    assert "fastopt sweep --lr log:1e-4:0.1 --dropout lin:0:0.5" in text
    for option in ("--weight-decay", "--schedule", "--loss", "--jobs"):
        assert option in text
    assert set(ft.OPTIMIZERS) <= set(text.replace(",", " ").replace(";", " ").split())
