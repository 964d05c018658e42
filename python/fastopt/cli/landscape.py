"""``fastopt landscape``: paths of the optimizers over functions of two variables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fastopt import train as ft
from fastopt._checks import counted, short_repr
from fastopt.cli import common
from fastopt.train import experiments as fx

LENGTHS = [function.steps for function in fx.LANDSCAPES.values()]


def landscape(
    function: Annotated[str, common.several("Functions", fx.LANDSCAPES)] = "all",
    optimizer: Annotated[
        str,
        common.several(
            "Optimizers",
            ft.OPTIMIZERS,
            "The first is also shown with learning rates too small and too large.",
        ),
    ] = "all",
    steps: Annotated[
        int | None,
        common.Whole(
            help="Steps of each path.",
            show_default=f"{min(LENGTHS)} to {max(LENGTHS)}, by function",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        common.Number(help="Learning rate.", show_default="the best of 0.0001, 0.0002 ... 1"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="First point.", show_default="that of the function"),
    ] = None,
    tolerance: Annotated[
        float, common.Number(help="Distance from a minimum at which it counts as reached.")
    ] = 0.01,
    no_animation: Annotated[
        bool, typer.Option("--no-animation", help="Write no animations.")
    ] = False,
    output: Annotated[
        Path, common.Folder(help="Folder for landscape.csv, landscape.json and the pictures.")
    ] = Path("fastopt-landscape"),
) -> None:
    """Draw the paths of optimizers to the minimum, as pictures and animations.

    Two optimizers on one function:

      fastopt landscape --function bowl --optimizer sgd,adam

    From a given point:

      fastopt landscape --function ravine --start -1,0.5
    """
    functions = common.parse_names("--function", function, fx.LANDSCAPES)
    optimizers = common.parse_names("--optimizer", optimizer, ft.OPTIMIZERS)
    common.check_range("--steps", steps, 1, 100_000)
    for option, value in (("--lr", lr), ("--tolerance", tolerance)):
        if value is not None and not 0 < value < math.inf:
            common.fail(f"{option} must be finite and > 0, not {value}")
    point = None if start is None else parse_point(start)
    lengths = {name: steps or fx.LANDSCAPES[name].steps for name in functions}

    def draw_one(name: str) -> tuple[list[Path], list[dict[str, Any]]]:
        plane, count = fx.LANDSCAPES[name], lengths[name]
        paths = [
            fx.tune_lr(plane, one, count, point, tolerance)
            if lr is None
            else fx.descend(plane, one, lr, count, point)
            for one in optimizers
        ]
        rates = fx.vary_lr(plane, paths[0].optimizer, paths[0].lr, count, point)
        files = fx.write_landscape(
            folder, name, paths, rates, tolerance, animation=not no_animation
        )
        return files, [path.facts(name, tolerance) for path in paths]

    rows: list[dict[str, Any]] = []
    with common.results_folder(output):
        if lr is not None:
            for name in optimizers:
                try:
                    fx.descend(fx.LANDSCAPES[functions[0]], name, lr, 1)
                except ValueError as error:
                    problem = str(error).partition(", the dtype")[0]
                    common.fail(f"--lr cannot be {lr:g} for {name}: {problem}")
        try:
            with ft.write_together(output) as folder:
                parts, ended = common.each(functions, "descending", draw_one)
                files = [file for part, _ in parts for file in part]
                rows += [row for _, part in parts for row in part]
                options = {"steps": lengths, "lr": lr, "start": point, "tolerance": tolerance}
                facts = ft.to_json({"options": options, "paths": rows})
                for end, text in (("csv", ft.to_csv(rows)), ("json", facts)):
                    files.append(folder / f"landscape.{end}")
                    files[-1].write_bytes(text.encode())
        finally:
            if rows:
                report(rows, lengths, tolerance, lr)
    common.written(output, files)
    common.check_end(len(parts), len(functions), "function", error=ended)
    if all(row["diverged"] for row in rows):
        common.say("all paths diverged: try a smaller --lr")
        raise typer.Exit(1)


def report(
    rows: list[dict[str, Any]], lengths: dict[str, int], tolerance: float, lr: float | None
) -> None:
    """Print the table."""
    head = ["", "lr", "ended at", "value", "distance", f"steps to {tolerance:g}"]
    rates = "the best learning rate for each" if lr is None else "one learning rate for all"
    least, most = min(lengths.values()), max(lengths.values())
    steps = counted(most, "step") if least == most else f"{least} to {most} steps"
    title = f"Paths of {steps}, {rates}"
    common.print_table(title, head, [table_line(row) for row in rows])
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        if decay := ft.OPTIMIZERS[name].weight_decay:
            title = ft.OPTIMIZERS[name].title
            common.say(f"{title} has its weight decay of {decay:g}, which pulls towards (0, 0).")


def parse_point(text: str) -> tuple[float, float]:
    """Return the two numbers in a text such as ``-1,0.5``."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (abs(x) <= 1000 and abs(y) <= 1000):
        common.fail(
            f"--start must be two numbers in [-1000, 1000] such as -1,0.5, not {short_repr(text)}"
        )
    return x, y


def table_line(row: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    name = f"{row['function']}, {ft.OPTIMIZERS[row['optimizer']].title}"
    if row["diverged"]:
        return [name, f"{row['lr']:g}", f"diverged, step {row['steps'] + 1}", "", "", ""]
    reached = row["steps_to_tolerance"]
    return [
        name,
        f"{row['lr']:g}",
        f"({round(row['end_x'], 4) + 0.0:.4f}, {round(row['end_y'], 4) + 0.0:.4f})",  # no -0.0000
        f"{row['end_value']:.2g}",
        f"{row['distance']:.2g}",
        "not reached" if reached is None else str(reached),
    ]
