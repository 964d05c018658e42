"""What several files of tests use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastopt as fo
from fastopt._types import FloatArray, IntArray


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays or numbers hold the same bits, signs of zeros included; NaNs are equal."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    word = f"i{a.dtype.itemsize}"
    equal = np.ascontiguousarray(a).view(word) == np.ascontiguousarray(b).view(word)
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
    """Return |value - truth| in units of the last place that `truth` has in `dtype`."""
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
    """Return rows of three tiles, the last one class, with infinities and NaN all over them."""
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
    logits[9, [7, 2048, 4096]] = 10.0  # the largest three times
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
    # the gradient's values in C order -> the same values, laid out otherwise; some are large enough
    # to be cut into pieces of several chunks
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
    """Run a script in a fresh interpreter; the timeout only catches a hang."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check(script: str, **environment: str) -> str:
    result = run(script, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


def fastopt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it in `cwd`, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastopt", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
    )
