"""`Data` checks its arguments; every kind of array becomes a plain array or is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastopt as fo

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft

raw: Any = ft  # for arguments that mypy refuses

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 30)
TARGETS: dict[ft.Task, Any] = {
    "classification": Y,
    "binary": (Y > 0).astype(np.float32)[:, None],
    "regression": X[:, :1] - 1,
}
LABELS = {"classification": ("a", "b", "c"), "binary": ("no", "yes"), "regression": ()}


def make(task: ft.Task = "classification", **changes: Any) -> ft.Data:
    y = TARGETS[task]
    given = {"x_train": X[:20], "y_train": y[:20], "x_val": X[20:], "y_val": y[20:]}
    given |= {"labels": LABELS[task]}
    return ft.Data("mine", task, **(given | changes))


def trained(data: ft.Data) -> list[float]:
    """Return all results of two epochs."""
    model = ft.MLP([data.features, 5, data.outputs])
    trainer = ft.Trainer(model, data, fo.Adam(model.params, lr=0.01), batch_size=8)
    epochs = trainer.fit(2).epochs
    return [
        value for e in epochs for value in (e.train_loss, e.train_score, e.val_loss, e.val_score)
    ]


def strided(array: Any) -> Any:
    """Return the array as every second row and column of a larger one."""
    wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def read_only(array: Any) -> Any:
    array = array.copy()
    array.setflags(write=False)
    return array


class Sub(np.ndarray[Any, Any]):
    """A subclass that NumPy's functions keep."""


