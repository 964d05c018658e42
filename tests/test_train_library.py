"""The pieces of `fastopt.train`: the model, objectives, the loop, callbacks, configurations."""

from __future__ import annotations

import csv
import doctest
import hashlib
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft
from fastopt._files import write_whole


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ft.ACTIVATIONS)
def test_backward_is_the_derivative_of_forward(activation: str, dropout: float) -> None:
    rng = np.random.default_rng(0)
    model = ft.MLP([5, 7, 6, 3], dropout, seed=1, activation=activation)
    # float64, so that differences are sharp. The gradients are not set: nothing reads them.
    model.params.update({name: param.astype(np.float64) for name, param in model.params.items()})
    model.grads.update({name: np.empty_like(param) for name, param in model.params.items()})
    for name, param in model.params.items():
        if name.endswith("bias"):  # not 0: there a unit without input sits on ReLU's kink
            param[...] = rng.standard_normal(param.shape)
    x: Any = rng.standard_normal((8, 5))
    y = rng.integers(0, 3, 8)
    ce, state = fo.CrossEntropyLoss(), model.rng_state
    _, dlogits = ce.value_and_grad(model.forward(x, training=True), y)
    grads = {name: grad.copy() for name, grad in model.backward(dlogits).items()}
    for name, param in model.params.items():
        for i in np.ndindex(param.shape):
            kept = param[i]
            values = []
            for h in (1e-6, -1e-6):
                param[i] = kept + h
                model.rng_state = state  # the same units are dropped
                values.append(float(ce(model.forward(x, training=True), y)))
            param[i] = kept
            assert grads[name][i] == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_initial_weights_suit_the_activation() -> None:
    for activation in ft.ACTIVATIONS:
        model = ft.MLP([300, 500, 2], activation=activation)
        variance = 2 / 800 if activation in ("tanh", "sigmoid") else 2 / 300
        assert np.var(model.params["0.weight"]) == pytest.approx(variance, rel=0.02)
        named = "" if activation == "relu" else f", activation='{activation}'"
        assert repr(model) == f"MLP(300-500-2, dropout=0.0{named})"
    np.testing.assert_array_equal(
        ft.MLP([4, 8, 2], seed=3).params["0.weight"],
        ft.MLP([4, 8, 2], seed=3, activation="gelu").params["0.weight"],
    )


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    model = ft.MLP([4, 5000, 2], dropout=0.4, seed=2)
    x = np.ones((1, 4), np.float32)
    model.forward(x, training=True)
    hidden = model._last.inputs[1]
    plain = np.maximum(x @ model.params["0.weight"].T, 0)
    positive = plain > 0
    assert np.mean(hidden[positive] == 0) == pytest.approx(0.4, abs=0.05)
    assert hidden.mean() == pytest.approx(plain.mean(), rel=0.1)
    np.testing.assert_array_equal(model.forward(x), model.forward(x))


def test_dropped_units_get_no_gradient() -> None:
    model = ft.MLP([4, 50, 2], dropout=0.5, seed=3)
    logits = model.forward(np.ones((1, 4), np.float32), training=True)
    dead = model._last.inputs[1][0] == 0
    grads = model.backward(np.ones_like(logits))
    assert dead.any()
    assert np.all(grads["0.weight"][dead] == 0)
    assert np.all(grads["0.bias"][~dead] != 0)


@pytest.mark.parametrize(("sizes", "dropout"), [([3], 0.0), ([3, 0, 2], 0.0), ([3, 2], 1.0)])
def test_bad_models(sizes: list[int], dropout: float) -> None:
    with pytest.raises(ValueError, match=r"sizes|dropout"):
        ft.MLP(sizes, dropout)


def test_a_model_beyond_any_memory() -> None:
    with pytest.raises(MemoryError):
        ft.MLP([3, 2**31, 2**31])


def test_the_model_can_be_continued_from_the_state_of_its_generator() -> None:
    model = ft.MLP([4, 50, 2], dropout=0.3, seed=4)
    x = np.ones((8, 4), np.float32)
    model.forward(x, training=True)
    state = model.rng_state
    first = model.forward(x, training=True).copy()
    assert not np.array_equal(model.forward(x, training=True), first)
    other = ft.MLP([4, 50, 2], dropout=0.3, seed=5)
    for name, param in model.params.items():
        other.params[name][...] = param
    other.rng_state = state
    np.testing.assert_array_equal(other.forward(x, training=True), first)


def test_batches_of_many_sizes_give_what_one_row_at_a_time_gives() -> None:
    model = ft.MLP([5, 9, 3], seed=6)
    rng = np.random.default_rng(7)
    for rows in (7, 3, 7, 1, 2, 4, 5, 7):
        x = rng.standard_normal((rows, 5), dtype=np.float32)
        dy = rng.standard_normal((rows, 3), dtype=np.float32)
        outputs = model.forward(x, training=True)
        np.testing.assert_allclose(outputs, model.forward(x), rtol=1e-5, atol=1e-6)
        grads = {name: grad.copy() for name, grad in model.backward(dy.copy()).items()}
        sums = {name: np.zeros_like(grad) for name, grad in grads.items()}
        for row in range(rows):
            model.forward(x[row : row + 1], training=True)
            for name, grad in model.backward(dy[row : row + 1].copy()).items():
                sums[name] += grad
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, sums[name], rtol=1e-4, atol=1e-5)


# -- objectives ----------------------------------------------------------------------------------

