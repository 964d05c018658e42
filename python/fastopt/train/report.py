"""The files of a run: metrics.csv, run.json, loss.png, and pictures of the predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._checks import as_path, digits, integer
from fastopt._files import write_together
from fastopt.train.checks import from_extra, ieee, plain_array
from fastopt.train.data import Data
from fastopt.train.formats import write_json, write_picture, write_table
from fastopt.train.history import History, find_overfitting
from fastopt.train.loop import Trainer
from fastopt.train.model import MLP
from fastopt.train.objective import Objective
from fastopt.train.saved import MODEL, save_model
from fastopt.train.style import (
    BLACK,
    BLUE,
    GREEN,
    LEAST_LOSS,
    ORANGE,
    PINK,
    add_legend,
    epoch_axis,
    ink,
    log_axis,
    plain,
    score_axis,
    set_title,
)

Indices: TypeAlias = npt.NDArray[np.integer[Any]]

MOST_CLASSES = 40  # a picture shows all pairs of at most these
MOST_CONFUSED = 20  # pairs that are listed
LONGEST_NAME = 16  # characters of a class in a picture
LONGEST_TARGET = 40  # characters of the target beside an axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class on held-out data."""

    label: str
    precision: float  # the correct share of the predictions of this class; nan without one
    recall: float  # the correct share of the samples of this class
    f1: float  # the harmonic mean of the two
    samples: int  # samples of the class


@dataclass(frozen=True)
class Confusion:
    """The number of held-out samples of one class that were predicted as another."""

    label: str
    predicted: str
    samples: int


@ieee
def score_classes(trainer: Trainer) -> list[ClassScore]:
    """Return the scores of each class on the held-out data, as scikit-learn computes them.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="iris").build()
    >>> history = trainer.fit(30)
    >>> [score.label for score in train.score_classes(trainer)]
    ['setosa', 'versicolor', 'virginica']
    """
    with from_extra("score_classes"):
        from sklearn.metrics import precision_recall_fscore_support

    true, predicted = _true_and_predicted(trainer)
    columns = precision_recall_fscore_support(
        true, predicted, labels=range(len(trainer.data.labels)), zero_division=np.nan
    )
    return [
        ClassScore(label, float(precision), float(recall), float(f1), int(samples))
        for label, precision, recall, f1, samples in zip(trainer.data.labels, *columns, strict=True)
    ]


def find_confusions(trainer: Trainer, most: int = MOST_CONFUSED) -> list[Confusion]:
    """Return the pairs of true and wrong predicted classes of the held-out data, by frequency.

    Time and memory depend on the number of samples, not on the number of classes.

    Parameters
    ----------
    trainer : Trainer
        Of a classification or a binary task.
    most : int
        The largest number of pairs.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="wine", epochs=1, lr=0.0).build()
    >>> history = trainer.fit(1)
    >>> wrong = train.find_confusions(trainer)
    >>> sum(pair.samples for pair in wrong) == round(len(trainer.data.y_val) * (
    ...     1 - history.best.val_score))
    True
    """
    most = integer(1)("most", most)
    labels = trainer.data.labels
    pairs = _confused(*_true_and_predicted(trainer), len(labels), most)
    return [Confusion(labels[true], labels[taken], count) for true, taken, count in pairs]


def _confused(
    true: Indices, predicted: Indices, classes: int, most: int
) -> list[tuple[int, int, int]]:
    """Return true class, predicted class and count of the most frequent wrong pairs."""
    wrong = (true != predicted) & (predicted >= 0)
    pairs, counts = np.unique(
        true[wrong].astype(np.int64) * classes + predicted[wrong], return_counts=True
    )
    first = np.argsort(-counts, kind="stable")[:most]
    return [
        (*divmod(int(pair), classes), int(count))
        for pair, count in zip(pairs[first], counts[first], strict=True)
    ]


@ieee
def root_mean_squared_error(trainer: Trainer) -> float:
    """Return the error of a regression on the held-out data, in the units of the target."""
    _require_regression(trainer)
    error = trainer.predict(trainer.data.x_val) - trainer.data.y_val
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64)))) * (
        trainer.data.target_deviation
    )


# Files that only some runs write: those of an earlier run in the folder are removed.
_OF_SOME_RUNS = frozenset({"classes.csv", "confusion.png", "predictions.png", MODEL})