# What is the same as the array that it is made of.
SAME: dict[str, Callable[[Any], Any]] = {
    "list": lambda a: a.tolist(),
    "subclass": lambda a: a.view(Sub),
    "strided": strided,
    "read-only": read_only,
    "fortran": np.asfortranarray,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "float64 or int32": lambda a: a.astype(np.int32 if a.dtype.kind == "i" else np.float64),
    "buffer": memoryview,
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("task", TARGETS)
def test_arrays_of_other_kinds_train_as_plain_ones(task: ft.Task, kind: str) -> None:
    plain = make(task)
    names = ("x_train", "y_train", "x_val", "y_val")
    data = replace(plain, **{name: SAME[kind](getattr(plain, name)) for name in names})
    for name in names:
        array = getattr(data, name)
        assert type(array) is np.ndarray
        np.testing.assert_array_equal(array, getattr(plain, name))
        assert array.dtype == getattr(plain, name).dtype
    assert trained(data) == trained(plain)
    assert data.digest() == plain.digest()


def test_a_matrix_is_an_array_where_it_has_the_shape() -> None:
    # filterwarnings: np.matrix only announces that it is deprecated.
    def matrix(a: Any) -> Any:
        return a.view(np.matrix)

    for task in ("classification", "binary", "regression"):
        plain = make(task)
        as_matrices = {"x_train": matrix(plain.x_train), "x_val": matrix(plain.x_val)}
        if task != "classification":
            as_matrices |= {"y_train": matrix(plain.y_train), "y_val": matrix(plain.y_val)}
        assert trained(replace(plain, **as_matrices)) == trained(plain)
    with pytest.raises(ft.DataError, match=r"y_val must be class indices .* shape \(1, 10\)"):
        make(y_val=matrix(Y[20:]))


def test_what_has_its_dtype_is_not_copied() -> None:
    data = make()
    assert np.shares_memory(data.x_train, X)
    assert np.shares_memory(data.y_val, Y)
    assert make(x_train=(X[:20] * 9).astype(np.uint8)).x_train.dtype == np.float32


def sparse(array: Any) -> Any:
    return pytest.importorskip("scipy.sparse").csr_array(array)


NAN, HUGE = X[:20].copy(), X[:20].astype(np.float64)
NAN[7, 2], HUGE[3, 1] = np.nan, 1e39
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x_train": X[:20, 0]}, ft.DataError, "x_train must have shape (N, features), not (20,)"),
    ({"x_train": X[:20].reshape(20, 2, 2)}, ft.DataError, "x_train.reshape(len(x_train), -1)"),
    ({"x_train": np.float32(1)}, ft.DataError, "x_train must have shape (N, features), not ()"),
    ({"x_train": X[:0], "y_train": Y[:0]}, ft.DataError, "x_train has shape (0, 4)"),
    ({"x_val": X[:0], "y_val": Y[:0]}, ft.DataError, "x_val has shape (0, 4): it must hold"),
    ({"x_val": X[20:, :0]}, ft.DataError, "x_val has shape (10, 0): it must hold features"),
    ({"x_train": X[:19]}, ft.DataError, "x_train and y_train must have a row for each sample"),
    ({"y_val": Y[:11]}, ft.DataError, "x_val and y_val must have a row for each sample, not 10"),
    ({"x_val": X[20:, :3]}, ft.DataError, "x_train and x_val must have the same features, not 4"),
    ({"x_train": NAN}, ft.DataError, "1 row, the first is x_train[7]"),
    ({"x_train": HUGE}, ft.DataError, "what float32 cannot hold in 1 row, the first is x_train[3]"),
    ({"x_train": X[:20] + 0j}, TypeError, "x_train must be an array of numbers"),
    ({"x_train": X[:20].astype(str)}, TypeError, "x_train must be an array of numbers"),
    ({"x_train": X[:20].astype(object)}, TypeError, "x_train must be an array of numbers"),
    ({"x_train": [[1.0, 2.0], [3.0]]}, TypeError, "x_train must be an array of numbers"),
    ({"x_train": sparse(X[:20])}, TypeError, "convert it: x_train.toarray()"),
    ({"x_train": None}, TypeError, "x_train must be an array of numbers"),
    ({"x_val": np.ma.masked_less(X[20:], 0)}, TypeError, "x_val must not have a mask; fill it"),
    ({"y_train": np.ma.array(Y[:20])}, TypeError, "y_train must not have a mask"),
    ({"y_train": Y[:20, None]}, ft.DataError, "y_train must be class indices"),
    ({"y_train": np.eye(3)[Y[:20]]}, ft.DataError, "y_train must be class indices (whole"),
    ({"y_train": Y[:20] + 1}, ft.DataError, "y_train must hold class indices, 0 to 2, not 3 as"),
    ({"y_val": Y[20:] - 1}, ft.DataError, "y_val must hold class indices, 0 to 2, not -1 as y_val"),
    ({"y_val": Y[20:] * 1.0}, TypeError, "y_val must be an array of class indices"),
    ({"y_val": ["a"] * 10}, TypeError, "y_val must be an array of class indices"),
    ({"y_val": np.full(10, 2**63, np.uint64)}, ft.DataError, "not 9223372036854775808 as y_val[0]"),
    ({"labels": ("a", "b")}, ft.DataError, "y_train must hold class indices, 0 to 1, not 2"),
    ({"labels": ("a",)}, ft.DataError, "labels must name 2 or more classes"),
    ({"labels": "abc"}, TypeError, "labels must be a sequence of strings, not 'abc'"),
    ({"labels": 3}, TypeError, "labels must be a sequence of strings, not 3"),
    ({"target": 3}, TypeError, "target must be a string, not 3"),
    ({"target_mean": float("nan")}, ValueError, "target_mean must be finite, not nan"),
    ({"target_deviation": 0}, ValueError, "target_deviation must be finite and > 0, not 0"),
    ({"target_deviation": "1"}, TypeError, "target_deviation must be a number, not '1'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "words"), BAD, ids=[row[2] for row in BAD])
def test_data_that_cannot_be(changes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_targets_of_the_other_tasks(task: ft.Task) -> None:
    y = TARGETS[task][:20]
    with pytest.raises(ft.DataError, match=r"y_train must be numbers of shape \(N, 1\)"):
        make(task, y_train=y[:, 0])
    with pytest.raises(ft.DataError, match=r"y_train must be numbers of shape \(N, 1\)"):
        make(task, y_train=np.hstack([y, y]))
    wrong = y.copy()
    wrong[4] = 0.5 if task == "binary" else np.inf
    with pytest.raises(ft.DataError, match=r"y_train.*y_train\[4\]"):
        make(task, y_train=wrong)
    with pytest.raises(ft.DataError, match="labels must"):
        make(task, labels=("a", "b", "c"))
    with pytest.raises(TypeError, match="labels must be a sequence of strings, not None"):
        make(task, labels=None)
    with pytest.raises(ValueError, match="task must be 'classification'"):
        replace(make(), task="ranking")  # type: ignore[arg-type]


def test_an_array_that_raises_is_named() -> None:
    class Bad:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no array today")

    with pytest.raises(TypeError, match="x_train must be an array of numbers") as caught:
        make(x_train=Bad())
    assert "no array today" in str(caught.value.__cause__)

    class Full:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        make(x_train=Full())


def test_data_is_described_in_a_line() -> None:
    data = make()
    assert repr(data) == f"Data({data})"
    one = make(x_train=X[:1], y_train=Y[:1], x_val=X[:1], y_val=Y[:1])
    assert str(one) == "mine: 1 sample to train on, 1 held out, 4 features, 3 classes"
    assert data == data
    assert data != make()  # no error of arrays without one truth
    assert make(labels=np.array([3, 7, 9])).labels == ("3", "7", "9")


# -- the other places that take arrays -------------------------------------------------------------


@pytest.mark.parametrize("kind", [*SAME, "matrix"])
def test_models_and_trainers_take_the_same_kinds(kind: str) -> None:
    make_same = SAME.get(kind, lambda a: a.view(np.matrix))
    data = make()
    model = ft.MLP([4, 5, 3], seed=1)
    trainer = ft.Trainer(model, data, fo.SGD(model.params))
    expected = model.forward(data.x_val).copy()
    for outputs in (
        model.forward(make_same(data.x_val)),
        model.forward(make_same(data.x_val), training=True),
        trainer.predict(make_same(data.x_val)),
    ):
        assert type(outputs) is np.ndarray
        assert outputs.dtype == np.float32
        np.testing.assert_array_equal(outputs, expected)
    model.forward(data.x_val, training=True)
    grads = {k: v.copy() for k, v in model.backward(expected).items()}
    for name, grad in model.backward(make_same(expected)).items():
        np.testing.assert_array_equal(grad, grads[name])


# Not those of swapped bytes, which the losses refuse by name.
@pytest.mark.parametrize("kind", [*(kind for kind in SAME if kind != "swapped"), "matrix"])
@pytest.mark.parametrize("task", TARGETS)
def test_objectives_take_the_same_kinds(task: ft.Task, kind: str) -> None:
    make_same = SAME.get(kind, lambda a: a.view(np.matrix))
    objective, data = ft.Objective(task), make(task)
    outputs = RNG.standard_normal((10, data.outputs)).astype(np.float32)
    if kind in ("list", "float64 or int32"):  # their gradient is float64
        outputs = outputs.astype(np.float64)
    targets: Any = data.y_val if task == "classification" else data.y_val.astype(outputs.dtype)
    same = make_same(outputs)
    targets_same = targets if kind == "matrix" and targets.ndim == 1 else make_same(targets)
    assert objective.value(same, targets_same) == objective.value(outputs, targets)
    assert objective.score(same, targets_same) == objective.score(outputs, targets)
    assert objective.points(same, targets_same) == objective.points(outputs, targets)
    if task != "regression":
        np.testing.assert_array_equal(objective.predicted(same), objective.predicted(outputs))


def test_other_arrays_are_refused_everywhere() -> None:
    data = make()
    model = ft.MLP([4, 5, 3])
    trainer = ft.Trainer(model, data, fo.SGD(model.params))
    objective, regression = raw.Objective("classification"), ft.Objective("regression")
    outputs = model.forward(data.x_val)
    masked = np.ma.masked_less(data.x_val, 0)
    calls: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: model.forward(masked), TypeError, "x must not have a mask"),
        (lambda: model.forward(data.x_val[:, :3]), ValueError, "x must have shape (N, 4)"),
        (lambda: model.forward(data.x_val[0]), ValueError, "x must have shape (N, 4), not (4,)"),
        (lambda: trainer.predict(data.x_val[:, 0]), ValueError, "x must have shape (N, 4)"),
        (lambda: trainer.predict(data.x_val[:0]), ValueError, "a row for each sample"),
        (lambda: trainer.predict(None), TypeError, "x must be an array"),  # type: ignore[arg-type]
        (lambda: model.backward(outputs[:3]), ValueError, "doutputs must have shape (0, 3)"),
        (lambda: objective.value(outputs, data.y_val[:3]), ValueError, "not (10, 3) and (3,)"),
        (lambda: objective.score(outputs, data.y_val[:, None]), ValueError, "targets (N,), not"),
        (lambda: objective.score(outputs[0], data.y_val), ValueError, "outputs must have shape"),
        (lambda: objective.points(outputs, data.y_val * 1.0), TypeError, "targets must be an"),
        (lambda: objective.predicted(np.ma.array(outputs)), TypeError, "outputs must not have a"),
        (lambda: objective.backward_([[1.0] * 3], data.y_val[:1]), TypeError, "to write into"),
        (lambda: regression.score(outputs[:, :1], outputs[:, 0]), ValueError, "the same shape"),
        (lambda: ft.Objective("classification", "mse").value(outputs, data.y_val + 1), IndexError,
         "is 3, outside [0, 3)"),
        (lambda: raw.plot_confusion(data.y_val[:, None], data.y_val, data), ValueError, "true"),
        (lambda: raw.plot_confusion(data.y_val, data.y_val + 1, data), ValueError, "predicted"),
        (lambda: raw.plot_confusion(data.y_val, data.y_val[1:], data), ValueError, "equally long"),
        (lambda: raw.plot_confusion(data.y_val * 1.0, data.y_val, data), TypeError, "true must be"),
        (lambda: ft.root_mean_squared_error(trainer), ValueError, "of a regression"),
        (lambda: ft.plot_predictions(trainer), ValueError, "of a regression"),
    ]  # fmt: skip
    for call, error, words in calls:
        with pytest.raises(error, match=re.escape(words)):
            call()


# -- many classes ----------------------------------------------------------------------------------


def test_one_hot_rows_are_those_of_the_batch() -> None:
    objective = ft.Objective("classification", "mse")
    classes = 200_000  # squared, 160 GB
    outputs = np.zeros((2, classes), np.float32)
    assert objective.value(outputs, np.array([0, classes - 1])) == pytest.approx(1 / classes)


def test_confusions_of_many_classes_cost_what_the_samples_do() -> None:
    classes = 30_000  # all pairs would take 7 GB
    data = raw.Data("many", "classification", *2 * (np.ones((60, 1)), np.arange(60) * 100),
                   [f"c{i}" for i in range(classes)])  # fmt: skip
    taken = data.y_val.copy()
    taken[10:14] = [7, 7, 8, 8]
    taken[[5, 6]] = 9, -1

    class Table(ft.MLP):
        def forward(self, x: Any, *, training: bool = False) -> Any:
            outputs = np.zeros((len(x), classes), np.float32)
            outputs[np.arange(len(x)), taken[: len(x)]] = 1
            outputs[taken[: len(x)] < 0] = np.nan
            return outputs

    model = Table([1, 1])
    trainer = ft.Trainer(model, data, fo.SGD(model.params))
    pairs = [("c500", "c9"), ("c1000", "c7"), ("c1100", "c7"), ("c1200", "c8"), ("c1300", "c8")]
    assert ft.find_confusions(trainer) == [ft.Confusion(*pair, 1) for pair in pairs]
    assert ft.find_confusions(trainer, 2) == [ft.Confusion(*pair, 1) for pair in pairs[:2]]
    scores = {score.label: score for score in ft.score_classes(trainer)}
    assert len(scores) == classes
    assert (scores["c500"].recall, scores["c600"].recall, scores["c700"].recall) == (0, 0, 1)
    figure = raw.plot_confusion(data.y_val, taken, data)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{a} → {b}" for a, b in pairs
    ]
    assert "90.00% of 60 right" in figure.get_suptitle()
    assert "1 without a class: their outputs are NaN" in figure.get_suptitle()


