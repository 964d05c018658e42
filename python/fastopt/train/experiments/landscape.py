"""Paths of optimizers over functions of two variables, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastopt._checks import choice, integer, non_negative, positive
from fastopt._files import write_together, write_whole
from fastopt.train.checks import kind
from fastopt.train.config import OPTIMIZERS
from fastopt.train.formats import write_picture
from fastopt.train.style import BLACK, CYCLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array: TypeAlias = npt.NDArray[np.float64]

# The learning rates of `tune_lr`.
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FAR = 1e6  # a path further from the origin has diverged
MARKERS = "os^DvPX"


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
        "a bowl", "(x² + 4y²)/2", _quadratic(4), [(0, 0)], (-1.8, 1.3), ((-2.2, 2.2), (-1.7, 1.7))
    ),
    "ravine": Landscape(
        "a ravine", "(x² + 60y²)/2", _quadratic(60), [(0, 0)], (-1.8, 0.5), ((-2.2, 1), (-0.8, 0.8))
    ),
    "saddle": Landscape(
        "a saddle between two minima",
        "x²/2 + (y² - 1)²/4",
        _saddle,
        [(0, 1), (0, -1)],
        (-1.5, 0.001),
        ((-1.8, 1.8), (-1.6, 1.6)),
    ),
    "beale": Landscape(
        "Beale's function",
        "(1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²",
        _beale,
        [(3, 0.5)],
        (1, 1.5),
        ((-1, 4.5), (-1.8, 2.4)),
    ),
    "rosenbrock": Landscape(
        "Rosenbrock's function",
        "(1 - x)² + 100(y - x²)²",
        _rosenbrock,
        [(1, 1)],
        (-1.2, 1),
        ((-1.8, 1.8), (-0.8, 2.2)),
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
        """Whether it diverged, tripled its first distance to a minimum, or ended farther away."""
        far = self.distances[0]
        return bool(self.diverged or self.distances.max() > 3 * far or self.distances[-1] > far)

    @property
    def too_small(self) -> bool:
        """Whether it approached a minimum, but ended at more than half of the first distance."""
        return bool(not self.too_large and self.distances[-1] > self.distances[0] / 2)

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
    kind("landscape", landscape, Landscape)
    own = OPTIMIZERS[choice(*OPTIMIZERS)("optimizer", optimizer)]
    lr = non_negative("lr", lr)
    steps = integer(1, 2**31, f"in [1, {2**31}]")("steps", steps)
    point = _point(landscape.start if start is None else start)
    options: dict[str, Any] = {"lr": lr, "weight_decay": own.weight_decay}
    if own.momentum is not None:
        options["momentum"] = own.momentum
    stepper = own.make([point], **options)
    points, values = np.empty((steps + 1, 2)), np.empty(steps + 1)
    with np.errstate(all="ignore"):
        for done in range(steps + 1):
            points[done] = point
            values[done], grad = landscape.value_and_grad(point)
            if done < steps:
                stepper.step([grad])
                diverged = not abs(point).max() <= FAR  # NaN is not
                if diverged:
                    break
        points, values = points[: done + 1].copy(), values[: done + 1].copy()
        return Descent(optimizer, lr, points, values, landscape.distance(points), diverged)


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
    tolerance: float = 0.01,
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

    return min((descend(landscape, optimizer, lr, steps, start) for lr in RATES), key=rank)


def vary_lr(
    landscape: Landscape,
    optimizer: str,
    lr: float,
    steps: int,
    start: tuple[float, float] | None = None,
) -> list[Descent]:
    """Return three paths: with a rate that is too small, with `lr`, with a rate that is too large.

    The small rate is `lr`, halved until the path is `too_small`, at most fourteen times. The large
    rate is `lr`, doubled until the path is `too_large`, at most fourteen times.
    """
    good = small = large = descend(landscape, optimizer, lr, steps, start)
    for halvings in range(1, 15):
        small = descend(landscape, optimizer, lr / 2**halvings, steps, start)
        if small.too_small:
            break
    for doublings in range(1, 15):
        try:
            large = descend(landscape, optimizer, lr * 2**doublings, steps, start)
        except ValueError:  # beyond float64
            break
        if large.too_large:
            break
    return [small, good, large]


def follow(
    landscape: Landscape,
    optimizers: Sequence[str],
    lr: float | None,
    steps: int,
    start: tuple[float, float] | None,
    tolerance: float,
) -> list[Descent]:
    """Return the path of each optimizer, each with its best learning rate if `lr` is None."""
    if lr is None:
        return [tune_lr(landscape, name, steps, start, tolerance) for name in optimizers]
    return [descend(landscape, name, lr, steps, start) for name in optimizers]


def write_pictures(
    folder: Path,
    name: str,
    paths: Sequence[Descent],
    steps: int,
    start: tuple[float, float] | None,
    animation: bool,
) -> list[Path]:
    """Write the pictures of one of `LANDSCAPES`, all or none; return where they were made."""
    landscape = LANDSCAPES[name]
    rates = vary_lr(landscape, paths[0].optimizer, paths[0].lr, steps, start)
    with write_together(folder) as parts:
        files = [
            write_picture(parts / f"{name}.png", plot_paths(landscape, paths)),
            write_picture(parts / f"{name}-lr.png", plot_rates(landscape, rates)),
        ]
        if animation:
            files.append(parts / f"{name}.gif")
            animate(files[-1], landscape, paths)
    return files


@np.errstate(all="ignore")
def plot_paths(landscape: Landscape, paths: Sequence[Descent]) -> Figure:
    """Return a picture of the paths on the landscape, and of the values along them."""
    from matplotlib.figure import Figure  # takes half a second, which --help does not need

    figure = Figure(figsize=(11.5, 5.4), layout="constrained")
    plane, curves = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _add_scale(figure, _draw_landscape(plane, landscape, paths[0]), [plane])
    for i, path in enumerate(paths):
        _draw_path(plane, path, i)
        # A value of 0 has no place on a log axis: it is drawn at float64's
        # epsilon.
        heights = np.maximum(path.values, np.finfo(np.float64).eps)
        style = {"color": CYCLE[i % len(CYCLE)], "marker": MARKERS[i % len(MARKERS)]}
        every = max(1, len(heights) // 8)
        curves.plot(heights, label=path.title, markevery=(i * every // len(paths), every), **style)
    curves.set(yscale="log", xlabel="step", ylabel="value above the minimum", title="Progress")
    curves.grid(alpha=0.3)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Optimizers on {landscape.title}: {landscape.formula}")
    return figure


@np.errstate(all="ignore")
def plot_rates(landscape: Landscape, paths: Sequence[Descent]) -> Figure:
    """Return a picture of the paths of `vary_lr`, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    name = OPTIMIZERS[paths[0].optimizer].title
    for axes, path in zip(figure.subplots(1, len(paths)), paths, strict=True):
        image = _draw_landscape(axes, landscape, path)
        _draw_path(axes, path, 0)
        end = f"ended {path.distances[-1]:.2g} from the minimum"
        if path.diverged:
            end = f"diverged at step {len(path.points)}"
        verdict = "too large" if path.too_large else "too small" if path.too_small else "good"
        axes.set_title(f"{verdict}: lr {path.lr:.2g}\n{end}", fontsize="medium")
    _add_scale(figure, image, figure.axes)
    figure.suptitle(f"{name} on {landscape.title}, by learning rate")
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.4, 5.6), dpi=80, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_landscape(axes, landscape, paths[0])
    lines = [_draw_path(axes, path, i, label=path.title) for i, path in enumerate(paths)]
    title = axes.set_title(" ")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    # Parts that do not move are drawn once; drawing them for each frame takes ten times as long.
    for artist in (*lines, title):
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
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations = [100] * (len(images) - 1) + [1500]  # milliseconds; the last frame stays
    options = {"append_images": images[1:], "duration": durations, "loop": 0}
    write_whole(file, lambda part: images[0].save(part, "GIF", save_all=True, **options))