PAIRS = [(task, loss) for task, losses in ft.LOSSES.items() for loss in losses]


def outputs_and_targets(task: ft.Task, rows: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(8)
    outputs = rng.standard_normal((rows, 4 if task == "classification" else 1), dtype=np.float32)
    if task == "classification":
        return outputs, rng.integers(0, 4, rows)
    if task == "binary":
        return outputs, rng.integers(0, 2, (rows, 1)).astype(np.float32)
    return outputs, rng.standard_normal((rows, 1), dtype=np.float32)


@pytest.mark.parametrize(("task", "loss"), PAIRS)
def test_every_loss_has_its_own_gradient(task: ft.Task, loss: str) -> None:
    objective = ft.Objective(task, loss)
    outputs, targets = outputs_and_targets(task)
    double, wide = outputs.astype(np.float64), targets
    if task != "classification":
        wide = targets.astype(np.float64)
    fo.testing.gradcheck(lambda x: objective.value_and_grad(x, wide), double)
    value, grad = objective.value_and_grad(outputs, targets)
    assert value == pytest.approx(objective.value(outputs, targets), rel=1e-6)
    points = objective.points(outputs, targets)
    score = objective.score(outputs, targets)
    buffer = outputs.copy()
    told = objective.backward_(buffer, targets)
    np.testing.assert_array_equal(buffer, grad)
    assert told == pytest.approx((value, points))
    assert objective.score_of(told[1], targets) == pytest.approx(score)


@pytest.mark.parametrize(("task", "loss"), PAIRS)
def test_perfect_outputs_score_one(task: ft.Task, loss: str) -> None:
    objective = ft.Objective(task, loss)
    _, targets = outputs_and_targets(task)
    outputs = targets
    if task == "classification":
        outputs = np.eye(4, dtype=np.float32)[targets]
    elif loss.startswith("bce"):
        outputs = 2 * targets - 1  # of logits, 0 is undecided
    assert objective.score(outputs, targets) == 1
    assert objective.score(outputs[::-1], targets) < 1


def test_what_the_losses_compare() -> None:
    outputs, targets = outputs_and_targets("classification")
    one_hot = np.eye(4, dtype=np.float32)[targets]
    assert ft.Objective("classification", "mse").value(outputs, targets) == pytest.approx(
        np.mean((outputs - one_hot) ** 2), rel=1e-6
    )
    outputs, targets = outputs_and_targets("binary")
    with_logits = ft.Objective("binary").value_and_grad(outputs, targets)
    through_sigmoid = ft.Objective("binary", "bce").value_and_grad(outputs, targets)
    assert with_logits[0] == pytest.approx(through_sigmoid[0], rel=1e-5)
    np.testing.assert_allclose(with_logits[1], through_sigmoid[1], rtol=1e-4, atol=1e-8)
    smooth = ft.Objective("classification", label_smoothing=0.2)
    assert smooth.loss.label_smoothing == 0.2


def test_scores_as_text() -> None:
    r2, accuracy = ft.Objective("regression"), ft.Objective("classification")
    scores = [0.4821, -123456.0, -2.27e33, np.nan]
    assert [r2.format_score(s) for s in scores] == ["0.482", "-1.235e+05", "-2.27e+33", "-"]
    assert [accuracy.format_score(s) for s in (0.975, np.nan)] == ["97.50%", "-"]


def test_r2_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import r2_score

    outputs, targets = outputs_and_targets("regression")
    score = ft.Objective("regression").score(outputs, targets)
    assert score == pytest.approx(r2_score(targets, outputs), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("ranking", {}, "task must be 'classification', 'binary' or 'regression', not 'ranking'"),
        ("binary", {"loss": "cross-entropy"}, "for binary, not 'cross-entropy'"),
        ("regression", {"loss": "bce"}, "mse, l1, smooth-l1, huber for regression"),
        ("classification", {"loss": "mse", "label_smoothing": 0.1}, "must be 0, not 0.1"),
        ("classification", {"label_smoothing": 2.0}, "label_smoothing"),
    ],
)
def test_objectives_that_cannot_be(task: ft.Task, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ft.Objective(task, **options)


# -- the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iris() -> ft.Data:
    return ft.load_data("iris")


def trainer_on(data: ft.Data, dropout: float = 0.0, **options: Any) -> ft.Trainer:
    model = ft.MLP([data.features, 8, data.outputs], dropout, seed=9)
    optimizer = fo.SGD(model.params, lr=0.1, momentum=0.9)
    return ft.Trainer(model, data, optimizer, **({"batch_size": 50} | options))


def test_one_epoch_by_hand(iris: ft.Data) -> None:
    trainer = trainer_on(iris, seed=3, max_norm=0.5)
    (epoch,) = trainer.fit(1).epochs
    model = ft.MLP([4, 8, 3], seed=9)
    optimizer, ce = fo.SGD(model.params, lr=0.1, momentum=0.9), fo.CrossEntropyLoss()
    order = np.random.default_rng(3).permutation(120)
    total, right, norms = 0.0, 0, []
    for rows in (order[:50], order[50:100], order[100:]):
        outputs = model.forward(iris.x_train[rows], training=True)
        right += int(np.sum(outputs.argmax(axis=1) == iris.y_train[rows]))
        value, grad = ce.value_and_grad(outputs, iris.y_train[rows])
        total += float(value) * len(rows)
        norms.append(optimizer.step(model.backward(grad), max_norm=0.5).grad_norm)
    for name, param in model.params.items():
        np.testing.assert_array_equal(param, trainer.model.params[name])
    outputs = model.forward(iris.x_val)
    assert epoch.train_loss == pytest.approx(total / 120, rel=1e-12)
    assert epoch.train_score == right / 120
    assert epoch.val_loss == ce(outputs, iris.y_val)
    assert epoch.val_score == np.mean(outputs.argmax(axis=1) == iris.y_val)
    assert epoch.grad_norm == pytest.approx(np.mean([n or 0 for n in norms]))
    assert epoch.grad_norm_max == max(n or 0 for n in norms)
    assert epoch.lr == 0.1


def test_norms_without_clipping_change_nothing(iris: ft.Data) -> None:
    plain, watched = trainer_on(iris), trainer_on(iris, track_norm=True)
    plain.fit(2)
    watched.fit(2)
    assert np.isnan(plain.history.epochs[-1].grad_norm)
    assert watched.history.epochs[-1].grad_norm > 0
    for name, param in plain.model.params.items():
        np.testing.assert_array_equal(param, watched.model.params[name])


def test_fit_counts_epochs_from_the_first(iris: ft.Data) -> None:
    once, twice = trainer_on(iris, 0.3), trainer_on(iris, 0.3)
    once.fit(5)
    twice.fit(2)
    twice.fit(5)
    assert [e.epoch for e in twice.history.epochs] == [1, 2, 3, 4, 5]
    for name, param in once.model.params.items():
        np.testing.assert_array_equal(param, twice.model.params[name])


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_the_schedule_moves_on_when_it_should(iris: ft.Data, per: Any) -> None:
    model = ft.MLP([4, 3])
    optimizer = fo.SGD(model.params, lr=1.0)
    scheduler = fo.ExponentialLR(optimizer, 0.5)
    trainer = ft.Trainer(
        model, iris, optimizer, batch_size=60, scheduler=scheduler, schedule_per=per
    )
    rates = [e.lr for e in trainer.fit(3).epochs]
    assert rates == ([0.5, 0.125, 0.03125] if per == "step" else [1.0, 0.5, 0.25])


def test_a_plateau_is_seen_in_the_held_out_loss(iris: ft.Data) -> None:
    model = ft.MLP([4, 3])
    optimizer = fo.SGD(model.params, lr=0.0)  # nothing changes, so nothing falls
    plateau = fo.ReduceLROnPlateau(optimizer, patience=1)
    ft.Trainer(model, iris, optimizer, scheduler=plateau).fit(2)
    assert plateau.best == pytest.approx(ft.Objective("classification").value(
        model.forward(iris.x_val), iris.y_val))  # fmt: skip
    assert plateau.num_bad_epochs == 1
    with pytest.raises(ValueError, match="once per epoch"):
        ft.Trainer(model, iris, optimizer, scheduler=plateau, schedule_per="step")


def test_accumulated_batches_step_as_one_large_batch(iris: ft.Data) -> None:
    # 120 samples: 3 batches of 40 make a step, or 4 of 25 and 1 of 20, which count as they are.
    large = trainer_on(iris, batch_size=120, max_norm=0.5)
    for batch_size, accumulate in ((40, 3), (25, 5), (50, 9)):
        small = trainer_on(iris, batch_size=batch_size, accumulate=accumulate, max_norm=0.5)
        np.testing.assert_allclose(
            [small.fit(1).epochs[0].grad_norm], [large.fit(1).epochs[0].grad_norm], rtol=1e-5
        )
        for name, param in small.model.params.items():
            np.testing.assert_allclose(param, large.model.params[name], rtol=1e-5, atol=1e-7)


def test_a_batch_larger_than_the_data_is_the_data(iris: ft.Data) -> None:
    whole, larger = (trainer_on(iris, batch_size=size) for size in (len(iris.y_train), 2**62))
    assert whole.fit(2).epochs[-1].train_loss == larger.fit(2).epochs[-1].train_loss


def test_what_is_left_of_an_epoch_makes_a_step_too(iris: ft.Data) -> None:
    trainer = trainer_on(iris, batch_size=50, accumulate=2, track_norm=True)
    trainer.fit(3)
    assert trainer.optimizer.state["0.weight"]["step"] == 6  # of 50 + 50 and of 20 samples


def test_averaged_weights_are_what_is_evaluated(iris: ft.Data) -> None:
    model = ft.MLP([4, 8, 3], seed=9)
    ema = fo.WeightEMA(model.params, decay=0.9)
    optimizer = fo.SGD(model.params, lr=0.1, momentum=0.9)
    trainer = ft.Trainer(model, iris, optimizer, batch_size=50, ema=ema)
    plain = trainer_on(iris)
    trainer.fit(3)
    plain.fit(3)
    assert ema.num_updates == 9
    for name, param in plain.model.params.items():  # they do not change the training
        np.testing.assert_array_equal(param, model.params[name])
    assert trainer.history.epochs[-1].val_loss != plain.history.epochs[-1].val_loss
    averaged = ft.MLP([4, 8, 3])
    for name, average in ema.averages.items():
        averaged.params[name][...] = average
    np.testing.assert_array_equal(averaged.forward(iris.x_val), trainer.predict(iris.x_val))
    assert trainer.history.epochs[-1].val_loss == trainer.evaluate()[0]


RESUMED: list[dict[str, Any]] = [
    {},
    {"optimizer": "momentum", "schedule": "one-cycle", "max_norm": 0.5},
    {"schedule": "cosine", "warmup": 4, "ema": 0.9, "accumulate": 2, "batch_size": 25},
    {"schedule": "plateau", "optimizer": "rmsprop", "momentum": 0.5},
    {"schedule": "step", "data": "diabetes", "loss": "huber", "activation": "silu"},
]


@pytest.mark.parametrize("options", RESUMED)
def test_a_run_resumed_after_any_epoch_has_the_same_bits(
    options: dict[str, Any], tmp_path: Path
) -> None:
    whole_options: dict[str, Any] = {"data": "iris", "epochs": 6, "dropout": 0.3} | options
    config = ft.RunConfig(**whole_options)
    data = config.load()
    whole = config.build(data)
    whole.fit(6)
    for stop in (0, 1, 3, 5, 6):
        first = config.build(data)
        first.fit(stop)
        first.save(tmp_path / "run.safetensors", {"mine": stop})
        second = config.build(data)
        second.fit(1)  # its earlier work is forgotten
        assert second.resume(tmp_path / "run.safetensors") == {"mine": stop}
        second.fit(6)
        for name, param in whole.model.params.items():
            np.testing.assert_array_equal(param, second.model.params[name])
        for ours, theirs in zip(second.history.epochs, whole.history.epochs, strict=True):
            np.testing.assert_equal(
                asdict(replace(ours, samples_per_second=0.0)),
                asdict(replace(theirs, samples_per_second=0.0)),
            )


def test_what_a_trainer_does_not_resume_changes_nothing(iris: ft.Data, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trainer = trainer_on(iris)
    trainer.fit(2)
    trainer.save(path)
    others = [
        (trainer_on(iris, batch_size=20), "batch_size is 50 there, 20 here"),
        (trainer_on(iris, dropout=0.5), r"model is MLP\(4-8-3, dropout=0.0\) there"),
        (trainer_on(ft.load_data("iris", seed=1)), "the values or the split of the data differ"),
        (trainer_on(iris, accumulate=2, max_norm=1.0), "max_norm is None there, 1.0 here; accum"),
        (trainer_on(iris, objective=ft.Objective("classification", "mse")), "objective is"),
    ]
    for other, words in others:
        before = {name: param.copy() for name, param in other.model.params.items()}
        with pytest.raises(ValueError, match=words):
            other.resume(path)
        assert not other.history.epochs
        for name, param in before.items():
            np.testing.assert_array_equal(param, other.model.params[name])
    fo.save(path, extra=3)
    with pytest.raises(fo.CheckpointError, match="not one of a Trainer"):
        trainer.resume(path)


def test_within_an_epoch_nothing_is_saved(iris: ft.Data, tmp_path: Path) -> None:
    class Interrupt(ft.Callback):
        def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
            if len(trainer.history.epochs) == 2:
                raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    trainer = trainer_on(iris)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(5, [Interrupt(), ft.Checkpointer(path, every=2)])
    with pytest.raises(RuntimeError, match="only whole epochs"):
        trainer.save(path)
    assert trainer.resume(path) is None
    assert len(trainer.fit(3).epochs) == 3
    once = trainer_on(iris)
    once.fit(3)
    for name, param in once.model.params.items():
        np.testing.assert_array_equal(param, trainer.model.params[name])


def test_the_checkpointer_saves_when_it_should(iris: ft.Data, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    write_whole(path, lambda file: (tmp_path / f"{file.name}-left").write_text("half"))
    seen = []

    class Look(ft.Callback):
        def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
            seen.append(len(fo.load(path).extra["history"]["epochs"]))

    trainer = trainer_on(iris)
    trainer.fit(5, [ft.Checkpointer(path, every=2), Look()])
    assert seen == [0, 2, 2, 4, 4]
    assert len(fo.load(path).extra["history"]["epochs"]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    with pytest.raises(ValueError, match="every must be >= 1, not 0"):
        ft.Checkpointer(path, every=0)


class Recorder(ft.Callback):
    def __init__(self, stop_at: str = "") -> None:
        self.calls: list[str] = []
        self.stop_at = stop_at

    def _note(self, call: str, trainer: ft.Trainer) -> None:
        self.calls.append(call)
        if call == self.stop_at:
            trainer.stop("enough")

    def on_fit_begin(self, trainer: ft.Trainer) -> None:
        self._note("begin", trainer)

    def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
        assert loss > 0
        self._note(f"batch {samples}", trainer)

    def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
        assert trainer.history.epochs[-1] is epoch
        self._note(f"epoch {epoch.epoch}", trainer)

    def on_fit_end(self, trainer: ft.Trainer) -> None:
        self._note("end", trainer)


def test_callbacks_are_called_in_order(iris: ft.Data) -> None:
    recorder = Recorder()
    trainer_on(iris, batch_size=70).fit(2, [recorder])
    epoch = ["batch 70", "batch 50"]
    assert recorder.calls == ["begin", *epoch, "epoch 1", *epoch, "epoch 2", "end"]


@pytest.mark.parametrize("where", ["batch 70", "epoch 1"])
def test_a_callback_can_stop(iris: ft.Data, where: str) -> None:
    recorder = Recorder(stop_at=where)
    history = trainer_on(iris, batch_size=70).fit(5, [recorder])
    assert history.stop_reason == "enough"
    batches = ["batch 70"] if where == "batch 70" else ["batch 70", "batch 50"]
    assert recorder.calls == ["begin", *batches, "epoch 1", "end"]


def test_callbacks_end_when_one_raises(iris: ft.Data) -> None:
    class Bad(ft.Callback):
        def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
            raise RuntimeError("no")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="no"):
        trainer_on(iris).fit(2, [recorder, Bad()])
    assert recorder.calls[-1] == "end"


def test_divergence_ends_the_run_in_the_batch_where_it_is_seen(iris: ft.Data) -> None:
    model = ft.MLP([4, 8, 3])
    recorder = Recorder()
    recorder.on_batch_end = lambda *a: recorder.calls.append("batch")  # type: ignore[method-assign]
    trainer = ft.Trainer(model, iris, fo.SGD(model.params, lr=1e30), batch_size=10)
    history = trainer.fit(5, [recorder])
    assert history.diverged
    assert history.stop_reason == "the loss is not finite"
    assert "best" not in repr(history)
    assert ft.History.from_state_dict(history.state_dict()).diverged
    assert len(history.epochs) == 1
    assert recorder.calls.count("batch") < 12
    assert len(trainer.fit(9).epochs) == 1
    assert not np.isnan(history.best.epoch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, not 0"),
        ({"accumulate": 0}, "accumulate must be >= 1, not 0"),
        ({"max_norm": -1.0}, "max_norm must be >= 0, not -1.0"),
        ({"max_norm": float("nan")}, "max_norm must be >= 0, not nan"),
        (
            {"scheduler": fo.StepLR(fo.SGD([np.zeros(1)]), 1)},
            "scheduler belongs to another optimizer",
        ),
        ({"schedule_per": "day"}, "schedule_per must be 'epoch' or 'step', not 'day'"),
        ({"objective": ft.Objective("regression")}, "for regression, the data for classification"),
    ],
)
def test_trainers_that_cannot_be(iris: ft.Data, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer_on(iris, **options)


# -- callbacks -----------------------------------------------------------------------------------


def test_the_csv_log_is_whole_at_every_epoch(iris: ft.Data, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"

    class Look(ft.Callback):
        def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
            rows = list(csv.DictReader(path.read_text().splitlines()))
            assert [int(row["epoch"]) for row in rows] == list(range(1, epoch.epoch + 1))
            assert float(rows[-1]["val_loss"]) == epoch.val_loss

    trainer = trainer_on(iris)
    trainer.fit(2, [ft.CSVLogger(path), Look()])
    trainer.fit(4, [ft.CSVLogger(path), Look()])


def test_the_csv_log_stays_until_there_is_an_epoch_to_write(iris: ft.Data, tmp_path: Path) -> None:
    class Fail(ft.Callback):
        def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
            raise ValueError("at once")

    path = tmp_path / "log.csv"
    trainer_on(iris).fit(2, [ft.CSVLogger(path)])
    before = path.read_text()
    with pytest.raises(ValueError, match="at once"):
        trainer_on(iris).fit(2, [ft.CSVLogger(path), Fail()])
    assert path.read_text() == before
    trainer_on(iris).fit(1, [ft.CSVLogger(path)])
    assert len(path.read_text().splitlines()) == 2


def test_early_stopping_counts_from_the_lowest_loss(iris: ft.Data) -> None:
    def stopped_at(losses: list[float], **options: Any) -> int:
        trainer = trainer_on(iris)
        stopping = ft.EarlyStopping(**options)
        for number, loss in enumerate(losses, 1):
            trainer.history.epochs.append(an_epoch(number, 1.0, loss))
            stopping.on_epoch_end(trainer, trainer.history.epochs[-1])
            if trainer.history.stop_reason:
                return number
        return 0

    assert stopped_at([3, 2, 2, 2.5, 1, 1, 1, 1], patience=3) == 8
    assert stopped_at([3, 2, 2, 2], patience=2) == 4
    assert stopped_at([5, 4.95, 4.9, 4.85], patience=2, min_delta=0.2) == 3
    assert stopped_at([5, 4, 3, 2, 1], patience=1) == 0
    for options in ({"patience": 0}, {"min_delta": -1.0}, {"min_delta": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ft.EarlyStopping(**options)


def an_epoch(number: int, train_loss: float, val_loss: float) -> ft.Epoch:
    return ft.Epoch(number, train_loss, 0.5, val_loss, 0.5, 0.1, 1.0, 1.0, 1.0)


def epochs_of(train: Any, val: Any) -> list[ft.Epoch]:
    return [an_epoch(i, t, v) for i, (t, v) in enumerate(zip(train, val, strict=True), 1)]


def test_overfitting_is_found_where_the_held_out_loss_turns() -> None:
    rng = np.random.default_rng(10)
    time = np.linspace(0, 1, 60)
    found = []
    for _ in range(200):
        val = 0.3 + (time - 0.4) ** 2 + 0.01 * rng.standard_normal(60)
        overfitting = ft.find_overfitting(epochs_of(np.exp(-3 * time), val))
        found.append(0 if overfitting is None else overfitting.epoch)
    assert min(found) > 0
    assert np.abs(np.array(found) - 25).max() < 12


@pytest.mark.parametrize("noise", [0.001, 0.03, 0.2])
@pytest.mark.parametrize("shape", ["flat", "falling", "falling to a floor"])
def test_noise_is_not_taken_for_overfitting(noise: float, shape: str) -> None:
    rng = np.random.default_rng(11)
    time = np.linspace(0, 1, 60)
    level = {"flat": time * 0 + 1, "falling": 2 - time, "falling to a floor": 1 + np.exp(-9 * time)}
    alarms = 0
    for _ in range(300):
        val = level[shape] + noise * rng.standard_normal(60)
        alarms += ft.find_overfitting(epochs_of(np.exp(-3 * time), val)) is not None
    assert alarms <= 3


def test_what_is_not_overfitting() -> None:
    time = np.linspace(0, 1, 30)
    turning = 0.3 + (time - 0.4) ** 2
    assert ft.find_overfitting(epochs_of(1 - time, turning)) is not None
    assert ft.find_overfitting(epochs_of(turning, turning)) is None  # training rose too
    assert ft.find_overfitting(epochs_of(1 - time, turning)[:9]) is None  # too short to tell
    spiked = 1 - time / 2
    spiked[-1] = 5.0
    assert ft.find_overfitting(epochs_of(1 - time, spiked)) is None  # one odd epoch
    turning[3] = np.nan
    assert ft.find_overfitting(epochs_of(1 - time, turning)) is None
    text = str(ft.find_overfitting(epochs_of(1 - time, 0.3 + (time - 0.4) ** 2)))
    assert text.startswith("overfitting: the held-out loss was lowest around epoch 1")
    assert " (medians of 5 epochs), while" in text  # the table shows those of the last epoch


def test_a_loss_that_still_falls_is_told_from_one_that_does_not() -> None:
    time = np.linspace(0, 1, 60)
    noise = np.random.default_rng(12).standard_normal((300, 60))

    def shares(val: Any, size: float) -> float:
        return sum(ft.still_falls(epochs_of(val, val + size * z)) for z in noise) / len(noise)

    for epochs in (10, 30, 60):
        assert ft.still_falls(epochs_of(time[:epochs], np.exp(-time[:epochs] * 60 / epochs)))
    assert shares(np.exp(-2 * time), 0.01) > 0.9
    assert shares(time * 0 + 1, 0.2) < 0.05  # noise alone
    assert shares(np.exp(-20 * time) + 0.1, 0.001) == 0.0  # flat since the middle
    assert not ft.still_falls(epochs_of(time, np.exp(-20 * time)))  # close to 0
    assert not ft.still_falls(epochs_of(time, (time - 0.7) ** 2 + 0.1))  # it has turned
    assert not ft.still_falls(epochs_of(time, 1 - 0.05 * time))  # by less than 5 %
    assert not ft.still_falls(epochs_of(time[:9], 1 - time[:9]))  # too short to tell
    assert not ft.still_falls(epochs_of(time, np.full(60, np.nan)))


def test_tensorboard_files(iris: ft.Data, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    trainer_on(iris).fit(3, [ft.TensorBoardLogger(tmp_path)])
    (file,) = tmp_path.glob("events*")
    content = file.read_bytes()
    for tag in (b"loss/train", b"score/val", b"lr"):
        assert content.count(tag) == 3


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "tensorboard.summary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        ft.TensorBoardLogger("nowhere")


# -- configurations ------------------------------------------------------------------------------


def test_the_command_of_a_configuration_is_short_and_complete() -> None:
    assert ft.RunConfig().command() == "fastopt train"
    config = ft.RunConfig(
        data="my data.csv", task="regression", optimizer="momentum", lr=1e-4, hidden=(), seed=7
    )
    assert config.command() == (
        "fastopt train --data 'my data.csv' --task regression --optimizer momentum --lr 0.0001 "
        "--hidden none --seed 7"
    )


def test_an_optimizer_that_is_exported_is_a_choice() -> None:
    code = (
        "import fastopt as fo\n"
        "class Toy(fo.SGD):\n"
        "    def __init__(self, params, lr=0.25, momentum=0.5, weight_decay=0.0):\n"
        "        super().__init__(params, lr, momentum, weight_decay=weight_decay)\n"
        "fo.Toy = Toy\n"
        "from fastopt import train\n"
        "from fastopt.cli import axes, common\n"
        "assert train.OPTIMIZERS['toy'] == (Toy, 'Toy', 0.25, 0.0, 0.5)\n"
        "assert axes.CHOICES['optimizer'][-1] == 'toy'\n"
        "assert '0.25 toy' in common.by_optimizer('lr')\n"
        "bowl = train.experiments.LANDSCAPES['bowl']\n"
        "path = train.experiments.descend(bowl, 'toy', 0.01, 2)\n"
        "train.experiments.plot_paths(bowl, [path] * 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_none_means_the_default_of_the_optimizer_and_the_task() -> None:
    config = ft.RunConfig(optimizer="momentum")
    full = config.resolved("binary")
    assert (full.lr, full.weight_decay, full.momentum) == (0.02, 0.0, 0.9)
    assert (full.task, full.loss) == ("binary", "bce-with-logits")
    other = replace(config, optimizer="adamw").resolved()
    assert (other.lr, other.weight_decay, other.momentum) == (1e-3, 1e-2, None)
    assert other.loss is None


def test_a_configuration_builds_the_same_trainer_each_time(iris: ft.Data) -> None:
    config = ft.RunConfig(data="iris", schedule="cosine", warmup=5, max_norm=1.0, epochs=3)
    runs = [config.build(iris), config.build()]
    for trainer in runs:
        trainer.fit(config.epochs)
    for name, param in runs[0].model.params.items():
        np.testing.assert_array_equal(param, runs[1].model.params[name])
    assert runs[0].optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ft.SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_schedules_go_where_they_say(name: str, optimizer: str) -> None:
    params = {"w": np.zeros(3, np.float32)}
    opt = ft.OPTIMIZERS[optimizer].make(params, lr=0.5)
    scheduler = ft.make_scheduler(opt, name, epochs=9, steps_per_epoch=4)
    rates = []
    for step in range(36):
        rates.append(opt.param_groups[0]["lr"])
        opt.step({"w": np.ones(3, np.float32)})
        if isinstance(scheduler, fo.ReduceLROnPlateau):
            if step % 4 == 3:
                scheduler.step(1.0)
        elif scheduler is not None:
            scheduler.step()
    first, last = {
        "constant": (0.5, 0.5),
        "step": (0.5, 0.005),
        "exponential": (0.5, 0.005 * 100 ** (1 / 36)),
        "linear": (0.5, 0.5 / 36),
        "cosine": (0.5, 0.25 * (1 + np.cos(np.pi * 35 / 36))),
        "one-cycle": (0.02, 0.02 / 1e4),
        "plateau": (0.5, 0.5e-3),
    }[name]
    assert rates[0] == pytest.approx(first)
    assert rates[-1] == pytest.approx(last)
    assert max(rates) == pytest.approx(0.5, rel=1e-3)


def test_a_warm_up_comes_before_the_schedule() -> None:
    for name in ("constant", "step", "linear", "cosine", "exponential"):
        opt = fo.SGD([np.zeros(1)], lr=0.4)
        scheduler = ft.make_scheduler(opt, name, epochs=5, steps_per_epoch=4, warmup=3)
        assert scheduler is not None
        rates = []
        for _ in range(20):
            rates += scheduler.get_last_lr()
            scheduler.step()
        np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
        assert max(rates) == pytest.approx(0.4)
        assert rates[-1] < 0.4 or name == "constant"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr must be finite and >= 0, not -1.0"),
        ({"lr": float("inf")}, "lr must be finite and >= 0, not inf"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and >= 0, not nan"),
        ({"optimizer": "nosuch"}, "'rmsprop', 'adam' or 'adamw', not 'nosuch'"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum is for SGD and RMSprop, not adam"),
        ({"batch_size": 0}, "batch_size must be >= 1, not 0"),
        ({"epochs": 10**400}, "epochs must be an integer of 64 bits"),
        ({"lr": 10**400}, "lr must be within the range of float64, not 1000"),
        ({"epochs": 0}, "epochs must be >= 1, not 0"),
        ({"hidden": (4, 0)}, "hidden[1] must be >= 1, not 0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), not 1.0"),
        ({"max_norm": 0}, "max_norm must be finite and > 0, not 0"),
        ({"seed": 2**32}, "seed must be in [0, 2**32), not 4294967296"),
        ({"patience": 0}, "patience must be >= 1, not 0"),
        ({"accumulate": 0}, "accumulate must be >= 1, not 0"),
        ({"ema": 1.0}, "ema must be in [0, 1), not 1"),
        ({"warmup": -1}, "warmup must be >= 0, not -1"),
        ({"warmup": 5, "schedule": "one-cycle"}, "which has its own"),
        ({"warmup": 5, "schedule": "plateau"}, "which goes by epochs"),
        ({"schedule": "sawtooth"}, "schedule must be 'constant', 'step'"),
        ({"task": "binary", "loss": "cross-entropy"}, "for binary, not 'cross-entropy'"),
        ({"task": "regression", "label_smoothing": 0.1}, "not mse; it must be 0, not 0.1"),
        ({"loss": "hinge"}, "loss must be 'cross-entropy'"),
        ({"task": "ranking"}, "task must be 'classification', 'binary' or 'regression'"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ft.ConfigError, match=re.escape(words)) as caught:
        ft.RunConfig(**options)
    assert str(caught.value) == f"{caught.value.name} {caught.value.problem}"
    assert caught.value.name in options


@pytest.mark.parametrize(
    "options",
    [{"lr": "fast"}, {"epochs": 1.5}, {"batch_size": True}, {"hidden": "4"}, {"hidden": (1.5,)},
     {"data": 3}, {"seed": None}],
)  # fmt: skip
def test_configurations_of_other_types(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        ft.RunConfig(**options)


def test_what_only_the_data_can_tell(iris: ft.Data) -> None:
    with pytest.raises(ft.ConfigError, match="for classification, not 'bce'"):
        ft.RunConfig(loss="bce").build(iris)
    with pytest.raises(ft.ConfigError, match="must be less than the 2 steps of the run, not 2"):
        ft.RunConfig(warmup=2, epochs=1).build(iris)


# -- reports -------------------------------------------------------------------------------------


def test_class_scores_by_hand(iris: ft.Data) -> None:
    trainer = trainer_on(iris)
    trainer.fit(20)
    predicted = trainer.predict(iris.x_val).argmax(axis=1)
    for number, score in enumerate(ft.score_classes(trainer)):
        true, taken = iris.y_val == number, predicted == number
        both = np.sum(true & taken)
        assert (score.label, score.samples) == (iris.labels[number], true.sum())
        assert score.precision == pytest.approx(both / taken.sum())
        assert score.recall == pytest.approx(both / true.sum())
        assert score.f1 == pytest.approx(2 * both / (true.sum() + taken.sum()))


def test_the_error_of_a_regression_is_in_the_units_of_its_target() -> None:
    data = ft.load_data("diabetes")
    trainer = ft.RunConfig(data="diabetes").build(data)
    trainer.fit(3)
    true = data.in_units(data.y_val.astype(np.float32))
    assert 25 < true.min() < true.max() < 347  # what the data set's description says
    error = np.sqrt(np.mean((data.in_units(trainer.predict(data.x_val)) - true) ** 2))
    assert ft.root_mean_squared_error(trainer) == pytest.approx(error, rel=1e-6)


def test_a_report_that_cannot_be_written_leaves_nothing_half(
    iris: ft.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_on(iris)
    trainer.fit(1)
    (tmp_path / "run.json").write_text("kept")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        ft.write_report(tmp_path, trainer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "kept"


def test_the_report_of_another_task_does_not_stay(iris: ft.Data, tmp_path: Path) -> None:
    trainer = trainer_on(iris)
    trainer.fit(1)
    regression = ft.RunConfig(data="diabetes").build()
    regression.fit(1)
    (tmp_path / "mine.csv").write_text("kept")
    for run in (trainer, regression, trainer):
        paths = ft.write_report(tmp_path, run, {})
        assert sorted(tmp_path.iterdir()) == sorted([*paths, tmp_path / "mine.csv"])


def test_csv_of_rows() -> None:
    assert ft.to_csv([{"a": 1, "b": "x,y"}, {"a": None, "b": True}]) == 'a,b\n1,"x,y"\n,True\n'
    with pytest.raises(ValueError, match="rows must hold at least one row"):
        ft.to_csv([])


def test_json_without_nan() -> None:
    text = ft.to_json({"a": float("nan"), "b": [1, float("inf")], "c": {"d": (0.5,)}})
    assert json.loads(text) == {"a": None, "b": [1, None], "c": {"d": [0.5]}}


def test_examples_in_docstrings() -> None:
    examples = 0
    for info in pkgutil.iter_modules(ft.__path__, "fastopt.train."):
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
        examples += result.attempted
    assert examples > 30


# What is resumed


def all_of(trainer: ft.Trainer) -> Any:
    """Return everything that a trainer restores, in a form that can be compared."""
    states = [trainer.optimizer.state_dict(), trainer.history.state_dict(), trainer.model.rng_state]
    if trainer.scheduler is not None:
        states.append(trainer.scheduler.state_dict())
    if trainer.ema is not None:
        states.append(trainer.ema.state_dict())
    # repr: NaN equals NaN, and the arrays are small
    return repr([trainer.model.params, *states, trainer._order.bit_generator.state])


@pytest.fixture
def saved_run(tmp_path: Path, iris: ft.Data) -> tuple[Path, ft.Trainer]:
    """Return the file of a run after one epoch, and the trainer after two."""
    config = ft.RunConfig(
        data="iris", epochs=4, hidden=(3,), ema=0.9, schedule="cosine", batch_size=60
    )
    trainer = config.build(iris)
    trainer.fit(1)
    trainer.save(tmp_path / "a", extra={"mine": 1})
    trainer.fit(2)
    return tmp_path / "a", trainer


def rewritten(source: bytes, edit: Any) -> bytes:
    """Return a checkpoint with another document and its right hash."""
    size = int.from_bytes(source[:8], "little")
    header = json.loads(source[8 : 8 + size])
    document = json.loads(header["__metadata__"]["fastopt"].split(" ", 2)[2])
    edit(document["content"]["extra"])
    text = json.dumps(document)
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"]["fastopt"] = f"2 {digest} {text}"
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + source[8 + size :]


RESUME_JUNK: list[Any] = [None, -1, 10**400, "x", [[]], {"a": 1}]


def test_any_node_of_what_a_trainer_saves_may_be_anything(
    saved_run: tuple[Path, ft.Trainer],
) -> None:
    path, trainer = saved_run
    whole, before, history = path.read_bytes(), all_of(trainer), trainer.history
    nodes: list[tuple[Any, ...]] = []

    def find(value: Any, way: tuple[Any, ...] = ()) -> None:
        nodes.append(way)
        if isinstance(value, (dict, list)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                find(item, (*way, key))

    rewritten(whole, find)
    for way in nodes[1:]:
        for junk in RESUME_JUNK:

            def put(extra: Any, way: tuple[Any, ...] = way, junk: Any = junk) -> None:
                for key in way[:-1]:
                    extra = extra[key]
                extra[way[-1]] = junk

            path.write_bytes(rewritten(whole, put))
            try:
                trainer.resume(path)
            except (KeyError, TypeError, ValueError):  # CheckpointError is a ValueError
                assert all_of(trainer) == before, (way, junk)
            else:
                trainer.fit(2)  # the loaded state works
                path.write_bytes(whole)
                trainer.resume(path)
                trainer.fit(2)
                before = all_of(trainer)
            assert trainer.history is history
    assert trainer.resume(path) == {"mine": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("what", ["optimizer", "scheduler", "ema"])
def test_whatever_is_raised_a_trainer_is_the_old_one_or_the_new_one(
    what: str,
    error: type[BaseException],
    saved_run: tuple[Path, ft.Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, trainer = saved_run
    before = all_of(trainer)
    item = getattr(trainer, what)
    load, calls = item.load_state_dict, 0

    def loads_and_raises(state_dict: Any) -> None:
        nonlocal calls
        load(state_dict)
        calls += 1
        if calls == 1:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(item, "load_state_dict", loads_and_raises)
        with pytest.raises(error):
            trainer.resume(path)
    assert all_of(trainer) == before
    trainer.resume(path)
    assert len(trainer.history.epochs) == 1
    assert trainer.fit(2).epochs[0].epoch == 1
