"""Options of several values, such as ``--lr 0.01,0.1``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import typer

from fastopt._checks import short_repr
from fastopt.cli.common import fail, parse_number, parse_whole
from fastopt.train import experiments as fx


def parse_names(option: str, text: str, choices: Iterable[str]) -> list[str]:
    """Return the names in a text such as ``sgd,adam``; ``all`` is every choice."""
    choices = list(choices)
    names = [part.strip().lower() for part in text.split(",")]
    if names == ["all"]:
        return choices
    for name in names:
        if name not in choices:
            fail(
                f"{option} must be one or more of {', '.join(choices)}, or all, "
                f"not {short_repr(name)}"
            )
    refuse_repeats(option, names)
    return names


def refuse_repeats(option: str, values: Iterable[object]) -> None:
    """Fail if a value comes twice."""
    seen = set()
    for value in values:
        if value in seen:
            fail(f"{option} has {value} twice")
        seen.add(value)


def parse_axis(name: str, text: str, choices: Mapping[str, Iterable[str]]) -> list[Any] | fx.Range:
    """Return the values of a field of `RunConfig`, or the range of them, that a text means.

    That is ``sgd,adam`` for a field in `choices`, and for the others ``0.01,0.1``, or
    ``log:1e-4:0.1`` and ``lin:0:0.5`` for ranges.
    """
    option = f"--{name.replace('_', '-')}"
    if name in choices:
        return list(parse_names(option, text, choices[name]))
    kind = fx.AXES[name]
    parse = parse_whole if kind is int else parse_number
    scale, colon, ends = text.strip().partition(":")
    try:
        values = [parse(part) for part in (ends.split(":") if colon else text.split(","))]
        if colon and (len(values) != 2 or scale not in ("log", "lin")):
            raise ValueError(scale)
    except (ValueError, typer.BadParameter):
        fail(
            f"{option} must be {'whole numbers' if kind is int else 'numbers'} such as "
            f"{'32,128' if kind is int else '0.01,0.1'}, or a range such as "
            f"{'log:16:256' if kind is int else 'log:0.001:0.1'} to draw from, "
            f"not {short_repr(text)}"
        )
    if not colon:
        refuse_repeats(option, values)
        return values
    try:
        return fx.Range(values[0], values[1], log=scale == "log")
    except ValueError as error:
        fail(f"{option}: {error}")
