"""Facts of the pictures: what the axes show, and what titles and legends say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

from matplotlib.figure import Figure
from PIL import Image

from fastopt import train as ft
from fastopt.cli import axes as cli_axes
from fastopt.train import experiments as fx
from fastopt.train import formats, style
from fastopt.train.formats import write_picture

BASE = ft.RunConfig(data="iris", hidden=(8,), epochs=12, batch_size=16)
OBJECTIVE = ft.Objective("classification")


@pytest.fixture(scope="module")
def iris() -> ft.Data:
    return BASE.load()


@pytest.fixture(scope="module")
def runs(iris: ft.Data) -> list[fx.Run]:
    space = fx.Space(BASE, {"optimizer": list(ft.OPTIMIZERS)})
    return list(fx.compare(space.configs(), iris))


def legend(figure: Any) -> list[str]:
    (one,) = figure.legends
    return [text.get_text() for text in one.get_texts()]


def outside(axes: Any) -> int:
    """Return how many points of the lines are beyond the limits of the axes."""
    points = np.concatenate([line.get_xydata() for line in axes.lines])
    limits = np.sort([axes.get_xlim(), axes.get_ylim()], axis=1)
    return int(np.sum(((points < limits[:, 0]) | (points > limits[:, 1])).any(axis=1)))


def is_round(ticks: Any) -> bool:
    """Return whether all ticks are the same multiple of 1, 2 or 5 apart."""
    gaps = {float(f"{b - a:.6g}") for a, b in pairwise(ticks)}
    return len(gaps) == 1 and f"{gaps.pop():e}".partition(".")[0] in "125"


def test_a_comparison_shows_every_epoch_of_every_run(runs: list[fx.Run]) -> None:
    figure = fx.plot_comparison(runs, ["optimizer"], OBJECTIVE, "iris")
    train, val, score, enlarged = figure.axes
    for axes in (train, val, score):
        assert outside(axes) == 0
        assert {np.shape(line.get_xydata()) for line in axes.lines} == {(BASE.epochs, 2)}
    low, high = enlarged.get_ylim()
    assert all(low < run.final.val_score < high for run in runs)
    assert low >= score.get_ylim()[0]
    assert legend(figure) == [choice.title for choice in ft.OPTIMIZERS.values()]
    assert is_round(score.get_yticks())
    assert is_round(score.get_xticks())


def test_lines_that_cover_each_other_are_all_seen(runs: list[fx.Run]) -> None:
    figure = fx.plot_comparison([runs[0]] * 5, ["optimizer"], OBJECTIVE)
    lines = figure.axes[0].lines
    widths = [line.get_linewidth() for line in lines]
    assert widths == sorted(set(widths), reverse=True)
    marks = []
    for line in lines:
        places: Any = line.get_markevery()
        marks.append(set(range(BASE.epochs)[places[0] :: places[1]]))
    assert sum(map(len, marks)) == len(set().union(*marks))
    looks = [style.line_style(i, 59) for i in range(59)]
    assert len({(str(s["linestyle"]), s["color"], s["marker"]) for s in looks}) == 59


def test_a_sweep_shows_every_epoch_and_names_the_best(runs: list[fx.Run]) -> None:
    figure = fx.plot_sweep(runs * 3, ["optimizer"], OBJECTIVE)
    loss, score, _ = figure.axes
    assert outside(loss) == outside(score) == 0
    assert legend(figure)[-1] == "the others"


def test_the_picture_of_a_run(iris: ft.Data) -> None:
    trainer = BASE.build(iris)
    history = trainer.fit(BASE.epochs)
    figure = ft.plot_history(history, trainer.objective, "AdamW, cross-entropy")
    loss, score = figure.axes
    assert outside(loss) == outside(score) == 0
    assert is_round(score.get_yticks())
    assert is_round(loss.get_xticks())
    best = history.best
    assert legend(figure)[-1] == f"best held out: {best.val_score:.2%} (epoch {best.epoch})"
    assert figure.get_suptitle() == "AdamW, cross-entropy"


def test_values_of_r2_far_below_are_cut_and_the_label_says_so() -> None:
    from matplotlib.figure import Figure

    objective = ft.Objective("regression")
    axes = Figure().subplots()
    style.score_axis(axes, [-50.0, 0.2, 0.6, np.nan], objective)
    assert -1.2 < axes.get_ylim()[0] < -1
    assert axes.get_ylabel() == "R² (share of the variance), cut at -1"
    style.score_axis(axes, [-50.0, -40.0], objective)
    assert axes.get_ylim()[0] < -50
    assert axes.get_ylabel() == "R² (share of the variance)"


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.02, 1.5], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        ([0.5, 1.9], ["0.5", "1", "1.5", "2"]),
        ([1e-4, 10], ["0.0001", "0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_a_log_axis_has_plain_numbers(values: list[float], ticks: list[str]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot(values)
    style.log_axis(axes, "y", values)
    low, high = axes.get_ylim()
    shown = [t for t in axes.get_yticks() if low <= t <= high]
    assert [axes.yaxis.get_major_formatter()(t) for t in shown] == ticks
    assert outside(axes) == 0


def test_losses_of_almost_0_are_cut_and_the_label_says_so() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylabel("loss")
    style.log_axis(axes, "y", [0.0, 1e-20, 2e-4, np.nan, 0.3], style.LEAST_LOSS)
    assert axes.get_ylabel() == "loss, cut at 0.0002"
    assert 1e-4 < axes.get_ylim()[0] < 2e-4
    axes = Figure().subplots()
    style.log_axis(axes, "y", [0.0, 0.0], style.LEAST_LOSS)
    assert axes.get_yscale() == "linear"


def test_a_confusion_names_the_epoch_and_shows_a_mistake_in_thirty() -> None:
    labels = [f"a species of number {i}" for i in range(3)]
    x, true = np.ones((90, 1), np.float32), np.repeat(np.arange(3), 30)
    predicted = true.copy()
    predicted[0] = 2
    data = ft.Data("many", "classification", x, true, x, true, labels, "kind")
    figure = ft.plot_confusion(true, predicted, data, "AdamW", "after epoch 7")
    assert figure.get_suptitle() == "AdamW\nheld-out data after epoch 7: 98.89% of 90 right"
    axes, bar = figure.axes
    (image,) = axes.images
    shades: Any = image.get_array()
    wrong, right, none = (image.to_rgba(shades[0, i]) for i in (2, 0, 1))
    assert none[:3] == (1, 1, 1)
    assert min(wrong[:3]) < 0.8
    assert wrong[0] > wrong[2]  # orange
    assert right[2] > right[0]  # blue
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == 3
    assert "orange: wrong" in bar.get_ylabel()


def test_predictions_name_the_epoch_also_within_one() -> None:
    trainer = ft.RunConfig(data="diabetes", hidden=(4,)).build()

    class Stop(ft.Callback):
        def on_batch_end(self, trainer: ft.Trainer, samples: int, loss: float) -> None:
            if len(trainer.history.epochs) == 2:
                raise KeyboardInterrupt

    titles = [ft.plot_predictions(trainer).get_suptitle()]
    trainer.fit(2)
    titles.append(ft.plot_predictions(trainer).get_suptitle())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(3, [Stop()])
    titles.append(ft.plot_predictions(trainer).get_suptitle())
    whens = ("before training", "after epoch 2", "during epoch 3")
    for title, when in zip(titles, whens, strict=True):
        assert title.startswith(f"held-out data {when}: error ")


def test_a_map_of_one_option_is_a_line_and_says_so(iris: ft.Data) -> None:
    space = fx.Space(replace(BASE, epochs=2), {"lr": [0.001, 0.01, 0.1, 1e30]})
    runs = list(fx.compare(space.configs(), iris))
    figure = fx.plot_map(runs, space, OBJECTIVE, cli_axes.title_of(space, iris))
    title = "iris (scikit-learn): AdamW, batch size 16, cross-entropy"
    assert figure.get_suptitle() == f"{title}\none option varies: a line, not a map"
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "0.001", "0.01", "0.1", "1e+30",
    ]  # fmt: skip
    best = max(run.final.val_score for run in runs[:3])
    assert legend(figure) == ["diverged", f"best: {best:.2%}"]


def test_a_map_frames_the_best_run_of_all_panels(iris: ft.Data) -> None:
    options: dict[str, Any] = {"lr": [0.001, 0.01], "batch_size": [16, 32], "dropout": [0.0, 0.3]}
    space = fx.Space(replace(BASE, epochs=3), options)
    runs = list(fx.compare(space.configs(), iris))
    best = min(runs, key=lambda run: run.rank)
    figure = fx.plot_map(runs, space, OBJECTIVE)
    frames = [(i, patch) for i, axes in enumerate(figure.axes[:2]) for patch in axes.patches]
    ((panel, frame),) = frames
    assert options["dropout"][panel] == best.config.dropout
    place: Any = frame
    assert place.get_xy() == (
        options["lr"].index(best.config.lr) - 0.5,
        options["batch_size"].index(best.config.batch_size) - 0.5,
    )
    assert legend(figure) == [f"best: {best.final.val_score:.2%}"]


def test_titles_name_what_all_runs_share(iris: ft.Data) -> None:
    space = fx.Space(BASE, {"optimizer": ["sgd", "adam"], "dropout": [0.2]})
    title = "iris (scikit-learn): batch size 16, dropout 0.2, cross-entropy"
    assert cli_axes.title_of(space, iris) == title
    space = fx.Space(BASE, {"loss": ["mse", "l1"], "lr": [0.1]})
    assert cli_axes.title_of(space, iris) == "iris (scikit-learn): AdamW, lr 0.1, batch size 16"


@pytest.mark.parametrize("name", fx.LANDSCAPES)
def test_the_rate_that_is_called_good_reaches_a_minimum(name: str) -> None:
    landscape = fx.LANDSCAPES[name]
    paths = [fx.tune_lr(landscape, own, landscape.steps) for own in ft.OPTIMIZERS]
    for path in paths:
        assert path.distances[-1] <= 0.05 * path.distances[0], path.title
        assert not path.too_small, path.title
        assert not path.too_large, path.title
    figure = fx.plot_paths(landscape, paths)
    plane, curves = (axes for axes in figure.axes if axes.lines)
    assert outside(plane) == outside(curves) == 0
    names = legend(figure)
    assert {"start", "minimum"} <= set(names)
    winner = fx.landscape.find_winner(paths)
    assert winner is not None
    reached = winner.steps_to(0.01)
    assert f"winner: {winner.title}: {reached} steps" in names
    assert reached == min(path.steps_to(0.01) or 10**6 for path in paths)
    rates = fx.plot_rates(landscape, fx.vary_lr(landscape, "sgd", paths[0].lr, landscape.steps))
    words = [axes.get_title().partition(":")[0] for axes in rates.axes[:3]]
    assert words == ["too small", "good", "too large"]
    assert legend(rates) == ["minimum", "start", "path and its end"]
    assert f"{landscape.steps} steps" in rates.get_suptitle()


def test_the_ends_of_paths_hide_neither_a_minimum_nor_each_other() -> None:
    bowl = fx.LANDSCAPES["bowl"]
    paths = [fx.descend(bowl, "sgd", 0.2, 100)] * 3
    plane = fx.plot_paths(bowl, paths).axes[0]
    minimum, start, *ends = plane.lines
    assert minimum.get_zorder() > max(end.get_zorder() for end in ends)
    assert start.get_zorder() > max(end.get_zorder() for end in ends)
    assert {end.get_markerfacecolor() for end in ends} == {"none"}
    sizes = [minimum.get_markersize(), *(end.get_markersize() for end in ends)]
    assert sizes == sorted(set(sizes))


def test_the_winner_without_a_path_that_arrives() -> None:
    bowl = fx.LANDSCAPES["bowl"]
    slow, slower, gone = (fx.descend(bowl, "sgd", lr, 9) for lr in (1e-3, 1e-4, 1e3))
    assert fx.landscape.find_winner([gone, slower, slow]) is slow
    assert fx.landscape.find_winner([gone]) is None


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_long_name_of_the_target_is_inside_the_picture(task: str, iris: ft.Data) -> None:
    name = "The name of the target " * 9 + "in mm"
    if task == "regression":
        trainer = ft.RunConfig(data="diabetes", hidden=(4,)).build()
        trainer.data = replace(trainer.data, target=name)
        figure = ft.plot_predictions(trainer)
    else:
        true = iris.y_val.astype(np.int64)
        figure = ft.plot_confusion(true, true, replace(iris, target=name))
    figure.draw_without_rendering()
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            box = label.get_window_extent()
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
            assert "name" not in label.get_text() or label.get_text().endswith("in mm")


def test_files_are_opaque_and_names_stay_names(tmp_path: Path, runs: list[fx.Run]) -> None:
    title = "a$b$c \x1b[31m" + "long " * 40  # folded to the width
    figure = fx.plot_comparison(runs, ["optimizer"], OBJECTIVE, title)
    with Image.open(write_picture(tmp_path / "picture.png", figure)) as image:
        assert image.mode == "RGB" or image.getchannel("A").getextrema() == (255, 255)
    first, *others = figure.get_suptitle().splitlines()
    assert first.startswith(r"a\$b\$c ?[31mlong")
    assert others


def test_a_picture_takes_what_its_font_lacks_from_other_fonts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def picture(label: str) -> bytes:
        figure = Figure()
        figure.subplots().set_yticks([0], [label])
        return formats.write_picture(tmp_path / "a.png", figure).read_bytes()

    plain, strange = "cat", "\N{MATHEMATICAL SCRIPT CAPITAL A}"  # STIX comes with matplotlib
    monkeypatch.setattr(formats, "FALLBACKS", ())
    before = {label: picture(label) for label in (plain, strange)}
    monkeypatch.setattr(formats, "FALLBACKS", ("not installed", "STIXGeneral"))
    assert picture(plain) == before[plain]
    assert picture(strange) != before[strange]
