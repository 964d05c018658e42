"""An interrupted or failed command leaves whole sets of files, or nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest

from helpers import HANG

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner, Result

from fastopt import train as ft
from fastopt.cli.app import app
from fastopt.train import experiments as fx

TRAIN = ["train", "--data", "iris", "--epochs", "2", "--hidden", "4"]
COMPARE = ["compare", "--data", "iris", "--epochs", "1", "--hidden", "4", "--lr", "0.1,0.01"]
SWEEP = ["sweep", "--data", "iris", "--epochs", "1", "--hidden", "4", "--lr", "0.1,0.01"]
LANDSCAPE = ["landscape", "--function", "bowl,ravine", "--optimizer", "sgd", "--steps", "3",
             "--lr", "0.01", "--no-animation"]  # fmt: skip
ALL = [TRAIN, COMPARE, SWEEP, LANDSCAPE]
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def call(arguments: list[str], output: str = "a/b") -> Result:
    return CliRunner().invoke(app, [*arguments, "--output", output])


def raising(error: BaseException, after: int = 0) -> Callable[..., Any]:
    """Return a function that raises an exception after some calls."""
    calls = iter(range(after))

    def act(*_: Any, **__: Any) -> None:
        if next(calls, None) is None:
            raise error

    return act


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_here(configs: Any, data: ft.Data, jobs: int) -> Any:
    """Do the work of `run_parallel` in this process."""
    return fx.compare(configs, data)


@pytest.mark.parametrize("arguments", ALL, ids=lambda words: words[0])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), DISK_FULL, MemoryError()], ids=repr)
def test_an_end_before_the_first_result_leaves_no_folder(
    arguments: list[str], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fx, "run_parallel", run_here)
    monkeypatch.setattr(ft.Trainer, "fit", raising(error))
    monkeypatch.setattr("fastopt.train.experiments.landscape.descend", raising(error))
    result = call(arguments)
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "interrupted" in result.stdout or result.stderr.startswith("fastopt: error: ")
    assert not Path("a").exists()


@pytest.mark.parametrize("arguments", [TRAIN, COMPARE, LANDSCAPE], ids=lambda words: words[0])
def test_an_interrupt_of_the_report_leaves_no_folder(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This is like a second Ctrl-C; the first has ended the training.
    monkeypatch.setattr("fastopt.train.formats._strict", raising(KeyboardInterrupt()))
    result = call(arguments)
    assert result.exit_code == 130
    assert result.stdout.rstrip().endswith("interrupted")
    assert not Path("a").exists()


def test_an_interrupted_report_of_a_sweep_keeps_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fx, "run_parallel", run_here)
    monkeypatch.setattr(
        "fastopt.train.experiments.results.plot_sweep", raising(KeyboardInterrupt())
    )
    assert call(SWEEP).exit_code == 130
    assert [path.name for path in Path("a/b").iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize("arguments", [COMPARE, LANDSCAPE], ids=lambda words: words[0])
def test_a_set_of_files_is_written_whole_or_not_at_all(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(arguments).exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("a/b").iterdir()}
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: None)
    monkeypatch.setattr("csv.DictWriter.writerows", raising(DISK_FULL))
    result = call(arguments)
    assert result.exit_code == 2
    message = "fastopt: error: cannot write into a/b: No space left on device; choose another"
    assert result.stderr.startswith(message)
    assert "│" in result.stdout  # the table is printed all the same
    assert {path.name: path.read_bytes() for path in Path("a/b").iterdir()} == before


def test_an_interrupt_while_the_files_get_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace
    calls = iter(range(6))  # two pictures for each function, twice; then the whole set

    def interrupt(self: Path, target: Path) -> Path:
        if next(calls, None) == 5:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    monkeypatch.setattr(
        "fastopt.train.experiments.landscape.write_picture", lambda path, _: path.touch() or path
    )
    assert call(LANDSCAPE).exit_code == 130
    names = {f"{name}{end}" for name in ("bowl", "ravine") for end in (".png", "-lr.png")}
    assert {path.name for path in Path("a/b").iterdir()} == names | {
        "landscape.csv",
        "landscape.json",
    }


def test_an_interrupted_landscape_keeps_the_functions_that_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plot = fx.plot_rates
    calls = iter(range(1))

    def interrupt(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return plot(*arguments)

    monkeypatch.setattr("fastopt.train.experiments.landscape.plot_rates", interrupt)
    result = call(LANDSCAPE)
    assert result.exit_code == 130
    assert result.stdout.rstrip().endswith("interrupted after 1 of 2 functions")
    names = {"bowl.png", "bowl-lr.png", "landscape.csv", "landscape.json"}
    assert {path.name for path in Path("a/b").iterdir()} == names


@pytest.mark.parametrize("arguments", [*ALL, ["bench"]], ids=lambda words: words[0])
@pytest.mark.parametrize("kind", ["file", "dangling link", "below a file", "long"])
def test_an_output_that_cannot_be(
    kind: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("work before the folder is there")

    for name in ("run_parallel", "compare"):
        monkeypatch.setattr(fx, name, never)
    monkeypatch.setattr("fastopt.train.experiments.landscape.descend", never)
    monkeypatch.setattr(ft.Trainer, "fit", never)
    Path("file").write_text("in the way")
    Path("link").symlink_to("nothing")
    output = {"file": "file", "dangling link": "link", "below a file": "file/a"}.get(
        kind, "x" * 300
    )
    result = call(arguments, output)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fastopt: error: cannot write into {output}: ")
    assert result.stderr.endswith("; choose another --output\n")
    assert result.stderr.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"file", "link"}


def test_a_folder_that_was_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a").mkdir()
    monkeypatch.setattr(ft.Trainer, "fit", raising(KeyboardInterrupt()))
    assert call(TRAIN).exit_code == 130
    assert [path.name for path in Path().iterdir()] == ["a"]
    assert not list(Path("a").iterdir())


def test_a_request_to_end_is_a_line_and_no_empty_folder() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastopt", "train", "--data", "iris", "--hidden", "4",
         "--epochs", "1000000", "--output", "a"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("kernels"):
        pass  # training begins
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=HANG)
    assert (process.returncode, errors) == (130, "")
    assert "interrupted" in output
    assert Path("a/run.json").exists() or not Path("a").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(TRAIN, "loss.png"), (COMPARE, "compare.png"), (LANDSCAPE, "landscape.json")],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_folder_with_the_name_of_a_file_keeps_the_whole_set_out(
    arguments: list[str], name: str
) -> None:
    Path("a/b", name).mkdir(parents=True)
    result = call(arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        f"fastopt: error: cannot write into a/b: {name} is a folder; choose another --output\n"
    )
    assert [path.name for path in Path("a/b").iterdir()] == [name]


def write_abc(end: Callable[[], Any] = lambda: None) -> None:
    with ft.write_together(".", ["old", "a", "none"]) as parts:
        for name in "abc":
            (parts / name).write_text("after")
        end()


@pytest.mark.parametrize("when", range(4))
def test_an_interrupt_while_files_are_put_in_place_leaves_the_new_set(
    when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c", "old"):
        Path(name).write_text("before")
    replace = Path.replace
    calls = iter(range(9))

    def interrupt(self: Path, target: Path) -> Path:
        now = next(calls)
        result = replace(self, target) if now % 2 else None  # before or after the call
        if now == when:
            raise KeyboardInterrupt
        return result or replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with nullcontext() if when == 3 else pytest.raises(KeyboardInterrupt):
        write_abc()
    assert {path.name: path.read_text() for path in Path().iterdir()} == dict.fromkeys(
        "abc", "after"
    )


def test_a_block_that_raises_puts_nothing_in_place() -> None:
    Path("a").write_text("before")
    with pytest.raises(ZeroDivisionError):
        write_abc(lambda: 1 // 0)
    assert [path.name for path in Path().iterdir()] == ["a"]