def _draw_landscape(axes: Axes, landscape: Landscape, path: Descent) -> AxesImage:
    """Draw the values in bands, two for a decade, the minima, and the start of `path`."""
    from matplotlib.colors import BoundaryNorm

    (left, right), (bottom, top) = landscape.view
    x0, y0 = path.points[0]
    left, right = min(left, x0 - 0.2), max(right, x0 + 0.2)
    bottom, top = min(bottom, y0 - 0.2), max(top, y0 + 0.2)
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
    for x, y in landscape.minima:
        axes.plot(x, y, "*", color=BLACK, markersize=13, markeredgecolor="white", zorder=4)
    axes.plot(x0, y0, "o", color="white", markeredgecolor=BLACK, markersize=8, zorder=6)
    axes.set(xlabel="x", ylabel="y", xlim=(left, right), ylim=(bottom, top))
    return image


def _add_scale(figure: Figure, image: AxesImage, axes: list[Axes]) -> None:
    """Add the scale of the bands that `_draw_landscape` drew, with its decades."""
    bar = figure.colorbar(image, ax=axes, label="value above the minimum", spacing="uniform")
    norm: Any = image.norm
    powers = np.log10(norm.boundaries)
    decades = [power for power in powers if abs(power - round(power)) < 1e-9]
    bar.set_ticks(
        [10.0 ** round(p) for p in decades], labels=[f"$10^{{{p:.0f}}}$" for p in decades]
    )
    bar.minorticks_off()


def _draw_path(axes: Axes, path: Descent, index: int, label: str = "") -> Any:
    """Draw a path with a mark at its end; return its line."""
    return axes.plot(
        path.points[:, 0],
        path.points[:, 1],
        color=CYCLE[index % len(CYCLE)],
        linewidth=1.6,
        marker=MARKERS[index % len(MARKERS)],
        markevery=[len(path.points) - 1],
        markeredgecolor="white",
        markersize=9,
        label=label,
        zorder=5,
    )[0]
