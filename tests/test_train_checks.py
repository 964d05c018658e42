"""The arguments of trainers, models and configurations, diverged runs, and interrupts."""

from __future__ import annotations

import dis
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

import fastopt as fo

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft
from fastopt.train import checks, loop

raw: Any = ft  # for arguments that mypy refuses

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3)).astype(np.float32)
CLASSES = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)


def data_of(task: ft.Task = "classification") -> ft.Data:
    y: Any = {
        "classification": CLASSES,
        "binary": (X[:, :1] > 0).astype(np.float32),
        "regression": X[:, :1] + X[:, 1:2] ** 2,
    }[task]
    labels = {"classification": "abc", "binary": "ab", "regression": ""}[task]
    return ft.Data("d", task, X[:30], y[:30], X[30:], y[30:], tuple(labels))


def trainer_of(data: ft.Data | None = None, **options: Any) -> ft.Trainer:
    data = data or data_of()
    model = ft.MLP([data.features, 4, data.outputs])
    return ft.Trainer(model, data, fo.SGD(model.params, lr=0.1), **options)


# -- the arrays that are trained -------------------------------------------------------------------


def test_an_optimizer_of_another_model_is_refused() -> None:
    ours, theirs = ft.MLP([3, 4, 3]), ft.MLP([3, 4, 3])
    with pytest.raises(ValueError, match="optimizer holds arrays that are not the model's"):
        ft.Trainer(ours, data_of(), fo.AdamW(theirs.params))
    copies = {name: param.copy() for name, param in ours.params.items()}
    with pytest.raises(ValueError, match=r"make the optimizer of all of model.params, by name"):
        ft.Trainer(ours, data_of(), fo.AdamW(copies))
    with pytest.raises(ValueError, match="ema holds arrays that are not the model's"):
        ft.Trainer(ours, data_of(), fo.SGD(ours.params), ema=fo.WeightEMA(theirs.params))
    mixed = ours.params | {"1.bias": theirs.params["1.bias"]}
    with pytest.raises(ValueError, match=r"that are not the model's for '1.bias';"):
        ft.Trainer(ours, data_of(), fo.SGD(mixed))


def test_every_parameter_needs_an_optimizer() -> None:
    model = ft.MLP([3, 4, 3])
    part = {name: param for name, param in model.params.items() if name.startswith("1")}
    with pytest.raises(ValueError, match=r"optimizer does not hold '0.bias', '0.weight';"):
        ft.Trainer(model, data_of(), fo.SGD(part))
    with pytest.raises(ValueError, match=r"ema does not hold '0.bias', '0.weight';"):
        ft.Trainer(model, data_of(), fo.SGD(model.params), ema=fo.WeightEMA(part))
    with pytest.raises(ValueError, match="optimizer does not hold"):
        ft.Trainer(model, data_of(), fo.SGD(list(model.params.values())))
    with pytest.raises(ValueError, match="the model has no 'more'"):
        ft.Trainer(model, data_of(), fo.SGD(model.params | {"more": np.zeros(2)}))


def test_groups_and_views_of_the_same_memory_are_the_models() -> None:
    model = ft.MLP([3, 4, 3])
    views = {name: param[:] for name, param in model.params.items()}
    groups = fo.decay_groups(views, 0.01)
    trainer = ft.Trainer(model, data_of(), fo.AdamW(groups), ema=fo.WeightEMA(views))
    before = model.params["0.weight"].copy()
    trainer.fit(1)
    assert not np.array_equal(before, model.params["0.weight"])
    reference = fo.reference.SGD(model.params, lr=0.1)
    assert len(raw.Trainer(model, data_of(), reference).fit(1).epochs) == 1


def test_parameters_that_were_replaced_are_noticed_by_the_next_fit() -> None:
    trainer = trainer_of()
    trainer.fit(1)
    trainer.model.params["0.bias"] = trainer.model.params["0.bias"].copy()
    with pytest.raises(ValueError, match=r"that are not the model's for '0.bias';"):
        trainer.fit(2)
    assert len(trainer.history.epochs) == 1


