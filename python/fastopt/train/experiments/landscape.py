"""Paths of optimizers over functions of two variables, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._checks import choice, counted, integer, non_negative, positive
from fastopt._files import write_together, write_whole
from fastopt.train.checks import kind
from fastopt.train.config import OPTIMIZERS
from fastopt.train.formats import write_picture
from fastopt.train.style import (
    BLACK,
    CYCLE,
    add_legend,
    line_style,
    mark_places,
    round_ticks,
    set_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array: TypeAlias = npt.NDArray[np.float64]

# The learning rates of `tune_lr`.
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FAR = 1e6  # a path further from the origin has diverged
TOLERANCE = 0.01  # the distance from a minimum at which it counts as reached


@dataclass(frozen=True)
class Landscape:
    """A function of two variables with the minimum 0, and its view.

    Parameters
    ----------
    title, formula : str
        For pictures and tables.
    value_and_grad : callable
        Takes a float64 array of shape (2, ...), the points, and returns the values (...) and the
        gradients (2, ...).
    minima : sequence of pairs
        All points where the value is 0.
    start : pair
        The first point of the paths.
    view : pair of pairs
        The part of the plane in pictures: the range of x and the range of y.
    steps : int
        The length of the paths; each optimizer comes near a minimum in so many steps, with the
        learning rate of `tune_lr`.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> from fastopt.train import experiments
    >>> beale = experiments.LANDSCAPES["beale"]
    >>> value, grad = beale.value_and_grad(np.array([0.0, 0.0]))
    >>> print(value, grad)
    14.203125 [-12.75   0.  ]
    >>> fo.testing.gradcheck(beale.value_and_grad, np.array([1.0, -1.0]))
    True
    """

    title: str
    formula: str
    value_and_grad: Callable[[Array], tuple[Any, Array]]
    minima: Sequence[tuple[float, float]]
    start: tuple[float, float]
    view: tuple[tuple[float, float], tuple[float, float]]
    steps: int = 1000

    def distance(self, points: Array) -> Array:
        """Return the distance of each of the points (..., 2) to the nearest minimum."""
        every = [np.hypot(points[..., 0] - x, points[..., 1] - y) for x, y in self.minima]
        nearest: Array = np.min(every, axis=0)
        return nearest


def _quadratic(curvature: float) -> Callable[[Array], tuple[Any, Array]]:
    def value_and_grad(point: Array) -> tuple[Any, Array]:
        x, y = point
        return (x**2 + curvature * y**2) / 2, np.array([x, curvature * y])

    return value_and_grad


def _rosenbrock(point: Array) -> tuple[Any, Array]:
    x, y = point
    across, along = y - x**2, 1 - x
    grad = np.array([-400 * x * across - 2 * along, 200 * across])
    return along**2 + 100 * across**2, grad


def _beale(point: Array) -> tuple[Any, Array]:
    x, y = point
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    dx = 2 * (a * (y - 1) + b * (y**2 - 1) + c * (y**3 - 1))
    dy = 2 * x * (a + 2 * b * y + 3 * c * y**2)
    return a**2 + b**2 + c**2, np.array([dx, dy])


def _saddle(point: Array) -> tuple[Any, Array]:
    x, y = point
    well = y**2 - 1
    return x**2 / 2 + well**2 / 4, np.array([x, y * well])


# Rosenbrock (1960); Beale (1958). The path of the saddle starts almost on the ridge to the saddle.
LANDSCAPES: dict[str, Landscape] = {
    "bowl": Landscape(
        "a bowl",
        "(x² + 4y²)/2",
        _quadratic(4),
        [(0, 0)],
        (-1.8, 1.3),
        ((-2.2, 2.2), (-1.7, 1.7)),
        200,
    ),
    "ravine": Landscape(
        "a ravine",
        "(x² + 60y²)/2",
        _quadratic(60),
        [(0, 0)],
        (-1.8, 0.5),
        ((-2.2, 1), (-0.8, 0.8)),
        400,
    ),
    "saddle": Landscape(
        "a saddle between two minima",
        "x²/2 + (y² - 1)²/4",
        _saddle,
        [(0, 1), (0, -1)],
        (-1.5, 0.001),
        ((-1.8, 1.8), (-1.6, 1.6)),
        200,
    ),
    "beale": Landscape(
        "Beale's function",
        "(1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²",
        _beale,
        [(3, 0.5)],
        (1, 1.5),
        ((-1, 4.5), (-1.8, 2.4)),
        2000,
    ),
    "rosenbrock": Landscape(
        "Rosenbrock's function",
        "(1 - x)² + 100(y - x²)²",
        _rosenbrock,
        [(1, 1)],
        (-1.2, 1),
        ((-1.8, 1.8), (-0.8, 2.2)),
        6000,
    ),
}


@dataclass(frozen=True, eq=False)
class Descent:
    """The path of one optimizer."""

    optimizer: str  # one of `fastopt.train.OPTIMIZERS`
    lr: float
    points: Array  # (steps + 1, 2), the first is the start; fewer if it diverged
    values: Array  # of the function there
    distances: Array  # to the nearest minimum
    diverged: bool  # it has passed `FAR`, and ends there

    @property
    def title(self) -> str:
        """The name, the learning rate, and whether it diverged."""
        name = f"{OPTIMIZERS[self.optimizer].title}, lr {self.lr:g}"
        return f"{name} (diverged)" if self.diverged else name

    @property
    def too_large(self) -> bool:
        """Whether it diverged, tripled its first distance to a minimum, or ended farther away.

        Or it ended far away (see `too_small`) with steps longer than its distance.
        """
        first, last = self.distances[0], self.distances[-1]
        leap = float(np.hypot(*(self.points[-1] - self.points[-2:][0])))
        leaps = self._far and leap > last
        return bool(self.diverged or self.distances.max() > 3 * first or last > first or leaps)

    @property
    def too_small(self) -> bool:
        """Whether it approached a minimum, but ended at more than half of the first distance."""
        return self._far and not self.too_large

    @property
    def _far(self) -> bool:
        return bool(self.distances[-1] > self.distances[0] / 2)

    def facts(self, function: str, tolerance: float) -> dict[str, Any]:
        """Return its figures, as the files hold them."""
        return {
            "function": function,
            "optimizer": self.optimizer,
            "lr": self.lr,
            "steps": len(self.points) - 1,
            "end_x": float(self.points[-1, 0]),
            "end_y": float(self.points[-1, 1]),
            "end_value": float(self.values[-1]),
            "distance": float(self.distances[-1]),
            "steps_to_tolerance": self.steps_to(tolerance),
            "diverged": self.diverged,
        }

    def steps_to(self, tolerance: float) -> int | None:
        """Return the step from which on it stays within `tolerance` of a minimum, or None."""
        outside = np.flatnonzero(self.distances > tolerance)
        if self.diverged or (len(outside) and outside[-1] == len(self.distances) - 1):
            return None
        return int(outside[-1]) + 1 if len(outside) else 0


def descend(
    landscape: Landscape,
    optimizer: str,
    lr: float,
    steps: int,
    start: tuple[float, float] | None = None,
) -> Descent:
    """Return the path of an optimizer with its default options.

    Parameters
    ----------
    landscape : Landscape
    optimizer : str
        One of `fastopt.train.OPTIMIZERS`.
    lr : float
    steps : int
    start : pair, optional
        By default that of the landscape.

    Examples
    --------
    >>> from fastopt.train import experiments
    >>> path = experiments.descend(experiments.LANDSCAPES["bowl"], "sgd", lr=0.25, steps=40)
    >>> path.steps_to(0.01), path.points.shape
    (19, (41, 2))
    """
    return _descend(landscape, optimizer, [non_negative("lr", lr)], steps, start)[0]


def _descend(
    landscape: Landscape,
    optimizer: str,
    rates: Sequence[float],
    steps: int,
    start: tuple[float, float] | None,
) -> list[Descent]:
    """Return a path for each learning rate."""
    kind("landscape", landscape, Landscape)
    own = OPTIMIZERS[choice(*OPTIMIZERS)("optimizer", optimizer)]
    steps = integer(1, 2**31, f"in [1, {2**31}]")("steps", steps)
    now = np.tile(_point(landscape.start if start is None else start), (len(rates), 1))
    groups = [{"params": [one], "lr": lr} for one, lr in zip(now, rates, strict=True)]
    options: dict[str, Any] = {"lr": rates[0], "weight_decay": own.weight_decay}
    if own.momentum is not None:
        options["momentum"] = own.momentum
    stepper = own.make(groups, **options)
    points, values = np.empty((steps + 1, *now.shape)), np.empty((steps + 1, len(rates)))
    paths = []
    with np.errstate(all="ignore"):
        for done in range(steps + 1):
            points[done] = now
            values[done], grads = landscape.value_and_grad(now.T)
            stepper.step([[grad] for grad in grads.T])
        near = abs(points).max(axis=2) <= FAR  # NaN is not
        for i, lr in enumerate(rates):
            diverged = not near[:, i].all()
            end = int(near[:, i].argmin()) if diverged else steps + 1
            path = points[:end, i].copy(), values[:end, i].copy()
            paths.append(Descent(optimizer, lr, *path, landscape.distance(path[0]), diverged))
    return paths


def _point(start: Any) -> Array:
    """Return the first point of a path as a new array."""
    try:
        point = np.array(start, np.float64)
    except (TypeError, ValueError, OverflowError):
        point = np.empty(0)
    if point.shape != (2,) or not abs(point).max() <= FAR:
        raise ValueError(f"start must be two numbers in [-{FAR:g}, {FAR:g}], not {start!r}")
    return point


def tune_lr(
    landscape: Landscape,
    optimizer: str,
    steps: int,
    start: tuple[float, float] | None = None,
    tolerance: float = TOLERANCE,
) -> Descent:
    """Return the best path of those with the learning rates `RATES`.

    Only paths whose value is never above the start count. The best path stays within `tolerance` of
    a minimum after the fewest steps. If no path does, the best path has the lowest last value.

    Examples
    --------
    >>> from fastopt.train import experiments
    >>> experiments.tune_lr(experiments.LANDSCAPES["bowl"], "sgd", steps=50).lr
    0.2
    """
    positive("tolerance", tolerance)

    def rank(path: Descent) -> tuple[bool, float, float]:
        wild = path.diverged or path.values.max() > path.values[0]
        reached = path.steps_to(tolerance)
        return (wild, steps + 1 if reached is None else reached, path.values[-1])

    return min(_descend(landscape, optimizer, RATES, steps, start), key=rank)


def vary_lr(
    landscape: Landscape,
    optimizer: str,
    lr: float,
    steps: int,
    start: tuple[float, float] | None = None,
) -> list[Descent]:
    """Return three paths: with a rate that is too small, with `lr`, with a rate that is too large.

    The small rate is `lr` divided by 2, 5, 10, 20 ... until the path is `too_small`, the large rate
    is `lr` times 2, 5, 10, 20 ... until the path is `too_large`; the factor is at most 100,000.
    """
    small = good = large = descend(landscape, optimizer, lr, steps, start)
    for factor in _FACTORS:
        small = descend(landscape, optimizer, lr / factor, steps, start)
        if small.too_small:
            break
    for factor in _FACTORS:
        try:
            large = descend(landscape, optimizer, lr * factor, steps, start)
        except ValueError:  # beyond float64
            break
        if large.too_large:
            break
    return [small, good, large]


_FACTORS = [first * 10**zeros for zeros in range(5) for first in (2, 5, 10)]


def find_winner(paths: Sequence[Descent], tolerance: float = TOLERANCE) -> Descent | None:
    """Return the path that is first within `tolerance` of a minimum and stays there.

    If no path is, return that with the lowest last value, or None if all paths diverged.
    """

    def rank(path: Descent) -> tuple[float, float]:
        reached = path.steps_to(tolerance)
        return np.inf if reached is None else reached, path.values[-1]

    return min((path for path in paths if not path.diverged), key=rank, default=None)


def write_landscape(
    folder: str | Path,
    name: str,
    paths: Sequence[Descent],
    rates: Sequence[Descent],
    tolerance: float = TOLERANCE,
    *,
    animation: bool = True,
) -> list[Path]:
    """Write the pictures of paths over a function; return where they are.

    The files are those of ``fastopt landscape``: ``NAME.png`` (see `plot_paths`), ``NAME-lr.png``
    (see `plot_rates`) and ``NAME.gif`` (see `animate`). They are written together; see
    `fastopt.train.write_together`.

    Parameters
    ----------
    folder : path
        Must exist.
    name : str
        One of `LANDSCAPES`.
    paths : sequence of Descent
        At least one.
    rates : sequence of Descent
        The paths of `vary_lr`; at least one.
    tolerance : float
        The distance from a minimum at which it counts as reached.
    animation : bool
        Whether to write the animation.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    landscape = LANDSCAPES[choice(*LANDSCAPES)("name", name)]
    with write_together(folder) as parts:
        files = [
            write_picture(parts / f"{name}.png", plot_paths(landscape, paths, tolerance)),
            write_picture(parts / f"{name}-lr.png", plot_rates(landscape, rates)),
        ]
        if animation:
            files.append(parts / f"{name}.gif")
            animate(files[-1], landscape, paths)
    return [Path(folder, file.name) for file in files]


