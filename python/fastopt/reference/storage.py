"""The 16-bit types in plain NumPy: bfloat16, float16, the split master, the noise for rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt._storage import is_16_bit, is_bfloat16
from fastopt._types import FloatArray

RUN = 2**17  # elements that share a key of the noise
BLOCK = 256  # elements of a run whose noise comes from 128 calls, two from each
_MASK = 2**64 - 1


def widen(array: FloatArray) -> FloatArray:
    """Return the values in the type of the arithmetic: float32 for 16-bit types.

    Each value is exact, and a NaN keeps its bits, at the left. Other arrays are returned unchanged.
    """
    if not is_16_bit(array.dtype):
        return array
    words = array.view(np.uint16).astype(np.uint32)
    if is_bfloat16(array.dtype):
        return np.asarray(words << np.uint32(16)).view(np.float32)
    sign, size = (words & np.uint32(0x8000)) << np.uint32(16), words & np.uint32(0x7FFF)
    nan = sign | np.uint32(0x7F800000) | ((size & np.uint32(0x3FF)) << np.uint32(13))
    with np.errstate(all="ignore"):
        exact = array.astype(np.float32).view(np.uint32)
    return np.asarray(np.where(size > 0x7C00, nan, exact)).view(np.float32)


def rounded(
    values: FloatArray, dtype: npt.DTypeLike, noise: npt.NDArray[np.uint16] | None = None
) -> FloatArray:
    """Return `values` in an element type: float32 or float64 values, rounded at most once.

    To nearest, ties to even; a finite number may become infinite. With `noise`, which is uniform
    in [0, 2**16), float32 becomes bfloat16 stochastically: the larger of the two neighbours in
    magnitude is taken with the probability that makes the mean exact.
    """
    dtype = np.dtype(dtype)
    if not is_16_bit(dtype):
        return values.astype(dtype, copy=False)
    bits, nan = values.view(np.uint32), np.isnan(values)
    if is_bfloat16(dtype):
        last = (bits >> np.uint32(16)) & np.uint32(1)
        add = np.uint32(0x7FFF) + last if noise is None else noise.astype(np.uint32)
        words = (bits + np.where(nan, np.uint32(0), add)) >> np.uint32(16)
    else:
        with np.errstate(all="ignore"):
            exact = values.astype(np.float16).view(np.uint16)
        words = np.where(nan, (bits >> np.uint32(16)) & np.uint32(0x8000) | 0x7E00, exact)
    return np.asarray(words.astype(np.uint16)).view(dtype)


def join(high: FloatArray, low: npt.NDArray[np.int16]) -> FloatArray:
    """Return the float32 master whose halves are a bfloat16 array and its remainder.

    A remainder that does not belong to the bfloat16, because that was written meanwhile, makes it
    neither another sign nor NaN.
    """
    upper = np.asarray(high.view(np.uint16).astype(np.uint32) << np.uint32(16))
    bits = np.asarray(upper + low.astype(np.int32).view(np.uint32))
    fits = ((bits ^ upper) >> np.uint32(31) == 0) & ~np.isnan(bits.view(np.float32))
    return np.asarray(np.where(fits, bits, upper)).view(np.float32)


def split(values: FloatArray, dtype: np.dtype[Any]) -> tuple[FloatArray, npt.NDArray[np.int16]]:
    """Return float32 values as bfloat16 and an int16 remainder; `join` is the inverse.

    The bfloat16 is the nearest one; of two, the larger in magnitude. All NaNs become one.
    """
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    high = (bits + np.uint32(0x8000)) >> np.uint32(16)
    low = (bits & np.uint32(0xFFFF)).astype(np.uint16).view(np.int16)
    return np.asarray(high.astype(np.uint16)).view(dtype), np.asarray(low)


def noise(
    seed: int, step: int, name: str, stream: int, count: int, start: int = 0
) -> npt.NDArray[np.uint16]:
    """Return 16 uniform random bits for each of `count` elements of a parameter from `start` on.

    They depend on the seed, the number of the step of the parameter, its name, the stream (0 for
    the parameter, 1 for its second moment) and the number of the element in memory, alone.
    """
    base = _mix(_mix(_mix(seed) + step) + _hash(name))
    first, end = start // RUN * RUN, start + count
    runs = [
        _noise_of_run(_mix(base + 2 * (place // RUN) + stream), min(RUN, end - place))
        for place in range(first, end, RUN)
    ]
    return np.concatenate([np.empty(0, np.uint16), *runs])[start - first :]


def _noise_of_run(key: int, count: int) -> npt.NDArray[np.uint16]:
    """Return the noise of the first `count` elements of a run: Philox2x16 of 6 rounds."""
    k = [key >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    blocks = -(-count // BLOCK)
    c0, c1 = np.arange(128 * blocks, dtype=np.uint32), np.uint32(k[0])
    for number in range(6):
        product = c0 * np.uint32(0xD2B5)
        round_key = np.uint32((k[1 + number % 3] + number * 0x9E37) & 0xFFFF)
        c0, c1 = (product >> np.uint32(16)) ^ round_key ^ c1, product & np.uint32(0xFFFF)
    halves = np.stack([c0.reshape(blocks, 128), c1.reshape(blocks, 128)], axis=1)
    return halves.astype(np.uint16).ravel()[:count]


def _mix(z: int) -> int:
    """Return the end of SplitMix64: a bijection of the integers of 64 bits."""
    z &= _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def _hash(name: str) -> int:
    """Return FNV-1a of the name in UTF-8, 64 bits."""
    result = 0xCBF29CE484222325
    for byte in name.encode("utf-8", "surrogatepass"):
        result = (result ^ byte) * 0x100000001B3 & _MASK
    return result
