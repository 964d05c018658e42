"""Training in NumPy: data, a model, the loop with callbacks, reports.

``fastopt train`` is a thin layer over this library. A `RunConfig` contains all options of a run and
builds a `Trainer`. A `Trainer` takes any model with the methods of `Model`.

The rules of the package ``fastopt`` hold here too. ``Raises`` below lists only other errors.

Needs the extra ``fastopt[train]`` (scikit-learn for the data, matplotlib for the pictures).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastopt._files import write_together
from fastopt.train import experiments
from fastopt.train.callbacks import (
    Checkpointer,
    CSVLogger,
    Divergence,
    EarlyStopping,
    TensorBoardLogger,
)
from fastopt.train.checks import DataError
from fastopt.train.config import OPTIMIZERS, SCHEDULES, ConfigError, RunConfig, make_scheduler
from fastopt.train.data import TASKS, Data, Task
from fastopt.train.formats import check_folder, to_csv, to_json
from fastopt.train.history import (
    Epoch,
    History,
    Overfitting,
    Seconds,
    find_overfitting,
    still_falls,
)
from fastopt.train.loading import BUNDLED, load_data
from fastopt.train.loop import Callback, Model, Trainer
from fastopt.train.model import ACTIVATIONS, MLP
from fastopt.train.objective import LOSSES, Objective
from fastopt.train.preprocessing import Column, Preprocessing, fit_preprocessing
from fastopt.train.report import (
    ClassScore,
    Confusion,
    find_confusions,
    plot_confusion,
    plot_history,
    plot_predictions,
    root_mean_squared_error,
    score_classes,
    write_report,
)
from fastopt.train.rows import Rows, read_rows
from fastopt.train.saved import SavedModel, load_model, save_model
from fastopt.train.tables import Table, read_table

__all__ = [
    "ACTIVATIONS",
    "BUNDLED",
    "LOSSES",
    "MLP",
    "OPTIMIZERS",
    "SCHEDULES",
    "TASKS",
    "CSVLogger",
    "Callback",
    "Checkpointer",
    "ClassScore",
    "Column",
    "ConfigError",
    "Confusion",
    "Data",
    "DataError",
    "Divergence",
    "EarlyStopping",
    "Epoch",
    "History",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "Objective",
    "Overfitting",
    "Preprocessing",
    "Rows",
    "RunConfig",
    "SavedModel",
    "Seconds",
    "Table",
    "Task",
    "TensorBoardLogger",
    "Trainer",
    "check_folder",
    "experiments",
    "find_confusions",
    "find_overfitting",
    "fit_preprocessing",
    "load_data",
    "load_model",
    "make_scheduler",
    "plot_confusion",
    "plot_history",
    "plot_predictions",
    "read_rows",
    "read_table",
    "root_mean_squared_error",
    "save_model",
    "score_classes",
    "still_falls",
    "to_csv",
    "to_json",
    "write_report",
    "write_together",
]

if TYPE_CHECKING:
    from fastopt.train.estimators import MLPClassifier as MLPClassifier
    from fastopt.train.estimators import MLPRegressor as MLPRegressor
else:

    def __getattr__(name):
        """Import the estimators when they are first used: scikit-learn takes a second."""
        if name not in ("MLPClassifier", "MLPRegressor"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from fastopt.train import estimators

        return getattr(estimators, name)