def _require_paths(paths: Sequence[Descent]) -> None:
    if not paths:
        raise ValueError("paths must hold at least one path")


@np.errstate(all="ignore")
def plot_paths(
    landscape: Landscape, paths: Sequence[Descent], tolerance: float = TOLERANCE
) -> Figure:
    """Return a picture of the paths on the landscape, and of the values along them.

    The legend has the steps of each path to a minimum; see `Descent.steps_to`. It names the winner:
    the path with the fewest steps, or the lowest last value if no path reaches a minimum.
    """
    _require_paths(paths)
    from matplotlib.figure import Figure  # takes half a second, which --help does not need

    figure = Figure(figsize=(11.5, 6), layout="constrained")
    plane, curves = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _add_scale(figure, _draw_landscape(plane, landscape, paths), [plane])
    winner = find_winner(paths, tolerance)
    for i, path in enumerate(paths):
        reached = path.steps_to(tolerance)
        label = path.title
        if not path.diverged:
            label += ": not reached" if reached is None else f": {counted(reached, 'step')}"
        if path is winner:
            label = f"winner: {label}"
        _draw_path(plane, path, i, len(paths))
        # A value of 0 has no place on a log axis: it is drawn at float64's
        # epsilon.
        heights = np.maximum(path.values, np.finfo(np.float64).eps)
        places = mark_places(i, len(paths), len(heights))
        curves.plot(heights, label=label, markevery=places, **line_style(i, len(paths)))
    curves.set(yscale="log", xlabel="step", ylabel="value above the minimum", title="Progress")
    curves.grid(alpha=0.3)
    round_ticks(curves.xaxis, percent=False)
    add_legend(figure, 3, title=f"steps to a distance of {tolerance:g} from a minimum")
    for text in figure.legends[0].get_texts():
        if text.get_text().startswith("winner"):
            text.set_fontweight("bold")
    set_title(figure, f"Optimizers on {landscape.title}: {landscape.formula}")
    return figure


