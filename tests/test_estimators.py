"""`MLPClassifier` and `MLPRegressor` in scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fastopt import train as ft

ESTIMATORS = [ft.MLPClassifier, ft.MLPRegressor]


def rows(seed: int = 0, count: int = 60) -> tuple[Any, Any]:
    """Return inputs of two features and labels that follow from them."""
    x = np.random.default_rng(seed).standard_normal((count, 2))
    return x, np.where(x[:, 0] > x[:, 1], "above", "below")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scikit_learn_accepts_it(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # of checks for array libraries
        check_estimator(estimator())


def test_a_grid_search_over_rates_and_widths() -> None:
    x, y = rows()
    model = make_pipeline(StandardScaler(), ft.MLPClassifier(epochs=20, random_state=0))
    grid = {"mlpclassifier__lr": [0.0, 0.05], "mlpclassifier__hidden": [(), (8,), (8, 4)]}
    search = GridSearchCV(model, grid, cv=3).fit(x, y)
    assert search.best_params_["mlpclassifier__lr"] == 0.05
    assert search.score(x, y) > 0.9
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_a_fit_is_the_run_of_its_options() -> None:
    x, y = rows()
    estimator = ft.MLPClassifier(hidden=(8,), epochs=3, ema=0.9, random_state=7).fit(x, y)
    indices = (y == "below").astype(np.int64)
    data = ft.Data("rows", "classification", x, indices, x, indices, ("above", "below"))
    trainer = ft.RunConfig(hidden=(8,), epochs=3, ema=0.9, seed=7).build(data)
    assert trainer.fit(3).epochs[-1].val_loss == estimator.history_.epochs[-1].val_loss
    outputs = trainer.predict(data.x_val)
    np.testing.assert_allclose(
        estimator.predict_proba(x), trainer.objective.probabilities(outputs), rtol=1e-4
    )
    restored = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(restored.predict_proba(x), estimator.predict_proba(x))


def test_patience_holds_rows_out() -> None:
    x, y = rows()
    estimator = ft.MLPClassifier(patience=1, lr=0.0, random_state=0).fit(x, y)
    assert len(estimator.history_.epochs) == 2
    assert estimator.history_.stop_reason.startswith("the held-out loss has not fallen")


def test_a_regression_is_in_the_units_of_the_target() -> None:
    x, _ = rows()
    seconds = 1.7e9 + 20 * x[:, 0]  # float32 has steps of 128 there
    estimator = ft.MLPRegressor(lr=0.02, epochs=40, random_state=0).fit(x, seconds)
    assert estimator.score(x, seconds) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be finite and >= 0, not -1.0"),
        ({"hidden": (0,)}, r"hidden\[0\] must be >= 1, not 0"),
        ({"loss": "nll"}, "loss must be "),
        (
            {"patience": 3, "validation_fraction": 2.0},
            r"validation_fraction must be in \(0, 1\), not 2.0",
        ),
        ({"lr": 1e30}, "the loss is not finite since epoch 1; standardize X or try a smaller lr"),
    ],
)
def test_what_fit_refuses(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ft.MLPClassifier(**options, random_state=0).fit(*rows())


def test_one_class_is_refused() -> None:
    x, _ = rows()
    with pytest.raises(ValueError, match="y must have 2 or more classes, not 1 class: 3"):
        ft.MLPClassifier().fit(x, np.full(len(x), 3))


def test_scikit_learn_is_imported_when_an_estimator_is_used() -> None:
    code = (
        "import sys, fastopt.train as ft; assert 'sklearn' not in sys.modules; "
        "assert not hasattr(ft, 'MLP2'); ft.MLPClassifier; assert 'sklearn' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
