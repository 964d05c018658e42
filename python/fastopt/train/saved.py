"""Trained models without their training: predictions for new rows, and the file for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt._checks import as_path, finite, list_of, positive
from fastopt.train.checks import ieee, kind, plain_array, text
from fastopt.train.data import Array, DataError
from fastopt.train.loop import Trainer, in_parts
from fastopt.train.model import MLP, mlp_outputs
from fastopt.train.objective import Objective

MODEL = "model.safetensors"  # the name in the folder of a run
_FORMAT = "fastopt model 1"


@dataclass(frozen=True, eq=False, repr=False)
class SavedModel:
    """A trained `MLP` that predicts: the weights, and what its inputs and outputs mean.

    `load_model` returns it. `from_trainer` makes it without a file.

    Attributes
    ----------
    params : dict of str to array
        The weights; see `MLP`. The averages, if the trainer has an `ema`.
    objective : Objective
        The task and the loss.
    labels : tuple of str
        The names of the classes; empty for a regression.
    target : str
        What is predicted.
    target_mean, target_deviation : float
        See `Data`.

    Raises
    ------
    ValueError
        If the weights are not finite or do not fit each other or the labels.
    """

    params: Mapping[str, Array]
    objective: Objective
    labels: tuple[str, ...]
    target: str = "target"
    target_mean: float = 0.0
    target_deviation: float = 1.0

    def __post_init__(self) -> None:
        kind("objective", self.objective, Objective)
        labels = tuple(list_of(text)("labels", self.labels))
        values = {
            "params": dict(self.params),
            "labels": labels,
            "target": text("target", self.target),
            "target_mean": finite("target_mean", self.target_mean),
            "target_deviation": positive("target_deviation", self.target_deviation),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        widths = _widths(self.params)
        outputs = len(labels) if self.objective.task == "classification" else 1
        if widths[-1] != outputs:
            raise ValueError(f"the weights give {widths[-1]} outputs, not {outputs}")
        classes = {"regression": (0, 0), "binary": (2, 2)}.get(self.objective.task, (2, widths[-1]))
        if not classes[0] <= len(set(labels)) == len(labels) <= classes[1]:
            raise ValueError(f"{len(labels)} labels for {self.objective.task}, or equal labels")

    @classmethod
    def from_trainer(cls, trainer: Trainer) -> SavedModel:
        """Return the present model of a trainer; its weights are copies."""
        kind("trainer", trainer, Trainer)
        kind("trainer.model", trainer.model, MLP)
        params = trainer.model.params if trainer.ema is None else trainer.ema.averages
        return cls(
            {name: np.array(param) for name, param in params.items()},
            trainer.objective,
            tuple(trainer.data.labels),
            trainer.data.target,
            trainer.data.target_mean,
            trainer.data.target_deviation,
        )

    @property
    def features(self) -> int:
        """The number of inputs."""
        return int(self.params["0.weight"].shape[1])

    @ieee
    def outputs(self, x: Any) -> Array:
        """Return the outputs (N, outputs) of the network, as `Trainer.predict` does."""
        x = plain_array("x", x, "numbers of shape (N, features)")
        if x.ndim != 2 or x.shape[1] != self.features or len(x) == 0:
            raise DataError(
                f"x must have shape (N, {self.features}) with a row for each sample, not {x.shape}"
            )
        x = x.astype(self.params["0.weight"].dtype, copy=False)
        outputs = in_parts(lambda part: mlp_outputs(self.params, part), x)
        bad = ~np.isfinite(outputs).all(axis=1)
        if bad.any():
            raise DataError(
                f"the outputs for row {bad.argmax()} of x are not finite: its inputs are too large, "
                "infinite or NaN"
            )
        return outputs

    def predict(self, x: Any) -> npt.NDArray[Any]:
        """Return the label of each row (N,); for a regression, the value in its units (float64)."""
        outputs = self.outputs(x)
        if self.objective.task == "regression":
            return outputs[:, 0] * np.float64(self.target_deviation) + self.target_mean
        return np.array(self.labels)[self.objective.predicted(outputs)]

    def predict_proba(self, x: Any) -> Array:
        """Return the probabilities of the classes (N, classes); see `Objective.probabilities`."""
        return self.objective.probabilities(self.outputs(x))

    def __repr__(self) -> str:
        return f"SavedModel({'-'.join(map(str, _widths(self.params)))}, {self.objective!r})"


def _widths(params: Mapping[str, Array]) -> list[int]:
    """Return the widths from the inputs to the outputs; ValueError unless `params` are an MLP's."""
    layers = len(params) // 2
    names = {f"{i}.{what}" for i in range(layers) for what in ("weight", "bias")}
    if not layers or params.keys() != names:
        raise ValueError("the weights are not those of an MLP: 0.weight, 0.bias, 1.weight, ...")
    for name, param in params.items():
        if param.dtype.kind != "f" or param.ndim != 1 + name.endswith("weight") or not param.size:
            raise ValueError(f"{name} is {param.dtype} of shape {param.shape}")
        if not np.isfinite(param).all():
            raise ValueError(f"{name} is not finite: training has diverged")
    shapes = [params[f"{i}.weight"].shape for i in range(layers)]
    for i, (n_out, _) in enumerate(shapes):
        if params[f"{i}.bias"].shape != (n_out,) or (i + 1 < layers and shapes[i + 1][1] != n_out):
            raise ValueError(f"the shapes of the weights of layer {i} do not fit")
    return [shapes[0][1], *(n_out for n_out, _ in shapes)]
