"""The pieces of `fastopt.train.experiments`: spaces, runs, processes, the journal, pictures."""

from __future__ import annotations

import doctest
import errno
import fcntl
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("threadpoolctl")

from fastopt import train as ft
from fastopt.train import experiments as fx

IRIS = ft.RunConfig(data="iris", epochs=3, hidden=(8,))
DIABETES = ft.RunConfig(data="diabetes", epochs=6, hidden=(8,), optimizer="sgd")


@pytest.fixture(scope="module")
def iris() -> ft.Data:
    return IRIS.load()


def figures(run: fx.Run) -> list[tuple[Any, ...]]:
    """Return the parts that do not depend on the clock."""
    return [
        (e.train_loss, e.train_score, e.val_loss, e.val_score, e.lr) for e in run.history.epochs
    ]


@pytest.fixture
def leave_no_process() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def test_examples_in_docstrings() -> None:
    for info in pkgutil.iter_modules(fx.__path__, "fastopt.train.experiments."):
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name


def test_public_names_have_docstrings() -> None:
    for name in fx.__all__:
        item = getattr(fx, name)
        if callable(item):
            assert item.__doc__, name


# Spaces


def test_a_grid_is_every_combination() -> None:
    space = fx.Space(IRIS, {"optimizer": ["sgd", "adam"], "lr": [0.1, 0.01], "batch_size": [8]})
    assert not space.random
    chosen = [(c.optimizer, c.lr, c.batch_size) for c in space.configs()]
    assert chosen == [(o, lr, 8) for o in ("sgd", "adam") for lr in (0.1, 0.01)]
    assert all(
        replace(c, optimizer="adamw", lr=None, batch_size=64) == IRIS for c in space.configs()
    )


@pytest.mark.parametrize(
    "axes",
    [
        {"lr": [0.1, 0.01, 0.001], "batch_size": [8, 16, 32, 64]},
        {"lr": fx.Range(1e-4, 1e-1, log=True), "optimizer": ["sgd", "adam"]},
    ],
)
def test_more_trials_begin_with_the_same_draws(axes: dict[str, Any]) -> None:
    few, many = (fx.Space(IRIS, axes, trials).configs() for trials in (4, 9))
    assert many[:4] == few
    assert len(set(many)) == 9
    other = fx.Space(replace(IRIS, seed=1), axes, 9).configs()
    assert [replace(c, seed=0) for c in other] != many
    assert fx.Space(IRIS, axes, 9).configs() == many


def test_draws_from_ranges() -> None:
    axes = {
        "lr": fx.Range(1e-4, 1e-1, log=True),
        "batch_size": fx.Range(8, 128, log=True),
        "dropout": fx.Range(0.0, 0.5),
    }
    configs = fx.Space(IRIS, axes, 300).configs()
    rates = np.array([c.lr for c in configs], np.float64)
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-1
    # A third is in each decade, within four standard deviations.
    counts, _ = np.histogram(np.log10(rates), [-4, -3, -2, -1])
    assert np.all(abs(counts - 100) < 4 * np.sqrt(300 * 2 / 9))
    assert all(type(c.batch_size) is int and 8 <= c.batch_size <= 128 for c in configs)
    assert np.mean([c.dropout for c in configs]) == pytest.approx(0.25, abs=0.04)
    assert all(c.lr == float(f"{c.lr:.4g}") for c in configs)
    assert len(fx.Space(IRIS, axes).configs()) == 20


def test_a_small_range_of_whole_numbers_ends() -> None:
    space = fx.Space(IRIS, {"batch_size": fx.Range(8, 11)}, trials=50)
    assert sorted(c.batch_size for c in space.configs()) == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("axes", "trials", "words"),
    [
        ({"lr": []}, None, "lr must have values"),
        ({"lr": [0.1, 0.1]}, None, "lr must have values that differ"),
        ({"lr": [0.1, nan]}, None, "lr must be"),
        ({"batch_size": [0]}, None, "batch_size must be"),
        ({"batch_size": fx.Range(0, 4)}, None, "batch_size must be"),
        ({"dropout": fx.Range(0.5, 1.0)}, None, "dropout must be"),
        ({"optimizer": ["nosuch"]}, None, "optimizer must be 'sgd'"),
        ({"optimizer": fx.Range(1, 2)}, None, "optimizer takes names"),
        ({"momentum": [0.9]}, None, "an axis must be 'lr'"),
        ({"lr": [0.1]}, 0, "trials must be >= 1"),
    ],
)
def test_bad_spaces(axes: dict[str, Any], trials: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fx.Space(IRIS, axes, trials)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (0, 1, True), (0, inf, False)])
def test_bad_ranges(low: float, high: float, log: bool) -> None:
    with pytest.raises(ValueError, match="range must"):
        fx.Range(low, high, log)


