"""Every command refuses a bad option in one line, with the value and the allowed values."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from fastopt._checks import counted, digits
from fastopt.cli.app import app

HUGE = "9" * 5000  # more digits than Python converts
WHOLE = ["abc", "", "-1", "1.5", "nan", "1e3", str(2**63), str(10**30), HUGE]
NUMBER = ["abc", "", "-1", "nan", "inf", "1e400", "1,5", "0x1"]
LISTS = ["abc", "", ",", "1,,2", "0.1,x", "-1", "1,nan", "inf", "log:1", "log:0:1", "log:-1:1",
         "lin:2:1", "lin:1:nan", "lin:1:inf", "log:1:1e400", "exp:1:2", "log:1:2:3", "orange",
         f"log:1:{10**400}"]  # fmt: skip
WIDTHS = ["", "x", "0", "8,-1", "8,,8", "none,8", HUGE]
FOLDERS = [""]
OPTIONS = {
    "train": {
        "--label-smoothing": NUMBER, "--lr": NUMBER, "--weight-decay": NUMBER, "--momentum": NUMBER,
        "--max-norm": [*NUMBER, "0"], "--ema": [*NUMBER, "1"], "--dropout": [*NUMBER, "1"],
        "--batch-size": [*WHOLE, "0"], "--epochs": [*WHOLE, "0"], "--warmup": WHOLE,
        "--accumulate": [*WHOLE, "0"], "--patience": [*WHOLE, "0"], "--seed": [*WHOLE, str(2**32)],
        "--threads": [*WHOLE, "0", "4097"], "--hidden": WIDTHS, "--output": FOLDERS,
        "--task": ["", "guess"], "--loss": ["", "hinge"], "--optimizer": ["", "adamm", "sgd,adam"],
        "--schedule": ["", "cosin"], "--activation": ["", "elu", "relu,tanh"],
    },
    "compare": {
        "--lr": LISTS, "--batch-size": [*LISTS, "8.5", "0"], "--weight-decay": LISTS,
        "--dropout": [*LISTS, "1"], "--optimizer": ["", ",", "sgd,nosuch", "sgd,sgd", "all,sgd"],
        "--schedule": ["", "step,x"], "--loss": ["", "mse,x"], "--epochs": [*WHOLE, "0"],
        "--activation": ["", "elu", "relu,relu"], "--hidden": WIDTHS,
        "--max-norm": [*NUMBER, "0"], "--seed": [*WHOLE, str(2**32)],
        "--threads": [*WHOLE, "0"], "--task": ["", "guess"], "--output": FOLDERS,
    },
    "sweep": {
        "--lr": LISTS, "--batch-size": [*LISTS, "8.5", "0"], "--dropout": [*LISTS, "lin:0:1"],
        "--trials": [*WHOLE, "0"], "--jobs": [*WHOLE, "0"], "--seed": WHOLE, "--output": FOLDERS,
    },
    "landscape": {
        "--function": ["", "bowll", "bowl,bowl"], "--optimizer": ["", "x"], "--steps": WHOLE,
        "--lr": [*NUMBER, "0"], "--tolerance": [*NUMBER, "0"], "--output": FOLDERS,
        "--start": ["", "1", "1,2,3", "1,nan", "1,1e400", "x,y"],
    },
    "bench": {
        "--largest": WHOLE, "--seconds": [*NUMBER, "0"], "--threads": [*WHOLE, "0"],
        "--output": FOLDERS,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"), [(c, option) for c, options in OPTIONS.items() for option in options]
)
def test_bad_values(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in OPTIONS[command][option]:
        result = CliRunner().invoke(app, [command, option, value])
        assert result.exit_code == 2, (value, result.output)
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("fastopt: error: ")
        assert option in result.stderr
        assert len(result.stderr) < 300
        assert "Value error" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--epochs", "x"], "--epochs must be an integer of 64 bits, not 'x'"),
        (["train", "--epochs", str(10**30)], f"integer of 64 bits, not '{10**30}'"),
        (["train", "--lr", "x"], "--lr must be a number, not 'x'"),
        (["train", "--lr"], "--lr"),
        (["train", "--lrr", "1"], "--lrr"),
        (["train", "more"], " train --help)"),
        (["trian"], "'train'? (see "),
        (["train", "--data", "https://a.b/c.csv"], "--data must be a name or a path, not the URL"),
        (
            ["bench", "foo"],
            "WHAT must be one of optimizers, types, losses, torch, distributed, accuracy, "
            "not 'foo'",
        ),
        (["sweep", "--lr", "orange"], "--lr must be numbers such as 0.01,0.1, or a range such as"),
        (["bench", "--seconds", "0"], "--seconds must be in 0.01 ... 1000000, not 0"),
        (["train", "--threads", "0"], "--threads must be in 1 ... 4096, not 0"),
        (["train", "--output", ""], "--output must be the path of a folder, not ''"),
    ],
)
def test_the_words(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("fastopt: error: ")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr


# Values that the optimizer or the schedule refuses, alone or with another option.
LARGE = {
    "train --lr 1e39": "--lr cannot be 1e+39 here: lr / (1 - betas[0]",
    "train --weight-decay 1e39": "--weight-decay cannot be 1e+39 here: weight_decay is 1e+39, out",
    "train --optimizer sgd --momentum 1e39": "--momentum cannot be 1e+39 here: momentum is 1e+39",
    "train --lr 1e37 --weight-decay 1e3": "--weight-decay cannot be 1000 here: 1 - lr *",
    f"train --epochs {2**62} --schedule one-cycle": "--epochs must be less than",
    f"train --epochs {2**63 - 1} --schedule cosine": "for the schedule cosine, which counts steps",
    "compare --optimizer adam --lr 0.001,1e39": "--lr cannot be 1e+39 here",
    "sweep --lr 0.001,1e39": "--lr cannot be 1e+39 here",
    "sweep --lr 0,-0": "--lr has 0.0 twice",
    "sweep --lr lin:-1e308:1e308": "--lr: a range must have a finite width",
    "landscape --lr 1e308 --optimizer sgd,adam --function bowl": "--lr cannot be 1e+308 for adam",
}


@pytest.mark.parametrize("line", LARGE)
def test_a_number_that_is_refused_ends_the_command_before_any_work(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = [] if line.startswith("landscape") else ["--data", "iris"]
    result = CliRunner().invoke(app, [*line.split(), *data])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("fastopt: error: ")
    assert result.stderr.count("\n") == 1
    assert LARGE[line] in result.stderr
    assert not list(tmp_path.iterdir())


def test_no_command_at_all_shows_the_help() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "landscape" in result.output
    assert "fastopt: error" not in result.output


def test_a_package_that_is_missing_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for package, name in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        found = {"matplotlib", "sklearn"} - {package}
        monkeypatch.setattr(
            "fastopt.cli.common.find_spec", lambda n, found=found: n in found or None
        )
        result = CliRunner().invoke(app, ["train", "--data", "iris", "--epochs", "1"])
        assert result.exit_code == 2
        message = f"fastopt: error: the command needs {name}; install it"
        assert result.stderr.startswith(message)
    assert not list(tmp_path.iterdir())


def test_numbers_have_their_nouns() -> None:
    assert [counted(n, "epoch") for n in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
    assert [digits(x, 3) for x in (0.12345, 999.4, 12345.6, -12345.6, 1e20, float("nan"))] == [
        "0.123", "999", "12346", "-12346", "1e+20", "nan",
    ]  # fmt: skip
