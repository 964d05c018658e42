"""What the experiments share: options of several values (``--lr 0.01,0.1``), and Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

from fastopt import experiments as fx
from fastopt.cli.common import fail, say


def parse_names(option: str, text: str, choices: Iterable[str]) -> list[str]:
    """Return the names in a text such as ``sgd,adam``; ``all`` is every choice."""
    choices = list(choices)
    names = [part.strip().lower() for part in text.split(",")]
    if names == ["all"]:
        return choices
    for name in names:
        if name not in choices:
            fail(f"{option} must be of {', '.join(choices)}, not {name!r}")
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
    what = "whole numbers" if kind is int else "numbers"
    scale, colon, ends = text.strip().partition(":")
    try:
        if colon:
            low, high = (kind(part) for part in ends.split(":"))
            return fx.Range(low, high, log={"log": True, "lin": False}[scale])
        values = [kind(part) for part in text.split(",")]
    except (KeyError, ValueError) as error:
        if "range" in str(error):
            fail(f"{option}: {error}")
        fail(
            f"{option} must be {what} such as {'32,128' if kind is int else '0.01,0.1'}, or a "
            f"range such as {'log:16:256' if kind is int else 'log:0.001:0.1'} to draw from, "
            f"not {text!r}"
        )
    refuse_repeats(option, values)
    return values


@contextmanager
def one_line_interrupt() -> Iterator[None]:
    """End a command that Ctrl-C stops, where it has nothing more to tell, with a line."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(130) from None
