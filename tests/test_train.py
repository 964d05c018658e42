"""The command, the model, the data and the loop behind it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from fastopt import train as ft
from fastopt.train.data import DataError


def fastopt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastopt", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
    )


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
    assert run["results"]["final"]["val_accuracy"] >= 0.97
    assert run["results"]["best"]["val_accuracy"] >= run["results"]["final"]["val_accuracy"]
    assert run["instruction_set"] == fo.active_isa()
    assert run["threads"] == fo.get_num_threads()
    assert run["versions"]["fastopt"] == fo.__version__
    assert run["options"]["optimizer"] == "adamw"
    assert run["options"]["lr"] == 0.001
    seconds = run["results"]["seconds"]
    assert sum(v for k, v in seconds.items() if k != "total") <= seconds["total"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(read_metrics(folder)) == 30
    for text in ("epoch   30/30", "samples/s", "final accuracy on held-out data", "run.json"):
        assert text in result.stdout
    for text in ("time in the optimizer step", "time in the loss", "whole training"):
        assert text in result.stdout
    final = run["results"]["final"]["val_accuracy"]
    assert f"{final:.2%}" in result.stdout


def test_same_seed_same_result_on_any_number_of_threads(tmp_path: Path) -> None:
    runs = []
    for number, threads in enumerate(("1", "2", "2")):
        folder = tmp_path / str(number)
        seed = "1" if number == 2 else "0"
        # Layers large enough that a step is shared among the threads.
        result = fastopt("train", "--epochs", "2", "--hidden", "512,256", "--threads", threads,
                         "--seed", seed, "--output", str(folder), cwd=tmp_path)  # fmt: skip
        assert result.returncode == 0, result.stderr
        runs.append(read_metrics(folder))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
def test_every_optimizer_learns(optimizer: str, tmp_path: Path) -> None:
    result = fastopt("train", "--optimizer", optimizer, "--epochs", "10", "--hidden", "64",
                     "--dropout", "0", "--batch-size", "32", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    run = json.loads((tmp_path / "fastopt-run/run.json").read_text())
    assert run["results"]["best"]["val_accuracy"] > 0.93


def test_a_diverged_run_is_reported_as_json(tmp_path: Path) -> None:
    result = fastopt("train", "--optimizer", "sgd", "--lr", "1e20", "--epochs", "2", cwd=tmp_path)
    run = json.loads(
        (tmp_path / "fastopt-run/run.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert result.returncode == 1
    assert run["results"]["final"]["train_loss"] is None
    assert "the loss is not finite since epoch 1: try a smaller --lr" in result.stdout


def test_info(tmp_path: Path) -> None:
    result = fastopt("info", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.strip() == fo.show_config()


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from fastopt.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "fastopt: the command needs typer; install it with: pip install 'fastopt[train]' "
        "(in a checkout: '.[train]')"
    )


def test_help_tells_the_defaults(tmp_path: Path) -> None:
    result = fastopt("train", "-h", cwd=tmp_path)
    text = " ".join(re.sub(r"[│\s]+", " ", result.stdout).split())
    assert text.count("[default: ") + text.count("(default: ") > 8, text
    for default in ("scikit-learn's digits", "0.1 sgd", "0.01 adamw", "all"):
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
    assert result.returncode == 1
    assert variable in result.stderr


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "fastopt", "train", "--epochs", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("data")
    time.sleep(1)  # some epochs
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert re.search(r"interrupted after epoch [1-9]", output)
    assert len(read_metrics(tmp_path / "fastopt-run")) > 0


def test_bench_without_a_case(tmp_path: Path) -> None:
    result = fastopt("bench", "--largest", "10", cwd=tmp_path)
    assert result.returncode == 2
    assert "--largest must be at least 4096" in result.stderr


def test_bench(tmp_path: Path) -> None:
    result = fastopt("bench", "--largest", "70000", "--seconds", "0.05", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ("memory     copy", "SGD, 4 K", "AdamW, 64 K", "200 tensors of 64", "GB/s"):
        assert text in result.stdout
    facts = json.loads((tmp_path / "fastopt-bench/bench.json").read_text())
    assert len(facts["results"]) == 9
    for row in facts["results"]:
        assert row["gb_per_s"] == pytest.approx(
            row["bytes_moved"] / row["seconds"]["fastopt"] / 1e9
        )
        assert row["peer_time_over_ours"]["reference"] > 0
    assert (tmp_path / "fastopt-bench/bench.png").read_bytes().startswith(b"\x89PNG")


def test_bench_losses(tmp_path: Path) -> None:
    result = fastopt("bench", "losses", "--largest", "2000", "--seconds", "0.05",
                     "--output", "here", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    for text in ("memory     copy", "cross-entropy 128 x 10, reused buffer", "of copy"):
        assert text in result.stdout
    facts = json.loads((tmp_path / "here/bench-losses.json").read_text())
    (row,) = facts["results"]
    assert row["bytes_moved"] == 8 * row["elements"] == 8 * 1280
    assert row["gb_per_s"] == pytest.approx(row["bytes_moved"] / row["seconds"]["fastopt"] / 1e9)
    assert row["peer_time_over_ours"]["reference"] > 0
    assert (tmp_path / "here/bench-losses.md").read_text().count("\n") == 3
    assert (tmp_path / "here/bench-losses.png").read_bytes().startswith(b"\x89PNG")


def test_bench_accuracy(tmp_path: Path) -> None:
    result = fastopt("bench", "accuracy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "fastopt-bench/accuracy.json").read_text())
    names = [row["case"] for row in facts["results"]]
    assert "cross-entropy 8192 x 1000, sure model" in names
    for row in facts["results"]:
        assert row["case"] in result.stdout
        ours = row["errors"]["fastopt"]
        assert 0 < ours["loss_mean"] < ours["loss_max"] < 34 * 2**-23  # logits differ by up to 34
        if "torch" in row["errors"]:
            assert ours["loss_max"] < row["errors"]["torch"]["loss_max"]
            assert ours["grad_max"] <= row["errors"]["torch"]["grad_max"]  # both may be exact
    table = (tmp_path / "fastopt-bench/accuracy.md").read_text().splitlines()
    assert len(table) == 2 + len(names)


def test_bench_of_what(tmp_path: Path) -> None:
    result = fastopt("bench", "speed", cwd=tmp_path)
    assert result.returncode == 2
    for name in ("optimizers", "losses", "accuracy"):
        assert name in result.stderr


# -- the model -----------------------------------------------------------------------------------


def test_backward_is_the_derivative_of_forward() -> None:
    rng = np.random.default_rng(0)
    model = ft.MLP([5, 7, 6, 3], seed=1)
    for arrays in (model.params, model.grads):  # float64, so that differences are sharp
        arrays.update({name: array.astype(np.float64) for name, array in arrays.items()})
    for name, param in model.params.items():
        if name.endswith("bias"):  # not 0: there a unit without input sits on ReLU's kink
            param[...] = rng.standard_normal(param.shape)
    x: Any = rng.standard_normal((8, 5))
    y = rng.integers(0, 3, 8)
    ce = fo.CrossEntropyLoss()
    _, dlogits = ce.value_and_grad(model.forward(x, training=True), y)
    grads = model.backward(dlogits)
    for name, param in model.params.items():
        for i in np.ndindex(param.shape):
            kept = param[i]
            values = []
            for h in (1e-6, -1e-6):
                param[i] = kept + h
                values.append(float(ce(model.forward(x), y)))
            param[i] = kept
            assert grads[name][i] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    model = ft.MLP([4, 5000, 2], dropout=0.4, seed=2)
    x = np.ones((1, 4), np.float32)
    model.forward(x, training=True)
    hidden = model._inputs[1]
    plain = np.maximum(x @ model.params["0.weight"].T, 0)
    positive = plain > 0
    assert np.mean(hidden[positive] == 0) == pytest.approx(0.4, abs=0.05)
    assert hidden.mean() == pytest.approx(plain.mean(), rel=0.1)
    np.testing.assert_array_equal(model.forward(x), model.forward(x))


def test_dropped_units_get_no_gradient() -> None:
    model = ft.MLP([4, 50, 2], dropout=0.5, seed=3)
    logits = model.forward(np.ones((1, 4), np.float32), training=True)
    dead = model._inputs[1][0] == 0
    grads = model.backward(np.ones_like(logits))
    assert dead.any()
    assert np.all(grads["0.weight"][dead] == 0)
    assert np.all(grads["0.bias"][~dead] != 0)


@pytest.mark.parametrize(("sizes", "dropout"), [([3], 0.0), ([3, 0, 2], 0.0), ([3, 2], 1.0)])
def test_bad_models(sizes: list[int], dropout: float) -> None:
    with pytest.raises(ValueError, match=r"sizes|dropout"):
        ft.MLP(sizes, dropout)


# -- the data ------------------------------------------------------------------------------------


def toy(rows: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, rows)
    x = rng.standard_normal((rows, 4)) * 7 + 3
    x[:, 0] += 20 * y
    return x, y


def write_idx(path: Path, array: Any) -> None:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    raw = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, suffix: str = "") -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(6)
    for stem, rows in (("train", 90), ("t10k", 30)):
        labels = rng.integers(0, 10, rows)
        labels[:10] = np.arange(10)
        images = rng.integers(0, 50, (rows, 28, 28))
        images[np.arange(rows), labels] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", labels)


def test_npz_csv_and_text_labels_agree(tmp_path: Path) -> None:
    x, y = toy()
    names = np.array(["ant", "bee", "cow"])[y]
    np.savez(tmp_path / "d.npz", X=x, y=y)
    lines = [
        ",".join(map(repr, map(float, row))) + f",{name}"
        for row, name in zip(x, names, strict=True)
    ]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "header.csv").write_text("\n".join(["a,b,c,d,kind", *lines]))
    from_npz = ft.load_data(tmp_path / "d.npz")
    assert from_npz.labels == ["0", "1", "2"]
    for name in ("d.csv", "header.csv"):
        from_csv = ft.load_data(tmp_path / name)
        assert from_csv.labels == ["ant", "bee", "cow"]
        np.testing.assert_array_equal(from_csv.x_train, from_npz.x_train)
        np.testing.assert_array_equal(from_csv.y_val, from_npz.y_val)
    np.testing.assert_allclose(from_npz.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(from_npz.x_train.std(axis=0), 1, atol=1e-6)
    assert len(from_npz.y_val) == 12


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_idx_files(suffix: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", suffix)
    data = ft.load_data(tmp_path / "mnist")
    assert data.x_train.shape == (90, 784)
    assert data.x_val.shape == (30, 784)
    assert data.classes == 10
    result = fastopt("train", "--data", "mnist", "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


BAD_DATA: list[tuple[str, Callable[[Path], Path], str]] = []


def bad(words: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        BAD_DATA.append((make.__name__, make, words))
        return make

    return register


@bad("No such file")
def missing(folder: Path) -> Path:
    return folder / "nothing.csv"


@bad("there is no file or folder")
def missing_folder(folder: Path) -> Path:
    return folder / "nothing"


@bad("expected a .npz or .csv file")
def strange_kind(folder: Path) -> Path:
    (folder / "a.txt").write_text("1,2\n")
    return folder / "a.txt"


@bad("line 3: 2 columns, 3 expected")
def ragged_csv(folder: Path) -> Path:
    (folder / "a.csv").write_text("1,2,0\n3,4,1\n5,6\n")
    return folder / "a.csv"


@bad("line 2, column 1: 'x' is no number")
def words_in_csv(folder: Path) -> Path:
    (folder / "a.csv").write_text("1,2,0\nx,4,1\n")
    return folder / "a.csv"


@bad("one column")
def narrow_csv(folder: Path) -> Path:
    (folder / "a.csv").write_text("1\n2\n")
    return folder / "a.csv"


@bad("holds no rows")
def empty_csv(folder: Path) -> Path:
    (folder / "a.csv").write_text("a,b,c\n")
    return folder / "a.csv"


@bad("not a readable CSV")
def binary_csv(folder: Path) -> Path:
    (folder / "a.csv").write_bytes(bytes(range(128, 256)))
    return folder / "a.csv"


@bad("line 4, column 2: 'nan' is not finite")
def nan_in_csv(folder: Path) -> Path:
    rows = [f"{i},{'nan' if i % 10 in (3, 4) else 1},{i % 2}" for i in range(12)]
    (folder / "a.csv").write_text("\n".join(rows))
    return folder / "a.csv"


@bad("line 1, column 1: 'x' is no number")
def typo_in_the_first_line(folder: Path) -> Path:
    (folder / "a.csv").write_text("x,2,0\n3,4,1\n")
    return folder / "a.csv"


@bad("different labels in 20 samples; are these classes?")
def regression_target(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((20, 2)), y=np.linspace(0, 1, 20))
    return folder / "a.npz"


@bad("the first is X[7]")
def npz_with_nan(folder: Path) -> Path:
    x = np.ones((20, 2))
    x[[7, 9], 1] = np.nan
    np.savez(folder / "a.npz", X=x, y=np.arange(20) % 2)
    return folder / "a.npz"


@bad("it needs X and y")
def npz_without_y(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones(3))
    return folder / "a.npz"


@bad("must have shape")
def npz_of_unequal_lengths(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((9, 2)), y=np.ones(8))
    return folder / "a.npz"


@bad("X must hold real numbers")
def npz_of_text(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.array([["a"], ["b"]] * 9), y=np.arange(18) % 2)
    return folder / "a.npz"


@bad("NaN or infinite labels")
def npz_with_nan_labels(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((8, 2)), y=np.array([0, 1, np.nan, 1, 0, 1, 0, 1]))
    return folder / "a.npz"


@bad("5 samples and 2 classes")
def one_class(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((8, 2)), y=np.zeros(8))
    return folder / "a.npz"


@bad("not a readable .npz")
def npz_cut_short(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((100, 9)), y=np.arange(100) % 2)
    cut(folder / "a.npz", 700)
    return folder / "a.npz"


@bad("not a readable .npz")
def npz_with_pickles(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.array([{}, {}], object), y=np.ones(2))
    return folder / "a.npz"


@bad("has no train-images")
def empty_folder(folder: Path) -> Path:
    return folder


@bad("cut short")
def idx_cut_short(folder: Path) -> Path:
    write_mnist(folder)
    cut(folder / "train-images-idx3-ubyte", 5000)
    return folder


@bad("cut short")
def idx_header_cut_short(folder: Path) -> Path:
    write_mnist(folder)
    cut(folder / "train-images-idx3-ubyte", 9)
    return folder


@bad("not a complete gzip file")
def idx_gzip_cut_short(folder: Path) -> Path:
    write_mnist(folder, ".gz")
    cut(folder / "train-images-idx3-ubyte.gz", 600)
    return folder


@bad("not an idx file")
def idx_of_something_else(folder: Path) -> Path:
    write_mnist(folder)
    (folder / "t10k-labels-idx1-ubyte").write_text("hello world")
    return folder


@bad("30 held-out inputs but 29 labels")
def idx_of_unequal_lengths(folder: Path) -> Path:
    write_mnist(folder)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(29) % 10)
    return folder


@bad("label 77 is not among those trained")
def idx_with_an_unknown_label(folder: Path) -> Path:
    write_mnist(folder)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.full(30, 77))
    return folder


@pytest.mark.parametrize(("make", "words"), [pytest.param(*r[1:], id=r[0]) for r in BAD_DATA])
def test_bad_data_is_refused_in_one_line(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        ft.load_data(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nothing.csv"], "cannot read nothing.csv"),
        (["--hidden", "12,x"], "--hidden"),
        (["--hidden", "0"], "--hidden"),
        (["--dropout", "1"], "--dropout"),
        (["--lr", "inf"], "lr must be finite"),
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
