"""The style of all pictures: colours, lines and axes."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from textwrap import fill
from typing import TYPE_CHECKING, Any

from fastopt.train.objective import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Colour-blind readers can distinguish these colours (Okabe and Ito, 2008).
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, YELLOW, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
CYCLE = (BLUE, ORANGE, GREEN, YELLOW, BLACK, SKY, PINK)  # of successive lines
MARKERS = "os^DvPX*"
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (6, 2)))
LEAST_LOSS = 1e-6  # on a log axis: smaller losses would flatten the others
ROUND = [1, 2, 5, 10]  # the first digits of ticks


def line_style(i: int, lines: int) -> dict[str, Any]:
    """Return the style of the line `i` of a picture with so many lines.

    The lines differ in colour, dashes and mark. Each is thinner than the line before it, so that a
    line is seen on both sides of one that covers it.
    """
    return {
        "color": CYCLE[i % len(CYCLE)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "linewidth": 3.2 - 2 * i / max(1, lines - 1),
        "markersize": 6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def mark_places(i: int, lines: int, points: int) -> tuple[int, int]:
    """Return the ``markevery`` of the line `i`, beside the marks of the others if they fit."""
    every = max(1, points // 8, min(lines, points // 2))
    return i * every // lines, every


def ink(color: Any) -> str:
    """Return black or white, whichever is easier to read on a colour."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else BLACK  # both have a contrast of 4.6 there


def plain(text: str) -> str:
    """Return a name for matplotlib: dollars are no formulas, control characters are not written."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown.replace("$", r"\$")


def set_title(figure: Figure, *lines: str) -> None:
    """Set the title of a picture: the lines that are not empty, folded to its width."""
    width = int(9.5 * figure.get_figwidth())
    if text := "\n".join(fill(line, width) for line in map(plain, lines) if line):
        figure.suptitle(text)


def add_legend(figure: Figure, columns: int, **options: Any) -> None:
    """Add one legend for all axes below them, where it hides nothing."""
    named = {
        text: mark
        for axes in figure.axes
        for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        options |= {"loc": "outside lower center", "ncols": columns, "handlelength": 3}
        figure.legend(list(named.values()), list(named), **options)


def epoch_axis(axes: Axes, epochs: int) -> None:
    """Make the x-axis one of epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=ROUND, min_n_ticks=1))
    axes.grid(alpha=0.3)


def score_axis(axes: Axes, scores: Iterable[float], objective: Objective) -> None:
    """Make the y-axis one that shows all scores; of R² only those above -1, and says so."""
    shown = [score for score in scores if isfinite(score)]
    label = objective.score_label
    if objective.task == "regression" and shown and min(shown) < -1 < max(shown):
        shown = [-1.0, *(score for score in shown if score > -1)]
        label += ", cut at -1"  # the first epochs would flatten the others
    axes.set_ylabel(label)
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    margin = 0.05 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    round_ticks(axes.yaxis, percent=objective.task != "regression")


def round_ticks(axis: Axis, *, percent: bool) -> None:
    """Use ticks such as 95% and 97.5%, or 0.2 and 0.4."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=ROUND))
    if percent:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def log_axis(axes: Axes, which: str, values: Iterable[float], least: float = 0.0) -> None:
    """Make the axis "x" or "y" logarithmic with plain numbers, if a value is greater than `least`.

    It shows all finite values that are greater. If some are not, the label says so.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    finite = [value for value in values if isfinite(value)]
    shown = [value for value in finite if value > least]
    if not shown:
        return
    low, high = min(shown), max(shown)
    if which == "y" and len(shown) < len(finite):
        axes.set_ylabel(f"{axes.get_ylabel()}, cut at {low:.1g}")
    axis: Axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    if which == "y":
        margin = max((high / low) ** 0.05, 1.01)
        axes.set_ylim(low / margin, high * margin)
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(7, steps=ROUND))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