@ieee
def write_report(
    folder: str | Path,
    trainer: Trainer,
    facts: Mapping[str, Any],
    stale: Iterable[str] = (),
) -> list[Path]:
    """Write the metrics, facts and pictures of a run into `folder`; return the paths.

    ``metrics.csv`` has a line for each epoch, ``run.json`` the facts and results, ``loss.png`` the
    curves. For classes, ``classes.csv`` has their scores and ``confusion.png`` the classes that
    were confused (see `plot_confusion`). For a regression, ``predictions.png`` shows predicted
    against true values. ``model.safetensors`` is the model of an `MLP`; see `save_model`. A run
    that diverged has neither a model nor a best epoch: ``run.json`` holds null there.

    The files are written together; see `write_together`. Files of these names from another run are
    removed.

    Parameters
    ----------
    folder : path
        Must exist.
    trainer : Trainer
        With at least one epoch in its history.
    facts : mapping
        The other entries of ``run.json``: options, versions, ...
    stale : iterable of str
        Names of further files of an earlier run in the folder. They are removed at the same time.

    Raises
    ------
    OSError
        If a file cannot be written.
    ValueError
        If the history has no epoch.
    """
    folder = as_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(ENOENT, "there is no such folder", str(folder))
    history, data = trainer.history, trainer.data
    title = str(facts.get("title", ""))
    if not history.epochs:
        raise ValueError("there is nothing to report before the first epoch")
    results: dict[str, Any] = {
        "final": asdict(history.epochs[-1]),
        "best": None if history.diverged else asdict(history.best),
        "diverged": history.diverged,
        "seconds": asdict(history.seconds),
        "stop_reason": history.stop_reason,
        "overfitting_since": getattr(find_overfitting(history.epochs), "epoch", None),
    }
    tables: dict[str, list[dict[str, Any]]] = {"metrics.csv": list(map(asdict, history.epochs))}
    pictures = {"loss.png": plot_history(history, trainer.objective, title)}
    if data.task == "regression":
        results["rmse"] = root_mean_squared_error(trainer)
        pictures["predictions.png"] = plot_predictions(trainer, title)
    else:
        results["classes"] = tables["classes.csv"] = list(map(asdict, score_classes(trainer)))
        results["confusions"] = list(map(asdict, find_confusions(trainer)))
        pairs = _true_and_predicted(trainer)
        pictures["confusion.png"] = plot_confusion(*pairs, data, title, _when(trainer))
    with write_together(folder, {*_OF_SOME_RUNS, *stale}) as parts:
        files = [write_table(parts / name, rows) for name, rows in tables.items()]
        files.append(write_json(parts / "run.json", dict(facts) | {"results": results}))
        files += [write_picture(parts / name, figure) for name, figure in pictures.items()]
        if _has_a_model(trainer):
            save_model(parts / MODEL, trainer)
            files.append(parts / MODEL)
    return [folder / file.name for file in files]


def _has_a_model(trainer: Trainer) -> bool:
    """Return whether `save_model` takes the trainer, and its run has not diverged."""
    params = trainer.model.params.values()  # after Ctrl-C, of a step that no epoch has recorded
    return (
        isinstance(trainer.model, MLP)
        and not trainer.history.diverged
        and all(np.isfinite(param).all() for param in params)
    )


@ieee
def plot_history(history: History, objective: Objective, title: str = "") -> Figure:
    """Return a picture of the losses and scores, and of the gradient norm and learning rate.

    The norm of the gradients is shown if it was recorded, the learning rate if it changed.
    """
    with from_extra("plot_history"):
        from matplotlib.figure import Figure  # takes half a second, which --help does not need

    epochs = history.epochs
    extra = []
    if any(math.isfinite(e.grad_norm) for e in epochs):
        extra.append(_draw_norms)
    if len({e.lr for e in epochs}) > 1:
        extra.append(_draw_rates)
    rows, columns = ((1, 2), (1, 3), (2, 2))[len(extra)]
    figure = Figure(figsize=(4.8 * columns, 4.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns).flat)
    for where in axes:
        epoch_axis(where, len(epochs))
    _draw_losses(axes[0], history, objective)
    _draw_scores(axes[1], history, objective)
    for draw, where in zip(extra, axes[2:], strict=True):
        draw(where, history)
    add_legend(figure, 4)
    set_title(figure, title)
    return figure


def _plot(
    axes: Axes, history: History, field: str, line: str, color: str, label: str = ""
) -> list[float]:
    """Draw one field of the epochs; return its values."""
    values = [getattr(e, field) for e in history.epochs]
    marker = "o" if len(values) < 3 else None  # a line of one point cannot be seen
    epochs = [e.epoch for e in history.epochs]
    axes.plot(epochs, values, line, marker=marker, color=color, label=label)
    return values