def test_the_pairs_that_are_confused_most_come_first() -> None:
    x, classes = np.ones((60, 1)), 50
    true, taken = np.arange(60) % 50, np.arange(60) % 50
    true[:9], taken[:9] = [1, 1, 1, 4, 4, 4, 4, 2, 2], [0, 0, 0, 9, 9, 9, 1, 7, 7]
    data = raw.Data("d", "classification", x, true, x, true, [str(i) for i in range(classes)])
    figure = raw.plot_confusion(true, taken, data, "title")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "1 → 0",
        "4 → 9",
        "2 → 7",
        "4 → 1",
    ]
    assert [bar.get_width() for bar in axes.patches] == [3, 3, 2, 1]
    assert "50 classes" in figure.get_suptitle()
    (axes,) = raw.plot_confusion(true, true, data).axes  # nothing is confused
    assert not axes.patches


def test_few_classes_show_all_pairs_as_scikit_learn_counts_them() -> None:
    from sklearn.metrics import confusion_matrix

    data = make()
    taken = RNG.integers(0, 3, 30)
    figure = raw.plot_confusion(Y, taken, data)
    texts = {
        tuple(map(int, t.get_position()[::-1])): int(t.get_text()) for t in figure.axes[0].texts
    }
    expected = confusion_matrix(Y, taken)
    assert texts == {where: count for where, count in np.ndenumerate(expected) if count}
    assert f"{np.mean(taken == Y):.2%} of 30 right" in figure.get_suptitle()