class WrongOutputs(ft.MLP):
    def forward(self, x: Any, *, training: bool = False) -> Any:
        return super().forward(x, training=training).tolist()


MODELS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ft.MLP([5, 3]), ValueError,
     "the model does not take the data's 3 features: x must have shape (N, 5), not (1, 3)"),
    (lambda: ft.MLP([3, 4]), ValueError, "outputs of shape (1, 4), but classification with these"),
    (lambda: WrongOutputs([3, 3]), TypeError, "the model's forward must return an array, not [["),
    (lambda: {"w": X}, TypeError, "model must have params (a dict of arrays), forward and"),
    (lambda: None, TypeError, "model must have params"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "words"), MODELS)
def test_models_that_do_not_fit_the_data(make: Any, error: Any, words: str) -> None:
    model = make()
    params = getattr(model, "params", {"w": X})
    with pytest.raises(error, match=re.escape(words)):
        ft.Trainer(model, data_of(), fo.SGD(params))


# -- numbers and kinds -----------------------------------------------------------------------------

TRAINER: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, not 2.5"),
    ({"batch_size": float("nan")}, TypeError, "batch_size must be an integer, not nan"),
    ({"batch_size": "8"}, TypeError, "batch_size must be an integer, not '8'"),
    ({"batch_size": True}, TypeError, "batch_size must be an integer, not True"),
    ({"batch_size": np.zeros((9, 9))}, TypeError, "not an array of shape (9, 9) and dtype float64"),
    ({"batch_size": -1}, ValueError, "batch_size must be >= 1, not -1"),
    ({"accumulate": 0}, ValueError, "accumulate must be >= 1, not 0"),
    ({"accumulate": 1.0}, TypeError, "accumulate must be an integer, not 1.0"),
    ({"seed": -1}, ValueError, "seed must be >= 0, not -1"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, not 0.5"),
    ({"seed": [1, -1]}, ValueError, "seed[1] must be >= 0, not -1"),
    ({"max_norm": "1.0"}, TypeError, "max_norm must be a number, not '1.0'"),
    ({"max_norm": X}, TypeError, "max_norm must be a number, not an array of shape (40, 3)"),
    ({"track_norm": "no"}, TypeError, "track_norm must be True or False, not 'no'"),
    ({"schedule_per": 3}, TypeError, "schedule_per must be 'epoch' or 'step', not 3"),
    ({"scheduler": 3}, ValueError, "scheduler belongs to another optimizer"),
    ({"objective": "mse"}, TypeError, "objective must be an Objective, not 'mse'"),
    ({"ema": 0.9}, TypeError, "ema must be a WeightEMA, not 0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "words"), TRAINER)
def test_options_of_the_wrong_kind(options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        trainer_of(**options)


def test_arguments_of_the_wrong_kind() -> None:
    trainer: Any = trainer_of()
    model = trainer.model
    calls: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: raw.Trainer(model, X, trainer.optimizer), TypeError, "data must be a Data, not"),
        (lambda: raw.Trainer(model, data_of(), 3), TypeError, "optimizer must be one of fastopt's"),
        (lambda: trainer.fit(1.5), TypeError, "epochs must be an integer, not 1.5"),
        (lambda: trainer.fit(-1), ValueError, "epochs must be >= 0, not -1"),
        (lambda: trainer.fit("3"), TypeError, "epochs must be an integer, not '3'"),
        (lambda: trainer.fit(1, raw.EarlyStopping()), TypeError, "callbacks must be a list of"),
        (lambda: trainer.fit(1, [ft.EarlyStopping]), TypeError, "objects of type Callback"),
        (lambda: raw.RunConfig().build(X), TypeError, "data must be a Data, not an array of shape"),
        (lambda: raw.RunConfig().resolved("x"), ValueError, "task must be 'classification'"),
        (lambda: raw.MLP(3), TypeError, "sizes must be a sequence, not 3"),
        (lambda: raw.MLP("345"), TypeError, "sizes must be a sequence, not '345'"),
        (lambda: raw.MLP([3, 2.5]), TypeError, "sizes[1] must be an integer, not 2.5"),
        (lambda: raw.MLP([3, 2], "0.1"), TypeError, "dropout must be a number, not '0.1'"),
        (lambda: raw.MLP([3, 2], float("nan")), ValueError, "dropout must be in [0, 1), not nan"),
        (lambda: raw.MLP([3, 2], activation=None), TypeError, "must be 'relu', 'gelu', "),
        (lambda: raw.MLP([3, 2], activation="elu"), ValueError, "'tanh' or 'sigmoid', not 'elu'"),
        (lambda: raw.MLP([3, 2], seed=None), TypeError, "seed must be an integer, not None"),
        (lambda: raw.EarlyStopping(1.5), TypeError, "patience must be an integer, not 1.5"),
        (lambda: raw.EarlyStopping(1, "0"), TypeError, "min_delta must be a number, not '0'"),
        (lambda: raw.Checkpointer("a", 1.5), TypeError, "every must be an integer, not 1.5"),
        (lambda: raw.Checkpointer(3), TypeError, "path must be a string or a pathlib.Path, not 3"),
        (lambda: raw.CSVLogger(None), TypeError, "path must be a string or a pathlib.Path"),
        (lambda: raw.find_overfitting([], -1), ValueError, "rise must be finite and >= 0, not -1"),
        (lambda: raw.Objective(3), TypeError, "task must be 'classification', 'binary'"),
        (lambda: raw.Objective("binary", ["mse"]), TypeError, "loss must be a string, not ['mse']"),
        (lambda: ft.load_data("iris", seed=-1), ValueError, "seed must be in [0, 2**32), not -1"),
        (lambda: raw.check_folder(3), TypeError, "folder must be a string or a pathlib"),
        (lambda: ft.write_report("/nowhere/at/all", trainer, {}), FileNotFoundError, "'/nowh"),
        (lambda: ft.write_report(".", trainer, {}), ValueError, "before the first epoch"),
        (lambda: trainer.history.best, ValueError, "before the first one"),
    ]  # fmt: skip
    for call, error, words in calls:
        with pytest.raises(error, match=re.escape(words)):
            call()


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2), np.array(2), 2])
def test_whole_numbers_of_numpy(number: Any) -> None:
    fields = ("batch_size", "epochs", "warmup", "accumulate", "patience", "seed")
    config = raw.RunConfig(**dict.fromkeys(fields, number), hidden=(number, 3))
    for name in fields:
        assert type(getattr(config, name)) is int
    assert config == raw.RunConfig(**dict.fromkeys(fields, 2), hidden=(2, 3))
    assert json.loads(json.dumps(config.hidden)) == [2, 3]
    data = data_of()
    trainer = trainer_of(data, batch_size=number, accumulate=number, seed=number)
    assert len(trainer.fit(number, [raw.EarlyStopping(number)]).epochs) == 2
    assert repr(raw.MLP([number, number], seed=number)) == "MLP(2-2, dropout=0.0)"


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.array, float])
def test_numbers_of_numpy(kind: Any) -> None:
    fields = ("lr", "weight_decay", "max_norm", "ema", "dropout", "label_smoothing")
    config = raw.RunConfig(**dict.fromkeys(fields, kind(0.5)))
    for name in fields:
        assert type(getattr(config, name)) is float
    assert config == raw.RunConfig(**dict.fromkeys(fields, 0.5))
    assert config.command() == raw.RunConfig(**dict.fromkeys(fields, 0.5)).command()
    assert raw.RunConfig(hidden=np.array([8, 4])).hidden == (8, 4)
    assert raw.RunConfig(data=np.str_("iris"), optimizer=np.str_("sgd")).command() == (
        "fastopt train --data iris --optimizer sgd"
    )


