"""The options of experiments, and their reports of diverged paths and runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from typer.testing import CliRunner

from fastopt import benchmark
from fastopt import train as ft
from fastopt.cli import axes, common
from fastopt.cli.app import app
from fastopt.train import experiments as fx
from fastopt.train.formats import write_picture

BOWL = fx.LANDSCAPES["bowl"]


def titles(paths: list[fx.Descent]) -> list[str]:
    return [axes.get_title() for axes in fx.plot_rates(BOWL, paths).axes[:3]]


def test_each_path_is_called_what_it_is() -> None:
    # x and y shrink by |1 - lr| and |1 - 4 lr| at each step of SGD.
    words = [title.partition(":")[0] for title in titles(fx.vary_lr(BOWL, "sgd", 0.2, 50))]
    assert words == ["too small", "good", "too large"]
    small, chosen, large = titles(fx.vary_lr(BOWL, "sgd", 100.0, 50))
    assert small.startswith("too small: lr 0.005\nended ")
    assert chosen == "too large: lr 100\ndiverged at step 3"
    assert large == "too large: lr 200\ndiverged at step 3"
    assert fx.descend(BOWL, "sgd", 0.5, 50).too_large  # y changes its sign for ever
    words = [title.partition(":")[0] for title in titles(fx.vary_lr(BOWL, "sgd", 1e-9, 50))]
    assert words == ["too small"] * 3
    assert fx.descend(BOWL, "sgd", 1e308, 3).title == "SGD, lr 1e+308 (diverged)"


def test_the_largest_learning_rate_is_not_doubled() -> None:
    paths = fx.vary_lr(BOWL, "sgd", 1.7e308, 5)
    assert paths[2].diverged
    assert np.isfinite([path.lr for path in paths]).all()


def test_a_landscape_on_which_all_paths_diverge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = "landscape --function bowl --optimizer sgd --steps 9 --lr 100 --no-animation"
    with np.errstate(all="raise"):
        result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 1, result.exception
    assert "diverged, step 3" in result.stdout
    assert result.stdout.rstrip().endswith("all paths diverged: try a smaller --lr")
    facts = json.loads((tmp_path / "fastopt-landscape/landscape.json").read_text())
    assert facts["paths"][0]["diverged"] is True


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"landscape": "bowl"}, TypeError, "landscape must be a Landscape, not 'bowl'"),
        ({"optimizer": "nosuch"}, ValueError, "optimizer must be 'sgd', 'momentum', .*'nosuch'"),
        ({"lr": -1}, ValueError, "lr must be finite and >= 0, not -1"),
        ({"lr": nan}, ValueError, "lr must be finite and >= 0, not nan"),
        ({"lr": 10**400}, ValueError, "lr must be within the range of float64, not 1000"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, not '0.1'"),
        ({"lr": np.ones(2)}, TypeError, "lr must be a number, not array"),
        ({"steps": 0}, ValueError, "steps must be in .1, 2147483648., not 0"),
        ({"steps": 1.0}, TypeError, "steps must be an integer, not 1.0"),
        ({"steps": 10**5000}, ValueError, "steps must be in .* a value of type int"),
        ({"start": (1,)}, ValueError, "start must be two numbers in .* not .1,."),
        ({"start": (1, nan)}, ValueError, "start must be two numbers"),
        ({"start": "ab"}, ValueError, "start must be two numbers"),
        ({"start": 3}, ValueError, "start must be two numbers"),
    ],
)
def test_bad_descents(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {
        "landscape": BOWL,
        "optimizer": "sgd",
        "lr": 0.1,
        "steps": 3,
    } | changes
    with pytest.raises(error, match=words):
        fx.descend(**arguments)


def test_numbers_of_numpy_are_numbers() -> None:
    expected = fx.descend(BOWL, "adam", 0.25, 5, (1.0, 2.0))
    path = fx.descend(BOWL, "adam", np.float32(0.25), np.int8(5), np.array([1, 2]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(path.points, expected.points)
    assert type(path.lr) is float


def test_spaces_of_arrays_are_those_of_lists() -> None:
    base = ft.RunConfig(data="iris")
    arrays: dict[str, Any] = {"lr": np.logspace(-3, -1, 3), "batch_size": np.array([8, 16])}
    space = fx.Space(base, arrays)
    plain = fx.Space(base, {"lr": [0.001, 0.01, 0.1], "batch_size": [8, 16]})
    assert space == plain
    assert json.dumps(space.facts()) == json.dumps(plain.facts())
    drawn = fx.Space(base, {"lr": fx.Range(np.float32(0.5), 1)}, np.int64(3))
    assert json.loads(json.dumps(drawn.facts()))["axes"]["lr"] == asdict(fx.Range(0.5, 1.0))
    assert len(drawn.configs()) == 3


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"base": "iris"}, TypeError, "base must be a RunConfig, not 'iris'"),
        ({"axes": ["lr"]}, TypeError, "axes must be a Mapping, not"),
        ({"axes": {"lr": "0.1"}}, TypeError, "lr must be a list of values or a Range, not '0.1'"),
        ({"axes": {"lr": 0.1}}, TypeError, "lr must be a list of values or a Range, not 0.1"),
        ({"axes": {"lr": np.ones((1, 1))}}, TypeError, "lr must be a list of values"),
        ({"axes": {"lr": [[0.1]]}}, TypeError, "lr must be a number"),
        ({"axes": {3: [0.1]}}, TypeError, "an axis must be 'lr', .* or 'activation', not 3"),
        ({"axes": {"l": [0.1]}}, ValueError, "an axis must be 'lr', .* or 'activation', not 'l'"),
        ({"trials": 2.0}, TypeError, "trials must be an integer, not 2.0"),
        ({"trials": True}, TypeError, "trials must be an integer, not True"),
    ],
)
def test_bad_spaces(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {
        "base": ft.RunConfig(),
        "axes": {"lr": [0.1]},
        "trials": None,
    } | changes
    with pytest.raises(error, match=words):
        fx.Space(**arguments)


@pytest.mark.parametrize("ends", [("0", 1), (None, 1), (0, 10**400), (0, inf), (True, 2), (0, 0)])
def test_bad_ranges(ends: tuple[Any, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match="range"):
        fx.Range(*ends)


def test_draws_from_few_numbers_come_to_an_end() -> None:
    space = fx.Space(ft.RunConfig(), {"batch_size": fx.Range(1, 3)}, 10**12)
    assert sorted(config.batch_size for config in space.configs()) == [1, 2, 3]


def test_all_losses_are_those_of_the_task() -> None:
    tasks: dict[str, ft.Task] = {"diabetes": "regression", "iris": "classification"}
    for data, task in tasks.items():
        given = axes.parse_axes(loss="all")
        space, *_ = axes.prepare(given, data=data, task=None, hidden="4", drop=None)
        assert space.axes["loss"] == list(ft.LOSSES[task])


def made_run(loss: float, score: float, reason: str = "", lr: float = 0.1) -> fx.Run:
    one = ft.Epoch(1, 0.5, 0.9, 0.5, 0.9, lr, nan, nan, 1.0)
    last = replace(one, epoch=2, train_loss=loss, val_loss=loss, val_score=score)
    history = ft.History([one, last], stop_reason=reason)
    return fx.Run(ft.RunConfig(data="iris", lr=lr), history)


def test_a_diverged_run_is_nowhere_the_best() -> None:
    runs = [
        made_run(nan, nan),
        made_run(inf, 0.99),
        made_run(1e9, 0.99, ft.history.DIVERGED),
        made_run(0.7, nan),
        made_run(0.9, 0.1),
    ]
    ranked = sorted(runs, key=lambda run: run.rank)
    assert ranked[0] is runs[4]
    assert ranked[1] is runs[3]
    assert all(run.diverged for run in ranked[2:])
    for run in runs[:3]:
        facts = run.facts("classification")
        assert [facts[f"best_{name}"] for name in ("val_score", "epoch")] == [None, None]
        assert facts["lowest_val_loss"] is None
    with common.console.capture() as captured:
        axes.print_runs("", runs[:1], ["lr"], ft.Objective("classification"))
    cells = [cell.strip() for cell in captured.get().splitlines()[-2].split("│")]
    assert cells == ["", "lr 0.1", "diverged", "epoch 2", "", "", "", "", ""]


def test_names_are_no_formulas(tmp_path: Path) -> None:
    runs = [made_run(0.5, 0.9, lr=lr / 100) for lr in range(1, 60)]  # a long legend too
    objective = ft.Objective("classification")
    title = r"$\b$ 猫"
    space = fx.Space(runs[0].config, {"lr": [run.config.lr for run in runs]})
    for figure in (
        fx.plot_comparison(runs, ["lr"], objective, title),
        fx.plot_sweep(runs, ["lr"], objective, title),
        fx.plot_map(runs, space, objective, title),
    ):
        write_picture(tmp_path / "picture.png", figure)


def test_an_interrupted_benchmark_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = iter(range(3))  # the first is not kept

    def measure(suite: Any, case: Any, peers: Any, seconds: float) -> benchmark.Result:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return benchmark.Result(case, {"fastopt": 1e-3}, {})

    monkeypatch.setattr(benchmark, "measure_case", measure)
    monkeypatch.setattr(benchmark, "measure_bandwidth", lambda _: benchmark.Bandwidth(1.0, 1.0))
    result = CliRunner().invoke(app, ["bench", "losses"])
    assert result.exit_code == 130, result.exception
    cases = len(benchmark.SUITES["losses"].cases)
    assert result.stdout.rstrip().endswith(f"interrupted after 2 of {cases} cases")
    facts = json.loads((tmp_path / "fastopt-bench/bench-losses.json").read_text())
    assert len(facts["results"]) == 2
