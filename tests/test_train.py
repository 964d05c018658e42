"""The command ``fastopt train``: whole runs, files, errors."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from helpers import fastopt, fastopt_until

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from fastopt import train as ft
from fastopt.cli.app import app
from fastopt.cli.train import find_problems


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["samples_per_second"]
    return rows


def test_defaults_reach_97_percent_and_write_everything(tmp_path: Path) -> None:
    result = fastopt("train", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    folder = tmp_path / "fastopt-run"
    run = json.loads((folder / "run.json").read_text())
    assert run["results"]["final"]["val_score"] >= 0.96
    assert run["results"]["best"]["val_score"] >= 0.97  # 0.975 or more with most seeds
    assert run["results"]["best"]["val_score"] >= run["results"]["final"]["val_score"]
    assert run["instruction_set"] == fo.active_isa()
    assert run["threads"] == fo.get_num_threads()
    assert run["versions"]["fastopt"] == fo.__version__
    assert run["options"]["optimizer"] == "adamw"
    assert run["options"]["lr"] == 0.001
    seconds = run["results"]["seconds"]
    assert sum(v for k, v in seconds.items() if k != "total") <= seconds["total"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_metrics(folder)) == 30
    for text in (
        "epoch    1/30",
        "epoch   30/30",
        "samples/s",
        "final accuracy on held-out data",
        "run.json",
    ):
        assert text in result.stdout
    for text in ("optimizer step", "loss and its gradient", "whole training"):
        assert text in result.stdout
    final = run["results"]["final"]["val_score"]
    assert f"{final:.2%}" in result.stdout


def test_same_seed_same_result_on_any_number_of_threads(tmp_path: Path) -> None:
    runs = []
    for number, threads in enumerate(("1", "2", "2")):
        folder = tmp_path / str(number)
        seed = "1" if number == 2 else "0"
        # The layers are so large that a step uses several threads.
        result = fastopt("train", "--data", "iris", "--epochs", "2", "--hidden", "512,256",
                         "--threads", threads, "--seed", seed, "--output", str(folder),
                         cwd=tmp_path)  # fmt: skip
        assert result.returncode == 0, result.stderr
        runs.append(read_metrics(folder))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_every_optimizer_learns(optimizer: str, tmp_path: Path) -> None:
    result = fastopt("train", "--optimizer", optimizer, "--epochs", "8", "--hidden", "64",
                     "--dropout", "0", "--batch-size", "32", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    run = json.loads((tmp_path / "fastopt-run/run.json").read_text())
    assert run["results"]["best"]["val_score"] > 0.93


def test_a_diverged_run_is_reported_as_json(tmp_path: Path) -> None:
    result = fastopt("train", "--optimizer", "sgd", "--lr", "1e20", "--epochs", "2", cwd=tmp_path)
    run = json.loads(
        (tmp_path / "fastopt-run/run.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert result.returncode == 1
    assert run["results"]["final"]["train_loss"] is None
    assert "the loss is not finite since epoch 1: try a smaller --lr" in result.stdout


def test_a_run_whose_loss_grows_but_stays_finite_has_diverged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["train", "--data", "iris", "--lr", "100", "--epochs", "5", "--output", str(out)]
    result = CliRunner().invoke(app, [*options, "--checkpoint"])
    assert result.exit_code == 1, result.output
    assert "stopped after epoch 2: the loss is more than ten times what it was" in result.output
    assert result.output.rstrip().splitlines()[-1].startswith("wrote into ")
    results = json.loads((out / "run.json").read_text())["results"]
    assert results["final"]["train_loss"] > 100
    assert (results["diverged"], results["best"]) == (True, None)
    row = next(line for line in result.output.splitlines() if "best accuracy" in line)
    assert row.split()[-2] == "-", row
    # Resuming does not continue: the history contains the reason why training ended.
    result = CliRunner().invoke(app, ["train", "--resume", "--output", str(out)])
    assert result.exit_code == 1, result.output
    assert json.loads((out / "run.json").read_text())["results"]["diverged"] is True


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_names_are_shown_as_they_are(task: str, tmp_path: Path) -> None:
    # Brackets mean styles to rich, dollars formulas to matplotlib, whose font lacks the last.
    labels = {"binary": ["[/a] :red_heart:", "$\\b$ 猫"], "regression": ["1", "2"]}[task]
    rows = [f"{i},{i * i},{labels[i % 2]}" for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,$ [/c] $", *rows]), encoding="utf-8")
    result = fastopt("train", "--data", "a.csv", "--task", task, "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "$ [/c] $" in result.stdout
    assert task == "regression" or labels[0] in result.stdout


def test_info(tmp_path: Path) -> None:
    result = fastopt("info", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.strip() == fo.show_config()


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from fastopt.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip() == (
        "fastopt: error: the command needs typer; install it with: pip install 'fastopt[train]' "
        "(in a checkout: '.[train]')"
    )


def test_help_tells_the_defaults(tmp_path: Path) -> None:
    result = fastopt("train", "-h", cwd=tmp_path)
    text = " ".join(re.sub(r"[│\s]+", " ", result.stdout).split())
    assert text.count("[default: ") + text.count("(default: ") > 8, text
    for default in ("digits", "0.1 sgd", "0.01 adamw", "all"):
        assert default in text
    assert fastopt("--version", cwd=tmp_path).stdout == f"fastopt {fo.__version__}\n"


@pytest.mark.parametrize(
    ("variable", "value"), [("FASTOPT_ISA", "mmx"), ("FASTOPT_NUM_THREADS", "no")]
)
def test_a_bad_environment_is_one_line(variable: str, value: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fastopt", "info"],
        capture_output=True,
        text=True,
        env=os.environ | {variable: value},
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"fastopt: error: {variable}")
    assert result.stderr.count("\n") == 1


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    stopped = fastopt_until(
        "epoch  ", signal.SIGINT, "train", "--epochs", "30", cwd=tmp_path, times=3
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    last = re.search(r"interrupted after epoch ([1-9])", stopped.stdout)
    assert last is not None
    assert len(read_metrics(tmp_path / "fastopt-run")) == int(last[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nothing.csv"], "cannot read nothing.csv"),
        (["--hidden", "12,x"], "--hidden"),
        (["--hidden", "0"], "--hidden"),
        (["--dropout", "1"], "--dropout"),
        (["--lr", "inf"], "--lr must be finite and >= 0, not inf"),
        (["--optimizer", "nosuch"], "--optimizer must be 'sgd', 'momentum'"),
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum is for SGD and RMSprop"),
        (["--loss", "bce"], "--loss must be one of cross-entropy"),
        (["--task", "ranking"], "--task must be 'classification'"),
        (["--task", "regression", "--label-smoothing", "0.1"], "--label-smoothing is for"),
        (["--data", "iris", "--task", "binary"], "3 classes; the task binary takes 2"),
        (["--schedule", "one-cycle", "--warmup", "9"], "--warmup must be 0 with the schedule"),
        (["--warmup", "690"], "--warmup must be less than the 690 steps of the run"),
        (["--max-norm", "0"], "--max-norm must be finite and > 0"),
        (["--ema", "1"], "--ema must be in [0, 1)"),
        (["--accumulate", "0"], "--accumulate must be >= 1"),
        (["--patience", "0"], "--patience must be >= 1"),
        (["--batch-size", "0"], "--batch-size must be >= 1"),
        (["--seed", "-1"], "--seed must be in [0, 2**32)"),
        (["--output", "file/run"], "cannot write into file/run"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = fastopt("train", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fastopt: error: ")
    assert words in result.stderr
    assert not (tmp_path / "fastopt-run/run.json").exists()


def arrays_of(folder: Path) -> dict[str, Any]:
    """Return the saved parameters and optimizer states of a run."""
    checkpoint = fo.load(folder / "checkpoint.safetensors")
    assert checkpoint.params is not None
    assert checkpoint.optimizer is not None
    assert checkpoint.ema is not None
    arrays: dict[str, Any] = dict(checkpoint.params)
    for name, state in checkpoint.ema["state"].items():
        arrays[f"{name} average"] = state["average"]
    for name, state in checkpoint.optimizer["state"].items():
        arrays |= {f"{name} {key}": value for key, value in state.items()}
    return arrays


KILLED_RUN = ["--data", "wine", "--epochs", "12", "--schedule", "cosine", "--warmup", "8",
              "--max-norm", "1", "--ema", "0.99", "--accumulate", "2", "--hidden", "16",
              "--batch-size", "16"]  # fmt: skip


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = fastopt("train", *KILLED_RUN, "--checkpoint", "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    options = [*KILLED_RUN, "--checkpoint"]
    for times in (3, 2):
        killed = fastopt_until("epoch  ", signal.SIGKILL, "train", *options, "--output", "killed",
                               cwd=tmp_path, times=times)  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        options = ["--resume"]
    result = fastopt("train", "--resume", "--output", "killed", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resumed    after epoch" in result.stdout
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    expected = arrays_of(tmp_path / "whole")
    for name, array in arrays_of(tmp_path / "killed").items():
        np.testing.assert_array_equal(array, expected.pop(name), err_msg=name)
    assert not expected
    assert not list((tmp_path / "killed").glob(".*"))


def test_a_run_may_be_resumed_for_more_epochs(tmp_path: Path) -> None:
    first = fastopt("train", "--data", "iris", "--epochs", "2", "--checkpoint", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = fastopt("train", "--resume", "--epochs", "3", "--lr", "0.001", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    fresh = fastopt("train", "--data", "iris", "--epochs", "3", "--output", "o", cwd=tmp_path)
    assert fresh.returncode == 0, fresh.stderr
    assert read_metrics(tmp_path / "fastopt-run") == read_metrics(tmp_path / "o")


def test_an_old_checkpoint_cannot_replace_a_newer_model(tmp_path: Path) -> None:
    def train(*options: str) -> Any:
        arguments = ["train", "--hidden", "4", "--epochs", "1", "--output", str(tmp_path)]
        return CliRunner().invoke(app, [*arguments, *options])

    first = train("--data", "iris", "--checkpoint").stdout
    assert "replaces" not in first
    assert "removed" not in first
    second = train("--data", "wine").stdout
    assert f"replaces the run in {tmp_path}\n" in second
    assert "checkpoint.safetensors of the earlier run" in second
    assert train("--resume").exit_code == 2
    third = train("--data", "wine", "--lr", "1e30", "--optimizer", "sgd")
    assert third.exit_code == 1
    assert f"removed from {tmp_path}: model.safetensors of the earlier run" in third.stdout
    assert "accuracy nan" not in third.stdout
    assert "Classes on held-out data" not in third.stdout
    assert not (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = fastopt("train", *arguments, cwd=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        return result.stderr

    assert "to resume; begin with --checkpoint" in refused("--resume", "--output", "nothing")
    assert not (tmp_path / "nothing").exists()
    result = fastopt("train", "--data", "iris", "--epochs", "2", "--schedule", "linear",
                     "--checkpoint", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--lr was 0.001 in the run to resume, not 0.1" in refused("--resume", "--lr", "0.1")
    assert "--epochs must stay 2" in refused("--resume", "--epochs", "3")
    path = tmp_path / "fastopt-run/checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "is damaged" in refused("--resume")
    fo.save(path, extra={"mine": 1})
    assert "is not a checkpoint of fastopt train" in refused("--resume")


def test_a_run_goes_on_from_data_that_have_moved(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    rows = [f"{i % 2 + i / 100},{i % 7},{i % 2}" for i in range(60)]
    (here / "two.csv").write_text("\n".join(rows))
    (there / "other.csv").write_text("\n".join(rows[1:]))
    options: tuple[str, ...] = ("--output", str(tmp_path / "out"))
    first = fastopt(
        "train", "--data", "two.csv", "--target", "3", "--epochs", "1", "--checkpoint", *options,
        cwd=here,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert fastopt("train", "--resume", *options, cwd=there).returncode == 0  # the path is whole
    for data, words in (
        (
            ("--data", "other.csv"),
            "the data are two.csv: 48 samples to train on, 12 held out, 2 features, 2 classes "
            "there, other.csv: 47 samples to train on",
        ),
        (("--target", "x2"), "are not those of 2-128-64-7: either the data are not those of that"),
    ):
        result = fastopt("train", "--resume", *data, *options, cwd=there)
        assert result.returncode == 2
        assert words in result.stderr
    moved = (here / "two.csv").rename(there / "renamed.csv")
    result = fastopt("train", "--resume", *options, cwd=here)
    assert (result.returncode, "give their place with --data" in result.stderr) == (2, True)
    options = ("--output", str(tmp_path / "out"), "--epochs", "2")
    options = (*options, "--target", "x3")  # another word for the same column
    again = fastopt("train", "--resume", "--data", "renamed.csv", *options, cwd=there)
    assert again.returncode == 0, again.stderr
    assert fastopt("train", "--resume", "--data", str(moved), *options, cwd=here).returncode == 0


def test_early_stopping_says_so_and_stays_so(tmp_path: Path) -> None:
    options = ["--data", "diabetes", "--lr", "0.01", "--patience", "4", "--checkpoint"]
    result = fastopt("train", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reason = "the held-out loss has not fallen for 4 epochs; the model is that of this epoch"
    assert reason in result.stdout
    epochs = len(read_metrics(tmp_path / "fastopt-run"))
    assert epochs < 30
    assert fastopt("train", "--resume", cwd=tmp_path).returncode == 0
    assert len(read_metrics(tmp_path / "fastopt-run")) == epochs
    # An earlier epoch is repeated to the bit.
    best, short = epochs - 4, [*options[:4], "--output", "short"]
    assert fastopt("train", "--epochs", str(best), *short, cwd=tmp_path).returncode == 0
    losses = [
        read_metrics(tmp_path / name)[best - 1]["val_loss"] for name in ("short", "fastopt-run")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("data", "files", "words"),
    [
        ("wine", ["classes.csv", "confusion.png"], ["precision", "class_0", "accuracy"]),
        ("breast-cancer", ["classes.csv", "confusion.png"], ["malignant", "recall"]),
        ("diabetes", ["predictions.png"], ["R²", "disease progression after one year"]),
    ],
)
def test_every_task_has_its_report(
    data: str, files: list[str], words: list[str], tmp_path: Path
) -> None:
    result = fastopt("train", "--data", data, "--epochs", "3", "--max-norm", "1",
                     "--schedule", "one-cycle", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    for word in words:
        assert word in result.stdout
    written = sorted(path.name for path in (tmp_path / "fastopt-run").iterdir())
    assert written == sorted([*files, "loss.png", "metrics.csv", "model.safetensors", "run.json"])
    run = json.loads((tmp_path / "fastopt-run/run.json").read_text())
    assert run["command"] == (
        f"fastopt train --data {data} --epochs 3 --schedule one-cycle --max-norm 1.0"
    )
    if data == "diabetes":
        assert 30 < run["results"]["rmse"] < 200
    else:
        rows = list(csv.DictReader((tmp_path / "fastopt-run/classes.csv").read_text().split("\n")))
        assert [row["label"] for row in rows] == [c["label"] for c in run["results"]["classes"]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data", "none.csv"], "cannot read none.csv: No such file or directory\n"),
        (["--data", "wine"], "are not those of 13-4-3: either the data are not"),
        (["--task", "regression"], "--task was not given in the run to resume; leave it out\n"),
        (["--seed", "3"], "--seed was 0 in the run to resume, not 3; leave it out\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_to_resume_with_another_option_says_what_differs(
    options: list[str], text: str, tmp_path: Path
) -> None:
    config = ft.RunConfig(data="iris", hidden=(4,), epochs=1)
    config.build().save(tmp_path / "checkpoint.safetensors", asdict(config))
    result = CliRunner().invoke(app, ["train", "--resume", "--output", str(tmp_path), *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


def test_to_resume_makes_no_model_of_other_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ft.RunConfig(data="iris", hidden=(4,), epochs=1)
    facts = asdict(config) | {"hidden": [2**26, 2]}
    config.build().save(tmp_path / "checkpoint.safetensors", facts)
    monkeypatch.setattr("fastopt.train.config.MLP", lambda *_: pytest.fail("a model is made"))
    result = CliRunner().invoke(app, ["train", "--resume", "--output", str(tmp_path)])
    assert result.exit_code == 2, result.output
    assert "are not those of 4-67108864-2-3" in result.stderr


def test_to_resume_with_data_of_the_same_sizes_says_that_the_values_differ(tmp_path: Path) -> None:
    config = ft.RunConfig(data="iris", hidden=(4,), epochs=1)
    data = config.load()
    config.build(data).save(tmp_path / "a")
    other = replace(data, x_val=data.x_val + 1)
    text = "the values or the split of the data differ (iris (scikit-learn): 120"
    with pytest.raises(ValueError, match=re.escape(text)):
        config.build(other).resume(tmp_path / "a")


def test_a_resumed_run_says_that_nothing_is_left_to_train(tmp_path: Path) -> None:
    def resume(*options: str) -> Any:
        return CliRunner().invoke(app, ["train", "--resume", "--output", str(tmp_path), *options])

    config = ft.RunConfig(data="iris", hidden=(4,), epochs=2)
    trainer = config.build()
    trainer.fit(2)
    trainer.save(tmp_path / "checkpoint.safetensors", asdict(config))
    result = resume()
    assert result.exit_code == 0, result.output
    assert "the run already has 2 of 2 epochs; to continue, give a larger --epochs" in result.stdout
    assert "after epoch" not in result.stdout
    metrics = read_metrics(tmp_path)
    assert len(metrics) == 2
    result = resume("--epochs", "1")
    assert result.exit_code == 2
    assert result.stderr == (
        "fastopt: error: --epochs must be at least 2, not 1: the run to resume has 2 epochs\n"
    )
    assert read_metrics(tmp_path) == metrics


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["train", "--data", "diabetes", "--task", "classification"], True),
        (["compare", "--data", "diabetes", "--task", "classification", "--lr", "0.1"], True),
        (["train", "--data", "digits"], False),
    ],
)
def test_numbers_taken_for_classes_are_noticed(
    arguments: list[str], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*arguments, "--epochs", "1", "--hidden", "none"])
    assert result.exit_code == 0, result.output
    text = "warning: 214 classes in 442 samples, fewer than 5 samples a class; if the targets are"
    assert (text in result.stdout) is warned


@pytest.mark.parametrize(
    ("train_loss", "val_loss", "r2", "words"),
    [
        (-1, -1, 0.9, ["more --epochs may help"]),
        (-1, 1, 0.9, ["try --patience 5, --ema 0.99"]),
        (0, 0, -0.1, ["the mean of the target predicts better"]),
        (0, 0, 0.9, []),
        (0, np.nan, -1e9, []),
    ],
)
def test_a_warning_says_what_may_help(
    train_loss: float, val_loss: float, r2: float, words: list[str]
) -> None:
    trainer = ft.RunConfig(data="diabetes").build()
    for i in range(20):  # the losses are straight lines
        losses = (2 + train_loss * i / 20, r2, 2 + val_loss * i / 20, r2)
        trainer.history.epochs.append(ft.Epoch(i + 1, *losses, 0.1, 1.0, 1.0, 1.0))
    found = find_problems(trainer)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.parametrize("command", ["train", "predict", "compare", "sweep", "landscape", "bench"])
def test_examples_of_the_help_fit_on_a_narrow_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = CliRunner().invoke(app, [command, "--help"]).stdout.splitlines()
    source = import_module(f"fastopt.cli.{command}").__dict__[command].__doc__
    examples = re.findall(rf"^ +(fastopt {command}\b.*)", source, re.MULTILINE)
    assert examples
    assert set(examples) <= {line.strip() for line in lines}


@pytest.mark.parametrize("command", ["train", "compare", "sweep", "landscape", "bench"])
def test_no_help_breaks_a_name(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(app, [command, "--help"]).stdout
    words = set(re.findall(r"[\w-]+", text))
    names = {"optimizers", "losses", "accuracy"} if command == "bench" else set(ft.OPTIMIZERS)
    if command in ("train", "compare", "sweep"):
        names |= {*ft.TASKS, *ft.SCHEDULES, *ft.BUNDLED, *sum(ft.LOSSES.values(), ())}
    assert not names - words
