"""The file of the finished runs of a sweep, from which the sweep continues."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from types import TracebackType
from typing import Any

from fastopt._checks import as_path
from fastopt._files import parse_json
from fastopt.train.checks import kind
from fastopt.train.config import RunConfig
from fastopt.train.data import Data
from fastopt.train.experiments.runs import Run, choice_of
from fastopt.train.experiments.space import Range, Space
from fastopt.train.formats import to_json
from fastopt.train.history import History


class JournalError(ValueError):
    """A file of another sweep, or a damaged file; the message says what to do."""


class Journal:
    """Finished runs in a file of JSON lines, which survives an interrupt at any place.

    The first line holds the space and a hash of the data; each other line is a run. An incomplete
    line is dropped, and its run is missing. Data with the same hash may have another path.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    space : Space
    data : Data

    Attributes
    ----------
    finished : list of Run
        The runs of the file, and those that were added.

    Raises
    ------
    JournalError
        If the file has another space or other data, is damaged, or is in use.
    OSError
        If it cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from fastopt import train
    >>> from fastopt.train import experiments
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

    def __init__(self, path: Path, space: Space, data: Data) -> None:
        kind("space", space, Space)
        kind("data", data, Data)
        self.path = as_path("path", path)
        self.finished: list[Run] = []
        self._space = space
        head = json.loads(_line({"format": 1, "data": data.digest()} | space.facts()))
        # In append mode, every write goes to the end, also after truncation. Without a buffer, the
        # data of a failed write are not written later.
        self._file = self.path.open("ab+", buffering=0)
        try:
            while not self._lock():
                self._file.close()
                self._file = self.path.open("ab+", buffering=0)
            self._read(head)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> bool:
        """Lock the file; return whether it is still the file at `path`.

        A sweep that ends without a run removes its file, perhaps after this one has opened it.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.path} is in use by another sweep") from None
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _read(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        whole, newline, rest = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        if lines:
            self._check_head(self._parse(lines[0], 1), head)
            self.finished = [
                self._run_of(self._parse(line, number), number)
                for number, line in enumerate(lines[1:], 2)
            ]
        elif not _line(head).startswith(rest):
            raise self._damaged(1)
        if rest:
            self._file.truncate(len(whole) + len(newline))
        if not lines:
            self._append(_line(head))

    def _damaged(self, number: int, problem: object = "not a JSON object") -> JournalError:
        return JournalError(
            f"{self.path}, line {number} is damaged ({problem}); remove the file to begin the "
            "sweep anew, or choose another --output"
        )

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            facts = parse_json(line.decode())
        except ValueError as error:
            raise self._damaged(number) from error
        if not isinstance(facts, dict):
            raise self._damaged(number)
        return facts

    def _check_head(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        if there.get("format") != 1 or there.keys() != here.keys():
            raise self._damaged(1, "it is not the first line of a journal")
        for part in ("base", "axes", "data"):
            if type(there[part]) is not type(here[part]):
                raise self._damaged(1, f"{part} is {type(there[part]).__name__}")
        same_data = there["data"] == here["data"]
        differing = []
        for part in ("base", "axes"):
            if not all(map(_is_plain, there[part].values())):
                raise self._damaged(1, f"{part} has values of another kind")
            for name in sorted(there[part].keys() | here[part].keys()):
                if name == "data" and same_data:
                    continue
                if there[part].get(name) != here[part].get(name):
                    differing.append(
                        f"{name.replace('_', '-')} was {_text(there[part].get(name))}, "
                        f"now {_text(here[part].get(name))}"
                    )
        if not (same_data or differing):
            differing.append("the data have changed")
        if differing:
            raise JournalError(
                f"{self.path} is of another sweep: {'; '.join(differing)}; "
                "choose another --output or remove the file"
            )

    def _run_of(self, facts: Mapping[str, Any], number: int) -> Run:
        """Return the run of a line, after checks of all its parts."""
        space = self._space
        base = json.loads(_line(space.facts()))["base"]
        try:
            if facts.keys() != {"config", "history"}:
                raise ValueError("a run has a config and a history")
            config, history = facts["config"], facts["history"]
            if not (isinstance(config, dict) and config.keys() == base.keys()):
                raise ValueError("its config has not the fields of a RunConfig")
            config["data"] = base["data"]  # the first line has the hash of the data
            for name, value in config.items():
                if not (
                    _is_on(space.axes[name], value) if name in space.axes else value == base[name]
                ):
                    raise ValueError(f"{name.replace('_', '-')} is not of this sweep")
            if not (isinstance(history, dict) and isinstance(history.get("epochs"), list)):
                raise ValueError("its history has no list of epochs")
            if not history["epochs"]:
                raise ValueError("its history has no epoch")
            epochs = [
                {name: nan if value is None else value for name, value in epoch.items()}
                if isinstance(epoch, dict)
                else epoch
                for epoch in history["epochs"]
            ]
            return Run(RunConfig(**config), History.from_state_dict(history | {"epochs": epochs}))
        except (TypeError, ValueError) as error:
            raise self._damaged(number, error) from error

    def missing(self, configs: list[RunConfig]) -> list[RunConfig]:
        """Return the `configs` without a finished run."""
        done = {run.config for run in self.finished}
        return [config for config in configs if config not in done]

    def add(self, run: Run) -> None:
        """Append a run to the file, and wait until it is on the disk."""
        kind("run", run, Run)
        base = self._space.facts()["base"]
        config = base | choice_of(run.config, self._space.axes)
        self._append(_line({"config": config, "history": run.history.state_dict()}), run)

    def _append(self, line: bytes, *runs: Run) -> None:
        """Write a line and record its run: both or neither."""
        end, count = self._file.seek(0, os.SEEK_END), len(self.finished)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            self.finished[count:] = runs
        except BaseException as error:
            if rest or isinstance(error, OSError):
                self._file.truncate(end)
                del self.finished[count:]
            else:  # such as Ctrl-C after the line was written: the run is kept
                self.finished[count:] = runs
            raise

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
    return json.dumps(json.loads(to_json(facts))).encode() + b"\n"  # without NaN, on one line


def _is_on(axis: Sequence[Any] | Range, value: Any) -> bool:
    """Return whether an axis has a value; values of a range of whole numbers are rounded."""
    if isinstance(axis, Range):
        low, high = (
            (round(axis.low), round(axis.high)) if isinstance(value, int) else (axis.low, axis.high)
        )
        return bool(low <= value <= high)
    return value in list(axis)


def _is_plain(value: Any) -> bool:
    """Return whether a value of the first line is a number, a string, None, or a flat nest."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return not any(isinstance(item, (dict, list)) for item in items)


def _text(value: Any) -> str:
    """Return a value of the first line for a message."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, str):
        return value if value.isprintable() else json.dumps(value)
    try:
        axis = Range(**value)
    except (OverflowError, TypeError, ValueError):
        return "not given" if value is None else json.dumps(value)
    return f"{'log' if axis.log else 'lin'}:{axis.low:g}:{axis.high:g}"
