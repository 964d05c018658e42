"""Trained models without their training: predictions for new rows, and the file for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

import fastopt as fo
from fastopt._checks import as_path, choice, counted, finite, integer, list_of, positive
from fastopt.train.checks import DataError, ieee, kind, printable, text
from fastopt.train.data import Array
from fastopt.train.loop import Trainer, in_parts
from fastopt.train.model import MLP, activation_of, mlp_outputs
from fastopt.train.objective import Objective
from fastopt.train.preprocessing import Preprocessing

MODEL = "model.safetensors"  # the name in the folder of a run
_KIND = "fastopt model 1"  # and the version of the format
_WITH_ACTIVATION = "fastopt model 2"  # other than ReLU, which older versions of fastopt would use


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
    preprocessing : Preprocessing or None
        From the columns of a table to the inputs. None if the trainer's data were arrays that are
        inputs already.
    decimal : str
        The decimal mark of the table.
    unnamed : int
        See `Data`.
    rows_hash : str
        A hash of the rows of the data, for `knows`. Empty if there is no preprocessing.
    activation : str
        See `MLP`.

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
    preprocessing: Preprocessing | None = None
    decimal: str = "."
    unnamed: int = 0
    rows_hash: str = ""
    activation: str = "relu"

    def __post_init__(self) -> None:
        kind("objective", self.objective, Objective)
        labels = tuple(map(printable, list_of(text)("labels", self.labels)))
        values = {
            "params": dict(self.params),
            "labels": labels,
            "target": printable(text("target", self.target)),
            "target_mean": finite("target_mean", self.target_mean),
            "target_deviation": positive("target_deviation", self.target_deviation),
            "decimal": choice(".", ",")("decimal", self.decimal),
            "unnamed": integer(0)("unnamed", self.unnamed),
            "rows_hash": text("rows_hash", self.rows_hash),
            "activation": activation_of("activation", self.activation),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        _check_weights(self.params)
        if len(set(labels)) < len(labels):
            raise ValueError("the labels are not all different")
        task, count, widths = self.objective.task, len(labels), self._widths
        allowed = {"regression": count == 0, "binary": count == 2, "classification": count >= 2}
        if not allowed[task]:
            raise ValueError(f"{task} cannot have {counted(count, 'label')}")
        if widths[-1] != (count if task == "classification" else 1):
            raise ValueError(
                f"{counted(count, 'label')}, but the weights give {widths[-1]} outputs"
            )
        if self.preprocessing is not None:
            kind("preprocessing", self.preprocessing, Preprocessing)
            made = len(self.preprocessing.features)
            if widths[0] != made:
                raise ValueError(f"the weights take {widths[0]} inputs, but there are {made}")

    @classmethod
    def from_trainer(cls, trainer: Trainer) -> SavedModel:
        """Return the present model of a trainer; its weights are copies."""
        kind("trainer", trainer, Trainer)
        kind("trainer.model", trainer.model, MLP)
        model = cast("MLP", trainer.model)
        params = model.params if trainer.ema is None else trainer.ema.averages
        data = trainer.data
        return cls(
            {name: np.array(param) for name, param in params.items()},
            trainer.objective,
            tuple(data.labels),
            data.target,
            data.target_mean,
            data.target_deviation,
            data.preprocessing,
            data.decimal,
            data.unnamed,
            "" if data.preprocessing is None else _hash_rows(data.x_train, data.x_val),
            model.activation,
        )

    @property
    def _widths(self) -> list[int]:
        """The widths from the inputs to the outputs."""
        first, *others = (p.shape for name, p in self.params.items() if name.endswith("weight"))
        return [first[1], first[0], *(n_out for n_out, _ in others)]

    @property
    def features(self) -> int:
        """The number of inputs."""
        return self._widths[0]

    @ieee
    def outputs(self, x: Any) -> Array:
        """Return the outputs (N, outputs) of the network, with the bits of `Trainer.predict`.

        Parameters
        ----------
        x : DataFrame or array
            The rows; see `Preprocessing.transform`. Without a preprocessing, inputs (N, features).

        Raises
        ------
        DataError
            If `x` cannot be used, or an output is not finite.
        """
        if self.preprocessing is not None:
            x = self.preprocessing.transform(x)
        dtype = self.params["0.weight"].dtype

        def forward(part: Array) -> Array:
            return mlp_outputs(self.params, part.astype(dtype, copy=False), self.activation)

        outputs = in_parts(forward, x, self.features, self.params)
        bad = ~np.isfinite(outputs).all(axis=1)
        if bad.any():
            raise DataError(
                f"the outputs for row {bad.argmax() + 1} are not finite: its inputs are too large, "
                "infinite or NaN"
            )
        return outputs

    def predict(self, x: Any) -> npt.NDArray[Any]:
        """Return the label of each row (N,); for a regression, the value in its units (float64)."""
        return self.from_outputs(self.outputs(x))

    @ieee
    def from_outputs(self, outputs: Array) -> npt.NDArray[Any]:
        """Return the labels or values (N,) that the outputs of the network stand for."""
        if self.objective.task == "regression":
            return outputs.ravel().astype(np.float64) * self.target_deviation + self.target_mean
        labels: npt.NDArray[np.str_] = np.array(self.labels)[self.objective.predicted(outputs)]
        return labels

    def predict_proba(self, x: Any) -> Array:
        """Return the probabilities of the classes (N, classes); see `Objective.probabilities`."""
        return self.objective.probabilities(self.outputs(x))

    @ieee
    def knows(self, x: Any) -> bool:
        """Return whether `x` has the rows of the data of its training, in any order.

        A score on them is too good. Only a model with a preprocessing can tell; `x` is a DataFrame
        or an array for `Preprocessing.transform`.
        """
        ready = self.preprocessing
        return ready is not None and self.rows_hash == _hash_rows(ready.transform(x))

    def __str__(self) -> str:
        activation = "" if self.activation == "relu" else f" {self.activation}"
        widths = "-".join(map(str, self._widths))
        return f"{widths}{activation}, {self.objective.task} of {self.target}"

    def __repr__(self) -> str:
        return f"SavedModel({self})"


def save_model(path: str | os.PathLike[str], trainer: Trainer) -> None:
    """Write the model of a trainer, for `load_model` and ``fastopt predict``.

    The file is a checkpoint of `fastopt.save`: safetensors with hashes, without a pickle. It has
    the weights (the averages, if the trainer has an `ema`), the preprocessing of the data, the
    names of inputs and classes, the task, the loss and the version of fastopt. It cannot continue
    training; `Trainer.save` writes a file for that.

    Parameters
    ----------
    path : path
        Usually ``model.safetensors``. An existing file is replaced in one step.
    trainer : Trainer
        Of an `MLP`.

    Raises
    ------
    ValueError
        If the weights are not finite.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="iris").build()
    >>> history = trainer.fit(30)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train.save_model(f"{folder}/model.safetensors", trainer)
    ...     model = train.load_model(f"{folder}/model.safetensors")
    >>> model
    SavedModel(4-128-64-3, classification of class)
    >>> model.predict([[5.1, 3.5, 1.4, 0.2]])
    array(['setosa'], dtype='<U10')
    """
    model = SavedModel.from_trainer(trainer)
    only_relu = model.activation == "relu"
    extra = {
        "kind": _KIND if only_relu else _WITH_ACTIVATION,
        "version": fo.__version__,
        "task": model.objective.task,
        "loss": model.objective.loss_name,
        "label_smoothing": model.objective.label_smoothing,
        "labels": list(model.labels),
        "target": model.target,
        "target_mean": model.target_mean,
        "target_deviation": model.target_deviation,
        "preprocessing": model.preprocessing and model.preprocessing.to_json(),
        "decimal": model.decimal,
        "unnamed": model.unnamed,
        "rows_hash": model.rows_hash,
    } | ({} if only_relu else {"activation": model.activation})
    fo.save(path, params=model.params, extra=extra)


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Return the model in a file of `save_model`, or in the folder of a run.

    Everything in the file is checked before it is used, and nothing in it is run.

    Raises
    ------
    CheckpointError
        If the file is damaged or not a model.
    OSError
        If the file cannot be read.
    """
    path = as_path("path", path)
    if path.is_dir():
        path /= MODEL
    checkpoint = fo.load(path)
    facts = checkpoint.extra
    found = facts.get("kind") if isinstance(facts, dict) else None
    if found not in (_KIND, _WITH_ACTIVATION):
        if isinstance(found, str) and found.startswith(_KIND[:-1]):
            raise fo.CheckpointError(f"{path} is a model that a newer version of fastopt reads")
        raise fo.CheckpointError(
            f"{path} is a checkpoint, but not a model; save_model and fastopt train write models, "
            f"as {MODEL}"
        )
    try:
        _require_utf8(facts)
        ready = facts["preprocessing"]
        return SavedModel(
            params=checkpoint.params or {},
            objective=Objective(
                facts["task"], facts["loss"], label_smoothing=facts["label_smoothing"]
            ),
            labels=facts["labels"],
            target=facts["target"],
            target_mean=facts["target_mean"],
            target_deviation=facts["target_deviation"],
            preprocessing=ready and Preprocessing.from_json(ready),
            decimal=facts["decimal"],
            unnamed=facts["unnamed"],
            rows_hash=facts.get("rows_hash", ""),  # older files have none
            activation="relu" if found == _KIND else facts["activation"],
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise fo.CheckpointError(
            f"{path} does not hold what save_model writes: {reason}"
        ) from error


def _require_utf8(facts: Any) -> None:
    """Raise ValueError if a text has no UTF-8: pandas takes none, and no file holds it."""
    try:
        json.dumps(facts, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None


def _hash_rows(*parts: Array) -> str:
    """Return a hash of the rows of all parts (N, features), in any order."""
    dense = map(np.ascontiguousarray, parts)
    rows = sorted(hashlib.sha256(row).digest() for part in dense for row in part)
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _check_weights(params: Mapping[str, Array]) -> None:
    """Raise ValueError unless `params` are the finite weights of an MLP, in order."""
    names = [f"{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(len(params))]
    if not names or len(names) % 2 or list(params) != names:
        raise ValueError("the weights are not those of an MLP: 0.weight, 0.bias, 1.weight, ...")
    dtype = params["0.weight"].dtype
    n_in = None
    for weight, bias in zip(names[::2], names[1::2], strict=True):
        shape = params[weight].shape
        if len(shape) != 2 or 0 in shape or shape[1] != (n_in or shape[1]):
            raise ValueError(f"{weight} has shape {shape}, not (outputs, {n_in or 'inputs'})")
        n_in = shape[0]
        if params[bias].shape != (n_in,):
            raise ValueError(f"{bias} has shape {params[bias].shape}, not ({n_in},)")
    for name, param in params.items():
        if param.dtype not in (np.float32, np.float64) or param.dtype != dtype:
            raise ValueError(f"{name} is {param.dtype}; all weights must be float32, or float64")
        if not np.isfinite(param).all():
            raise ValueError(f"{name} is not finite: training has diverged")
