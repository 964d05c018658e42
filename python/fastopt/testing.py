"""Checks of gradients written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fastopt._checks import flag, integer, non_negative, positive, short_repr
from fastopt._types import FloatArray

__all__ = ["GradcheckError", "gradcheck"]

Inputs: TypeAlias = FloatArray | Sequence[FloatArray] | Mapping[str, FloatArray]

# By the coarsest dtype of inputs and value. The step is near the cube root of the rounding error,
# where truncation and rounding have equal effects on a central difference. It is a power of two, so
# that adding it to an input is usually exact.
DEFAULTS = {
    np.dtype(np.float64): {"eps": 2.0**-17, "rtol": 1e-5, "atol": 1e-9},
    np.dtype(np.float32): {"eps": 2.0**-8, "rtol": 1e-3, "atol": 1e-4},
}
ROUNDING = 4  # the expected error of a value, in its rounding errors
CLOSER = 8  # an element that differs is checked again with a step smaller by this factor
LISTED = 5  # places in a message, for each input


class GradcheckError(AssertionError):
    """A gradient is not the derivative of the value; the message says where."""


def gradcheck(
    fn: Callable[..., Any],
    inputs: Inputs,
    *,
    eps: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    allow_kinks: bool = False,
    max_elements: int | None = None,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    r"""Compare the gradient that a function returns with central differences of its value.

    For each element :math:`x_i` of the inputs, with the other elements constant,

    .. math:: \frac{f(x_i + \epsilon) - f(x_i - \epsilon)}{2 \epsilon}

    must equal the gradient. The allowed difference is `rtol` times the quotient, plus `atol`, plus
    the effect of the rounding of :math:`f`. An element that differs by more is checked again with
    smaller steps. If the difference then vanishes, a bend of :math:`f` nearby was its cause, and
    the gradient is correct.

    Parameters
    ----------
    fn : callable
        Returns ``(value, gradient)``. The value is a number or an array of any shape. The gradient
        of an array is that of its sum. The value must depend only on the inputs: no dropout, no
        running means. `fn` may write into its inputs, and return the same buffers at every call.
    inputs : array, sequence of arrays, or mapping of str to array
        The point where to check, never written: float64, or float32 with larger tolerances. `fn`
        gets copies and returns a gradient in the same form:

        - an array: ``fn(x)`` returns ``(value, grad)``;
        - a sequence: ``fn(x, y)`` returns ``(value, (dx, dy))``;
        - a mapping: ``fn({"w": w, "b": b})`` returns ``(value, {"w": dw, "b": db})``.
    eps : float, optional
        The step, in the units of the inputs. By default 2^-17; 2^-8 if an input or the value is
        float32.
    rtol, atol : float, optional
        The allowed relative and absolute difference. By default 1e-5 and 1e-9; 1e-3 and 1e-4 with
        float32.
    allow_kinks : bool
        At a kink, such as that of ReLU at 0, accept any gradient between the slopes of the two
        sides. By default, a kink is an error unless the gradient is the mean of the two slopes.
    max_elements : int, optional
        Check at most this number of elements of each input, chosen at random. Each takes two calls.
    seed : int
        The seed of that choice.
    raise_exception : bool
        Whether a wrong gradient raises an exception, or returns False.

    Returns
    -------
    bool
        True, or False with ``raise_exception=False``.

    Raises
    ------
    GradcheckError
        If a gradient is wrong. It is an AssertionError, and names the input, the number of wrong
        elements, the worst element and its expected value.
    TypeError
        If `inputs` or the result of `fn` has a wrong type: integers, lists for arrays, no pair.
    ValueError
        If the gradient has another shape or structure than the inputs; if the inputs or the value
        are not finite; if `fn` does not give the same value twice; or if all float32 slopes are so
        small that zeros would pass too, such as those of the mean of a large batch.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> x, y = np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]), np.array([0, 2])
    >>> ce = fo.CrossEntropyLoss(label_smoothing=0.1)
    >>> fo.testing.gradcheck(lambda x: ce.value_and_grad(x, y), x)
    True
    >>> fo.testing.gradcheck(lambda x: (np.sum(x**2), x), x)
    Traceback (most recent call last):
        ...
    fastopt.testing.GradcheckError: the gradient differs in 6 of 6 elements of the input
      worst at [0, 0]: fn gives 2, central differences give 4 (allowed: 4e-05)
      also [0, 1]: 0.5, not 1; [0, 2]: -1, not -2; [1, 0]: 0.1, not 0.2; [1, 1]: 0.2, not 0.4; ...
      all of these are 0.5 times the numerical derivative
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of the inputs, not {short_repr(fn)}")
    allow_kinks = flag("allow_kinks", allow_kinks)
    raise_exception = flag("raise_exception", raise_exception)
    if max_elements is not None:
        max_elements = integer(1)("max_elements", max_elements)
    # Overflow in this module ignores the caller's np.seterr; fn runs with the caller's settings.
    host = np.geterr()
    with np.errstate(all="ignore"):
        reports = _Check(fn, inputs, host).run(eps, rtol, atol, allow_kinks, max_elements, seed)
    if reports and raise_exception:
        raise GradcheckError("\n".join(reports))
    return not reports


