"""The loss that training minimizes, by name, and the score of the predictions."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt._checks import choice, fraction, short_repr
from fastopt.train.checks import ieee, plain_array, text
from fastopt.train.data import Array, Targets, Task


class LossChoice(NamedTuple):
    """A loss with its names."""

    make: Callable[[], Any]
    label: str  # for tables and axes
    threshold: float  # binary: an output above it means the second class


# Losses that compare element by element get classes as one-hot rows of 0 and 1.
_LOSSES = {
    "cross-entropy": LossChoice(fo.CrossEntropyLoss, "cross-entropy (nats)", 0.0),
    "bce-with-logits": LossChoice(fo.BCEWithLogitsLoss, "binary cross-entropy (nats)", 0.0),
    "bce": LossChoice(fo.BCELoss, "binary cross-entropy (nats)", 0.0),
    "mse": LossChoice(fo.MSELoss, "squared error", 0.5),
    "l1": LossChoice(fo.L1Loss, "absolute error", 0.5),
    "smooth-l1": LossChoice(fo.SmoothL1Loss, "smooth L1 error", 0.5),
    "huber": LossChoice(fo.HuberLoss, "Huber error", 0.5),
}
_POINTWISE = ("mse", "l1", "smooth-l1", "huber")

# The losses of each task; the first is the default.
LOSSES: dict[Task, tuple[str, ...]] = {
    "classification": ("cross-entropy", "bce-with-logits", *_POINTWISE),
    "binary": ("bce-with-logits", "bce", *_POINTWISE),
    "regression": _POINTWISE,
}


class Objective:
    """The loss of the outputs of a model, and the score.

    The score is the accuracy, or for a regression R² (1 - squared error / variance). A higher score
    is better, and 1 is perfect.

    Parameters
    ----------
    task : {"classification", "binary", "regression"}
        For a classification, outputs have shape (N, classes) and targets are class indices (N,).
        Otherwise both have shape (N, 1).
    loss : str, optional
        One of ``LOSSES[task]``, by default the first. Losses that compare element by element
        ("mse", "l1", ...) convert class indices to one-hot rows. "bce" is `fastopt.BCELoss` of the
        sigmoid of the outputs; "bce-with-logits" is the same, but more accurate.
    label_smoothing : float
        In [0, 1]; for cross-entropy.

    Attributes
    ----------
    loss_label, score_label, score_name : str
        For axes and tables.

    Raises
    ------
    IndexError
        From a method, if a target is not the index of a class.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import train
    >>> objective = train.Objective("classification")
    >>> outputs = np.array([[2.0, 0.0], [3.0, 0.0]], np.float32)
    >>> targets = np.array([0, 1])
    >>> value, grad = objective.value_and_grad(outputs, targets)
    >>> print(f"{value:.4f}", objective.score(outputs, targets))
    1.5878 0.5
    """

    def __init__(
        self, task: Task, loss: str | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        choice(*LOSSES)("task", task)
        self.task = task
        self.loss_name = text("loss", LOSSES[task][0] if loss is None else loss)
        if self.loss_name not in LOSSES[task]:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES[task])} for {task}, not "
                f"{short_repr(self.loss_name)}"
            )
        label_smoothing = fraction("label_smoothing", label_smoothing)
        chosen = _LOSSES[self.loss_name]
        self._threshold = chosen.threshold
        self.loss: Any = chosen.make()
        if self.loss_name == "cross-entropy":
            self.loss = fo.CrossEntropyLoss(label_smoothing=label_smoothing)
        elif label_smoothing != 0:
            raise ValueError(
                f"label_smoothing is for the loss cross-entropy, not {self.loss_name}; "
                f"it must be 0, not {label_smoothing}"
            )
        self.label_smoothing = label_smoothing
        standardized = " (standardized target)" if task == "regression" else ""
        self.loss_label = f"mean {chosen.label}{standardized}"
        self.score_name = "R²" if task == "regression" else "accuracy"
        self.score_label = (
            "R² (share of the variance)" if task == "regression" else "classified correctly"
        )

    @ieee
    def value(self, outputs: Array, targets: Targets) -> float:
        """Return the mean loss."""
        x, y = self._operands(*self._checked(outputs, targets))
        if self.loss_name == "bce" and np.isnan(x).any():
            return nan  # BCELoss refuses NaN; the run has diverged
        return float(self.loss(x, y))

    @ieee
    def value_and_grad(
        self, outputs: Array, targets: Targets, out: Array | None = None
    ) -> tuple[float, Array]:
        """Return the mean loss and its gradient with respect to the outputs.

        Parameters
        ----------
        outputs : float32 array of shape (N, classes) or (N, 1)
        targets : array of shape (N,) or (N, 1)
            Class indices, or float32; see `Data`.
        out : array in the shape of `outputs`, optional
            The array for the gradient; it may be `outputs`.
        """
        outputs, targets = self._checked(outputs, targets)
        x, y = self._operands(outputs, targets)
        if x is outputs:
            value, grad = self.loss.value_and_grad(x, y, out=out)
        else:  # bce: x is the sigmoid of the outputs
            if np.isnan(x).any():
                value, grad = nan, np.full_like(x, nan)
            else:
                value, grad = self.loss.value_and_grad(x, y)
            grad = fo.functional.sigmoid_backward(grad, x, out=out)
        return float(value), cast("Array", grad)

    @ieee
    def backward_(self, outputs: Array, targets: Targets) -> tuple[float, float]:
        """Replace the outputs by the gradient; return the mean loss and the `points`."""
        if not isinstance(outputs, np.ndarray):
            raise TypeError(f"outputs must be an array to write into, not {short_repr(outputs)}")
        outputs, targets = self._checked(outputs, targets)
        if self.loss_name == "cross-entropy":  # counts in the same pass
            result = self.loss.value_and_stats(outputs, targets, out=outputs)
            return result.loss, result.correct
        points = self.points(outputs, targets)
        return self.value_and_grad(outputs, targets, out=outputs)[0], points

    @ieee
    def points(self, outputs: Array, targets: Targets) -> float:
        """Return the number of correct predictions; for a regression, minus the squared errors.

        The score follows from the sum of the points of all batches.
        """
        outputs, targets = self._checked(outputs, targets)
        if self.task == "regression":
            error = np.subtract(outputs, targets, dtype=np.float64).ravel()
            return -float(np.dot(error, error))
        return int(np.count_nonzero(self.predicted(outputs) == np.ravel(targets)))

    def score(self, outputs: Array, targets: Targets) -> float:
        """Return the accuracy, or R² for a regression (nan if all targets are equal)."""
        return self.score_of(self.points(outputs, targets), targets)

    @ieee
    def score_of(self, points: float, targets: Targets) -> float:
        """Return the score of all `targets` from the sum of their points."""
        targets = plain_array("targets", targets, "numbers")
        if targets.size == 0:
            raise ValueError(f"targets must hold samples for a score, not shape {targets.shape}")
        if self.task != "regression":
            return points / len(targets)
        spread = float(np.var(targets, dtype=np.float64)) * targets.size
        return 1 + points / spread if spread else nan

    def format_score(self, score: float) -> str:
        """Return a score as text: 97.50%, or 0.482 or -1.234e+09 for R²; a dash for NaN."""
        if isnan(score):
            return "-"
        if self.task != "regression":
            return f"{score:.2%}"
        return f"{score:.3f}" if abs(score) < 1e5 else f"{score:.4g}"

    def predicted(self, outputs: Array) -> npt.NDArray[np.integer[Any]]:
        """Return the predicted class indices (N,); not for a regression.

        The class of an output of NaN is -1.
        """
        outputs = plain_array("outputs", outputs, "numbers")
        if self.task == "regression":
            raise ValueError("the outputs of a regression are numbers, not classes")
        columns = "1" if self.task == "binary" else "classes"
        if outputs.ndim != 2 or (outputs.shape[1] != 1 if columns == "1" else not outputs.shape[1]):
            raise ValueError(f"outputs must have shape (N, {columns}), not {outputs.shape}")
        if self.task == "binary":
            values = outputs.ravel()
            classes = (values > self._threshold).astype(np.int64)
        else:
            classes = outputs.argmax(axis=1)  # the first NaN, if there is one
            values = outputs[np.arange(len(outputs)), classes]
        return np.where(np.isnan(values), -1, classes)

    @ieee
    def probabilities(self, outputs: Array) -> Array:
        """Return the probability of each class (N, classes); not for a regression.

        - cross-entropy: the softmax of the outputs
        - a binary cross-entropy: the sigmoid; with an output for each class, the sigmoids divided
          by their sum
        - other losses: their outputs approximate rows of 0 and 1; the nearest probabilities, that
          is, the nearest row of numbers in [0, 1] whose sum is 1

        The largest probability is that of the `predicted` class.
        """
        self.predicted(outputs)  # checks them
        outputs = plain_array("outputs", outputs, "numbers")
        if self.loss_name in _POINTWISE:
            if self.task == "binary":
                outputs = np.hstack([1 - outputs, outputs])
            return _nearest_probabilities(outputs)
        if self.task == "binary":
            outputs = np.hstack([np.zeros_like(outputs), outputs])
        elif self.loss_name == "bce-with-logits":
            outputs = -np.logaddexp(0, -outputs)  # the logarithms of the sigmoids
        return cast("Array", fo.functional.softmax(outputs))

    def _checked(self, outputs: Array, targets: Targets) -> tuple[Array, Targets]:
        """Return outputs and targets as plain arrays whose shapes match."""
        outputs = plain_array("outputs", outputs, "numbers")
        if outputs.size == 0:
            raise ValueError(f"outputs must hold samples, not shape {outputs.shape}")
        if self.task != "classification":
            targets = plain_array("targets", targets, "numbers")
            if outputs.shape != targets.shape:
                raise ValueError(
                    f"outputs and targets must have the same shape, such as (N, 1), not "
                    f"{outputs.shape} and {targets.shape}"
                )
            return outputs, targets
        targets = plain_array("targets", targets, "class indices", "iu")
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1]:
            raise ValueError(
                f"outputs must have shape (N, classes) and targets (N,), not {outputs.shape} and "
                f"{targets.shape}"
            )
        return outputs, targets

    def _operands(self, outputs: Array, targets: Targets) -> tuple[Array, Targets]:
        """Return the two arrays that the loss compares."""
        if self.loss_name == "bce":
            return cast("Array", fo.functional.sigmoid(outputs)), targets
        if self.task != "classification" or self.loss_name == "cross-entropy":
            return outputs, targets
        outside = (targets < 0) | (targets >= outputs.shape[1])
        if outside.any():
            first = int(outside.argmax())
            raise IndexError(
                f"targets[{first}] is {targets[first]}, outside [0, {outputs.shape[1]})"
            )
        rows = np.zeros_like(outputs)
        rows[np.arange(len(rows)), cast("npt.NDArray[np.int64]", targets)] = 1
        return outputs, rows

    def __repr__(self) -> str:
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return f"Objective({self.task!r}, {self.loss_name!r}{smoothing})"


def _nearest_probabilities(rows: Array) -> Array:
    """Return the nearest rows whose numbers are not negative and have the sum 1.

    All numbers of a row are lowered by the same amount, and negative ones become 0 (Duchi et al.
    2008).
    """
    rows = rows - rows.max(axis=1, keepdims=True)
    falling = -np.sort(-rows, axis=1)
    excess = np.cumsum(falling, axis=1) - 1
    counts = np.arange(1, rows.shape[1] + 1)
    kept = np.count_nonzero(falling * counts > excess, axis=1)[:, None]
    shift = np.take_along_axis(excess, kept - 1, axis=1) / kept
    nearest: Array = np.maximum(rows - shift, 0).astype(rows.dtype, copy=False)
    return nearest
