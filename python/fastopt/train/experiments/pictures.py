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
from fastopt.train.palette import BLACK, CYCLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# The lines of equal runs cover each other. The later styles have gaps, so that the earlier lines
# stay visible.
STYLES = ("-", "--", "-.", ":", (0, (4, 4)), (0, (1, 4)), (0, (8, 3, 2, 3)))
SHOWN = 5  # runs of a sweep whose curves have a colour
PANELS = 6  # heat maps side by side, at most


def _loss_label(runs: Sequence[Run], objective: Objective) -> str:
    several = len({run.config.loss for run in runs}) > 1
    return "mean loss, of each run's own kind" if several else objective.loss_label


def _titled(figure: Figure, title: str) -> Figure:
    if title:
        figure.suptitle(title, parse_math=False)  # a name with dollars is not a formula
    return figure


def _require_runs(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("runs must hold at least one run")


@np.errstate(all="ignore")
def plot_comparison(
    runs: Sequence[Run], names: Sequence[str], objective: Objective, title: str = ""
) -> Figure:
    """Return a picture of the losses, training and held out, and of the held-out scores.

    Parameters
    ----------
    runs : sequence of Run
    names : sequence of str
        The fields in which the runs differ.
    objective : Objective
    title : str
    """
    _require_runs(runs)
    from matplotlib.figure import Figure  # takes half a second: not for --help

    rows = -(-len(runs) // 5)  # of the legend
    figure = Figure(figsize=(13, 4.5 + 0.2 * rows), layout="constrained")
    train, val, score = figure.subplots(1, 3)
    train.sharey(val)
    for i, run in enumerate(runs):
        text = label(run.config, names) + (" (diverged)" if run.diverged else "")
        style: dict[str, Any] = _style(i) | {"label": text}
        _draw(train, run, "train_loss", style)
        _draw(val, run, "val_loss", style)
        _draw(score, run, "val_score", style)
    loss = _loss_label(runs, objective)
    train.set(title="Training loss", ylabel=loss)
    val.set(title="Held-out loss", ylabel=loss)
    _finish_losses([train, val], runs, ("train_loss", "val_loss"))
    _finish_scores(score, runs, objective, whole=True)
    handles, labels = train.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(runs)))
    return _titled(figure, title)


@np.errstate(all="ignore")
def plot_sweep(
    runs: Sequence[Run], names: Sequence[str], objective: Objective, title: str = ""
) -> Figure:
    """Return a picture of the held-out losses and scores of all runs; the best have colours."""
    _require_runs(runs)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    loss, score = figure.subplots(1, 2)
    ranked = sorted(runs, key=lambda run: run.rank)
    for i in reversed(range(len(ranked))):  # the best on top
        run = ranked[i]
        style: dict[str, Any] = {"color": "0.75", "linewidth": 0.8}
        if i < SHOWN and not run.diverged:
            style = _style(i) | {"label": label(run.config, names)}
        _draw(loss, run, "val_loss", style)
        _draw(score, run, "val_score", style)
    loss.set(title="Held-out loss", ylabel=_loss_label(runs, objective))
    _finish_losses([loss], runs, ("val_loss",))
    _finish_scores(score, runs, objective)
    handles, labels = (entries[::-1] for entries in loss.get_legend_handles_labels())
    if len(ranked) > SHOWN:
        handles += loss.plot([], [], color="0.75", linewidth=0.8)
        labels.append("the others")
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return _titled(figure, title)


def _style(i: int) -> dict[str, Any]:
    return {
        "color": CYCLE[i % len(CYCLE)],
        "linestyle": STYLES[i % len(STYLES)],
        "linewidth": 1.8,
        "zorder": 3,
    }


def _draw(axes: Axes, run: Run, what: str, style: Mapping[str, Any]) -> None:
    epochs = run.history.epochs
    marker = "o" if len(epochs) < 3 else None  # a line of one point is invisible
    axes.plot([e.epoch for e in epochs], [getattr(e, what) for e in epochs], marker=marker, **style)


def _finish_losses(axes: Sequence[Axes], runs: Sequence[Run], what: Sequence[str]) -> None:
    """Use a log axis that shows all runs that did not diverge."""
    kept = [run for run in runs if not run.diverged] or runs
    values = [getattr(e, name) for run in kept for e in run.history.epochs for name in what]
    values = [value for value in values if isfinite(value)]
    for one in axes:
        _finish_epochs(one, runs)
        if values and min(values) > 0:
            one.set_yscale("log")
            one.set_ylim(min(values) / 1.2, max(values) * 1.2)
            if max(values) < 30 * min(values):  # decades would be too few marks
                _mark_within_decades(one.yaxis)


