"""Functions that several test files use."""

from __future__ import annotations

import dis
import functools
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import fastopt as fo
from fastopt import _core
from fastopt._storage import is_bfloat16
from fastopt._types import FloatArray, IntArray

# Every instruction set in one run, or the one of FASTOPT_ISA.
ISAS = [fo.active_isa()] if os.environ.get("FASTOPT_ISA") else fo.available_isas()
TEAMS = [1, 2, 3]


def some(count: int, *choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return a fixed sample of all combinations of independent options.

    Raises ValueError if no combination of the sample has some pair of two choices.
    """
    picked = random.Random(0).sample(list(itertools.product(*choices)), count)
    for i, j in itertools.combinations(range(len(choices)), 2):
        if len({(row[i], row[j]) for row in picked}) < len(choices[i]) * len(choices[j]):
            raise ValueError(f"{count} combinations leave out pairs of choices {i} and {j}")
    return picked


class Setting(NamedTuple):
    """An instruction set and a number of threads."""

    isa: str
    threads: int

    def use(self) -> None:
        _core.use_isa(self.isa)
        _core.set_num_threads(self.threads, beyond=True)  # 3 on a machine of 2 cores too

    def __str__(self) -> str:
        return f"{self.isa}-{self.threads}"


# The instruction set decides what a thread computes; the number of threads, which thread does.
# So each set is tested with one number of threads, and each number of threads with the last set.
LOWEST = Setting(fo.available_isas()[0], 1)
SETTINGS = [Setting(isa, TEAMS[(i + 1) % 3]) for i, isa in enumerate(ISAS[:-1])]
SETTINGS += [Setting(ISAS[-1], team) for team in TEAMS]

HANG = 300  # seconds: only what hangs takes so long, on a busy machine too


def same_bits(a: Any, b: Any) -> bool:
    """Whether arrays or numbers have the same bits, also the signs of zeros; all NaNs are equal."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f" and not is_bfloat16(a.dtype):
        return bool(np.array_equal(a, b))
    word = f"i{a.dtype.itemsize}"
    equal = np.ascontiguousarray(a).view(word) == np.ascontiguousarray(b).view(word)
    with np.errstate(invalid="ignore"):  # ml_dtypes reports signalling NaNs
        return bool(np.all(equal | (np.isnan(a) & np.isnan(b))))


def at_offset(array: FloatArray, offset: int) -> FloatArray:
    """Return a copy of a flat array that starts `offset` elements into a larger one."""
    buffer = np.empty(array.size + offset, dtype=array.dtype)
    buffer[offset:] = array
    return buffer[offset:]


def hostile(rng: np.random.Generator, size: int, dtype: npt.DTypeLike) -> FloatArray:
    """Return numbers of every size: zeros of both signs, denormals, huge, infinite, NaN."""
    info = np.finfo(np.dtype(dtype))
    special: list[Any] = [
        0.0,
        -0.0,
        info.smallest_subnormal,
        -info.smallest_subnormal,
        info.tiny / 3,
    ]
    special += [info.tiny, info.max, -info.max, 1e30, 1e-30, np.inf, -np.inf, np.nan, 1.0, -1.0]
    values = rng.choice(np.array(special, dtype=dtype), size)
    ordinary = rng.standard_normal(size) * 10.0 ** rng.integers(-12, 12, size)
    return np.where(rng.random(size) < 0.5, values, ordinary).astype(dtype)


def in_ulp(value: Any, truth: Any, dtype: npt.DTypeLike) -> FloatArray:
    """Return |value - truth| in units in the last place of `truth` in `dtype`."""
    info = np.finfo(np.dtype(dtype))
    truth = np.asarray(truth)
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.maximum(abs(truth), info.tiny))[1] - 1
        error = abs(np.asarray(value).astype(truth.dtype) - truth)
    same = np.asarray(value).astype(truth.dtype) == truth  # infinities
    return np.where(same, 0, np.ldexp(error, info.nmant - exponent))


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def swapped(a: Any) -> Any:
    return a.astype(a.dtype.newbyteorder())


def misaligned(a: Any) -> Any:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


@contextmanager
def refused(
    error: type[Exception], *words: str, arrays: Any = (), optimizer: fo.Optimizer | None = None
) -> Iterator[None]:
    """Expect `error` with all `words` in its message, and every array and state as it was."""
    before = [a.copy() for a in arrays]
    states = None
    if optimizer is not None:
        states = {n: {k: np.copy(v) for k, v in s.items()} for n, s in optimizer.state.items()}
    with pytest.raises(error) as caught:
        yield
    for word in words:
        assert word in str(caught.value), str(caught.value)
    for array, copy in zip(arrays, before, strict=True):
        assert same_bits(array, copy)
    if optimizer is not None and states is not None:
        for name, state in optimizer.state.items():
            assert state.keys() == states[name].keys()
            for key, value in state.items():
                assert same_bits(np.asarray(value), states[name][key])