@np.errstate(all="ignore")
def plot_rates(landscape: Landscape, paths: Sequence[Descent]) -> Figure:
    """Return a picture of the paths of `vary_lr`, side by side."""
    _require_paths(paths)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    name = OPTIMIZERS[paths[0].optimizer].title
    for axes, path in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths, strict=True):
        image = _draw_landscape(axes, landscape, paths)
        _draw_path(axes, path, 0, 1, label="path and its end")
        far = path.distances[-1]
        end = f"ended {far:.2g} from the minimum" if far > 1e-6 else "ended at the minimum"
        if path.diverged:
            end = f"diverged at step {len(path.points)}"
        verdict = "too large" if path.too_large else "too small" if path.too_small else "good"
        axes.set_title(f"{verdict}: lr {path.lr:g}\n{end}", fontsize="medium")
    _add_scale(figure, image, figure.axes)
    add_legend(figure, 3)
    steps = counted(max(len(path.points) for path in paths) - 1, "step")
    set_title(figure, f"{name} on {landscape.title}, by learning rate, {steps}")
    return figure


@np.errstate(all="ignore")
def animate(file: Path, landscape: Landscape, paths: Sequence[Descent], frames: int = 60) -> None:
    """Write an animation of the paths as GIF; it shows each step at first, then gets faster.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from fastopt.train import experiments
    >>> bowl = experiments.LANDSCAPES["bowl"]
    >>> path = experiments.descend(bowl, "sgd", lr=0.2, steps=10)
    >>> with TemporaryDirectory() as folder:
    ...     experiments.animate(Path(folder, "bowl.gif"), bowl, [path], frames=5)
    """
    _require_paths(paths)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.4, 5.8), dpi=80, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_landscape(axes, landscape, paths)
    marks = list(axes.lines)  # start and minima, above the paths
    lines = [_draw_path(axes, path, i, len(paths), path.title) for i, path in enumerate(paths)]
    title = axes.set_title(" ")
    add_legend(figure, 2, markerscale=0.75, fontsize="small")
    # Parts that do not move are drawn once; drawing them for each frame takes ten times as long.
    for artist in (*lines, *marks, title):
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    frames = integer(1)("frames", frames)
    last = max(len(path.points) for path in paths) - 1
    shown = np.unique(np.geomspace(1, last + 1, frames).round().astype(int)) - 1
    images = []
    for step in shown.tolist():
        canvas.restore_region(background)
        title.set_text(f"{landscape.title[0].upper()}{landscape.title[1:]}: step {step}")
        axes.draw_artist(title)
        for line, path in zip(lines, paths, strict=True):
            part = path.points[: step + 1]
            line.set_data(part[:, 0], part[:, 1])
            line.set_markevery([len(part) - 1])
            axes.draw_artist(line)
        for mark in marks:
            axes.draw_artist(mark)
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations = [100] * (len(images) - 1) + [1500]  # milliseconds; the last frame stays
    options = {"append_images": images[1:], "duration": durations, "loop": 0}
    write_whole(file, lambda part: images[0].save(part, "GIF", save_all=True, **options))


