"""Data to train on: scikit-learn's bundled sets, .npz, CSV, and MNIST's idx files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastopt._checks import choice, counted, finite, positive, short_repr
from fastopt.train.checks import DataError, from_extra, ieee, plain_array, seed32, text

Array: TypeAlias = npt.NDArray[np.float32]
Targets: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Task = Literal["classification", "binary", "regression"]
TASKS: tuple[Task, ...] = get_args(Task)

# The data sets that come with scikit-learn: the function that loads each, and its task.
BUNDLED: dict[str, tuple[str, Task]] = {
    "digits": ("load_digits", "classification"),
    "wine": ("load_wine", "classification"),
    "iris": ("load_iris", "classification"),
    "breast-cancer": ("load_breast_cancer", "binary"),
    "diabetes": ("load_diabetes", "regression"),
}

LARGEST = 1e100  # of inputs and targets: the sum of their squares is finite


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Standardized inputs and their targets, split into a training and a held-out part.

    The constructor checks everything. Lists, frames and tensors become arrays. Numbers become
    float32, class indices int64. An array with this dtype is not copied.

    Inputs have shape (N, features) and are finite. The targets depend on the task:

    ============== ======= ============ ==================================================
    task           dtype   shape        targets
    ============== ======= ============ ==================================================
    classification int64   (N,)         indices into `labels`
    binary         float32 (N, 1)       0 or 1, for the first and the second of `labels`
    regression     float32 (N, 1)       standardized; `in_units` undoes it
    ============== ======= ============ ==================================================

    Raises
    ------
    DataError
        If shapes or lengths do not match, a part has no samples, a value is NaN or infinite, or a
        class has no label. The message names ``x_train``, ``y_val``, ...

    Examples
    --------
    >>> from fastopt import train
    >>> data = train.load_data("iris")
    >>> print(data)
    iris (scikit-learn): 120 samples to train on, 30 held out, 4 features, 3 classes
    >>> data.x_train.shape, data.y_train.dtype, data.labels[0]
    ((120, 4), dtype('int64'), 'setosa')
    """

    name: str
    task: Task
    x_train: Array  # (N, features)
    y_train: Targets
    x_val: Array
    y_val: Targets
    labels: Sequence[str]  # of the classes; empty for regression
    target: str = "target"  # what is predicted, for tables and axes
    target_mean: float = 0.0  # of the training part, in the units of the target
    target_deviation: float = 1.0

    def __post_init__(self) -> None:
        classes = _check_labels(self.task, self.labels)
        values: dict[str, Any] = {
            "name": text("name", self.name),
            "labels": classes,
            "target": text("target", self.target),
            "target_mean": finite("target_mean", self.target_mean),
            "target_deviation": positive("target_deviation", self.target_deviation),
        }
        for part in ("train", "val"):
            x = _check_inputs(f"x_{part}", getattr(self, f"x_{part}"))
            y = _check_targets(f"y_{part}", getattr(self, f"y_{part}"), self.task, len(classes))
            if len(x) != len(y):
                raise DataError(
                    f"x_{part} and y_{part} must have a row for each sample, not "
                    f"{len(x)} and {len(y)} rows"
                )
            values |= {f"x_{part}": x, f"y_{part}": y}
        features = {part: values[f"x_{part}"].shape[1] for part in ("train", "val")}
        if features["train"] != features["val"]:
            raise DataError(
                "x_train and x_val must have the same features, not "
                f"{features['train']} and {features['val']}"
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def features(self) -> int:
        """The number of inputs."""
        return int(self.x_train.shape[1])

    @property
    def outputs(self) -> int:
        """The number of outputs of a model: one for each class, otherwise 1."""
        return len(self.labels) if self.task == "classification" else 1

    def digest(self) -> str:
        """Return a hash of all inputs and targets of both parts."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_val, self.y_val):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @ieee
    def in_units(self, y: Array) -> npt.NDArray[np.float64]:
        """Return standardized targets or predictions of a regression in the units of the target."""
        numbers = plain_array("y", y, "numbers").astype(np.float64)
        return numbers * self.target_deviation + self.target_mean

    def __str__(self) -> str:
        if self.task == "regression":
            what = f"target {self.target}"
        elif self.task == "binary":
            what = f"{self.labels[0]} or {self.labels[1]}"
        else:
            what = counted(len(self.labels), "class", "classes")
        return (
            f"{self.name}: {counted(len(self.y_train), 'sample')} to train on, "
            f"{len(self.y_val)} held out, {counted(self.features, 'feature')}, {what}"
        )

    def __repr__(self) -> str:
        return f"Data({self})"


def _check_labels(task: object, labels: Any) -> tuple[str, ...]:
    """Return the names of the classes."""
    choice(*TASKS)("task", task)
    if isinstance(labels, str | bytes | Set | Mapping) or not isinstance(labels, Iterable):
        raise TypeError(f"labels must be a sequence of strings, not {short_repr(labels)}")
    labels = tuple(labels)
    for label in labels:
        if not isinstance(label, str | Number | np.generic) or isinstance(label, bytes):
            raise TypeError(f"labels must hold strings or numbers, not {short_repr(label)}")
    names = tuple(map(str, labels))
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"labels must be different, but {short_repr(twice)} appears twice")
    if task == "regression":
        if names:
            raise DataError("labels must be empty for a regression")
    elif len(names) < 2 or (task == "binary" and len(names) > 2):
        raise DataError(
            f"labels must name {'2' if task == 'binary' else '2 or more'} classes for {task}, "
            f"not {len(names)}"
        )
    return names


@ieee
def _check_inputs(name: str, x: Any) -> Array:
    """Return inputs as float32, one row for each sample."""
    array = plain_array(name, x, "numbers of shape (N, features)")
    if array.ndim != 2:
        hint = f"; flatten the samples: {name}.reshape(len({name}), -1)" * (array.ndim > 2)
        raise DataError(f"{name} must have shape (N, features), not {array.shape}{hint}")
    if 0 in array.shape:
        what = "samples" if len(array) == 0 else "features"
        raise DataError(f"{name} has shape {array.shape}: it must hold {what}")
    return _finite(name, array)


def _check_targets(name: str, y: Any, task: Task, classes: int) -> Targets:
    """Return the targets in the form of the task."""
    indices = task == "classification"
    taken = "class indices (whole numbers) of shape (N,)" if indices else "numbers of shape (N, 1)"
    array = plain_array(name, y, taken)
    if array.ndim != 2 - indices or array.shape[1:] not in ((), (1,)):
        raise DataError(f"{name} must be {taken} for {task}, not of shape {array.shape}")
    if len(array) == 0:
        raise DataError(f"{name} has shape {array.shape}: it must hold samples")
    if task == "regression":
        return _finite(name, array)
    if indices and array.dtype.kind == "f":
        raise TypeError(f"{name} must be an array of {taken}, not of {array.dtype}")
    strange = ~((array >= 0) & (array < classes)) if indices else (array != 0) & (array != 1)
    if strange.any():
        first = int(strange.ravel().argmax())
        raise DataError(
            f"{name} must hold class indices, {f'0 to {classes - 1}' if indices else '0 or 1'}, "
            f"not {array.ravel()[first]} as {name}[{first}]"
        )
    return array.astype(np.int64, copy=False) if indices else array.astype(np.float32, copy=False)


@ieee
def _finite(name: str, values: npt.NDArray[Any]) -> Array:
    """Return numbers (N, columns) as float32, all of them finite."""
    array = values.astype(np.float32, copy=False)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name} holds NaN, infinity or what float32 cannot hold in "
            f"{counted(bad.sum(), 'row')}, the first is {name}[{bad.argmax()}]; remove, fill "
            "or scale it"
        )
    return array


@ieee
def load_data(source: str | Path | None = None, task: Task | None = None, seed: int = 0) -> Data:
    """Load data and hold out a part of it.

    Parameters
    ----------
    source : str or path, optional
        ``"digits"`` (the default), ``"wine"``, ``"iris"``, ``"breast-cancer"`` (binary) or
        ``"diabetes"`` (regression), which come with scikit-learn; a ``.npz`` file with ``X``
        (N, ...) and ``y`` (N,); a CSV file with the target in the last column and any header; or a
        folder with MNIST's four idx files, plain or ``.gz``, whose test files are held out. Labels
        may be text.
    task : {"classification", "binary", "regression"}, optional
        The kind of the targets, by default classification for files. "binary" takes two labels, in
        sorted order; "regression" takes numbers.
    seed : int
        Selects the fifth that is held out.

    Raises
    ------
    DataError
        If the data cannot be read or used.

    Examples
    --------
    >>> from fastopt import train
    >>> data = train.load_data("diabetes")
    >>> data.task, data.y_train.shape, round(data.target_mean)
    ('regression', (353, 1), 152)
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    seed = seed32("seed", seed)
    source = "digits" if source is None else source
    if isinstance(source, str) and source in BUNDLED:
        return _load_bundled(source, task, seed)
    path = Path(source)
    task = task or "classification"
    try:
        if path.is_dir():
            return _read_idx_folder(path, task)
        if path.suffix == ".npz":
            return _split(path.name, *_read_npz(path), task, seed)
        if path.suffix == ".csv":
            x, y, target = _read_csv(path, task)
            return _split(path.name, x, y, task, seed, target)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not path.exists():
        raise DataError(
            f"there is no file or folder {path}; bundled with scikit-learn are {', '.join(BUNDLED)}"
        )
    raise DataError(f"{path}: expected a .npz or .csv file, or a folder with MNIST's idx files")


def _load_bundled(name: str, task: Task | None, seed: int) -> Data:
    with from_extra("load_data"):
        from sklearn import datasets  # takes a second, which --help does not need

    function, own_task = BUNDLED[name]
    bunch = getattr(datasets, function)()
    y, target = bunch.target, "class"
    task = task or own_task
    if name == "diabetes":
        target = "disease progression after one year"
    elif name != "digits" and task != "regression":
        y = np.asarray(bunch.target_names)[y]
    return _split(f"{name} (scikit-learn)", bunch.data, y, task, seed, target)


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


def _read_csv(path: Path, task: Task) -> tuple[Any, Any, str]:
    """Return the inputs, the targets (numbers for a regression, else labels) and their name."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}") from error
    target = "target"
    if rows and not any(_is_number(cell) for cell in rows[0][1][:-1]):
        target = rows[0][1][-1].strip() or target  # a header
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path} holds no rows of data")
    width = len(rows[0][1])
    if width < 2:
        raise DataError(
            f"{path} has one column; it needs features and, in the last column, the target"
        )
    numbers = width if task == "regression" else width - 1
    x = np.empty((len(rows), numbers), np.float64)
    for i, (line, row) in enumerate(rows):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns, {width} expected")
        for column, cell in enumerate(row[:numbers]):
            if not _is_number(cell):
                raise DataError(
                    f"{path}, line {line}, column {column + 1}: {cell!r} is not a number"
                )
            x[i, column] = float(cell)
            if not np.isfinite(x[i, column]):
                raise DataError(
                    f"{path}, line {line}, column {column + 1}: {cell!r} is not finite; "
                    "remove or fill it"
                )
        if not row[-1].strip():
            raise DataError(f"{path}, line {line}: the label is empty; remove or fill it")
    if task == "regression":
        return x[:, :-1], x[:, -1], target
    labels = np.array([row[-1].strip() for _, row in rows])
    try:
        return x, labels.astype(np.int64), target  # 2 comes before 10
    except (ValueError, OverflowError):
        return x, labels, target


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_idx_folder(folder: Path, task: Task) -> Data:
    x_train, y_train = (_read_idx(folder, f"train-{kind}") for kind in ("images", "labels"))
    x_val, y_val = (_read_idx(folder, f"t10k-{kind}") for kind in ("images", "labels"))
    return _prepare(folder.name, task, x_train, y_train, x_val, y_val)


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


def _split(name: str, x: Any, y: Any, task: Task, seed: int, target: str = "target") -> Data:
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
        raise DataError(
            f"{name}: X must have shape (N, ...) and y (N,), not {x.shape} and {y.shape}"
        )
    with from_extra("load_data"):
        from sklearn.model_selection import train_test_split

    if len(y) < 5:
        raise DataError(f"{name}: {counted(len(y), 'sample')}; at least 5 are needed")
    x = _numbers(name, x)
    if y.dtype.kind not in "biufUSMm":
        raise DataError(f"{name}: y must hold numbers or text, not {y.dtype}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = ~np.isfinite(y)
        raise DataError(
            f"{name}: y holds NaN or infinity in {counted(bad.sum(), 'row')}, "
            f"the first is y[{bad.argmax()}]; remove or fill them"
        )
    labels = stratify = None
    if task != "regression":
        labels, counts = np.unique(y, return_counts=True)
        if len(labels) < 2:
            raise DataError(f"{name}: all labels are {labels[0]}; at least 2 classes are needed")
        if len(labels) > len(y) // 2:
            raise DataError(
                f"{name}: {len(labels)} different labels in {len(y)} samples; are these classes? "
                "If they are numbers to predict, the task is regression"
            )
        if counts.min() > 1 and len(labels) <= len(y) // 5:
            stratify = y
    x_train, x_val, y_train, y_val = train_test_split(
        x, y, test_size=0.2, random_state=seed, stratify=stratify
    )
    return _prepare(name, task, x_train, y_train, x_val, y_val, labels, target)


def _numbers(name: str, x: Any) -> npt.NDArray[np.float64]:
    """Return the inputs as finite numbers, one row for each sample."""
    if x.dtype.kind not in "fiub":
        raise DataError(f"{name}: X must hold real numbers, not {x.dtype}")
    flat = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    bad = ~np.isfinite(flat).all(axis=1)
    if bad.any():
        raise DataError(
            f"{name}: X holds NaN or infinity in {counted(bad.sum(), 'row')}, "
            f"the first is X[{bad.argmax()}]; remove or fill them"
        )
    large = (np.abs(flat) > LARGEST).any(axis=1)
    if large.any():
        raise DataError(
            f"{name}: X holds values beyond {LARGEST:g} in {counted(large.sum(), 'row')}, "
            f"the first is X[{large.argmax()}]; remove or scale them"
        )
    return flat


def _prepare(
    name: str,
    task: Task,
    x_train: Any,
    y_train: Any,
    x_val: Any,
    y_val: Any,
    labels: Any = None,
    target: str = "target",
) -> Data:
    """Convert the targets, and standardize by the training part."""
    for part, x, y in (("training", x_train, y_train), ("held-out", x_val, y_val)):
        if y.ndim != 1 or x.ndim < 2 or len(y) == 0:
            raise DataError(f"{name}: the {part} part has inputs {x.shape} and labels {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{name}: {len(x)} {part} inputs but {len(y)} labels")
    x_train, x_val = _numbers(name, x_train), _numbers(name, x_val)
    if x_train.shape[1] == 0:
        raise DataError(f"{name}: X has shape {x_train.shape}: there are no features")
    if x_train.shape[1] != x_val.shape[1]:
        raise DataError(f"{name}: {x_train.shape[1]} and {x_val.shape[1]} features")
    x_mean, x_deviation = x_train.mean(axis=0), x_train.std(axis=0)
    constant = x_deviation <= 1e-8 * abs(x_mean)
    x_deviation[constant] = np.inf  # such a feature becomes 0
    x_train, x_val = (_standardize(name, x, x_mean, x_deviation) for x in (x_train, x_val))
    if task == "regression":
        y_train, y_val = (_target_numbers(name, y) for y in (y_train, y_val))
        mean, deviation = float(y_train.mean()), float(y_train.std())
        if deviation <= 1e-8 * abs(mean):
            raise DataError(f"{name}: all targets are {mean:g}: there is nothing to learn")
        y_train, y_val = (_standardize(name, y, mean, deviation)[:, None] for y in (y_train, y_val))
        return Data(name, task, x_train, y_train, x_val, y_val, (), target, mean, deviation)
    labels = np.unique(y_train) if labels is None else labels
    if task == "binary" and len(labels) != 2:
        raise DataError(
            f"{name}: {len(labels)} classes; the task binary takes 2, classification any number"
        )
    indices = []
    for part, y in (("training", y_train), ("held-out", y_val)):
        strange = ~np.isin(y, labels)
        if strange.any():
            raise DataError(f"{name}: the {part} label {y[strange][0]} is not in the training part")
        index = np.searchsorted(labels, y)
        indices.append(
            index.astype(np.float32)[:, None] if task == "binary" else index.astype(np.int64)
        )
    names = tuple(str(label) for label in labels)
    return Data(name, task, x_train, indices[0], x_val, indices[1], names, target)


def _standardize(name: str, values: npt.NDArray[np.float64], mean: Any, deviation: Any) -> Array:
    """Return the values as multiples of the deviation from the mean, in float32."""
    scaled = (values - mean) / deviation
    if (largest := np.abs(scaled).max()) > np.finfo(np.float32).max:
        raise DataError(
            f"{name}: a value lies {largest:g} standard deviations from the mean; remove it"
        )
    result: Array = scaled.astype(np.float32)
    return result


def _target_numbers(name: str, y: Any) -> npt.NDArray[np.float64]:
    """Return the targets of a regression as numbers."""
    if y.dtype.kind not in "fiub":
        raise DataError(f"{name}: y must hold real numbers for a regression, not {y.dtype}")
    numbers = np.asarray(y, np.float64)
    if (largest := np.abs(numbers).max()) > LARGEST:
        raise DataError(f"{name}: y holds {largest:g}, beyond {LARGEST:g}; remove or scale it")
    return numbers
