"""``fastopt landscape``: paths of the optimizers over functions of two variables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fastopt import train as ft
from fastopt._checks import counted, short_repr
from fastopt.cli.common import (
    Folder,
    Number,
    Whole,
    check_end,
    check_range,
    console,
    each,
    fail,
    results_folder,
    say,
    wide_table,
    written,
)
from fastopt.cli.lists import parse_names
from fastopt.train import experiments as fx
from fastopt.train.experiments.files import write_json, write_picture, write_table


def landscape(
    function: Annotated[
        str, typer.Option(metavar="LIST", help=f"Of {', '.join(fx.LANDSCAPES)}; or all.")
    ] = "all",
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"Of {', '.join(ft.OPTIMIZERS)}; or all. The first is also shown with learning "
            "rates too small and too large.",
        ),
    ] = "all",
    steps: Annotated[int, Whole(help="Steps of each path.")] = 1000,
    lr: Annotated[
        float | None,
        Number(help="Learning rate.", show_default="the best of 0.0001, 0.0002 ... 1"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Where to begin.", show_default="the function's own"),
    ] = None,
    tolerance: Annotated[
        float, Number(help="Distance from a minimum that counts as there.")
    ] = 0.01,
    animation: Annotated[bool, typer.Option(help="Write the animations.")] = True,
    output: Annotated[
        Path, Folder(help="Folder for landscape.csv, landscape.json and the pictures.")
    ] = Path("fastopt-landscape"),
) -> None:
    """Draw how the optimizers go downhill: pictures, animations, steps to the minimum."""
    functions = parse_names("--function", function, fx.LANDSCAPES)
    optimizers = parse_names("--optimizer", optimizer, ft.OPTIMIZERS)
    check_range("--steps", steps, 1, 100_000)
    for option, value in (("--lr", lr), ("--tolerance", tolerance)):
        if value is not None and not 0 < value < math.inf:
            fail(f"{option} must be finite and greater than 0, not {value}")
    point = None if start is None else parse_point(start)

    def draw_one(name: str) -> tuple[list[Path], list[dict[str, Any]]]:
        paths = follow(name, optimizers, lr, steps, point, tolerance)
        files = draw(folder, name, paths, steps, point, animation)
        if not console.is_terminal:
            say(f"{name}: {counted(len(paths), 'path')} of {counted(steps, 'step')}")
        return files, [facts_of(name, path, tolerance) for path in paths]

    rows: list[dict[str, Any]] = []
    with results_folder(output):
        for name in optimizers:
            try:
                follow(functions[0], [name], lr, 1, point, tolerance)
            except ValueError as error:
                fail(f"--lr cannot be {lr:g} for {name}: {str(error).partition(', the dtype')[0]}")
        try:
            with ft.write_together(output) as folder:
                parts = each(functions, "descending", draw_one)
                files = [file for part, _ in parts for file in part]
                rows += [row for _, part in parts for row in part]
                options = {"steps": steps, "lr": lr, "start": point, "tolerance": tolerance}
                facts = {"options": options, "paths": rows}
                files.append(write_table(folder / "landscape.csv", rows))
                files.append(write_json(folder / "landscape.json", facts))
        finally:
            if rows:
                report(rows, steps, tolerance, lr)
    written(output, files)
    check_end(len(parts), len(functions), "function")
    if all(row["diverged"] for row in rows):
        say("all paths diverged: try a smaller --lr")
        raise typer.Exit(1)


def report(rows: list[dict[str, Any]], steps: int, tolerance: float, lr: float | None) -> None:
    """Print the table."""
    head = ["", "lr", "ended at", "value", "distance", f"steps to {tolerance:g}"]
    rates = "the best learning rate for each" if lr is None else "one learning rate for all"
    title = f"Paths of {counted(steps, 'step')}, {rates}"
    console.print(wide_table(title, head, [table_line(row) for row in rows]))
    if any(row["optimizer"] == "adamw" for row in rows):
        decay = ft.OPTIMIZERS["adamw"].weight_decay
        say(f"AdamW has its weight decay of {decay:g}, which pulls towards (0, 0).")


def parse_point(text: str) -> tuple[float, float]:
    """Return the two numbers in a text such as ``-1,0.5``."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (abs(x) <= 1000 and abs(y) <= 1000):
        fail(f"--start must be two numbers in [-1000, 1000] such as -1,0.5, not {short_repr(text)}")
    return x, y


def follow(
    name: str,
    optimizers: list[str],
    lr: float | None,
    steps: int,
    start: tuple[float, float] | None,
    tolerance: float,
) -> list[fx.Descent]:
    """Return the path of each optimizer over a function."""
    plane = fx.LANDSCAPES[name]
    if lr is None:
        return [fx.tune_lr(plane, o, steps, start, tolerance) for o in optimizers]
    return [fx.descend(plane, o, lr, steps, start) for o in optimizers]


def draw(
    output: Path,
    name: str,
    paths: list[fx.Descent],
    steps: int,
    start: tuple[float, float] | None,
    animation: bool,
) -> list[Path]:
    """Write the pictures of a function, all or none; return where they were made."""
    plane = fx.LANDSCAPES[name]
    rates = fx.vary_lr(plane, paths[0].optimizer, paths[0].lr, steps, start)
    with ft.write_together(output) as folder:
        files = [
            write_picture(folder / f"{name}.png", fx.plot_paths(plane, paths)),
            write_picture(folder / f"{name}-lr.png", fx.plot_rates(plane, rates)),
        ]
        if animation:
            files.append(folder / f"{name}.gif")
            fx.animate(files[-1], plane, paths)
    return files


def facts_of(name: str, path: fx.Descent, tolerance: float) -> dict[str, Any]:
    """Return what the files hold of a path."""
    return {
        "function": name,
        "optimizer": path.optimizer,
        "lr": path.lr,
        "steps": len(path.points) - 1,
        "end_x": float(path.points[-1, 0]),
        "end_y": float(path.points[-1, 1]),
        "end_value": float(path.values[-1]),
        "distance": float(path.distances[-1]),
        "steps_to_tolerance": path.steps_to(tolerance),
        "diverged": path.diverged,
    }


def table_line(row: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    name = f"{row['function']}, {ft.OPTIMIZERS[row['optimizer']].title}"
    if row["diverged"]:
        return [name, f"{row['lr']:g}", "", "", "", f"diverged at step {row['steps'] + 1}"]
    reached = row["steps_to_tolerance"]
    return [
        name,
        f"{row['lr']:g}",
        f"({round(row['end_x'], 4) + 0.0:.4f}, {round(row['end_y'], 4) + 0.0:.4f})",  # no -0.0000
        f"{row['end_value']:.2g}",
        f"{row['distance']:.2g}",
        "not reached" if reached is None else str(reached),
    ]
