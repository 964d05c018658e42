"""The estimators `MLPClassifier` and `MLPRegressor` for scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._checks import number
from fastopt.train.callbacks import EarlyStopping
from fastopt.train.checks import from_extra, ieee
from fastopt.train.config import RunConfig
from fastopt.train.data import Array, Data, Targets, Task
from fastopt.train.saved import SavedModel

with from_extra("an estimator"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6

    def validate_data(estimator: Any, *args: Any, **options: Any) -> Any:
        """Call what was a method of the estimator."""
        return estimator._validate_data(*args, **options)


_between = number("in (0, 1)", lambda x: 0 < x < 1)


@dataclass(kw_only=True, eq=False, repr=False)
class _Network(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The options of both estimators, by the names of `RunConfig`, and their training."""

    hidden: Sequence[int] = RunConfig.hidden
    activation: str = RunConfig.activation
    dropout: float = RunConfig.dropout
    loss: str | None = RunConfig.loss
    label_smoothing: float = RunConfig.label_smoothing
    optimizer: str = RunConfig.optimizer
    lr: float | None = RunConfig.lr
    weight_decay: float | None = RunConfig.weight_decay
    momentum: float | None = RunConfig.momentum
    batch_size: int = RunConfig.batch_size
    epochs: int = RunConfig.epochs
    schedule: str = RunConfig.schedule
    warmup: int = RunConfig.warmup
    max_norm: float | None = RunConfig.max_norm
    accumulate: int = RunConfig.accumulate
    ema: float | None = RunConfig.ema
    patience: int | None = RunConfig.patience
    validation_fraction: float = 0.1
    random_state: Any = None

    def _train(self, task: Task, x: Array, y: Targets, **facts: Any) -> None:
        """Train a new model; `facts` are arguments of `Data`."""
        own = {field.name for field in fields(RunConfig)} & self.get_params().keys()
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**32, dtype=np.int64)
        config = RunConfig(task=task, seed=seed, **{name: getattr(self, name) for name in own})
        x_val, y_val = x, y
        if config.patience is not None:
            x, x_val, y, y_val = train_test_split(
                x,
                y,
                test_size=_between("validation_fraction", self.validation_fraction),
                random_state=config.seed,
                stratify=None if task == "regression" else y,
            )
        trainer = config.build(Data(type(self).__name__, task, x, y, x_val, y_val, **facts))
        stopping = [] if config.patience is None else [EarlyStopping(config.patience)]
        self.history_ = trainer.fit(config.epochs, stopping)
        if self.history_.diverged:
            raise ValueError(
                f"{self.history_.stop_reason} since epoch {len(self.history_.epochs)}; "
                "standardize X or try a smaller lr"
            )
        model = SavedModel.from_trainer(trainer)
        # In float64, a prediction does not depend on the other rows, but for its last digits.
        wide: dict[str, Any] = {name: p.astype(np.float64) for name, p in model.params.items()}
        self._model = replace(model, params=wide)

    def _outputs(self, X: Any) -> npt.NDArray[np.floating[Any]]:
        """Return the outputs (N, outputs) of the network, float64."""
        check_is_fitted(self)
        return self._model.outputs(validate_data(self, X, dtype=np.float32, reset=False))


class MLPClassifier(ClassifierMixin, _Network):  # type: ignore[misc]
    """A multilayer perceptron as a classifier for scikit-learn.

    It works in pipelines, grid searches and cross-validation. The options are those of `RunConfig`,
    and `fit` is one run. It trains on all rows, unless `patience` holds some of them out. The
    inputs should be standardized, as in the example.

    Parameters
    ----------
    hidden, activation, dropout, loss, label_smoothing, optimizer, lr, weight_decay, momentum, \
    batch_size, epochs, schedule, warmup, max_norm, accumulate, ema
        See `RunConfig`. The schedule "plateau" looks at the loss that `patience` looks at, or at
        that of the training rows.
    patience : int, optional
        Stop when the loss of held-out rows has not fallen for this many epochs. The weights are
        those of the last epoch.
    validation_fraction : float
        The share of rows that `patience` holds out, in (0, 1).
    random_state : int, RandomState or None
        An int is the ``seed`` of `RunConfig`: `fit` then gives the same bits each time.

    Attributes
    ----------
    classes_ : array of shape (classes,)
        The labels.
    history_ : History
        The epochs of the run. Without `patience`, its held-out loss and score are those of the
        training rows after each epoch.
    n_features_in_ : int
    feature_names_in_ : array of str
        The columns, if `fit` got a DataFrame.

    Raises
    ------
    ConfigError, ValueError
        From `fit`, if an option cannot be used or the loss becomes NaN or infinite.

    Examples
    --------
    >>> from fastopt import train
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_wine(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), train.MLPClassifier(epochs=20, random_state=0))
    >>> grid = {"mlpclassifier__lr": [1e-4, 1e-2], "mlpclassifier__hidden": [(16,), (32, 16)]}
    >>> search = GridSearchCV(model, grid, cv=3).fit(X, y)
    >>> search.best_params_["mlpclassifier__lr"]
    0.01
    """

    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """Train on inputs (N, features) and labels (N,) of at least two classes."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, indices = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have 2 or more classes, not 1 class: {self.classes_[0]}")
        labels = tuple(map(str, self.classes_))
        self._train("classification", X, indices.astype(np.int64, copy=False), labels=labels)
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the label of each row (N,)."""
        outputs = self._outputs(X)
        labels: npt.NDArray[Any] = self.classes_[self._model.objective.predicted(outputs)]
        return labels

    def predict_proba(self, X: Any) -> npt.NDArray[np.floating[Any]]:
        """Return the probabilities (N, classes), in the order of ``classes_``."""
        outputs = self._outputs(X)
        return self._model.objective.probabilities(outputs)


class MLPRegressor(RegressorMixin, _Network):  # type: ignore[misc]
    """A multilayer perceptron as a regressor for scikit-learn.

    The target is standardized for training; predictions are in its units. The inputs should be
    standardized too, as in the example. The options and the other attributes are those of
    `MLPClassifier`; ``label_smoothing`` must be 0.

    Examples
    --------
    >>> from fastopt import train
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), train.MLPRegressor(random_state=0))
    >>> print(f"R² {cross_val_score(model, X, y).mean():.1f}")
    R² 0.4
    """

    @ieee
    def fit(self, X: Any, y: Any) -> MLPRegressor:
        """Train on inputs (N, features) and targets (N,)."""
        X, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        y = y.astype(np.float64)
        mean, deviation = float(y.mean()), float(y.std()) or 1.0
        standardized = ((y - mean) / deviation).astype(np.float32)[:, None]
        facts = {"labels": (), "target_mean": mean, "target_deviation": deviation}
        self._train("regression", X, standardized, **facts)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the value of each row (N,)."""
        outputs = self._outputs(X)
        return self._model.from_outputs(outputs)