def _draw_losses(axes: Axes, history: History, objective: Objective) -> None:
    values = _plot(axes, history, "train_loss", "-", BLUE, "training")
    values += _plot(axes, history, "val_loss", "--", ORANGE, "held out")
    turned = find_overfitting(history.epochs)
    if turned is not None:
        label = f"held-out loss turns around epoch {turned.epoch}"
        axes.axvline(turned.epoch, linestyle=":", color=BLACK, label=label)
    axes.set(ylabel=objective.loss_label, title="Loss")
    if history.diverged:
        text = "the run diverged"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    log_axis(axes, "y", values, LEAST_LOSS)


def _draw_scores(axes: Axes, history: History, objective: Objective) -> None:
    best = history.best
    values = _plot(axes, history, "train_score", "-", BLUE, "training")
    values += _plot(axes, history, "val_score", "--", ORANGE, "held out")
    if math.isfinite(best.val_score) and not history.diverged:
        label = f"best held out: {objective.format_score(best.val_score)} (epoch {best.epoch})"
        ring: dict[str, Any] = {"markerfacecolor": "none", "markersize": 10, "markeredgewidth": 2}
        axes.plot(best.epoch, best.val_score, "o", color=GREEN, label=label, **ring)
    axes.set_title(objective.score_name[0].upper() + objective.score_name[1:])
    score_axis(axes, values, objective)


def _draw_norms(axes: Axes, history: History) -> None:
    values = _plot(axes, history, "grad_norm_max", "--", PINK, "largest norm of the epoch")
    values += _plot(axes, history, "grad_norm", "-", GREEN, "mean norm of the steps")
    axes.set(ylabel="2-norm over all parameters", title="Gradient norm before clipping")
    if history.max_norm is not None:
        values.append(history.max_norm)
        label = f"norm is clipped to {history.max_norm:g}"
        axes.axhline(history.max_norm, linestyle=":", color=BLACK, label=label)
    log_axis(axes, "y", values)


def _draw_rates(axes: Axes, history: History) -> None:
    _plot(axes, history, "lr", "-", BLUE)
    axes.set(ylabel="learning rate (last step of the epoch)", title="Learning rate")
    axes.set_ylim(bottom=0)


@ieee
def plot_confusion(
    true: Indices, predicted: Indices, data: Data, title: str = "", when: str = ""
) -> Figure:
    """Return a picture of true and predicted classes.

    With at most 40 classes it shows the counts of all pairs, shaded by the share of the row: blue
    is right, orange is wrong. With more classes it shows the 20 most frequent wrong pairs as bars.

    Parameters
    ----------
    true, predicted : integer array of shape (N,)
        Class indices.
    data : Data
        Of a classification or a binary task; it has the names of the classes.
    title : str
    when : str
        When the classes were predicted, for the title: "after epoch 7".
    """
    with from_extra("plot_confusion"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

    classes = len(data.labels)
    true = _class_indices("true", true, 0, classes)
    predicted = _class_indices("predicted", predicted, -1, classes)
    if len(true) != len(predicted):
        raise ValueError(
            f"true and predicted must be equally long, not {len(true)} and {len(predicted)}"
        )
    names = [plain(_shortened(label)) for label in data.labels]
    target = plain(_shortened(data.target, LONGEST_TARGET))
    right = np.count_nonzero(true == predicted) / max(len(true), 1)
    lines = [f"{_held_out(when)}: {right:.2%} of {len(true)} right"]
    if none := np.count_nonzero(predicted < 0):
        lines.append(f"{none} without a class: their outputs are NaN")
    if classes <= MOST_CLASSES:
        side = min(max(5.0, 2.5 + 0.45 * classes), 12)
        figure = Figure(figsize=(side + 1.2, side), layout="constrained")
        axes = figure.subplots()
        _draw_all_pairs(axes, true, predicted, names)
        axes.set(xlabel=f"predicted {target}", ylabel=f"true {target}")
    else:
        figure = Figure(figsize=(8, 6.5), layout="constrained")
        axes = figure.subplots()
        pairs = _confused(true, predicted, classes, MOST_CONFUSED)
        bars = [f"{names[i]} → {names[j]}" for i, j, _ in pairs]
        axes.barh(range(len(pairs)), [count for *_, count in pairs], color=ORANGE)
        axes.set_yticks(range(len(pairs)), bars)
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="samples", ylabel=f"true → predicted {target}")
        lines.append(f"the pairs of {classes} classes that are confused most")
    set_title(figure, title, *lines)
    return figure