def infinite_rows(dtype: Any = np.float32) -> tuple[FloatArray, IntArray]:
    """Return rows of three tiles, the last of one class, with infinities and NaN everywhere."""
    logits = np.random.default_rng(4).uniform(-9, 9, (12, 4097)).astype(dtype)
    logits[0, :2048] = -np.inf
    logits[1, 2048:] = -np.inf
    logits[2, :4096] = -np.inf
    logits[3] = -np.inf
    logits[4, 4096] = np.nan
    logits[5, :2048] = np.nan
    logits[6, 2048] = np.nan
    logits[7, 4096] = np.inf
    logits[8, [5, 3000]] = np.inf
    logits[9, [7, 2048, 4096]] = 10.0  # the largest value appears three times
    logits[10, 3000] = 500.0
    logits[11, :2048] += 300.0
    return logits, np.array([3000, 5, 4096, 1, 2, 3, 4, 5, 5, 2048, 3000, 3000])


def orders(dtype: Any) -> list[Any]:
    """One three-dimensional array in several dense memory orders."""
    base = np.random.default_rng(4).standard_normal((5, 6, 7)).astype(dtype)
    result = []
    for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        back = np.argsort(axes)
        result.append(np.ascontiguousarray(base.transpose(axes)).transpose(back))
    return result


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[FloatArray], FloatArray]]] = {
    # Each takes a gradient in C order and returns the same values in another layout. Some are so
    # large that they are cut into pieces of several chunks.
    "one row of lines": ((130, 1100), np.asfortranarray),
    "pieces of several chunks": ((601, 1103), np.asfortranarray),
    "few long rows": ((18, 40_001), np.asfortranarray),
    "reversed dimensions": ((37, 141, 113), np.asfortranarray),
    "channels last": (
        (64, 61, 7, 7),
        lambda g: g.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    ),
    "backwards": ((300, 501), lambda g: np.asfortranarray(g[::-1, ::-1])[::-1, ::-1]),
    "columns of a wider array": (
        (700, 300),
        lambda g: np.asfortranarray(np.repeat(np.repeat(g, 2, 0), 3, 1))[::2, ::3],
    ),
    "every other": ((150_001,), lambda g: np.repeat(g, 2)[::2]),
}


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter; the timeout only ends a script that hangs."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def check(script: str, **environment: str) -> str:
    result = run(script, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


# The beginning of a script that measures the peak memory of a call, as the system counts it. It is
# exact to some tens of kB if large blocks are returned to the system at once.
PEAK = """
import re
def high_water():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
def peak(call):
    for _ in range(2):  # imports, threads, what a library keeps
        call()
    open("/proc/self/clear_refs", "w").write("5")
    before = high_water()
    call()
    return high_water() - before
"""
PEAK_NEEDS = {"MALLOC_MMAP_THRESHOLD_": "65536", "OPENBLAS_NUM_THREADS": "1"}
SEES_PEAKS = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux")


# -- the command ---------------------------------------------------------------------------------


def fastopt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, because its imports take a second or two."""
    from typer.testing import CliRunner

    from fastopt.cli.app import app

    before = Path.cwd()
    os.chdir(cwd)
    try:
        result = CliRunner().invoke(app, arguments, prog_name="fastopt")
    finally:
        os.chdir(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


# A file raises a signal at a line of the output, so that nothing depends on the clock.
WATCHED = """
import io, os, signal, sys
text, number, left = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
del sys.argv[1:4]
class Watched(io.TextIOWrapper):
    def write(self, written):
        global left
        super().write(written)
        self.flush()
        left -= text in written
        if text in written and left == 0:
            os.kill(0 if number == signal.SIGINT else os.getpid(), number)
        return len(written)
sys.stdout = Watched(sys.stdout.buffer, sys.stdout.encoding)
from fastopt.cli import main
main()
"""


def fastopt_until(
    text: str, number: signal.Signals, *arguments: str, cwd: Path, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run the command as a process until it has written `text` as many `times`.

    It then gets the signal `number`. Its children get Ctrl-C too, as in a terminal. Returns after
    the last process has ended.
    """
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            WATCHED,
            text,
            str(number.value),
            str(times),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=cwd,
        check=False,
        start_new_session=True,
    )


PACKAGE = str(Path(fo.__file__).parent)


@functools.cache
def places(code: CodeType) -> set[int]:
    """Return the offsets at which the interpreter handles signals."""
    found, last = set(), ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "CACHE":
            continue
        if last.startswith("CALL") or last in ("RESUME", "JUMP_BACKWARD"):
            found.add(instruction.offset)
        last = instruction.opname
    return found


def interrupt_at(number: int, operation: Callable[[], object]) -> bool:
    """Run the operation with an interrupt at place `number`; return whether the place exists."""
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        name = frame.f_code.co_filename
        if event == "call":
            if not name.startswith(PACKAGE):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode" and frame.f_lasti in places(frame.f_code):
            passed += 1
            if passed == number + 1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return passed > number


def interrupt_everywhere(
    make: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> int:
    """Check that an operation with an interrupt at any place is done whole or not at all.

    It must be possible to repeat it. `make` returns a new operation, and a function that reads all
    that the operation changes. Returns the number of places.
    """
    operation, look = make()
    old = look()
    operation()
    new = look()
    assert old != new
    operation, look = make()
    number = 0
    while interrupt_at(number, operation):
        if look() == new:
            operation, look = make()
        assert look() == old, number
        number += 1
    assert look() == new
    return number
