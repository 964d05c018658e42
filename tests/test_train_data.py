"""Reading data: accepted inputs, results, and errors."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft
from fastopt.train import DataError


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
    assert from_npz.labels == ("0", "1", "2")
    for name in ("d.csv", "header.csv"):
        from_csv = ft.load_data(tmp_path / name)
        assert from_csv.labels == ("ant", "bee", "cow")
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
    assert data.outputs == 10


@pytest.mark.parametrize(
    ("name", "task", "outputs"),
    [
        ("digits", "classification", 10),
        ("wine", "classification", 3),
        ("iris", "classification", 3),
        ("breast-cancer", "binary", 1),
        ("diabetes", "regression", 1),
    ],
)
def test_bundled_data(name: str, task: str, outputs: int) -> None:
    data = ft.load_data(name)
    assert (data.task, data.outputs) == (task, outputs)
    assert name in str(data)
    for x, y in ((data.x_train, data.y_train), (data.x_val, data.y_val)):
        assert x.dtype == np.float32
        assert x.shape == (len(y), data.features)
        assert y.dtype == (np.int64 if task == "classification" else np.float32)
        assert y.ndim == (1 if task == "classification" else 2)
    assert np.all(np.isfinite(data.x_train))
    assert data.digest() == ft.load_data(name).digest() != ft.load_data(name, seed=1).digest()
    assert set(ft.BUNDLED) == {"digits", "wine", "iris", "breast-cancer", "diabetes"}


def test_the_second_label_is_the_positive_one() -> None:
    data = ft.load_data("breast-cancer")
    assert data.labels == ("benign", "malignant")
    both = np.concatenate([data.y_train, data.y_val])
    assert both.sum() == 212  # malignant ones, says the description of the data set
    assert set(np.unique(both)) == {0, 1}


def test_targets_of_a_regression_are_standardized_by_the_training_part() -> None:
    data = ft.load_data("diabetes")
    assert data.y_train.mean() == pytest.approx(0, abs=1e-6)
    assert data.y_train.std() == pytest.approx(1, abs=1e-6)
    both = np.concatenate([data.y_train, data.y_val]).astype(np.float32)
    units = data.in_units(both)
    assert (round(units.min()), round(units.max())) == (25, 346)
    np.testing.assert_allclose(units, np.round(units), atol=1e-4)


def test_the_task_may_be_chosen(tmp_path: Path) -> None:
    x, y = toy()
    np.savez(tmp_path / "numbers.npz", X=x, y=x[:, 0] + 5)
    rows = [",".join(map(str, row)) for row in np.column_stack([x, x[:, 0] + 5])]
    (tmp_path / "numbers.csv").write_text("\n".join(["a,b,c,d,price", *rows]))
    from_npz = ft.load_data(tmp_path / "numbers.npz", "regression")
    from_csv = ft.load_data(tmp_path / "numbers.csv", "regression")
    assert (from_csv.target, from_csv.task, from_csv.labels) == ("price", "regression", ())
    np.testing.assert_allclose(from_csv.y_train, from_npz.y_train, rtol=1e-6)
    np.savez(tmp_path / "two.npz", X=x, y=np.where(y > 0, "yes", "no"))
    assert ft.load_data(tmp_path / "two.npz").task == "classification"
    binary = ft.load_data(tmp_path / "two.npz", "binary")
    assert binary.labels == ("no", "yes")
    assert binary.y_val.shape == (12, 1)
    assert ft.load_data("digits", "regression").outputs == 1
    assert ft.load_data("breast-cancer", "classification").outputs == 2
    with pytest.raises(ValueError, match="classification, binary, regression, not 'ranking'"):
        ft.load_data("iris", "ranking")  # type: ignore[arg-type]


def test_whole_numbers_as_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(f"{i},1,{2 + i % 9 * 2}" for i in range(90)))
    assert ft.load_data(tmp_path / "a.csv").labels == tuple(str(2 + 2 * i) for i in range(9))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array(["a", "b"] * 6), "row 1, target 'target': 'a' is not a number"),
        (np.where(np.arange(12) == 5, np.inf, 1.0), "the target holds inf, beyond 1e+100"),
        (np.full(12, np.nan), "0 samples; at least 5 are needed"),
        (np.ones(12), "all targets are 1: there is nothing to learn"),
    ],
)
def test_targets_that_are_no_regression(y: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(24.0).reshape(12, 2), y=y)
    with pytest.raises(DataError, match=re.escape(words)):
        ft.load_data(tmp_path / "a.npz", "regression")


def test_a_target_of_a_regression_whose_square_is_infinite(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(40.0).reshape(20, 2), y=[*range(19), 1e300])
    with pytest.raises(DataError, match=r"the target holds 1e\+300, beyond 1e\+100"):
        ft.load_data(tmp_path / "a.npz", "regression")


def test_a_word_among_the_targets_of_a_regression(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3\n4,5,high\n")
    with pytest.raises(DataError, match=r"row 2, target 'x3': 'high' is not a number"):
        ft.load_data(tmp_path / "a.csv", "regression")


def cut(path: Path, keep: int | None) -> None:
    path.write_bytes(path.read_bytes()[:keep])


Make = Callable[[Path], Path]  # writes into a folder, and returns what is read


def csv(text: str | bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "a.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / "a.csv"

    return make


def npz(keep: int | None = None, **arrays: Any) -> Make:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        cut(folder / "a.npz", keep)
        return folder / "a.npz"

    return make


def idx(damage: Callable[[Path], object], suffix: str = "") -> Make:
    def make(folder: Path) -> Path:
        write_mnist(folder, suffix)
        damage(folder)
        return folder

    return make


def strange_kind(folder: Path) -> Path:
    (folder / "a.doc").write_text("1,2\n")
    return folder / "a.doc"


def features(value: float, *rows: int) -> Any:
    """Return 20 rows of 2 features, with this value in some rows."""
    x = np.arange(40.0).reshape(20, 2)
    x[list(rows), 1] = value
    return x


BITS = np.arange(20) % 2
FIRST = np.random.RandomState(0).permutation(20)[0]  # held out by a split without classes
INFINITE_ROWS = "\n".join(f"{i},{'inf' if i % 10 in (3, 4) else 1},{i % 2}" for i in range(12))
IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
BAD_DATA: dict[str, tuple[Make, str]] = {
    "missing": (lambda folder: folder / "nothing.csv", "No such file"),
    "missing folder": (lambda folder: folder / "nothing", "there is no file or folder"),
    "empty folder": (lambda folder: folder, "has no train-images"),
    "strange kind": (strange_kind, "expected a file whose name ends with .npz, .csv, .tsv"),
    "ragged": (csv("1,2,0\n3,4,1\n5,6\n"), "line 3: 2 columns, 3 expected"),
    "words": (csv("1,2,0\nx,4,1\n"), "row 2, column 'x1': 'x' is not a number"),
    "typo in the first line": (csv("x,2,0\n3,4,1\n"), "row 1, column 'x1': 'x' is not a number"),
    "a name of two lines": (
        csv('x,"in\nmm",y\n1,2,0\n3,4,1\n5,6,1,7\n'),
        "line 5: 4 columns, 3 expected",
    ),
    "infinite": (csv(INFINITE_ROWS), "column 'x2', row 5: inf is not within 1e+100"),
    "no labels, and a text": (csv("a,b,c\n1,2 3,\n"), "0 samples; at least 5 are needed"),
    "no labels": (csv("1,2,\n3,4,\n5,6,\n"), "0 samples; at least 5 are needed"),
    "narrow": (csv("1\n2\n"), "one column"),
    "no rows": (csv("a,b,c\n"), "holds no rows"),
    "binary": (csv(bytes(range(128, 256))), "not a readable CSV"),
    "names": (
        csv("\n".join(f"{i},{i % 3},name{i}" for i in range(20))),
        "20 different labels in 20 samples; are these classes?",
    ),
    "infinity in X": (npz(X=features(np.inf, 7, 9), y=BITS), "row 8: inf is not within 1e+100"),
    "no y": (npz(X=np.ones((3, 2))), "it needs X and y"),
    "no X": (npz(y=np.ones(3)), "holds y; it needs X and y"),
    "unequal lengths": (
        npz(X=np.ones((9, 2)), y=np.ones(8)),
        "y must have a row for each of the 9 in X, not (8,)",
    ),
    "many targets": (npz(X=np.ones((9, 2)), y=np.ones((9, 2))), "or be one-hot rows, not (9, 2)"),
    "text": (npz(X=[["a"], ["b"]] * 10, y=BITS), "X must hold real numbers"),
    "one class": (
        npz(X=np.ones((8, 2)), y=np.zeros(8)),
        "all labels are '0.0'; at least 2 classes are needed",
    ),
    "no samples": (npz(X=np.ones((0, 4)), y=np.ones(0)), "X must have shape (N, ...) and hold"),
    "no features": (npz(X=np.ones((20, 0)), y=BITS), "X must have shape (N, ...) and hold"),
    "complex labels": (
        npz(X=np.ones((20, 2)), y=BITS * 1j),
        "y must hold numbers or text, not complex128",
    ),
    "structured labels": (
        npz(X=np.ones((20, 2)), y=BITS.astype("<i4").view([("a", "<i4")])),
        "y must hold numbers or text, not [('a', '<i4')]",
    ),
    "huge numbers": (
        npz(X=features(-1e300, 3), y=BITS),
        "column 'x2', row 4: -1e+300 is not within 1e+100",
    ),
    "an outlier held out": (
        npz(X=features(1e60, FIRST), y=np.arange(20) // 4),
        "1e+60 is too far from the values in training",
    ),
    "npz cut short": (npz(700, X=np.ones((100, 9)), y=np.ones(100)), "not a readable .npz"),
    "pickles": (npz(X=np.array([{}, {}], object), y=np.ones(2)), "not a readable .npz"),
    "idx cut short": (idx(lambda folder: cut(folder / IMAGES, 5000)), "cut short"),
    "idx header cut short": (idx(lambda folder: cut(folder / IMAGES, 9)), "cut short"),
    "gzip cut short": (
        idx(lambda folder: cut(folder / f"{IMAGES}.gz", 600), ".gz"),
        "is not a complete file: Compressed file ended",
    ),
    "idx of something else": (
        idx(lambda folder: (folder / LABELS).write_text("hello world")),
        "not an idx file",
    ),
    "idx of unequal lengths": (
        idx(lambda folder: write_idx(folder / LABELS, np.arange(29) % 10)),
        "30 held-out inputs but 29 labels",
    ),
    "idx with an unknown label": (
        idx(lambda folder: write_idx(folder / LABELS, np.full(30, 77))),
        "label 77 is not in the training part",
    ),
}


@pytest.mark.parametrize(("make", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused_in_one_line(make: Make, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        ft.load_data(make(tmp_path))
    assert "\n" not in str(caught.value)
