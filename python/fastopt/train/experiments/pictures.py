"""Pictures of several training runs: curves, and the score over the varied options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.train.config import OPTIMIZERS
from fastopt.train.experiments.runs import AXES, Run, label
from fastopt.train.experiments.space import Range, Space
from fastopt.train.objective import Objective
from fastopt.train.style import (
    BLACK,
    BLUE,
    LEAST_LOSS,
    ORANGE,
    add_legend,
    epoch_axis,
    ink,
    line_style,
    log_axis,
    mark_places,
    round_ticks,
    score_axis,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 5  # runs of a sweep whose curves have a colour
PANELS = 9  # heat maps side by side, at most


def _loss_label(runs: Sequence[Run], objective: Objective) -> str:
    several = len({run.config.loss for run in runs}) > 1
    return "mean loss, of each run's own kind" if several else objective.loss_label


def require_runs(runs: Sequence[Run]) -> None:
    """Raise unless there is a run."""
    if not runs:
        raise ValueError("runs must hold at least one run")


@np.errstate(all="ignore")
def plot_comparison(
    runs: Sequence[Run], names: Sequence[str], objective: Objective, title: str = ""
) -> Figure:
    """Return a picture of the losses, training and held out, and of the held-out scores.

    The scores are drawn twice: all of them, and enlarged around the final scores.

    Parameters
    ----------
    runs : sequence of Run
    names : sequence of str
        The fields in which the runs differ.
    objective : Objective
    title : str
    """
    require_runs(runs)
    from matplotlib.figure import Figure  # takes half a second: not for --help

    figure = Figure(figsize=(10, 7.6 + 0.2 * -(-len(runs) // 4)), layout="constrained")
    train, val, score, enlarged = figure.subplots(2, 2).flat
    train.sharey(val)
    for i, run in enumerate(runs):
        text = label(run.config, names) + (" (diverged)" if run.diverged else "")
        style = line_style(i, len(runs)) | {"label": text}
        style["markevery"] = mark_places(i, len(runs), len(run.history.epochs))
        _draw(figure, ("train_loss", "val_loss", "val_score", "val_score"), run, style)
    train.set_title("Training loss")
    val.set_title("Held-out loss")
    _finish_losses([train, val], runs, objective, ("train_loss", "val_loss"))
    _finish_scores(score, enlarged, runs, objective)
    add_legend(figure, min(4, len(runs)))
    set_title(figure, title)
    return figure


@np.errstate(all="ignore")
def plot_sweep(
    runs: Sequence[Run], names: Sequence[str], objective: Objective, title: str = ""
) -> Figure:
    """Return a picture of the held-out losses and scores of all runs; the best have colours.

    The scores are drawn twice: all of them, and enlarged around the final scores of the better
    half.
    """
    require_runs(runs)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="constrained")
    loss, score, enlarged = figure.subplots(1, 3)
    ranked = sorted(runs, key=lambda run: run.rank)
    best = [run for run in ranked[:SHOWN] if not run.diverged]
    for i, run in enumerate(best):
        style = line_style(i, len(best)) | {"label": label(run.config, names), "zorder": 3}
        style["markevery"] = mark_places(i, len(best), len(run.history.epochs))
        _draw(figure, ("val_loss", "val_score", "val_score"), run, style)
    for i, run in enumerate(ranked[len(best) :]):
        style = {"color": "0.75", "linewidth": 0.8, "label": "" if i else "the others"}
        if len(run.history.epochs) == 1:  # a line of one point cannot be seen
            style["marker"] = "o"
        _draw(figure, ("val_loss", "val_score", "val_score"), run, style)
    loss.set_title("Held-out loss")
    _finish_losses([loss], runs, objective, ("val_loss",))
    _finish_scores(score, enlarged, runs, objective)
    add_legend(figure, 3)
    set_title(figure, title)
    return figure


def _draw(figure: Figure, fields: Sequence[str], run: Run, style: Mapping[str, Any]) -> None:
    """Draw a field of the epochs of a run on each of the axes."""
    epochs = run.history.epochs
    for axes, field in zip(figure.axes, fields, strict=True):
        axes.plot([e.epoch for e in epochs], [getattr(e, field) for e in epochs], **style)


def _finish_losses(
    axes: Sequence[Axes], runs: Sequence[Run], objective: Objective, what: Sequence[str]
) -> None:
    """Use an axis that shows all losses of the runs that did not diverge."""
    kept = [run for run in runs if not run.diverged] or runs
    values = [getattr(e, name) for run in kept for e in run.history.epochs for name in what]
    for one in axes:
        epoch_axis(one, max(run.final.epoch for run in runs))
        one.set_ylabel(_loss_label(runs, objective))
        log_axis(one, "y", values, LEAST_LOSS)


def _finish_scores(whole: Axes, enlarged: Axes, runs: Sequence[Run], objective: Objective) -> None:
    """Use an axis for all scores of the runs that did not diverge, and one for the best ends."""
    kept = [run for run in runs if not run.diverged] or runs
    name = f"{objective.score_name[0].upper()}{objective.score_name[1:]} on held-out data"
    for axes in (whole, enlarged):
        epoch_axis(axes, max(run.final.epoch for run in runs))
    scores = [e.val_score for run in kept for e in run.history.epochs]
    score_axis(whole, scores, objective)
    whole.set_title(name)
    ends = sorted(run.final.val_score for run in kept if isfinite(run.final.val_score))
    if len(ends) > 2 * SHOWN:
        ends = ends[len(ends) // 2 :]
    if ends:
        high = max(run.history.best.val_score for run in kept)
        low = high - max(3 * (high - ends[0]), 0.03)
        scores = [high, max(low, min(score for score in scores if isfinite(score)))]
    score_axis(enlarged, scores, objective)
    enlarged.set_title(f"{name}, enlarged")


@np.errstate(all="ignore")
def plot_map(runs: Sequence[Run], space: Space, objective: Objective, title: str = "") -> Figure:
    """Return a picture of the final held-out score over the fields that vary.

    With two or more fields it is a heat map of the first two (learning rate and batch size, if both
    vary), with a panel for each value of a third, at most nine. If one of the two is a range, it
    shows a dot for each run. Of several runs at one place, it shows the best.

    With one field it is a line of the scores over its values, and the title says so.
    """
    require_runs(runs)
    from matplotlib.figure import Figure

    varied = [
        n for n in AXES if isinstance(values := space.axes.get(n, ()), Range) or len(values) > 1
    ]
    score = f"final {objective.score_name} on held-out data"
    best = min(runs, key=lambda run: run.rank)
    if len(varied) < 2:
        note = "one option varies: a line, not a map"
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        _draw_line(axes, runs, space, (varied or list(space.axes) or ["lr"])[0], objective)
        axes.set_ylabel(score)
    else:
        x, y, *rest = varied
        third = next((n for n in rest if not isinstance(space.axes[n], Range)), None)
        panels: list[Any] = [None] if third is None else _values(space, third)
        note = "" if len(panels) <= PANELS else f"the first {PANELS} values of {third}"
        panels = panels[:PANELS]
        others = [n for n in rest if n != third]
        if others:
            note = f"the best over {', '.join(n.replace('_', ' ') for n in others)}"
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        size = (2.2 + 4.6 * columns, 5.2) if columns < 3 else (13, 0.8 + 4.4 * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        finite = [r.final.val_score for r in runs if not r.diverged and isfinite(r.final.val_score)]
        high, lowest = max(finite, default=1.0), min(finite, default=0.0)
        # The colours distinguish the better half: one bad run would make all others look the same.
        low = max(lowest, high - max(3 * (high - float(np.median(finite or [0.0]))), 0.05))
        for i, (axes, value) in enumerate(zip(grid.flat, panels, strict=False)):
            part = [r for r in runs if third is None or getattr(r.config, third) == value]
            image = _draw_map(axes, part, best, space, (x, y), (low, high), objective)
            if third is not None:
                kind = "" if AXES[third] is str else f"{_axis_label(third)} "
                axes.set_title(kind + _value_text(third, value))
            if i % columns:
                axes.set_ylabel("")
            if i + columns < len(panels):  # there is a panel below
                axes.set_xlabel("")
            else:
                axes.tick_params(labelbottom=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        extend = "min" if lowest < low else "neither"
        bar = figure.colorbar(image, ax=grid, label=score, extend=extend)
        round_ticks(bar.ax.yaxis, percent=objective.task != "regression")
    add_legend(figure, 2)
    set_title(figure, title, note)
    return figure


def _values(space: Space, name: str) -> list[Any]:
    values = space.axes[name]
    assert not isinstance(values, Range)
    return list(values) if AXES[name] is str else sorted(values)


def _value_text(name: str, value: Any) -> str:
    if name == "optimizer":
        return OPTIMIZERS[value].title
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axis_label(name: str) -> str:
    return "learning rate" if name == "lr" else name.replace("_", " ")


def _draw_map(
    axes: Axes,
    runs: Sequence[Run],
    best: Run,
    space: Space,
    names: tuple[str, str],
    limits: tuple[float, float],
    objective: Objective,
) -> Any:
    """Draw one panel; return the image for a colour bar."""
    from matplotlib.patches import Rectangle

    x, y = names
    axes.set(xlabel=_axis_label(x), ylabel=_axis_label(y))
    if isinstance(space.axes[x], Range) or isinstance(space.axes[y], Range):
        return _draw_dots(axes, runs, best, space, names, limits, objective)
    columns, rows = _values(space, x), _values(space, y)
    scores = np.full((len(rows), len(columns)), nan)
    texts: dict[tuple[int, int], str] = {}
    for run in sorted(runs, key=lambda run: run.rank, reverse=True):
        place = rows.index(getattr(run.config, y)), columns.index(getattr(run.config, x))
        scores[place] = nan if run.diverged else run.final.val_score
        texts[place] = "diverged" if run.diverged else objective.format_score(run.final.val_score)
        if run is best and not run.diverged:
            corner = (place[1] - 0.5, place[0] - 0.5)
            frame: dict[str, Any] = {"fill": False, "edgecolor": ORANGE, "linewidth": 4}
            label = f"best: {texts[place]}"
            axes.add_patch(Rectangle(corner, 1, 1, label=label, clip_on=False, zorder=3, **frame))
    low, high = limits
    image = axes.imshow(scores, "viridis", vmin=low, vmax=high, origin="lower", aspect="auto")
    size = 9 if len(columns) <= 6 else 8
    for (i, j), text in texts.items():
        color = BLACK if isnan(scores[i, j]) else ink(image.to_rgba(scores[i, j]))
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    axes.set_xticks(range(len(columns)), [_value_text(x, value) for value in columns])
    axes.set_yticks(range(len(rows)), [_value_text(y, value) for value in rows])
    return image


def _draw_dots(
    axes: Axes,
    runs: Sequence[Run],
    best: Run,
    space: Space,
    names: tuple[str, str],
    limits: tuple[float, float],
    objective: Objective,
) -> Any:
    fine = [run for run in runs if isfinite(_score(run))]
    x, y = ([_place(run, space, name) for run in fine] for name in names)
    colors: dict[str, Any] = {"cmap": "viridis", "vmin": limits[0], "vmax": limits[1]}
    dots = axes.scatter(x, y, s=110, c=[_score(run) for run in fine], edgecolors="0.3", **colors)
    if gone := [run for run in runs if not isfinite(_score(run))]:
        x, y = ([_place(run, space, name) for run in gone] for name in names)
        axes.plot(x, y, "x", color=BLACK, markersize=9, label="diverged")
    if best in fine:
        x, y = ([_place(best, space, name)] for name in names)
        _ring(axes, x, y, best, objective)
    for which, name in zip("xy", names, strict=True):
        values = space.axes[name]
        if not isinstance(values, Range):
            texts = [_value_text(name, value) for value in _values(space, name)]
            getattr(axes, f"{which}axis").set_ticks(range(len(texts)), labels=texts)
        elif values.log:
            log_axis(axes, which, [values.low, values.high])
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return dots


def _score(run: Run) -> float:
    return nan if run.diverged else run.final.val_score


def _ring(
    axes: Axes, x: Sequence[float], y: Sequence[float], best: Run, objective: Objective
) -> None:
    """Draw a ring around the best run."""
    label = f"best: {objective.format_score(best.final.val_score)}"
    style: dict[str, Any] = {"markersize": 17, "markeredgewidth": 3, "markerfacecolor": "none"}
    axes.plot(x, y, "o", label=label, markeredgecolor=ORANGE, clip_on=False, **style)


def _place(run: Run, space: Space, name: str) -> float:
    """Return the place of a run on an axis: its number, or the index of its value."""
    value = getattr(run.config, name)
    if isinstance(space.axes[name], Range):
        return float(value)
    return float(_values(space, name).index(value))


def _draw_line(
    axes: Axes, runs: Sequence[Run], space: Space, name: str, objective: Objective
) -> None:
    """Draw the score over one field."""
    values = [getattr(run.config, name) for run in runs]
    texts = [_value_text(name, value) for value in values]
    if AXES[name] is str or None in values:
        places = [float(i) for i in range(len(runs))]
        texts = [text.replace(" with ", "\nwith ") for text in texts]
        line = "o"
    else:
        runs = sorted(runs, key=lambda run: float(getattr(run.config, name)))
        places = sorted(map(float, values))
        texts = [_value_text(name, value) for value in sorted(values)]
        line = "o-"
        if max(places) > 5 * min(places):
            log_axis(axes, "x", places)
    if not isinstance(space.axes.get(name), Range) and len(places) <= 10:
        axes.set_xticks(places, texts)
        axes.minorticks_off()
    scores = [_score(run) for run in runs]
    axes.plot(places, scores, line, color=BLUE)
    score_axis(axes, scores, objective)
    gone = [place for place, score in zip(places, scores, strict=True) if not isfinite(score)]
    if gone:  # at the lower edge
        edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(gone, [0.0] * len(gone), "x", color=BLACK, markersize=9, label="diverged", **edge)
    best = min(range(len(runs)), key=lambda i: runs[i].rank)
    if isfinite(scores[best]):
        _ring(axes, [places[best]], [scores[best]], runs[best], objective)
    axes.set_xlabel(_axis_label(name))
    axes.grid(alpha=0.3)