def _mark_within_decades(axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _finish_scores(
    axes: Axes, runs: Sequence[Run], objective: Objective, *, whole: bool = False
) -> None:
    """Set limits for the final scores of all runs that did not diverge, or of the better half."""
    _finish_epochs(axes, runs)
    name = objective.score_name[0].upper() + objective.score_name[1:]
    axes.set(title=f"{name} on held-out data", ylabel=objective.score_label)
    kept = [run for run in runs if not run.diverged]
    ends = [run.final.val_score for run in kept if isfinite(run.final.val_score)]
    if ends:
        high = max(run.history.best.val_score for run in kept)
        low = min(ends) if whole else float(np.median(ends))
        low -= max(2 * (high - low), 0.03)
        values = [e.val_score for run in kept for e in run.history.epochs]
        low = max(low, min(value for value in values if isfinite(value)) - 0.01)
        axes.set_ylim(low, min(1.0, high) + 0.05 * (min(1.0, high) - low))
    if objective.task != "regression":
        axes.yaxis.set_major_formatter(_percent())


def _finish_epochs(axes: Axes, runs: Sequence[Run]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(run.final.epoch for run in runs)
    axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


@np.errstate(all="ignore")
def plot_map(runs: Sequence[Run], space: Space, objective: Objective, title: str = "") -> Figure:
    """Return a picture of the final held-out score over the fields that vary.

    With two or more fields it is a heat map of the first two (learning rate and batch size, if both
    vary), with a panel for each value of a third. If one of the two is a range, it shows a dot for
    each run. Of several runs at one place, it shows the best.
    """
    _require_runs(runs)
    from matplotlib.figure import Figure

    varied = [
        n for n in AXES if isinstance(values := space.axes.get(n, ()), Range) or len(values) > 1
    ]
    score = f"final {objective.score_name} on held-out data"
    if len(varied) < 2:
        figure = Figure(figsize=(7, 4.8), layout="constrained")
        axes = figure.subplots()
        _draw_line(axes, runs, space, (varied or list(space.axes) or ["lr"])[0], objective)
        axes.set_ylabel(score)
    else:
        x, y, *rest = varied
        third = next((n for n in rest if not isinstance(space.axes[n], Range)), None)
        panels: list[Any] = [None] if third is None else list(_values(space, third))[:PANELS]
        size = (
            (2.2 + 4.6 * len(panels), 4.9) if len(panels) < 3 else (13, 4.4 * -(-len(panels) // 3))
        )
        figure = Figure(figsize=size, layout="constrained")
        columns = min(3, len(panels))
        grid = figure.subplots(
            -(-len(panels) // columns), columns, sharex=True, sharey=True, squeeze=False
        )
        finite = [r.final.val_score for r in runs if not r.diverged and isfinite(r.final.val_score)]
        high = max(finite, default=1.0)
        low = min(finite, default=0.0)
        # The colours distinguish the better half: one bad run would make all others look the same.
        low = max(low, high - 3 * (high - float(np.median(finite or [0.0]))) - 1e-3)
        for axes, value in zip(grid.flat, panels, strict=False):
            part = [r for r in runs if third is None or getattr(r.config, third) == value]
            image = _draw_map(axes, part, space, (x, y), (low, high), objective)
            if third is not None:
                kind = "" if AXES[third] is str else f"{_axis_label(third)} "
                axes.set_title(kind + _value_text(third, value))
            axes.label_outer()
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        form = None if objective.task == "regression" else _percent()
        figure.colorbar(image, ax=grid, label=score, extend="min", format=form)
        marks = [axes.get_legend_handles_labels() for axes in grid.flat]
        named = {text: mark for pair in marks for mark, text in zip(*pair, strict=True)}
        if named:
            figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2)
        others = [n for n in rest if n != third]
        if others:
            title += f"; the best over {', '.join(n.replace('_', ' ') for n in others)}"
    return _titled(figure, title)


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0)


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
    space: Space,
    names: tuple[str, str],
    limits: tuple[float, float],
    objective: Objective,
) -> Any:
    """Draw one panel; return the image for a colour bar."""
    x, y = names
    axes.set(xlabel=_axis_label(x), ylabel=_axis_label(y))
    if isinstance(space.axes[x], Range) or isinstance(space.axes[y], Range):
        return _draw_dots(axes, runs, space, names, limits)
    columns, rows = _values(space, x), _values(space, y)
    scores = np.full((len(rows), len(columns)), nan)
    texts: dict[tuple[int, int], str] = {}
    for run in sorted(runs, key=lambda run: run.rank, reverse=True):
        place = rows.index(getattr(run.config, y)), columns.index(getattr(run.config, x))
        scores[place] = nan if run.diverged else run.final.val_score
        texts[place] = "diverged" if run.diverged else objective.format_score(run.final.val_score)
    low, high = limits
    image = axes.imshow(scores, "viridis", vmin=low, vmax=high, origin="lower", aspect="auto")
    best = [min(runs, key=lambda run: run.rank)] if runs else []
    chosen = [(rows.index(getattr(r.config, y)), columns.index(getattr(r.config, x))) for r in best]
    for (i, j), text in texts.items():
        dark = scores[i, j] < (low + high) / 2
        axes.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            color="white" if dark else BLACK,
            weight="bold" if (i, j) in chosen else "normal",
            fontsize=9 if len(columns) <= 6 else 8,
        )
    axes.set_xticks(range(len(columns)), [_value_text(x, value) for value in columns])
    axes.set_yticks(range(len(rows)), [_value_text(y, value) for value in rows])
    return image


def _draw_dots(
    axes: Axes,
    runs: Sequence[Run],
    space: Space,
    names: tuple[str, str],
    limits: tuple[float, float],
) -> Any:
    places = [[_place(run, space, name) for name in names] for run in runs]
    scores = [nan if run.diverged else run.final.val_score for run in runs]
    fine = [i for i, score in enumerate(scores) if not isnan(score)]
    gone = [i for i, score in enumerate(scores) if isnan(score)]
    of_panel = " of its panel" if len(axes.figure.axes) > 1 else ""
    dots = axes.scatter(
        [places[i][0] for i in fine],
        [places[i][1] for i in fine],
        c=[scores[i] for i in fine],
        cmap="viridis",
        vmin=limits[0],
        vmax=limits[1],
        s=110,
        edgecolors="0.3",
    )
    if gone:
        x, y = zip(*(places[i] for i in gone), strict=True)
        axes.plot(x, y, "x", color=BLACK, markersize=9, label="diverged")
    if fine:
        best = min(fine, key=lambda i: runs[i].rank)
        ring: dict[str, Any] = {
            "markersize": 17,
            "markerfacecolor": "none",
            "markeredgecolor": CYCLE[1],
        }
        axes.plot(*places[best], "o", label=f"best{of_panel}", markeredgewidth=2, **ring)
    for name, axis in zip(names, (axes.xaxis, axes.yaxis), strict=True):
        values = space.axes[name]
        if isinstance(values, Range):
            if values.log:
                (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
                if values.high <= 100 * values.low:
                    _mark_within_decades(axis)
        else:
            texts = [_value_text(name, value) for value in _values(space, name)]
            axis.set_ticks(range(len(texts)), labels=texts)
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return dots


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
    numbers = AXES[name] is not str and all(getattr(r.config, name) is not None for r in runs)
    if numbers:
        runs = sorted(runs, key=lambda run: float(getattr(run.config, name)))
        places = [float(getattr(run.config, name)) for run in runs]
        if min(places) > 0 and max(places) > 5 * min(places):
            axes.set_xscale("log")
    else:
        places = [float(i) for i in range(len(runs))]
        texts = [_value_text(name, getattr(run.config, name)) for run in runs]
        axes.set_xticks(places, [text.replace(" with ", "\nwith ") for text in texts])
    scores = [nan if run.diverged else run.final.val_score for run in runs]
    axes.plot(places, scores, "o-" if numbers else "o", color=CYCLE[0])
    floor = min((score for score in scores if isfinite(score)), default=0.0)
    gone = [place for place, run in zip(places, runs, strict=True) if run.diverged]
    if gone:
        axes.plot(gone, [floor] * len(gone), "x", color=BLACK, markersize=9, label="diverged")
    best = min(range(len(runs)), key=lambda i: runs[i].rank)
    if isfinite(scores[best]):
        text = f"best: {objective.format_score(scores[best])}"
        axes.plot(places[best], scores[best], "o", color=CYCLE[1], markersize=11, label=text)
    axes.set_xlabel(_axis_label(name))
    if objective.task != "regression":
        axes.yaxis.set_major_formatter(_percent())
    axes.grid(alpha=0.3)
    axes.legend()
