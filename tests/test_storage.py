"""The 16-bit types as the reference states them: every value, exact rounding, random bits."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import frexp, inf, sqrt
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.reference.storage import join, noise, rounded, split, widen
from helpers import same_bits

BFLOAT16: Any = np.dtype(ml_dtypes.bfloat16)
FLOAT16: Any = np.dtype(np.float16)
ALL = np.arange(2**16, dtype=np.uint16)


class Format(NamedTuple):
    """A 16-bit type: the digits of a normal number, the exponents of the smallest and beyond."""

    dtype: Any
    digits: int
    least: int
    beyond: int

    def exact(self, x: float) -> float:
        """Return a finite number rounded to nearest, ties to even, by whole numbers."""
        unit = Fraction(2) ** (max(frexp(x)[1] - 1, self.least) - self.digits + 1)
        result = round(Fraction(x) / unit) * unit
        return float(result) if abs(result) < 2**self.beyond else inf if x > 0 else -inf


FORMATS = [Format(BFLOAT16, 8, -126, 128), Format(FLOAT16, 11, -14, 16)]
formats = pytest.mark.parametrize("form", FORMATS, ids=lambda form: str(form.dtype))


def nans(values: Any) -> Any:
    return np.isnan(values.astype(np.float32))


# -- all values ----------------------------------------------------------------------------------


@formats
def test_every_value_is_widened_exactly(form: Format) -> None:
    values = ALL.view(form.dtype)
    wide = widen(values)
    assert wide.dtype == np.float32
    assert same_bits(wide, values.astype(np.float32))
    kept = 16 if form.dtype == BFLOAT16 else 13  # the place of a NaN's payload
    bits, nan = wide.view(np.uint32), nans(values)
    assert nan.sum() == 2 * (2 ** (form.digits - 1) - 1)
    payload = ALL & (2 ** (form.digits - 1) - 1)
    assert np.array_equal(bits[nan] & 0x7FFFFF, payload[nan].astype(np.uint32) << kept)
    assert np.array_equal(bits[nan] >> 31, ALL[nan] >> 15)


@formats
def test_every_value_comes_back(form: Format) -> None:
    values = ALL.view(form.dtype)
    back = rounded(widen(values), form.dtype).view(np.uint16)
    if form.dtype == BFLOAT16:  # all payloads too
        assert np.array_equal(back, ALL)
    else:
        assert np.array_equal(back, np.where(nans(values), ALL & 0x8000 | 0x7E00, ALL))


@formats
def test_every_boundary_between_two_values(form: Format) -> None:
    """Rounding is monotonic, so that these are all numbers."""
    values = ALL.view(form.dtype)
    finite = np.unique(abs(widen(values)[np.isfinite(widen(values))])).astype(np.float64)
    ends = np.append(finite, 2.0**form.beyond)
    middle = ((ends[:-1] + ends[1:]) / 2).astype(np.float32)
    assert np.array_equal(middle.astype(np.float64) * 2, ends[:-1] + ends[1:])
    targets = rounded(np.append(finite, inf).astype(np.float32), form.dtype)
    below, above = targets[:-1], targets[1:]
    even = np.where(below.view(np.uint16) % 2 == 0, below.view(np.uint16), above.view(np.uint16))
    zero, top = np.float32(0), np.float32(inf)
    for sign in (1, -1):
        bit = 0 if sign == 1 else 0x8000
        for values32, wanted in (
            (middle, even),
            (np.nextafter(middle, zero), below.view(np.uint16)),
            (np.nextafter(middle, top), above.view(np.uint16)),
        ):
            result = rounded(np.float32(sign) * values32, form.dtype)
            assert np.array_equal(result.view(np.uint16), wanted | bit)


@formats
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_any_number_is_rounded_exactly(form: Format, x: float) -> None:
    result = rounded(np.array([x], np.float32), form.dtype)
    assert float(widen(result)[0]) == form.exact(x)
    assert np.signbit(widen(result)[0]) == np.signbit(x)


@formats
def test_rounding_is_that_of_ml_dtypes_and_numpy(form: Format) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32)
    values = bits.view(np.float32)
    bits |= np.where(np.isnan(values), np.uint32(0x400000), np.uint32(0))  # quiet NaNs
    with np.errstate(all="ignore"):
        theirs = values.astype(form.dtype)
    ours = rounded(values, form.dtype)
    assert same_bits(ours, theirs)
    if form.dtype == BFLOAT16:
        nan = np.isnan(values)
        assert np.array_equal(ours.view(np.uint16)[nan], bits[nan] >> 16)


@formats
def test_arrays_of_any_layout(form: Format) -> None:
    base = np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)
    for values in (base.T, base[::2, ::-3], base[0, 0, ...], base[:0]):
        stored = rounded(values, form.dtype)
        assert stored.shape == values.shape
        assert same_bits(widen(stored), values.astype(form.dtype).astype(np.float32))
        assert same_bits(widen(stored[..., None]), widen(stored)[..., None])
    for dtype in (np.float32, np.float64):
        kept = base.astype(dtype)
        assert widen(kept) is kept
        assert rounded(kept, dtype) is kept


# -- the split master ----------------------------------------------------------------------------


def check_split(values: Any) -> None:
    high, low = split(values, BFLOAT16)
    canonical = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    assert np.array_equal(join(high, low).view(np.uint32), canonical)
    assert np.array_equal(nans(high), np.isnan(values))


def test_splitting_is_a_bijection() -> None:
    check_split(np.random.default_rng(2).integers(0, 2**32, 10**6, dtype=np.uint32).view("f4"))
    lows = np.array([-(2**15), -(2**15) + 1, -7, -1, 0, 1, 9, 2**15 - 1], np.int16)
    highs = np.array([0, 1, 0x7F, 0x80, 0x3F80, 0x7F7F, 0x8000, 0x8001, 0xFF7F], np.uint16)
    for some, others in ((ALL, lows), (highs, ALL.view(np.int16))):
        high, low = np.repeat(some, others.size), np.tile(others, some.size)
        values = join(high.view(BFLOAT16), low)
        check_split(values)
        real = ~np.isnan(values)
        again = split(values, BFLOAT16)
        assert np.array_equal(again[0].view(np.uint16)[real], high[real])
        # No float32 is split into these; the remainder is ignored.
        size = high & 0x7FFF
        ignored = ((size == 0) & (low < 0)) | ((size == 0x7F80) & (low > 0))
        assert np.array_equal(again[1][real], np.where(ignored, 0, low)[real])


def test_the_upper_half_is_the_nearest_bfloat16() -> None:
    values = np.random.default_rng(3).standard_normal(10**5).astype(np.float32)
    high, low = split(values, BFLOAT16)
    nearest = rounded(values, BFLOAT16)
    ties = low == -(2**15)
    assert same_bits(high[~ties], nearest[~ties])
    assert np.all(abs(widen(high)[ties]) >= abs(values[ties]))
    wide = widen(ALL.view(BFLOAT16))
    assert not split(wide[~np.isnan(wide)], BFLOAT16)[1].any()  # nothing remains of a bfloat16


# -- random bits ---------------------------------------------------------------------------------


Stream: TypeAlias = tuple[int, int, str, int]


def scalar_noise(seed: int, step: int, name: str, stream: int, e: int) -> int:
    """The noise of one element, step by step."""

    def mix(z: int) -> int:
        z %= 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    tensor = 0xCBF29CE484222325
    for byte in name.encode("utf-8"):
        tensor = ((tensor ^ byte) * 0x100000001B3) % 2**64
    key = mix(mix(mix(mix(seed) + step) + tensor) + 2 * (e >> 17) + stream)
    k = [(key >> (16 * i)) % 2**16 for i in range(4)]
    place = e % 2**17
    c0, c1 = place // 256 * 128 + place % 128, k[0]
    for r in range(6):
        product = c0 * 0xD2B5
        c0 = (product >> 16) ^ ((k[1 + r % 3] + r * 0x9E37) % 2**16) ^ c1
        c1 = product % 2**16
    return c1 if place % 256 >= 128 else c0


def test_noise_of_single_elements() -> None:
    places = [0, 1, 127, 128, 255, 256, 511, 2**17 - 1, 2**17, 2**17 + 129, 3 * 2**17 - 1]
    cases: list[Stream] = [
        (0, 1, "w", 0),
        (0, 1, "w", 1),
        (2**63 - 1, 2**40, "Gewicht.ä", 0),
        (7, 2, "", 1),
    ]
    for case in cases:
        whole = noise(*case, 3 * 2**17)
        assert [int(whole[e]) for e in places] == [scalar_noise(*case, e) for e in places]
        for count in (0, 1, 128, 129, 300, 2**17 + 1):
            assert np.array_equal(noise(*case, count), whole[:count])
            for start in (1, 255, 2**17 - 1, 2**17, 2**18 - 129):
                assert np.array_equal(noise(*case, count, start), whole[start : start + count])
        far = 2**62 + 2**17 - 1
        assert noise(*case, 2, far).tolist() == [scalar_noise(*case, far + e) for e in (0, 1)]


DRAWS = 2**24


@pytest.fixture(scope="module")
def draws() -> Any:
    return noise(0, 1, "weight", 0, DRAWS)


def z_of_counts(counts: Any) -> float:
    """Chi-square of counts that should be equal, in standard deviations."""
    expected, free = counts.mean(), counts.size - 1
    return float((((counts - expected) ** 2).sum() / expected - free) / sqrt(2 * free))


@pytest.mark.parametrize("fraction", [0.0005, 0.01, 0.1, 0.37, 0.5, 0.75, 0.999])
def test_stochastic_rounding_is_unbiased(fraction: float, draws: Any) -> None:
    part = round(fraction * 2**16)  # what is between two neighbours of bfloat16, exactly
    for sign in (0, 0x8000):
        lower = 0x3F80 | sign
        value = np.array([lower << 16 | part], np.uint32).view(np.float32)
        few = draws[:10_000]
        bits = rounded(np.broadcast_to(value, few.shape), BFLOAT16, few).view(np.uint16)
        assert np.array_equal(bits, lower + (few >= 2**16 - part))
    up = np.count_nonzero(draws >= 2**16 - part) / DRAWS
    p = part / 2**16
    assert abs(up - p) < 4 * sqrt(p * (1 - p) / DRAWS)


def test_stochastic_rounding_of_what_is_no_ordinary_number() -> None:
    most = np.full(6, 2**16 - 1, np.uint16)
    values = np.array([inf, -inf, np.nan, -0.0, 3.4e38, 1e-44], np.float32)
    up = rounded(values, BFLOAT16, most)
    wanted = np.array([inf, -inf, np.nan, -0.0, inf, 2.0**-133], np.float32)
    assert same_bits(widen(up), wanted)
    nan = (ALL.astype(np.uint32) << 16 | 1).view(np.float32)
    nan = nan[np.isnan(nan)]
    kept = rounded(nan, BFLOAT16, np.full(nan.shape, 2**16 - 1, np.uint16))
    assert np.array_equal(kept.view(np.uint16), nan.view(np.uint32) >> 16)
    exact = widen(ALL.view(BFLOAT16))
    kept = rounded(exact, BFLOAT16, np.full(ALL.shape, 2**16 - 1, np.uint16))
    assert np.array_equal(kept.view(np.uint16), ALL)


def test_each_value_comes_equally_often(draws: Any) -> None:
    assert abs(z_of_counts(np.bincount(draws, minlength=2**16))) < 4
    for bit in range(16):
        ones = np.count_nonzero(draws & (1 << bit))
        assert abs(ones - DRAWS / 2) < 4 * sqrt(DRAWS) / 2


def joint(first: Any, second: Any) -> float:
    """Chi-square of the pairs of the upper bytes."""
    pairs = (first & np.uint16(0xFF00)) | (second >> np.uint16(8))
    return z_of_counts(np.bincount(pairs, minlength=2**16))


def test_elements_do_not_depend_on_each_other(draws: Any) -> None:
    # 128: the two numbers of one call
    for lag in (1, 2, 32, 128, 256, 16384):
        assert abs(joint(draws[:-lag], draws[lag:])) < 4, lag
    sums = draws.reshape(-1, 512).astype(np.uint32).sum(axis=1)
    check_variance(sums)


def check_variance(sums: Any) -> None:
    """The sums of 512 draws have the variance of independent ones."""
    ratio = sums.var() / (512 * (2**32 - 1) / 12)
    assert abs(ratio - 1) < 4 * sqrt(2 / sums.size)
    assert abs(sums.mean() - 512 * (2**16 - 1) / 2) < 4 * sqrt(512 * 2**32 / 12 / sums.size)


def test_pairs_of_bits_are_independent(draws: Any) -> None:
    count = DRAWS // 8
    halves = draws[: 2 * count].reshape(-1, 2, 128)
    planes = [
        np.packbits((halves[:, half].ravel() >> bit & 1).astype(bool))
        for half in range(2)
        for bit in range(16)
    ]
    ones = np.array([bin(byte).count("1") for byte in range(256)])
    for a, b in itertools.combinations(planes, 2):
        differ = ones @ np.bincount(a ^ b, minlength=256)
        assert abs(differ - count / 2) < 4.5 * sqrt(count) / 2  # of 496


@pytest.mark.parametrize(
    "other",
    [(0, 2, "weight", 0), (0, 1, "weight", 1), (1, 1, "weight", 0), (0, 1, "weighu", 0)],
    ids=["step", "stream", "seed", "name"],
)
def test_noise_of_another_step_stream_seed_or_name(other: Stream, draws: Any) -> None:
    others = noise(*other, DRAWS // 4)
    assert abs(joint(draws[: DRAWS // 4], others)) < 4
    for lag in (1, 128, 2**17):  # nor is it a shifted copy
        assert np.count_nonzero(draws[lag : DRAWS // 4] == others[:-lag]) < 2**7
        assert np.count_nonzero(draws[: DRAWS // 4 - lag] == others[lag:]) < 2**7


def test_sums_over_steps() -> None:
    check_variance(sum(noise(3, t, "w", 1, 2**15).astype(np.uint32) for t in range(1, 513)))