class _Difference(NamedTuple):
    """One element whose gradient is not the numerical derivative."""

    place: tuple[int, ...]
    given: float
    numerical: float
    allowed: float
    bend: Literal["kink", "jump"] | None  # the reason if there is no derivative
    below: float  # the slopes on both sides
    above: float

    @property
    def excess(self) -> float:
        """The difference over the allowed difference; a NaN is infinite."""
        excess = abs(self.given - self.numerical) / self.allowed if self.allowed else math.inf
        return math.inf if math.isnan(excess) else excess

    @property
    def is_between(self) -> bool:
        """Whether the gradient is between the slopes of the two sides."""
        low, high = sorted((self.below, self.above))
        return low - self.allowed <= self.given <= high + self.allowed


class _Slopes(NamedTuple):
    below: float
    above: float
    central: float
    rounding: float  # the possible error of `central` by the rounding of the values

    @property
    def bend(self) -> float:
        return abs(self.above - self.below)


class _Check:
    """The function, its inputs, its value and its gradients."""

    eps: float
    rtol: float
    atol: float
    visible = False  # whether a slope so far is larger than the allowed difference

    def __init__(self, fn: Callable[..., Any], inputs: Inputs, host: Mapping[str, Any]) -> None:
        self.fn = fn
        self.host = host  # np.geterr() of the caller
        self.kind = _kind("inputs", inputs)
        self.inputs = dict(_items(inputs))
        if not self.inputs:
            raise ValueError("inputs must hold at least one array")
        for key, x in self.inputs.items():
            name = self.name(key)
            if not isinstance(x, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, not {type(x).__name__}")
            x = self.inputs[key] = _plain(x, name)
            if x.dtype not in DEFAULTS:
                raise TypeError(f"{name} must be float64 or float32, not {x.dtype}")
            if not np.all(np.isfinite(x)):
                at = np.argwhere(~np.isfinite(x))[0].tolist()
                raise ValueError(f"{name} must be finite, but holds {x[tuple(at)]} at {at}")
        answer = self.call(self.inputs)
        self.value = self.value_of(answer)
        if not np.all(np.isfinite(self.value)):
            raise ValueError(f"fn's value must be finite at the inputs, not {_first(self.value)}")
        self.grads = self.grads_of(answer)
        dtypes = [x.dtype for x in self.inputs.values()]
        if getattr(answer[0], "dtype", None) in DEFAULTS:
            dtypes.append(answer[0].dtype)
        self.coarsest = min(dtypes, key=lambda dtype: dtype.itemsize)

    def run(
        self,
        eps: float | None,
        rtol: float | None,
        atol: float | None,
        allow_kinks: bool,
        max_elements: int | None,
        seed: int,
    ) -> list[str]:
        """Return the lines of a report; none if all gradients are correct."""
        defaults = DEFAULTS[self.coarsest]
        self.eps = defaults["eps"] if eps is None else positive("eps", eps)
        self.rtol = defaults["rtol"] if rtol is None else non_negative("rtol", rtol)
        self.atol = defaults["atol"] if atol is None else non_negative("atol", atol)
        self.same_again()
        rng = np.random.default_rng(seed)
        reports: list[str] = []
        for key in self.inputs:
            size = self.inputs[key].size
            chosen = range(size)
            if max_elements is not None and max_elements < size:
                chosen = np.sort(rng.choice(size, max_elements, replace=False)).tolist()
            found = [difference for i in chosen if (difference := self.element(key, i))]
            wrong = [d for d in found if d.bend is None]
            bends = [d for d in found if d.bend is not None]
            bends = [d for d in bends if not (allow_kinks and d.bend == "kink" and d.is_between)]
            reports += self.report(key, wrong, bends, len(chosen))
        # In float64 such a small slope is a zero. In float32 it may be that of a mean of many.
        looked = any(x.size for x in self.inputs.values())
        if self.coarsest == np.float32 and looked and not self.visible and not reports:
            raise ValueError(
                "all slopes of fn that were looked at are too small to be checked in float32: "
                "zeros instead of the gradient would pass too; check in float64, or check the sum "
                "instead of the mean, or pass a larger eps and a smaller atol"
            )
        return reports

    def name(self, key: int | str) -> str:
        return "the input" if self.kind == "array" else f"inputs[{key!r}]"

    def call(self, inputs: Mapping[Any, FloatArray]) -> Any:
        """Return the result of fn for copies of `inputs`, because fn may write into them."""
        copies = {key: x.copy(order="K") for key, x in inputs.items()}
        with np.errstate(**self.host):
            answer = self.fn(copies) if self.kind == "mapping" else self.fn(*copies.values())
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            what = type(answer).__name__
            what += f" of {len(answer)}" if isinstance(answer, (tuple, list)) else ""
            raise TypeError(f"fn must return the pair (value, gradient), not a {what}")
        return answer

    def value_of(self, answer: Any) -> FloatArray:
        value = _plain(answer[0], "fn's value")
        if value.dtype.kind not in "fiu":
            raise TypeError(
                f"fn's value must be a number or an array of numbers, not {short_repr(answer[0])}"
            )
        return value.astype(np.float64)  # a copy: fn may return the same buffer every time

    def grads_of(self, answer: Any) -> dict[Any, FloatArray]:
        grads = answer[1]
        kind = _kind("fn's gradient", grads)
        if kind != self.kind and not (kind == "array" and len(self.inputs) == 1):
            expected = f"a {self.kind} as the inputs are" if self.kind != "array" else "one array"
            raise ValueError(f"fn's gradient must be {expected}, not a {type(grads).__name__}")
        items = dict.fromkeys(self.inputs, grads) if kind == "array" else dict(_items(grads))
        if items.keys() != self.inputs.keys():
            raise ValueError(
                f"fn's gradient must have the entries {list(self.inputs)}, not {list(items)}"
            )
        result: dict[Any, FloatArray] = {}
        for key, grad in items.items():
            name, shape = self.name(key), self.inputs[key].shape
            array = _plain(grad, f"the gradient of {name}")
            if array.dtype.kind not in "fiu":
                raise TypeError(f"the gradient of {name} must hold real numbers, not {grad!r:.50}")
            if array.shape != shape:
                raise ValueError(
                    f"the gradient of {name} must have its shape {shape}, not {array.shape}"
                )
            result[key] = array.astype(np.float64)
        return result

    def same_again(self) -> None:
        value = self.value_of(self.call(self.inputs))
        allowed = self.rtol * abs(self.value) + self.atol
        if value.shape != self.value.shape or not np.all(abs(value - self.value) <= allowed):
            raise ValueError(
                f"fn must give the same value for the same inputs, but gave "
                f"{_first(self.value, value)} and then {_first(value, self.value)}: "
                "is something in it random, or does it change something?"
            )

    def element(self, key: Any, flat: int) -> _Difference | None:
        """Return the difference at one element, if there is one."""
        index = tuple(int(i) for i in np.unravel_index(flat, self.inputs[key].shape))
        given = float(self.grads[key][index])
        slopes = self.slopes(key, index, self.eps)
        allowed = self.rtol * abs(slopes.central) + self.atol + slopes.rounding
        off = abs(given - slopes.central)
        self.visible |= not max(abs(given), abs(slopes.central)) <= allowed
        if off <= allowed:
            return None
        near = self.slopes(key, index, self.eps / CLOSER)
        # The error of a central difference falls with the square of the step, and faster if a kink
        # is then outside of it. The error of a gradient does not fall.
        last, closer = off, near
        for times in (2, 3, 4):
            left = abs(given - closer.central)
            if not math.isfinite(left) or left > last * 4 / CLOSER**2:
                break
            if left <= self.rtol * abs(closer.central) + self.atol + closer.rounding:
                return None
            last, closer = left, self.slopes(key, index, self.eps / CLOSER**times)
        else:
            return None
        # With a smaller step, the difference of the slopes of both sides falls if f is smooth. It
        # stays the same at a kink and grows at a jump.
        bend: Literal["kink", "jump"] | None = None
        if near.bend > slopes.bend / 2 > allowed + CLOSER * slopes.rounding:
            bend = "jump" if near.bend > slopes.bend * CLOSER / 2 else "kink"
        return _Difference(index, given, slopes.central, allowed, bend, slopes.below, slopes.above)

    def slopes(self, key: Any, index: tuple[int, ...], eps: float) -> _Slopes:
        x = self.inputs[key]
        # For a large x the step is larger than its rounding error.
        step = max(eps, 8 * float(np.spacing(abs(x[index]))))
        values, at = [], []
        for moved in (x[index] - x.dtype.type(step), x[index] + x.dtype.type(step)):
            changed = x.copy()
            changed[index] = moved
            value = self.value_of(self.call({**self.inputs, key: changed}))
            if value.shape != self.value.shape:
                raise ValueError(
                    f"fn's value must keep its shape {self.value.shape}, not become {value.shape}"
                )
            if not np.all(np.isfinite(value)):
                raise ValueError(
                    f"fn's value is {_first(value)} where {self.name(key)} at {_place(index)} is "
                    f"{moved:.9g} and not {x[index]:.9g}: give a smaller eps, or other inputs"
                )
            values.append(value)
            at.append(float(moved))
        (low, high), (left, right) = values, at
        here = float(x[index])
        # Arrays are subtracted entry by entry: entries that do not depend on this element cancel.
        size = np.sum(np.maximum(abs(low), abs(high)), where=high != low)
        return _Slopes(
            float(np.sum(self.value - low)) / (here - left),
            float(np.sum(high - self.value)) / (right - here),
            float(np.sum(high - low)) / (right - left),
            ROUNDING * float(np.finfo(self.coarsest).eps * size) / (right - left),
        )

    def report(
        self, key: Any, wrong: list[_Difference], bends: list[_Difference], checked: int
    ) -> Iterator[str]:
        name, size = self.name(key), self.inputs[key].size
        of = f"{checked} elements" + (f" (of {size}) looked at" if checked < size else "")
        if wrong:
            worst = max(wrong, key=lambda d: d.excess)
            yield f"the gradient differs in {len(wrong)} of {of} of {name}"
            yield (
                f"  worst at {_place(worst.place)}: fn gives {worst.given:.9g}, central "
                f"differences give {worst.numerical:.9g} (allowed: {worst.allowed:.2g})"
            )
            others = [d for d in wrong if d is not worst]
            places = [f"{_place(d.place)}: {d.given:.6g}, not {d.numerical:.6g}" for d in others]
            if places:
                more = "; ..." if len(places) > LISTED - 1 else ""
                yield f"  also {'; '.join(places[: LISTED - 1])}{more}"
            yield from self.hints(key, wrong)
        for d in bends[:LISTED]:
            yield (
                f"{name} is at a {d.bend}, or within eps of one, at {_place(d.place)}: the slope "
                f"is {d.below:.6g} below and {d.above:.6g} above, fn gives {d.given:.6g}"
            )
        if bends:
            more = f" ({len(bends)} places in {of})" if len(bends) > LISTED else ""
            kinks = [d for d in bends if d.bend == "kink" and d.is_between]
            advice = "; allow_kinks=True allows any slope between the two of a kink"
            yield f"  move the inputs away{advice if kinks else ''}{more}"

    def hints(self, key: Any, wrong: list[_Difference]) -> Iterator[str]:
        """Yield what all the differences share."""
        if all(d.numerical == 0 for d in wrong):
            yield "  the value does not depend on any of these: does fn use its arguments?"
            return
        if len(wrong) < 2 or any(d.numerical == 0 for d in wrong):
            return
        ratios = [d.given / d.numerical for d in wrong]
        middle = float(np.median(ratios))
        if all(abs(ratio - middle) <= 1e-3 * abs(middle) for ratio in ratios):
            yield f"  all of these are {middle:.6g} times the numerical derivative"


def _plain(value: Any, name: str) -> FloatArray:
    """Return a plain NumPy array; a subclass gives its elements."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass its .data or a filled copy")
    return np.asarray(value)


def _kind(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, (tuple, list)):
        return "sequence"
    if isinstance(value, (np.ndarray, np.generic, float)):
        return "array"
    raise TypeError(
        f"{name} must be an array, a sequence or a mapping of arrays, not {type(value).__name__}"
    )


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value if isinstance(value, (tuple, list)) else [value]))


def _place(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else "its only element"


def _first(value: FloatArray, other: FloatArray | None = None) -> str:
    """Return the first entry that is not finite, or that differs from `other`."""
    if other is not None and value.shape != other.shape:
        return f"an array of shape {value.shape}"
    strange = ~np.isfinite(value) if other is None else value != other
    if not value.shape:
        return f"{value:.9g}"
    at = np.argwhere(strange)[0].tolist()
    return f"{value[tuple(at)]:.9g} at {at}"
