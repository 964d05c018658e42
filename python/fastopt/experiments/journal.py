"""The file to which a sweep adds each run as it ends, and from which it goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from math import nan
from pathlib import Path
from types import TracebackType
from typing import Any

from fastopt import train as ft
from fastopt.experiments.runs import Run, choice_of
from fastopt.experiments.space import Space


class JournalError(ValueError):
    """A file that belongs to another sweep, or is damaged; the message says what to do."""


class Journal:
    """Finished runs in a file of JSON lines, which may be interrupted anywhere and continued.

    The first line tells which space and which data the runs are of; each other line is a run. A
    line that was cut short is dropped: that run is then done again.

    Parameters
    ----------
    path : path
        Created if it is not there.
    space : Space
    data : Data

    Attributes
    ----------
    finished : list of Run
        Those that were in the file, or were added.

    Raises
    ------
    JournalError
        If the file is of another space or other data, is damaged, or is in use.
    OSError
        If it cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fastopt import experiments, train
    >>> base = train.RunConfig(data="iris", epochs=2)
    >>> space, data = experiments.Space(base, {"lr": [0.01, 0.1]}), base.load()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "runs.jsonl")
    ...     with experiments.Journal(path, space, data) as journal:
    ...         journal.add(experiments.run(space.configs()[0], data))
    ...     with experiments.Journal(path, space, data) as journal:
    ...         print([config.lr for config in journal.missing(space.configs())])
    [0.1]
    """

    def __init__(self, path: Path, space: Space, data: ft.Data) -> None:
        self.path = path
        self.finished: list[Run] = []
        self._space = space
        head = {"format": 1, "data": data.digest()} | space.facts()
        # Append mode: whatever is written goes to the end, also after truncation.
        self._file = path.open("ab+")
        try:
            self._read(json.loads(json.dumps(head)))
        except BaseException:
            self._file.close()
            raise

    def _read(self, head: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.path} is in use by another sweep") from None
        self._file.seek(0)
        whole, newline, rest = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        if lines:
            self._check_head(self._parse(lines[0], 1), head)
            for number, line in enumerate(lines[1:], 2):
                self.finished.append(self._run_of(self._parse(line, number), number))
        elif rest and not json.dumps(head).encode().startswith(rest):
            raise self._damaged(1)
        if rest:
            self._file.truncate(len(whole) + len(newline))
        if not lines:
            self._file.write(_line(head))
            self._sync()

    def _damaged(self, number: int) -> JournalError:
        return JournalError(
            f"{self.path}, line {number} is damaged; remove the file to begin the sweep anew, or "
            "choose another --output"
        )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            facts = json.loads(line)
        except ValueError:
            raise self._damaged(number) from None
        if not isinstance(facts, dict):
            raise self._damaged(number)
        return facts

    def _check_head(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if there == here:
            return
        if there.get("format") != 1 or there.keys() != here.keys():
            raise self._damaged(1)
        differing = []
        for part in ("base", "axes"):
            for name in sorted(there[part].keys() | here[part].keys()):
                if there[part].get(name) != here[part].get(name):
                    differing.append(
                        f"{name.replace('_', '-')} was {_text(there[part].get(name))}, "
                        f"not {_text(here[part].get(name))}"
                    )
        if there["data"] != here["data"] and not differing:
            differing.append("the data have changed")
        raise JournalError(
            f"{self.path} is of another sweep: {'; '.join(differing)}; "
            "choose another --output or remove the file"
        )

    def _run_of(self, facts: Mapping[str, Any], number: int) -> Run:
        try:
            config = ft.RunConfig(**facts["config"])
            history = dict(facts["history"])
            history["epochs"] = [
                {name: nan if value is None else value for name, value in epoch.items()}
                for epoch in history["epochs"]
            ]
            return Run(config, ft.History.from_state_dict(history))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._damaged(number) from None

    def missing(self, configs: list[ft.RunConfig]) -> list[ft.RunConfig]:
        """Return those of `configs` that have not been run."""
        done = {run.config for run in self.finished}
        return [config for config in configs if config not in done]

    def add(self, run: Run) -> None:
        """Write a run to the end of the file, and see that it is on the disk."""
        base = self._space.facts()["base"]
        config = base | choice_of(run.config, self._space.axes)
        line = _line({"config": config, "history": run.history.state_dict()})
        # Ctrl-C comes before or after the call: what is reported and what is in the file agree.
        try:
            self._file.write(line)
        finally:
            self.finished.append(run)
        self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(json.loads(ft.to_json(facts))).encode() + b"\n"  # without NaN, on one line


def _text(value: Any) -> str:
    """Return a value of the first line as a message shows it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return f"{'log' if value['log'] else 'lin'}:{value['low']:g}:{value['high']:g}"
    return "not given" if value is None else str(value)