# Runs


class Watch(ft.Callback):
    """Records the weights at the beginning and every batch."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self.batches: list[bytes] = []

    def on_fit_begin(self, trainer: ft.Trainer) -> None:
        self.weights = [param.tobytes() for param in trainer.model.params.values()]
        model: Any = trainer.model
        forward = model.forward

        def recording(x: Any, *, training: bool = False) -> Any:
            if training:
                self.batches.append(x.tobytes())
            return forward(x, training=training)

        model.forward = recording


def test_all_begin_with_the_same_weights_and_see_the_same_batches(iris: ft.Data) -> None:
    watches: dict[ft.RunConfig, Watch] = {}

    def watch(config: ft.RunConfig) -> list[ft.Callback]:
        watches[config] = Watch()
        return [watches[config]]

    configs = fx.Space(IRIS, {"optimizer": list(ft.OPTIMIZERS)}).configs()
    configs.append(replace(IRIS, seed=1))
    runs = list(fx.compare(configs, iris, watch))
    first, *same, other = (watches[config] for config in configs)
    assert len(first.batches) == 3 * 2  # 120 samples in batches of 64
    assert first.batches[:2] != first.batches[2:4]  # shuffled in each epoch
    for one in same:
        assert one.weights == first.weights
        assert one.batches == first.batches
    assert other.weights != first.weights
    assert other.batches != first.batches
    assert len({run.final.val_loss for run in runs}) == len(runs)


def test_a_run_is_what_its_configuration_builds(iris: ft.Data) -> None:
    run = fx.run(IRIS, iris)
    again = fx.Run(IRIS, IRIS.build(iris).fit(3))
    assert figures(run) == figures(again)


@pytest.mark.parametrize("lr", [1.0, 1e10])  # the first stays finite
def test_a_run_that_diverges_is_ended(lr: float) -> None:
    config = replace(DIABETES, lr=lr, max_norm=1e4 if lr == 1.0 else None, epochs=50)
    run = fx.run(config, config.load())
    assert run.diverged
    assert run.final.epoch < 10
    assert run.facts("regression")["diverged"]


@pytest.mark.parametrize("recovers", [True, False])
def test_a_bad_start_is_no_divergence(recovers: bool, iris: ft.Data) -> None:
    class Leap(ft.Callback):
        """Spoils the weights in the first epoch."""

        def on_fit_begin(self, trainer: ft.Trainer) -> None:
            self.weight = trainer.model.params["1.weight"].copy()
            trainer.model.params["1.weight"] *= 1000

        def on_epoch_end(self, trainer: ft.Trainer, epoch: ft.Epoch) -> None:
            if recovers:
                trainer.model.params["1.weight"][...] = self.weight

    run = fx.run(replace(IRIS, optimizer="sgd", lr=0.0), iris, [Leap()])
    assert run.history.epochs[0].val_loss > 10 * IRIS.build(iris).evaluate()[0]
    assert run.diverged != recovers
    assert run.final.epoch == (3 if recovers else 2)


def test_the_loss_before_training_may_be_given(iris: ft.Data) -> None:
    for before, diverged in ((1e-9, True), (1e9, False)):
        history = IRIS.build(iris).fit(3, [ft.Divergence(before)])
        assert history.diverged is diverged
        assert ("best" in repr(history)) is not diverged
        assert ft.History.from_state_dict(history.state_dict()).diverged is diverged
    with pytest.raises(ValueError, match="before must be a number, not nan"):
        ft.Divergence(float("nan"))


def test_a_comparison_refuses_every_configuration_before_it_trains(iris: ft.Data) -> None:
    configs = [IRIS, replace(IRIS, lr=1e39)]
    with pytest.raises(ft.ConfigError, match="lr cannot be 1e\\+39 here"):
        list(fx.compare(configs, iris, lambda config: pytest.fail("a run has begun")))


def test_runs_are_sorted_by_score_then_loss_and_the_diverged_come_last() -> None:
    def made(score: float, loss: float, reason: str = "") -> fx.Run:
        epoch = ft.Epoch(1, loss, score, loss, score, 0.1, nan, nan, 1.0)
        return fx.Run(IRIS, ft.History([epoch], stop_reason=reason))

    runs = [
        made(0.9, 0.2),
        made(0.9, 0.3),
        made(0.8, 0.1),
        made(nan, 0.1),
        made(0.99, 0.1, ft.history.DIVERGED),
        made(0.5, nan),
    ]
    order = sorted(range(6), key=lambda i: runs[i].rank)
    assert order == [0, 1, 2, 3, 4, 5]


def test_labels() -> None:
    config = ft.RunConfig(optimizer="momentum", batch_size=32, loss="mse")
    assert fx.label(config, ["lr", "optimizer"]) == "SGD with momentum, lr 0.02"
    assert fx.label(config, ["batch_size", "loss"]) == "batch size 32, mse"


# Processes


@pytest.mark.usefixtures("leave_no_process")
def test_processes_give_the_same_bits(iris: ft.Data) -> None:
    configs = fx.Space(IRIS, {"lr": [0.001, 0.01, 0.1], "optimizer": ["sgd", "adam"]}).configs()
    runs = list(fx.run_parallel(configs, iris, jobs=2))
    assert {run.config for run in runs} == set(configs)
    for run in runs:
        assert figures(run) == figures(fx.run(run.config, iris))


@pytest.mark.usefixtures("leave_no_process")
def test_a_closed_iterator_ends_its_processes(iris: ft.Data) -> None:
    configs = [replace(IRIS, epochs=10**6, lr=0.01), replace(IRIS, epochs=1)]
    runs = fx.run_parallel(configs, iris, jobs=2)
    assert next(runs).config == configs[1]
    assert len(multiprocessing.active_children()) == 1
    runs.close()


@pytest.mark.usefixtures("leave_no_process")
def test_a_killed_process_is_told(iris: ft.Data) -> None:
    configs = [replace(IRIS, epochs=10**6, lr=0.01), replace(IRIS, epochs=1)]
    runs = fx.run_parallel(configs, iris, jobs=2)
    next(runs)
    (child,) = multiprocessing.active_children()
    child.kill()
    with pytest.raises(fx.RunError, match=r"ended with exit code -9.*--lr 0.01 --epochs 1000000"):
        next(runs)


@pytest.mark.usefixtures("leave_no_process")
def test_a_run_that_fails_is_told(iris: ft.Data) -> None:
    config = replace(IRIS, hidden=(10**13,))
    with pytest.raises(fx.RunError, match=r"--hidden 10000000000000: .*Error: "):
        list(fx.run_parallel([config], iris, jobs=1))
    with pytest.raises(ValueError, match="jobs must be >= 1"):
        list(fx.run_parallel([IRIS], iris, jobs=0))
    assert not list(fx.run_parallel([], iris, jobs=1))


# The journal


@pytest.fixture(scope="module")
def runs(iris: ft.Data) -> list[fx.Run]:
    space = fx.Space(IRIS, {"lr": [0.01, 0.1, 1e30]})
    return list(fx.compare(space.configs(), iris))


SPACE = fx.Space(IRIS, {"lr": [0.01, 0.1, 1e30]})


def test_the_files_of_runs(tmp_path: Path, iris: ft.Data, runs: list[fx.Run]) -> None:
    objective = ft.Objective("classification")
    paths = fx.write_comparison(str(tmp_path), runs, ["lr"], objective, iris)
    paths += fx.write_sweep(tmp_path, runs, SPACE, objective, iris)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="names must hold at least one field"):
        fx.write_comparison(tmp_path, runs, [], objective, iris)


def test_what_a_journal_has_comes_back(tmp_path: Path, iris: ft.Data, runs: list[fx.Run]) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        assert journal.missing(SPACE.configs()) == SPACE.configs()
        for run in runs:
            journal.add(run)
    assert runs[2].diverged
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(c))
    with fx.Journal(path, SPACE, iris) as journal:
        assert journal.missing(SPACE.configs()) == []
        for there, here in zip(journal.finished, runs, strict=True):
            assert there.config == here.config
            assert there.diverged == here.diverged
            assert there.history.seconds == here.history.seconds
            np.testing.assert_array_equal(figures(there)[:2], figures(here)[:2])


@pytest.mark.parametrize("interrupted", ["fastopt.train.experiments.journal.to_json", "os.fsync"])
def test_ctrl_c_while_a_run_is_written(
    interrupted: str,
    tmp_path: Path,
    iris: ft.Data,
    runs: list[fx.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with fx.Journal(tmp_path / "runs.jsonl", SPACE, iris) as journal:
        journal.add(runs[0])
        monkeypatch.setattr(interrupted, interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.add(runs[1])
        monkeypatch.undo()
        reported = [run.config for run in journal.finished]
    with fx.Journal(tmp_path / "runs.jsonl", SPACE, iris) as journal:
        assert [run.config for run in journal.finished] == reported


def test_a_journal_that_was_cut_anywhere_goes_on(
    tmp_path: Path, iris: ft.Data, runs: list[fx.Run]
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        journal.add(runs[0])
        journal.add(runs[1])
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + d for end in ends for d in (-2, -1, 0, 1)} | set(range(0, len(whole), 97))
    for cut in sorted(n for n in near if 0 <= n <= len(whole)):
        path.write_bytes(whole[:cut])
        with fx.Journal(path, SPACE, iris) as journal:
            kept = max(0, sum(end <= cut for end in ends) - 1)
            assert len(journal.finished) == kept
            for run in runs[kept:2]:
                journal.add(run)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (fx.Space(IRIS, {"lr": [0.01]}), r"lr was 0.01,0.1,1e\+30, now 0.01;"),
        (fx.Space(IRIS, {"lr": fx.Range(0.01, 0.1)}), "now lin:0.01:0.1"),
        (fx.Space(IRIS, {"dropout": [0.1]}), "dropout was not given, now 0.1; lr was"),
        (fx.Space(replace(IRIS, epochs=4), SPACE.axes), "epochs was 3, now 4"),
        (fx.Space(replace(IRIS, seed=4), SPACE.axes), "seed was 0, now 4"),
    ],
)
def test_another_space_is_refused(
    space: fx.Space, words: str, tmp_path: Path, iris: ft.Data
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris):
        pass
    before = path.read_bytes()
    with pytest.raises(fx.JournalError, match=words):
        fx.Journal(path, space, iris)
    assert path.read_bytes() == before
    with fx.Journal(path, fx.Space(IRIS, SPACE.axes, trials=2), iris):
        pass  # more or fewer trials are not another space
    other = before.replace(b'"iris"', b'"\\u001b[31m"').replace(iris.digest().encode(), b"0")
    path.write_bytes(other)
    with pytest.raises(fx.JournalError, match=r'data was "\\u001b\[31m"'):
        fx.Journal(path, SPACE, iris)


def test_other_data_are_refused(tmp_path: Path, iris: ft.Data) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris):
        pass
    with pytest.raises(fx.JournalError, match="the data have changed"):
        fx.Journal(path, SPACE, replace(iris, x_train=iris.x_train + 1))


def test_a_journal_in_use_is_refused(tmp_path: Path, iris: ft.Data) -> None:
    path = tmp_path / "runs.jsonl"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(fx.JournalError, match="in use by another sweep"):
            fx.Journal(path, SPACE, iris)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("notes of mine", 1),
        ("notes of mine\n", 1),
        ("{}\n", 1),
        ("[]\n", 1),
        ("HEAD\n{}\n", 2),
        ('HEAD\n{"config": {"lr": "x"}, "history": {}}\n', 2),
        ("HEAD\nRUN\nRU\nRUN\n", 3),
    ],
)
def test_a_damaged_journal_is_refused(
    text: str, line: int, tmp_path: Path, iris: ft.Data, runs: list[fx.Run]
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        journal.add(runs[0])
    head, run = path.read_text().splitlines()
    path.write_text(text.replace("HEAD", head).replace("RUN", run))
    before = path.read_bytes()
    with pytest.raises(fx.JournalError, match=f"line {line} is damaged"):
        fx.Journal(path, SPACE, iris)
    assert path.read_bytes() == before


# Pictures


def texts(figure: Any) -> str:
    from matplotlib.text import Text

    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"lr": [0.01, 1e30]}, ["learning rate", "final accuracy", "diverged", "best: "]),
        ({"lr": [0.01, 0.1], "batch_size": [16, 32]}, ["learning rate", "batch size", "%"]),
        ({"lr": [0.01, 1e30], "optimizer": ["sgd", "adam"]}, ["optimizer", "Adam", "diverged"]),
        (
            {"lr": [0.01, 0.1], "dropout": [0.0, 0.5], "schedule": ["cosine", "step"]},
            ["dropout", "cosine", "step"],
        ),
        ({"lr": fx.Range(0.01, 0.1, True), "dropout": fx.Range(0, 0.5)}, ["dropout", "best"]),
        ({"optimizer": ["sgd", "momentum"]}, ["SGD\nwith momentum", "optimizer"]),
        ({"batch_size": [16]}, ["batch size"]),
    ],
)
def test_maps(axes: dict[str, Any], words: list[str], iris: ft.Data) -> None:
    space = fx.Space(replace(IRIS, epochs=2), axes, 4 if "Range" in repr(axes) else None)
    runs = list(fx.compare(space.configs(), iris))
    objective = ft.Objective("classification")
    text = texts(fx.plot_map(runs, space, objective, "the title"))
    for word in ["the title", *words]:
        assert word in text
    curves = texts(fx.plot_sweep(runs, list(axes), objective, "the title"))
    best = min(runs, key=lambda run: run.rank)
    for word in ("the title", "epoch", "Held-out loss", fx.label(best.config, list(axes))):
        assert word in curves


def test_the_map_holds_each_score(iris: ft.Data) -> None:
    space = fx.Space(IRIS, {"lr": [0.1, 0.001], "batch_size": [16, 64], "dropout": [0.0, 0.4]})
    runs = list(fx.compare(space.configs(), iris))
    objective = ft.Objective("classification")
    figure = fx.plot_map(runs, space, objective)
    for axes, dropout in zip(figure.axes[:2], (0.0, 0.4), strict=True):
        assert axes.get_title() == f"dropout {dropout:g}"
        (image,) = axes.get_images()
        shown: Any = image.get_array()
        for run in runs:
            if run.config.dropout == dropout:
                row, column = (
                    [16, 64].index(run.config.batch_size),
                    [0.001, 0.1].index(run.config.lr or 0),
                )
                assert shown[row, column] == run.final.val_score


def test_a_comparison_of_runs_of_which_all_or_some_diverged() -> None:
    data = DIABETES.load()
    for rates in ([0.01, 1e30], [1e30], [0.01]):
        configs = fx.Space(DIABETES, {"lr": rates}).configs()
        runs = list(fx.compare(configs, data))
        figure = fx.plot_comparison(runs, ["lr"], ft.Objective("regression"), "the title")
        text = texts(figure)
        for word in ("the title", "Training loss", "Held-out loss", "R² on held-out data", "epoch"):
            assert word in text
        assert text.count("(diverged)") == rates.count(1e30)
        assert (figure.axes[0].get_yscale() == "log") == (0.01 in rates)


def test_facts_are_fit_for_files(runs: list[fx.Run]) -> None:
    for run in runs:
        facts = run.facts("classification")
        assert facts["loss"] == "cross-entropy"
        assert facts["weight_decay"] == 0.01
        assert facts["command"] == run.config.command()
        json.loads(ft.to_json(facts), parse_constant=lambda c: pytest.fail(c))
    assert asdict(runs[0].final)["val_loss"] == runs[0].facts("classification")["val_loss"]


def test_any_node_of_a_journal_may_be_anything(
    tmp_path: Path, iris: ft.Data, runs: list[fx.Run]
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        journal.add(runs[0])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    nodes: list[tuple[Any, ...]] = []

    def find(value: Any, way: tuple[Any, ...] = ()) -> None:
        nodes.append(way)
        if isinstance(value, (dict, list)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                find(item, (*way, key))

    find(lines)
    deep: Any = 0
    for _ in range(800):
        deep = [deep]
    low_high: dict[str, Any] = {"low": 10**400, "high": "x", "log": 3}
    junk = [None, True, -1, 10**400, 1.5, "x", [], [[]], {}, {"a": 1}, low_high, deep]
    refused = 0
    for way in nodes[1:]:
        for value in junk:
            damaged = json.loads(json.dumps(lines))
            container = damaged
            for key in way[:-1]:
                container = container[key]
            container[way[-1]] = value
            before = "".join(json.dumps(line) + "\n" for line in damaged)
            path.write_text(before)
            message = ""
            try:
                with fx.Journal(path, SPACE, iris) as journal:
                    assert all(run.facts(iris.task) for run in journal.finished)
            except fx.JournalError as error:
                message = str(error)
                refused += 1
            assert not message or re.search(f"another sweep|line {way[0] + 1} is dam", message)
            assert path.read_text() == before
    assert refused > len(nodes) * len(junk) / 2


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"\xff", b"NaN", b'{"config": 1, "config": 2}', b"{}" * 2, b""]
)
def test_lines_that_are_none_are_named(
    line: bytes, tmp_path: Path, iris: ft.Data, runs: list[fx.Run]
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        journal.add(runs[0])
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n")
    with pytest.raises(fx.JournalError, match="line 3 is damaged"):
        fx.Journal(path, SPACE, iris)
    assert path.read_bytes() == whole + line + b"\n"


def test_a_disk_that_is_full_leaves_the_journal_whole(
    tmp_path: Path, iris: ft.Data, runs: list[fx.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.jsonl"
    with fx.Journal(path, SPACE, iris) as journal:
        journal.add(runs[0])
        whole = path.read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                journal.add(runs[1])
        assert path.read_bytes() == whole
        assert len(journal.finished) == 1
        journal.add(runs[1])
    with fx.Journal(path, SPACE, iris) as journal:
        assert len(journal.finished) == 2


@pytest.mark.parametrize("low", [-1e308, -1.7e308])
def test_a_range_that_is_too_wide_to_draw_from(low: float) -> None:
    with pytest.raises(ValueError, match="a range must have a finite width, not from"):
        fx.Range(low, 1e308)


def test_a_journal_names_arguments_of_another_kind(tmp_path: Path, iris: ft.Data) -> None:
    space = fx.Space(IRIS, {"lr": [0.1]})
    wrong: list[tuple[Any, Any, Any, str]] = [
        (None, space, iris, "path must be a string or a pathlib.Path, not None"),
        (tmp_path / "a", {"lr": [0.1]}, iris, "space must be a Space, not "),
        (tmp_path / "a", space, None, "data must be a Data, not None"),
    ]
    for path, given, data, text in wrong:
        with pytest.raises(TypeError, match=text):
            fx.Journal(path, given, data)
    assert not list(tmp_path.iterdir())
    with fx.Journal(str(tmp_path / "a"), space, iris) as journal:  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="run must be a Run, not 1"):
            journal.add(1)  # type: ignore[arg-type]
        assert journal.finished == []


def test_a_journal_that_is_removed_while_it_is_opened_is_made_anew(
    tmp_path: Path, iris: ft.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, space = tmp_path / "runs.jsonl", fx.Space(IRIS, {"lr": [0.1]})
    flock = fcntl.flock
    calls = iter(range(9))

    def remove_first(*arguments: Any) -> None:
        now = next(calls)
        if now < 2:
            path.unlink()
        if now == 1:
            path.touch()  # another sweep has begun meanwhile
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with fx.Journal(path, space, iris):
        assert next(calls) == 3
        assert path.read_bytes().count(b"\n") == 1


def test_pictures_need_runs(iris: ft.Data) -> None:
    objective, space = ft.Objective("classification"), fx.Space(IRIS, {"lr": [0.1]})
    calls: list[Callable[[], object]] = [
        lambda: fx.plot_comparison([], ["lr"], objective),
        lambda: fx.plot_sweep([], ["lr"], objective),
        lambda: fx.write_comparison(".", [], ["lr"], objective, iris),
        lambda: fx.write_sweep(".", [], SPACE, objective, iris),
        lambda: fx.plot_map([], space, objective),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="runs must hold at least one run"):
            call()
