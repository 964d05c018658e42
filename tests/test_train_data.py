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
from fastopt.train.data import DataError


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
        (np.array(["a", "b"] * 6), "y must hold real numbers for a regression"),
        (np.where(np.arange(12) == 5, np.nan, 1.0), "in 1 row, the first is y[5]"),
        (np.ones(12), "all targets are 1: there is nothing to learn"),
    ],
)
def test_targets_that_are_no_regression(y: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(24.0).reshape(12, 2), y=y)
    with pytest.raises(DataError, match=re.escape(words)):
        ft.load_data(tmp_path / "a.npz", "regression")


def test_a_target_of_a_regression_whose_square_is_infinite(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.arange(40.0).reshape(20, 2), y=[*range(19), 1e300])
    with pytest.raises(DataError, match=r"y holds 1e\+300, beyond 1e\+100"):
        ft.load_data(tmp_path / "a.npz", "regression")


def test_a_word_among_the_targets_of_a_regression(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3\n4,5,high\n")
    with pytest.raises(DataError, match="line 2, column 3: 'high' is not a number"):
        ft.load_data(tmp_path / "a.csv", "regression")


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


@bad("line 2, column 1: 'x' is not a number")
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


@bad("line 1, column 1: 'x' is not a number")
def typo_in_the_first_line(folder: Path) -> Path:
    (folder / "a.csv").write_text("x,2,0\n3,4,1\n")
    return folder / "a.csv"


@bad("different labels in 20 samples; are these classes?")
def regression_target(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((20, 2)), y=np.linspace(0, 1, 20))
    return folder / "a.npz"


@bad("line 3: the label is empty; remove or fill it")
def empty_label(folder: Path) -> Path:
    (folder / "a.csv").write_text("1,2,a\n3,4,b\n5,6,\n")
    return folder / "a.csv"


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


@bad("the first is y[2]")
def npz_with_nan_labels(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((8, 2)), y=np.array([0, 1, np.nan, 1, 0, 1, 0, 1]))
    return folder / "a.npz"


@bad("all labels are 0.0; at least 2 classes are needed")
def one_class(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((8, 2)), y=np.zeros(8))
    return folder / "a.npz"


@bad("0 samples; at least 5 are needed")
def npz_without_rows(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((0, 4)), y=np.ones(0))
    return folder / "a.npz"


@bad("there are no features")
def npz_without_columns(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((20, 0)), y=np.arange(20) % 2)
    return folder / "a.npz"


@bad("y must hold numbers or text, not complex128")
def npz_of_complex_labels(folder: Path) -> Path:
    np.savez(folder / "a.npz", X=np.ones((20, 2)), y=np.arange(20) % 2 * 1j)
    return folder / "a.npz"


@bad("y must hold numbers or text, not [('a', '<i4')]")
def npz_of_structured_labels(folder: Path) -> Path:
    y = (np.arange(20, dtype="<i4") % 2).view([("a", "<i4")])
    np.savez(folder / "a.npz", X=np.ones((20, 2)), y=y)
    return folder / "a.npz"


@bad("X holds values beyond 1e+100 in 1 row, the first is X[3]")
def npz_of_huge_numbers(folder: Path) -> Path:
    x = np.arange(40.0).reshape(20, 2)
    x[3, 1] = -1e300
    np.savez(folder / "a.npz", X=x, y=np.arange(20) % 2)
    return folder / "a.npz"


@bad("standard deviations from the mean")
def npz_with_an_outlier_held_out(folder: Path) -> Path:
    x = np.arange(40.0).reshape(20, 2)
    rows = np.random.RandomState(0).permutation(20)  # as the split without classes draws
    x[rows[0], 0] = 1e60
    np.savez(folder / "a.npz", X=x, y=np.arange(20) // 4)
    return folder / "a.npz"


@bad("line 5, column 2: 'q' is not a number")
def csv_with_a_name_of_two_lines(folder: Path) -> Path:
    (folder / "a.csv").write_text('x,"in\nmm",y\n1,2,0\n3,4,1\n5,q,1\n')
    return folder / "a.csv"


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


@bad("label 77 is not in the training part")
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