def _held_out(when: str) -> str:
    """Return what a picture of predictions shows."""
    return f"held-out data {when}".rstrip()


def _when(trainer: Trainer) -> str:
    """Return when the model of a trainer was trained last."""
    epochs = len(trainer.history.epochs)
    if trainer.within_epoch:  # after Ctrl-C
        return f"during epoch {epochs + 1}"
    return f"after epoch {epochs}" if epochs else "before training"


def _shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Return the ends of a long name: names often differ in the last characters."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[1 - half :]}"


def _draw_all_pairs(axes: Axes, true: Indices, predicted: Indices, names: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    classes = len(names)
    known = predicted >= 0
    pairs = true[known].astype(np.int64) * classes + predicted[known]
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Mistakes are negative, and the power makes a share of 3% a quarter of the colour.
    shades = shares**0.4 * (2 * np.eye(classes) - 1)
    colors = LinearSegmentedColormap.from_list("mistakes", [ORANGE, "white", "#004B76"], 255)
    image = axes.imshow(shades, colors, vmin=-1, vmax=1)
    bar = axes.figure.colorbar(image, ax=axes)
    ticks = [-1, -0.5, -0.2, -0.05, 0, 0.05, 0.2, 0.5, 1]
    bar.set_ticks(
        [math.copysign(abs(tick) ** 0.4, tick) for tick in ticks],
        labels=[f"{abs(tick):.0%}" for tick in ticks],
    )
    bar.set_label("share of the true class\norange: wrong, blue: right")
    steep = max(map(len, names)) > 3
    axes.set_xticks(range(classes), names, rotation=45 if steep else 0,
                    ha="right" if steep else "center", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(classes), names)
    axes.set_xticks(np.arange(1, classes) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, classes) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    size = 11 if classes <= 12 else 7
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = ink(image.to_rgba(shades[row, column]))
            axes.text(column, row, str(count), ha="center", va="center", color=color,
                      fontsize=size)  # fmt: skip


def _class_indices(name: str, indices: Any, least: int, classes: int) -> Indices:
    """Return class indices (N,) of at least `least`."""
    array = plain_array(name, indices, "class indices of shape (N,)", "iu")
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), not {array.shape}")
    if array.size and not least <= array.min() <= array.max() < classes:
        raise ValueError(
            f"{name} must hold class indices below {classes}, not {array.min()} to {array.max()}"
        )
    return array


@ieee
def plot_predictions(trainer: Trainer, title: str = "") -> Figure:
    """Return a picture of a regression on held-out data: predicted against true, and residuals."""
    _require_regression(trainer)
    with from_extra("plot_predictions"):
        from matplotlib.figure import Figure

    data = trainer.data
    outputs = trainer.predict(data.x_val)
    predicted = data.in_units(outputs).ravel()
    true = data.in_units(data.y_val.astype(np.float32)).ravel()
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    against, residuals = figure.subplots(1, 2)
    name = plain(_shortened(data.target, LONGEST_TARGET))
    size = 18 if len(true) <= 1000 else 5
    against.scatter(true, predicted, s=size, color=BLUE, alpha=0.6, label="held-out samples")
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    against.plot(ends, ends, "--", color=BLACK, label="predicted = true")
    against.set(xlabel=f"true {name}", ylabel=f"predicted {name}", title="Predictions")
    residuals.scatter(predicted, predicted - true, s=size, color=ORANGE, alpha=0.6)
    residuals.axhline(0, linestyle="--", color=BLACK, label="predicted = true")
    residuals.set(xlabel=f"predicted {name}", ylabel="predicted - true", title="Residuals")
    for axes in (against, residuals):
        axes.grid(alpha=0.3)
    add_legend(figure, 2)
    error = root_mean_squared_error(trainer)
    score = trainer.objective.format_score(trainer.objective.score(outputs, data.y_val))
    line = f"{_held_out(_when(trainer))}: error {digits(error, 4)} (root mean square), R² {score}"
    set_title(figure, title, line)
    return figure


def _require_regression(trainer: Trainer) -> None:
    if trainer.data.task != "regression":
        raise ValueError(f"the data must be of a regression, not of {trainer.data.task}")


def _true_and_predicted(trainer: Trainer) -> tuple[Indices, Indices]:
    """Return the class indices of the held-out data, and the predicted ones."""
    outputs = trainer.predict(trainer.data.x_val)
    true: npt.NDArray[np.int64] = trainer.data.y_val.ravel().astype(np.int64)
    return true, trainer.objective.predicted(outputs)
