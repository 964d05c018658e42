"""What the commands print is whole on a terminal of any width: each word and each number."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest

from helpers import HANG

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from fastopt import train as ft
from fastopt.cli import common
from fastopt.cli.app import app
from fastopt.cli.train import Live

TABLE = "iris.csv"
COMMANDS = [
    "--help", "train --help", "predict --help", "compare --help", "sweep --help",
    "landscape --help", "bench --help",
    "info", "train --lrr 1", "train --epochs many", "bench accuracy --largest 5000",
    f"train --data {TABLE} --epochs 2 --hidden 4", f"predict fastopt-run {TABLE}",
    "train --data diabetes --epochs 12 --optimizer momentum",
    "compare --data iris --epochs 2 --hidden 8,8",
    "sweep --data iris --epochs 1 --hidden 4 --optimizer sgd,momentum --lr 0.0123,1e30"
    " --batch-size 16,32 --jobs 1",
    "landscape --function bowl,rosenbrock --steps 9 --lr 0.01 --no-animation",
    "bench --largest 5000", "bench losses --largest 2000", "bench accuracy",
    "bench types --largest 70000",
]  # fmt: skip

# All commands run in one process, with peers that are not installed, and a clock that counts.
PROGRAM = """
import dataclasses, itertools, sys, time
ticks = itertools.count()
time.perf_counter = lambda: next(ticks) / 1000
import matplotlib.figure
from fastopt import benchmark
from fastopt.benchmark import accuracy
from fastopt.train import experiments
matplotlib.figure.Figure.savefig = lambda *_, **__: None
experiments.run_parallel = lambda configs, data, jobs: experiments.compare(configs, data)
peers = ["fastopt", "torch fused", "torch foreach", "jitted optax", "DeepSpeed", "reference"]
for name, suite in benchmark.SUITES.items():
    benchmark.SUITES[name] = dataclasses.replace(suite, peers=dict.fromkeys(peers))
benchmark.measure_bandwidth = lambda elements: benchmark.Bandwidth(12.3, 45.6)
benchmark.measure_case = lambda suite, case, names, seconds: benchmark.Result(
    case, {"fastopt": 1.234567}, {peer: 1234.567 for peer in peers[1:]}
)
accuracy.NAMES = peers[:3]
accuracy.measure_errors = lambda case: accuracy.Accuracy(
    case, {peer: accuracy.Errors(6.6e-08, 2.1e-08, 0.263) for peer in accuracy.NAMES}
)
from fastopt.cli.app import app
for line in sys.argv[1:]:
    try:
        app(line.split(), prog_name="fastopt")
    except SystemExit:
        pass
"""


def output(folder: Path, columns: int | None) -> list[str]:
    """Return the lines that the commands print on a terminal, or into a log."""
    labels = ["setosa", "[bold]versicolor[/]", "\x1b]0;title\x07 virginica" + " with a name" * 9]
    rows = [f"{i % 7},{i * i % 11},{labels[i % 3]}\n" for i in range(60)]
    (folder / TABLE).write_text("".join(["a,b,species\n", *rows]))
    command = [sys.executable, "-c", PROGRAM, *COMMANDS]
    if columns is None:
        text = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=HANG, check=True,
        ).stdout  # fmt: skip
        return text.splitlines()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with subprocess.Popen(
        command, cwd=folder, env=environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs,
        stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        data = b""
        try:
            while part := os.read(ours, 1 << 16):
                data += part
        except OSError:
            pass  # the program has ended
        os.close(ours)
    assert process.returncode == 0, data.decode()
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", data.decode()))


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in re.sub("[─-╿]", " ", line).split()}


def tables(lines: list[str]) -> set[str]:
    return words([line for line in lines if line[:1] in ("│", "┃")])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return output(tmp_path_factory.mktemp("log"), None)


@pytest.mark.parametrize("columns", [60, 80])
def test_no_word_and_no_number_is_cut(columns: int, log: list[str], tmp_path: Path) -> None:
    lines = output(tmp_path, columns)
    assert max(map(cell_len, lines)) <= columns
    assert not [line for line in lines if "…" in line]
    assert "\x1b" not in "".join(lines)
    assert tables(lines) == tables(log)
    live = re.compile(r"\d+:\d\d:\d\d|-:--:--")
    assert words([line for line in lines if not live.search(line)]) <= words(log) | {"\\"}


def test_huge_losses_are_short() -> None:
    texts = [common.format_loss(loss) for loss in (1e-5, 99999, 123456, -2.27e33, float("nan"))]
    assert texts == ["0.0000", "99999.0000", "1.235e+05", "-2.27e+33", "nan"]


def test_progress_begins_without_loss_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr(common, "console", console)
    live = Live(30)
    live.on_fit_begin(ft.RunConfig(data="iris").build())
    live._progress.stop()
    text = file.getvalue()
    assert "epoch 1/30" in text
    assert "loss" not in text
    assert "samples/s" not in text


@pytest.mark.parametrize("command", ["train", "predict", "compare", "sweep"])
def test_every_option_is_in_a_group_of_the_help(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).stdout
    assert "─ Run and results ─" in text
    assert "─ Options ─" not in text  # where typer puts what has no group