def _limits(landscape: Landscape, paths: Sequence[Descent], axis: int) -> tuple[float, float]:
    """Return the part of an axis that shows the paths, at most twice as wide as the view.

    Of a path that diverged, it shows the start.
    """
    low, high = landscape.view[axis]
    room = (high - low) / 2
    points = np.concatenate([path.points[: 1 if path.diverged else None] for path in paths])
    shown = np.clip(points[:, axis], low - room, high + room)
    start = paths[0].points[0, axis]
    left, right = float(min(start, shown.min())), float(max(start, shown.max()))
    margin = (max(high, right) - min(low, left)) / 20
    return min(low, left - margin), max(high, right + margin)


def _draw_landscape(axes: Axes, landscape: Landscape, paths: Sequence[Descent]) -> AxesImage:
    """Draw the values in bands, two for a decade, the minima, and the start of the paths."""
    from matplotlib.colors import BoundaryNorm

    (left, right), (bottom, top) = (_limits(landscape, paths, axis) for axis in (0, 1))
    grid = np.array(np.meshgrid(np.linspace(left, right, 400), np.linspace(bottom, top, 400)))
    values, _ = landscape.value_and_grad(grid)
    highest = np.ceil(2 * np.log10(values.max())) / 2
    levels = 10 ** (highest - 0.5 * np.arange(10, -1, -1))
    image = axes.imshow(
        values,
        "Greys",
        BoundaryNorm(levels, 256, extend="min"),
        aspect="auto",
        alpha=0.5,
        origin="lower",
        extent=(left, right, bottom, top),
    )
    axes.contour(*grid, values, levels, colors="white", linewidths=0.7)
    # The ends of the paths are hollow marks around a minimum, so that both are seen.
    edge: dict[str, Any] = {"linestyle": "", "color": BLACK, "mec": "white", "mew": 0.6}
    axes.plot(*zip(*landscape.minima, strict=True), "*", label="minimum", ms=12, zorder=8, **edge)
    start: dict[str, Any] = {"color": "white", "markeredgecolor": BLACK}
    axes.plot(*paths[0].points[0], "o", label="start", markersize=8, zorder=7, **start)
    axes.set(xlabel="x", ylabel="y", xlim=(left, right), ylim=(bottom, top))
    return image


