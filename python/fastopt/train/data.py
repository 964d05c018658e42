"""Classification data: scikit-learn's digits, .npz, CSV, and MNIST's idx files."""

from __future__ import annotations

import csv
import gzip
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class DataError(ValueError):
    """Data that cannot be used; the message says what to do about it."""


@dataclass(frozen=True)
class Data:
    """Standardized inputs and class indices, split into a training and a held-out part."""

    name: str
    x_train: npt.NDArray[np.float32]  # (N, features)
    y_train: npt.NDArray[np.int64]  # (N,), in [0, classes)
    x_val: npt.NDArray[np.float32]
    y_val: npt.NDArray[np.int64]
    labels: list[str]  # of the classes

    @property
    def features(self) -> int:
        """The number of inputs."""
        return int(self.x_train.shape[1])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self.y_train)} samples to train on, {len(self.y_val)} held out, "
            f"{self.features} features, {self.classes} classes"
        )


def load_data(source: str | Path | None = None, seed: int = 0) -> Data:
    """Load data and hold out a part of it.

    Parameters
    ----------
    source : path, optional
        A ``.npz`` file with ``X`` (N, ...) and ``y`` (N,); a CSV file with the label in the last
        column and any header; or a folder with MNIST's four idx files, plain or ``.gz``, whose
        test files are what is held out. Without it, scikit-learn's digits. Labels may be text.
    seed : int
        Chooses which fifth is held out.

    Raises
    ------
    DataError
        If the data cannot be read or used.
    """
    if source is None:
        from sklearn.datasets import load_digits  # takes a second: not for --help

        digits = load_digits()
        return _split("digits (scikit-learn)", digits.data, digits.target, seed)
    path = Path(source)
    try:
        if path.is_dir():
            return _read_idx_folder(path)
        if path.suffix == ".npz":
            return _split(path.name, *_read_npz(path), seed)
        if path.suffix == ".csv":
            return _split(path.name, *_read_csv(path), seed)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    raise DataError(f"{path}: expected a .npz or .csv file, or a folder with MNIST's idx files")


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds a single array; it needs X and y (numpy.savez)")
            if not {"X", "y"} <= set(arrays.files):
                raise DataError(
                    f"{path} holds {', '.join(arrays.files) or 'nothing'}; it needs X and y"
                )
            return arrays["X"], arrays["y"]
    except DataError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is not a readable .npz file of numbers (damaged, or it holds Python objects)"
        ) from error


def _read_csv(path: Path) -> tuple[Any, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(n, row) for n, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}") from error
    if rows and not any(_is_number(cell) for cell in rows[0][1][:-1]):
        rows = rows[1:]  # a header
    if not rows:
        raise DataError(f"{path} holds no rows of data")
    width = len(rows[0][1])
    if width < 2:
        raise DataError(
            f"{path} has one column; it needs features and, last, the label, separated by commas"
        )
    x = np.empty((len(rows), width - 1), np.float64)
    for i, (line, row) in enumerate(rows):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns, {width} expected")
        for column, cell in enumerate(row[:-1]):
            if not _is_number(cell):
                raise DataError(f"{path}, line {line}, column {column + 1}: {cell!r} is no number")
            x[i, column] = float(cell)
            if not np.isfinite(x[i, column]):
                raise DataError(
                    f"{path}, line {line}, column {column + 1}: {cell!r} is not finite; "
                    "remove or fill it"
                )
    return x, np.array([row[-1].strip() for _, row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_idx_folder(folder: Path) -> Data:
    x_train, y_train = (_read_idx(folder, f"train-{kind}") for kind in ("images", "labels"))
    x_val, y_val = (_read_idx(folder, f"t10k-{kind}") for kind in ("images", "labels"))
    return _prepare(folder.name, x_train, y_train, x_val, y_val)


def _read_idx(folder: Path, stem: str) -> npt.NDArray[np.uint8]:
    found = sorted(p for p in folder.iterdir() if p.name.startswith(stem))
    if not found:
        raise DataError(
            f"{folder} has no {stem}-idx*-ubyte file, plain or .gz; a folder needs MNIST's four"
        )
    path = found[0]
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    if len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is cut short: its header is not complete")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{path} is cut short or too long: {body.size} bytes for shape {tuple(shape)}"
        )
    return body.reshape(shape)


def _split(name: str, x: Any, y: Any, seed: int) -> Data:
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
        raise DataError(
            f"{name}: X must have shape (N, ...) and y (N,), not {x.shape} and {y.shape}"
        )
    from sklearn.model_selection import train_test_split

    x = _numbers(name, x)
    labels, counts = np.unique(y, return_counts=True)
    if len(y) < 5 or len(labels) < 2:
        raise DataError(
            f"{name}: {len(y)} samples of {len(labels)} classes; it takes 5 samples and 2 classes"
        )
    if len(labels) > len(y) // 2:
        raise DataError(
            f"{name}: {len(labels)} different labels in {len(y)} samples; are these classes?"
        )
    every_class = counts.min() > 1 and len(labels) <= len(y) // 5
    parts = train_test_split(
        x, y, test_size=0.2, random_state=seed, stratify=y if every_class else None
    )
    x_train, x_val, y_train, y_val = parts
    return _prepare(name, x_train, y_train, x_val, y_val, labels)


def _numbers(name: str, x: Any) -> npt.NDArray[np.float64]:
    """Return the inputs as finite numbers, one row for each sample."""
    if x.dtype.kind not in "fiub":
        raise DataError(f"{name}: X must hold real numbers, not {x.dtype}")
    flat = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name}: X holds NaN or infinity in {bad.sum()} rows, the first is X[{bad.argmax()}]; "
            "remove or fill them"
        )
    return flat


def _prepare(
    name: str, x_train: Any, y_train: Any, x_val: Any, y_val: Any, labels: Any = None
) -> Data:
    """Map the labels to indices and standardize the inputs by the training part."""
    labels = np.unique(y_train) if labels is None else labels
    if labels.dtype.kind == "f" and not np.all(np.isfinite(labels)):
        raise DataError(f"{name}: y holds NaN or infinite labels")
    parts = []
    for part, x, y in (("training", x_train, y_train), ("held-out", x_val, y_val)):
        if y.ndim != 1 or x.ndim < 2 or len(y) == 0:
            raise DataError(f"{name}: the {part} part has inputs {x.shape} and labels {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{name}: {len(x)} {part} inputs but {len(y)} labels")
        strange = ~np.isin(y, labels)
        if strange.any():
            raise DataError(f"{name}: the {part} label {y[strange][0]} is not among those trained")
        parts.append((_numbers(name, x), np.searchsorted(labels, y).astype(np.int64)))
    (x_train, y_train), (x_val, y_val) = parts
    if x_train.shape[1] == 0 or x_train.shape[1] != x_val.shape[1]:
        raise DataError(f"{name}: {x_train.shape[1]} and {x_val.shape[1]} features")
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    constant = deviation <= 1e-8 * abs(mean)
    deviation[constant] = np.inf  # such a feature becomes 0
    return Data(
        name,
        ((x_train - mean) / deviation).astype(np.float32),
        y_train,
        ((x_val - mean) / deviation).astype(np.float32),
        y_val,
        [str(label) for label in labels],
    )
