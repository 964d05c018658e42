"""``fastopt landscape``: the functions, the paths, the files, the errors of bad options."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fastopt as fo
from helpers import fastopt as run_fastopt
from helpers import fastopt_until

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from PIL import Image
from typer.testing import CliRunner

from fastopt.cli.app import app
from fastopt.train import experiments as fx

fastopt = partial(run_fastopt, "landscape")


@pytest.mark.parametrize("name", fx.LANDSCAPES)
def test_gradients_and_minima(name: str) -> None:
    plane = fx.LANDSCAPES[name]
    (left, right), (bottom, top) = plane.view
    points = np.random.default_rng(0).uniform([left, bottom], [right, top], (20, 2))
    for point in points:
        assert fo.testing.gradcheck(plane.value_and_grad, point)
    values, grads = plane.value_and_grad(points.T)
    assert values.shape == (20,)
    assert grads.shape == (2, 20)
    assert np.all(values > 0)
    for place in plane.minima:
        value, grad = plane.value_and_grad(np.array(place, np.float64))
        assert value == 0
        np.testing.assert_array_equal(grad, 0)
        assert plane.distance(np.array(place)) == 0


def test_the_path_of_sgd_on_a_quadratic() -> None:
    bowl = fx.LANDSCAPES["bowl"]
    path = fx.descend(bowl, "sgd", lr=0.1, steps=30, start=(1.0, -1.0))
    k = np.arange(31)
    np.testing.assert_allclose(path.points, np.transpose([0.9**k, -(0.6**k)]), rtol=1e-12)
    np.testing.assert_allclose(path.values, (0.81**k + 4 * 0.36**k) / 2, rtol=1e-12)
    assert not path.diverged
    assert path.steps_to(0.1) == 22  # 0.9^21 is 0.109
    assert path.steps_to(1e-3) is None
    assert path.steps_to(10) == 0


def test_a_path_that_diverges_ends_there() -> None:
    path = fx.descend(fx.LANDSCAPES["ravine"], "sgd", lr=0.5, steps=1000)
    assert path.diverged
    assert len(path.points) == len(path.values) == len(path.distances) < 10
    assert np.isfinite(path.points).all()
    assert path.steps_to(1e9) is None
    path = fx.descend(fx.LANDSCAPES["rosenbrock"], "sgd", lr=1.0, steps=9, start=(900.0, -900.0))
    assert path.diverged


def test_a_path_must_stay_within_the_tolerance() -> None:
    # Momentum passes the minimum several times before it converges.
    path = fx.descend(fx.LANDSCAPES["bowl"], "momentum", lr=0.05, steps=400, start=(1.0, 0.0))
    reached = path.steps_to(0.1)
    assert reached is not None
    assert np.all(path.distances[reached:] <= 0.1)
    assert path.distances[reached - 1] > 0.1
    assert np.any(path.distances[:reached] <= 0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tuning_and_varying_the_learning_rate(optimizer: str) -> None:
    ravine = fx.LANDSCAPES["ravine"]
    best = fx.tune_lr(ravine, optimizer, steps=400)
    reached = best.steps_to(0.01)
    assert reached is not None
    for lr in fx.landscape.RATES:
        other = fx.descend(ravine, optimizer, lr, steps=400)
        if not other.diverged and other.values.max() <= other.values[0]:
            assert reached <= (other.steps_to(0.01) or 401)
    small, good, large = fx.vary_lr(ravine, optimizer, best.lr, steps=400)
    assert small.lr < good.lr < large.lr
    np.testing.assert_array_equal(good.points, best.points)
    assert small.distances[-1] > good.distances[0] / 2
    assert large.diverged or large.distances.max() > 3 * good.distances[0]


def test_the_pictures_of_paths(tmp_path: Path) -> None:
    bowl = fx.LANDSCAPES["bowl"]
    path = fx.descend(bowl, "adam", 0.1, 5)
    written = fx.write_landscape(tmp_path, "bowl", [path], [path], animation=False)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    calls: list[Callable[[], object]] = [
        lambda: fx.write_landscape(tmp_path, "bowl", [path], []),
        lambda: fx.plot_paths(bowl, []),
        lambda: fx.plot_rates(bowl, []),
        lambda: fx.animate(tmp_path / "a.gif", bowl, []),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="paths must hold at least one path"):
            call()


def test_the_command(tmp_path: Path) -> None:
    result = fastopt("--function", "bowl,beale", "--optimizer", "sgd,adamw", "--steps", "60",
                     "--start", "-1,0.5", "--output", "here", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "here"
    names = {f"{f}{end}" for f in ("bowl", "beale") for end in (".png", "-lr.png", ".gif")}
    assert {p.name for p in folder.iterdir()} == names | {"landscape.csv", "landscape.json"}
    with Image.open(folder / "beale.gif") as image:
        assert 20 < getattr(image, "n_frames", 1) <= 60
        assert image.info["loop"] == 0
    with (folder / "landscape.csv").open() as file:
        rows = list(csv.DictReader(file))
    facts = json.loads(
        (folder / "landscape.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    assert len(rows) == len(facts["paths"]) == 4
    for row, path in zip(rows, facts["paths"], strict=True):
        again = fx.descend(
            fx.LANDSCAPES[row["function"]], row["optimizer"], path["lr"], 60, (-1.0, 0.5)
        )
        assert float(row["distance"]) == path["distance"] == again.distances[-1]
        assert float(row["end_value"]) == path["end_value"] == again.values[-1]
    assert "beale, AdamW" in result.stdout


def test_one_learning_rate_for_all_and_no_animation(tmp_path: Path) -> None:
    result = fastopt("--function", "ravine", "--lr", "0.2", "--steps", "50", "--no-animation",
                     cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "diverged, step" in result.stdout
    folder = tmp_path / "fastopt-landscape"
    assert not (folder / "ravine.gif").exists()
    facts = json.loads((folder / "landscape.json").read_text())
    assert {path["lr"] for path in facts["paths"]} == {0.2}
    assert [path["diverged"] for path in facts["paths"]] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--function", "bowl,hill"], "--function must be one or more of bowl, ravine"),
        (["--optimizer", "sgd,sgd"], "--optimizer has sgd twice"),
        (["--optimizer", ""], "--optimizer must be one or more of sgd, momentum"),
        (["--lr", "nan"], "--lr must be finite"),
        (["--tolerance", "0"], "--tolerance must be"),
        (["--steps", "0"], "--steps must be in 1"),
        (["--start", "1"], "--start must be two numbers"),
        (["--start", "1,nan"], "--start must be two numbers"),
        (["--output", "file/run"], "cannot write into file/run"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["landscape", *arguments])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fastopt: error: ")
    assert words in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_command_keeps_what_it_has(tmp_path: Path) -> None:
    stopped = fastopt_until(
        "2/2: ravine", signal.SIGINT, "landscape", "--function", "bowl,ravine", "--steps", "40",
        cwd=tmp_path,
    )  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    assert stopped.stdout.rstrip().splitlines()[-1] == "interrupted after 1 of 2 functions"
    folder = tmp_path / "fastopt-landscape"
    assert not list(folder.glob(".part*"))
    facts = json.loads((folder / "landscape.json").read_text())
    assert facts["paths"][0]["function"] == "bowl"
    with Image.open(folder / "bowl.gif") as image:
        assert getattr(image, "n_frames", 1) > 20