@pytest.mark.parametrize("name", ["epochs", "seed", "lr", "dropout", "hidden", "data", "optimizer"])
@pytest.mark.parametrize("value", [np.bool_(True), True, {}, X, 1j, b"8", object()])
def test_other_kinds_in_a_configuration(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must ") as caught:
        raw.RunConfig(**{name: value})
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize("number", [2**63, 10**400, 10**5000], ids=["63", "400", "5000"])
def test_numbers_without_end(number: int) -> None:
    for name in ("epochs", "batch_size", "warmup", "accumulate", "patience", "seed"):
        with pytest.raises(ft.ConfigError, match=f"^{name} must be ") as caught:
            raw.RunConfig(**{name: number})
        assert len(str(caught.value)) < 160
    if number > 2**63:
        with pytest.raises(ft.ConfigError, match=r"^lr must be within the range of float64"):
            raw.RunConfig(lr=number)
    trainer = trainer_of(batch_size=number, accumulate=number)  # more than there are
    history = trainer.fit(number, [raw.EarlyStopping(number), StopAfter(2)])
    assert len(history.epochs) == 2


class StopAfter(ft.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
        if epoch.epoch == self.epochs:
            trainer.stop("enough")


# -- runs that diverge -----------------------------------------------------------------------------

DIVERGING = [(task, loss) for task, losses in ft.LOSSES.items() for loss in losses]


@pytest.mark.parametrize(("task", "loss"), DIVERGING)
def test_a_run_that_diverges_is_reported_whatever_warnings_do(
    task: ft.Task, loss: str, tmp_path: Path
) -> None:
    model = ft.MLP([3, 8, 3 if task == "classification" else 1])
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        trainer = ft.Trainer(
            model, data_of(task), fo.SGD(model.params, lr=1e36), ft.Objective(task, loss),
            batch_size=10, ema=fo.WeightEMA(model.params), track_norm=True,
        )  # fmt: skip
        history = trainer.fit(3, [ft.EarlyStopping(2), ft.CSVLogger(tmp_path / "log.csv")])
        paths = []
        if loss == ft.LOSSES[task][0]:  # once for each task: pictures take a second
            paths = ft.write_report(tmp_path, trainer, {"title": "a"})
        assert np.isnan(trainer.evaluate()[1])
        assert ft.find_overfitting(history.epochs) is None
        if task == "regression":
            assert not np.isfinite(ft.root_mean_squared_error(trainer))
        else:
            assert all(np.isnan(score.precision) for score in ft.score_classes(trainer))
            assert not ft.find_confusions(trainer)
    assert history.diverged
    assert "score" not in repr(history)
    assert np.isnan(history.best.val_score)  # no share of samples that happen to be of one class
    if not paths:
        return
    assert len(paths) == (4 if task == "regression" else 5)
    results = json.loads((tmp_path / "run.json").read_text())["results"]
    assert results["diverged"]
    assert results["best"] is None


@pytest.mark.parametrize("task", ["classification", "binary", "regression"])
def test_strict_error_states_change_no_bit(task: ft.Task) -> None:
    runs = []
    for state in ("warn", "raise"):
        with np.errstate(all=state):
            trainer = trainer_of(data_of(task), batch_size=10)
            # Underflow is not an error: products of tiny inputs and weights.
            for param in trainer.model.params.values():
                param *= 1e-20
            runs.append(trainer.fit(2).epochs[-1])
    assert runs[0].val_loss == runs[1].val_loss
    assert runs[0].train_score == runs[1].train_score


def test_an_epoch_before_the_divergence_stays_the_best() -> None:
    history = ft.History(
        [
            ft.Epoch(1, 0.5, 0.4, 0.5, 0.4, 0.1, 1.0, 1.0, 1.0),
            ft.Epoch(2, np.nan, np.nan, np.nan, np.nan, 0.1, 1.0, 1.0, 1.0),
        ]
    )
    assert history.best.epoch == 1
    assert history.diverged


def test_targets_that_are_all_equal_have_no_r2() -> None:
    ones = np.ones((5, 1), np.float32)
    with np.errstate(all="raise"):
        assert np.isnan(ft.Objective("regression").score(ones * 0.5, ones))
        # In float32 the squares would be infinite.
        score = ft.Objective("regression").score(X[:, :1] * np.float32(1e30), X[:, :1])
    assert score == pytest.approx(-1e60 * np.sum(X[:, 0].astype(float) ** 2) /
                                  (len(X) * np.var(X[:, 0], dtype=float)), rel=1e-6)  # fmt: skip


def test_outputs_of_nan_mean_no_class() -> None:
    outputs = np.array([[np.nan, 1, 2], [0, np.nan, 1], [0, 1, 2], [np.inf, 0, 1]], np.float32)
    objective = ft.Objective("classification")
    assert objective.predicted(outputs).tolist() == [-1, -1, 2, 0]
    assert objective.points(outputs, np.array([0, 1, 2, 0])) == 2
    assert objective.backward_(outputs[:3].copy(), np.array([0, 1, 2]))[1] == 1
    binary = np.array([[np.nan], [1.0], [-1.0]], np.float32)
    assert ft.Objective("binary").predicted(binary).tolist() == [-1, 1, 0]


# -- interrupts ------------------------------------------------------------------------------------


@cache
def _places(code: CodeType) -> frozenset[int]:
    """Return where Python handles signals: after calls, at jumps back and at the start."""
    places, before = set(), ""
    for instruction in dis.get_instructions(code):
        if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")):
            places.add(instruction.offset)
        if instruction.opname != "CACHE":
            before = instruction.opname
    return frozenset(places)


class _Interrupt:
    """Raises at one place of the training loop or of the context managers around it."""

    def __init__(self, place: int, error: type[BaseException]) -> None:
        self.place, self.error, self.seen = place, error, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.endswith(("train/loop.py", "train/checks.py", "contextlib.py", "ctl.py")):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._at

    def _at(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            self.seen += 1
            if self.seen == self.place:
                raise self.error
        return self._at


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_anywhere_in_fit_leaves_a_trainer_to_go_on_with(
    error: type[BaseException],
) -> None:
    data = data_of()
    blas = loop._blas().lib_controllers
    threads, states = [library.num_threads for library in blas], np.geterr()
    place = 1 if error is KeyboardInterrupt else 2
    while True:
        model = ft.MLP([3, 4, 3])
        optimizer = fo.SGD(model.params, lr=0.1, momentum=0.9)
        schedule = fo.OneCycleLR(optimizer, 0.1, total_steps=9)  # has not a step too many
        trainer = ft.Trainer(
            model, data, optimizer, batch_size=10, scheduler=schedule, schedule_per="step"
        )
        trainer.fit(1)
        interrupt = _Interrupt(place, error)
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            trainer.fit(2, [ft.EarlyStopping(9)])
        except error:
            pass
        finally:
            sys.settrace(before)
        if interrupt.seen < place:
            break
        assert [library.num_threads for library in blas] == threads, place
        assert np.geterr() == states, place
        epochs = len(trainer.history.epochs)
        if not trainer.within_epoch:  # the record equals the work that was done
            assert optimizer.state["0.weight"]["step"] == 3 * epochs, place
            assert schedule.last_epoch == 3 * epochs, place
        assert [e.epoch for e in trainer.fit(3).epochs] == [1, 2, 3], place
        assert schedule.last_epoch == 9, place
        assert not trainer.within_epoch, place
        place += 5  # a share of the places is enough: each fault spans several of them
    assert place > 50


def test_trainers_in_two_threads_give_blas_its_threads_back() -> None:
    blas = loop._blas().lib_controllers
    threads = [library.num_threads for library in blas]
    first, second = loop._one_blas_thread(), loop._one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert {library.num_threads for library in blas} <= {1}
    second.__exit__(None, None, None)
    assert [library.num_threads for library in blas] == threads


def test_a_small_product_runs_on_one_thread_of_blas() -> None:
    blas = loop._blas().lib_controllers
    threads = [library.num_threads for library in blas]
    seen: list[set[int]] = []

    def forward(x: Any) -> Any:
        seen.append({library.num_threads for library in blas})
        return x

    x = np.zeros((300, 2), np.float32)
    for size in (10_000, 20_000):
        loop.in_parts(forward, x, 2, {"0.weight": np.zeros((1, size), np.float32)})
    assert seen[0] | seen[1] <= {1}
    assert seen[2:] == [set(threads)] * 2
    assert [library.num_threads for library in blas] == threads


def test_an_epoch_that_is_taken_anew_has_the_same_order_and_rates() -> None:
    class Interrupt(ft.Callback):
        def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
            raise KeyboardInterrupt

    def build() -> ft.Trainer:
        config = ft.RunConfig(batch_size=10, hidden=(), dropout=0, lr=0.0, schedule="cosine",
                              epochs=3)  # fmt: skip
        return config.build(data_of())

    whole, cut = build(), build()
    whole.fit(3)
    cut.fit(1)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(3, [Interrupt()])
    assert cut.within_epoch
    own = ft.loop._Progress(cut, "x").state_dict()  # `save` refuses it
    with pytest.raises(fo.CheckpointError, match="x was saved within an epoch"):
        ft.loop._Progress(build(), "x").load_state_dict(own)
    cut.fit(3)
    for ours, theirs in zip(cut.history.epochs, whole.history.epochs, strict=True):
        assert (ours.lr, ours.train_loss, ours.epoch) == (
            theirs.lr,
            theirs.train_loss,
            theirs.epoch,
        )
    order = [trainer._order.bit_generator.state for trainer in (cut, whole)]
    assert order[0] == order[1]


def test_a_report_that_is_interrupted_leaves_no_half_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of()
    trainer.fit(1)
    calls = []

    def interrupted(self: Path, content: bytes) -> int:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        with self.open("wb") as file:
            return file.write(content)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ft.write_report(tmp_path, trainer, {})
    assert not list(tmp_path.iterdir())
    paths = ft.write_report(str(tmp_path), trainer, {"threads": np.int64(2)})
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert json.loads((tmp_path / "run.json").read_text())["threads"] == 2


# -- what is shown ---------------------------------------------------------------------------------


def test_reprs_are_short() -> None:
    trainer = trainer_of(batch_size=10)
    assert repr(trainer.history) == "History(0 epochs)"
    trainer.fit(1, [ft.EarlyStopping(1)])
    assert re.fullmatch(
        r"History\(1 epoch, final held-out loss [\d.]+, best held-out score [\d.]+ in epoch 1\)",
        repr(trainer.history),
    )
    assert repr(trainer) == (
        f"Trainer(MLP(3-4-3, dropout=0.0), {trainer.data!r}, SGD, "
        "Objective('classification', 'cross-entropy'), batch_size=10, 1 epoch so far)"
    )
    assert repr(ft.EarlyStopping(3)) == "EarlyStopping(patience=3, min_delta=0.0)"
    assert repr(ft.Checkpointer("a", 2)) == "Checkpointer('a', every=2)"
    assert repr(ft.CSVLogger("a.csv")) == "CSVLogger('a.csv')"
    assert repr(ft.RunConfig()) == "RunConfig()"
    config = ft.RunConfig(data="iris", hidden=(), lr=0.5)
    assert repr(config) == "RunConfig(data='iris', lr=0.5, hidden=())"
    assert eval(repr(config), {"RunConfig": ft.RunConfig}) == config


def test_one_is_not_counted_as_many() -> None:
    trainer = trainer_of()
    trainer.fit(9, [ft.EarlyStopping(patience=1, min_delta=1e9)])
    assert trainer.history.stop_reason == "the held-out loss has not fallen for 1 epoch"
    with pytest.raises(ft.ConfigError, match="less than the 1 step of the run, not 1"):
        ft.RunConfig(warmup=1, epochs=1).build(data_of())


WITHOUT = """
import sys
sys.modules[{module!r}] = None
import fastopt as fo
try:
    {statement}
except ModuleNotFoundError as error:
    print(error, error.name)
"""
MISSING = [
    ("threadpoolctl", "import fastopt.train", "fastopt.train"),
    ("threadpoolctl", "fo.train", "fastopt.train"),
    ("threadpoolctl", "import fastopt.train.experiments", "fastopt.train"),
    ("sklearn", "fo.train.load_data('iris')", "load_data"),
    ("matplotlib", "fo.train.plot_confusion([0], [0], None)", "plot_confusion"),
    ("matplotlib", "fo.train.plot_history(None, None)", "plot_history"),
]


@pytest.mark.parametrize(("module", "statement", "what"), MISSING)
def test_a_missing_extra_is_named(module: str, statement: str, what: str) -> None:
    code = WITHOUT.format(module=module, statement=statement)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name = "scikit-learn" if module == "sklearn" else module
    expected = f"{what} needs {name}; install it with: pip install 'fastopt[train]' {module}"
    assert run.stdout.strip() == expected


def test_train_is_an_attribute_that_is_imported_when_used() -> None:
    code = (
        "import sys, fastopt as fo\n"
        "assert 'fastopt.train' not in sys.modules\n"
        "assert fo.train.MLP([2, 2]) and fo.train.experiments.Space\n"
        "assert not hasattr(fo, 'tarin')\n"
        "assert 'matplotlib' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ({"a"}, TypeError, "labels must be a sequence of strings, not "),
        ({"a": 0, "b": 1}, TypeError, "labels must be a sequence of strings, not "),
        (b"ab", TypeError, "labels must be a sequence of strings, not b'ab'"),
        ([b"a", b"b"], TypeError, "labels must hold strings or numbers, not b'a'"),
        (np.array([b"a", b"b"]), TypeError, "labels must hold strings or numbers, not "),
        (["a", None], TypeError, "labels must hold strings or numbers, not None"),
        (["a", "a"], ValueError, "labels must be different, but 'a' appears twice"),
        ([1, "1"], ValueError, "labels must be different, but '1' appears twice"),
    ],
    ids=repr,
)
def test_labels_that_are_refused(labels: Any, error: type[Exception], text: str) -> None:
    x, y = np.zeros((2, 1), np.float32), np.array([0, 1])
    with pytest.raises(error, match=re.escape(text)):
        ft.Data("name", "classification", x, y, x, y, labels)
    numbers: Any = np.array([3, 4])
    assert ft.Data("name", "classification", x, y, x, y, numbers).labels == ("3", "4")


def test_an_objective_refuses_what_has_no_score_by_name() -> None:
    none, y = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    objective = ft.Objective("classification")
    for call in (objective.value, objective.value_and_grad, objective.points, objective.score):
        with pytest.raises(ValueError, match=r"outputs must hold samples, not shape \(0, 3\)"):
            call(none, y)
    for task in ft.TASKS:
        with pytest.raises(ValueError, match="targets must hold samples"):
            ft.Objective(task).score_of(0, y)
    refused: dict[ft.Task, list[tuple[int, ...]]] = {
        "classification": [(3, 0), (3,), ()],
        "binary": [(3, 2), (3,), ()],
    }
    for task, shapes in refused.items():
        for shape in shapes:
            with pytest.raises(
                ValueError, match=r"outputs must have shape \(N, (1|classes)\), not"
            ):
                ft.Objective(task).predicted(np.zeros(shape, np.float32))
    strange: list[Any] = [np.array([0, 1]), "0.1", None]
    for smoothing in strange:
        with pytest.raises(TypeError, match="label_smoothing"):
            ft.Objective("classification", label_smoothing=smoothing)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], not 2"):
        ft.Objective("regression", label_smoothing=2)


def test_a_refused_number_or_array_is_shown_with_what_is_taken() -> None:
    with pytest.raises(ft.ConfigError, match="epochs must be an integer of 64 bits, not 10000"):
        ft.RunConfig(epochs=10**30)
    with pytest.raises(TypeError, match="x must be an array of numbers, not None"):
        checks.plain_array("x", None, "numbers")
    with pytest.raises(TypeError, match=r"x must be an array of numbers, not \[10000"):
        checks.plain_array("x", [10**30], "numbers")