def _add_scale(figure: Figure, image: AxesImage, axes: list[Axes]) -> None:
    """Add the scale of the bands that `_draw_landscape` drew, with its decades."""
    bar = figure.colorbar(image, ax=axes, label="value above the minimum", spacing="uniform")
    norm: Any = image.norm
    powers = np.log10(norm.boundaries)
    decades = [10.0 ** round(power) for power in powers if abs(power - round(power)) < 1e-9]
    bar.set_ticks(decades, labels=[f"{value:g}" for value in decades])
    bar.minorticks_off()


def _draw_path(axes: Axes, path: Descent, index: int, paths: int, label: str = "") -> Any:
    """Draw one of several paths with a hollow mark at its end; return its line.

    The marks have different sizes, so that paths with the same end are all seen. A path that
    diverged ends where it leaves the picture.
    """
    points = path.points
    if path.diverged:
        low, high = zip(axes.get_xlim(), axes.get_ylim(), strict=True)
        outside = ((points < low) | (points > high)).any(axis=1)
        points = points[: int(outside.argmax()) + 1]
    style = line_style(index, paths) | {
        "markerfacecolor": "none",
        "markeredgecolor": CYCLE[index % len(CYCLE)],
        "markersize": 16 + 3 * index,
        "markeredgewidth": 2,
        "markevery": [len(points) - 1],
    }
    return axes.plot(points[:, 0], points[:, 1], label=label, zorder=5, **style)[0]
