"""The data of a run: checked arrays of inputs and targets, with the names of the classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fastopt._checks import choice, counted, finite, integer, positive, short_repr
from fastopt.train.checks import DataError, ieee, kind, plain_array, printable, text
from fastopt.train.preprocessing import Preprocessing

Array: TypeAlias = npt.NDArray[np.float32]
Targets: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.int64]
Task = Literal["classification", "binary", "regression"]
TASKS: tuple[Task, ...] = get_args(Task)


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
    preprocessing: Preprocessing | None = None  # that made the inputs from the columns of a table
    notes: tuple[str, ...] = ()  # what was decided while the data were read, a line for each
    decimal: str = "."  # the decimal mark of the table
    unnamed: int = 0  # the columns x1, x2, ... of a table without names; 0 if it had names

    def __post_init__(self) -> None:
        classes = _check_labels(self.task, self.labels)
        values: dict[str, Any] = {
            "name": printable(text("name", self.name)),
            "labels": classes,
            "target": printable(text("target", self.target)),
            "target_mean": finite("target_mean", self.target_mean),
            "target_deviation": positive("target_deviation", self.target_deviation),
            "notes": tuple(printable(text("notes", note)) for note in self.notes),
            "decimal": choice(".", ",")("decimal", self.decimal),
            "unnamed": integer(0)("unnamed", self.unnamed),
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
        if self.preprocessing is not None:
            kind("preprocessing", self.preprocessing, Preprocessing)
            if len(self.preprocessing.features) != features["train"]:
                raise DataError(
                    f"x_train has {counted(features['train'], 'feature')}, the preprocessing makes "
                    f"{len(self.preprocessing.features)}"
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
    names = tuple(printable(str(label)) for label in labels)
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
