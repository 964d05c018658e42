"""Options that hold several values: ``--optimizer sgd,adam``, ``--lr 0.01,0.1``."""

from __future__ import annotations

from collections.abc import Iterable

from fastopt.cli.common import fail


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
