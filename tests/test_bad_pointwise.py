"""Bad input to the pointwise losses and functions: the right exception, and nothing written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CHUNK
from fastopt import _core
from helpers import misaligned, ones, read_only, refused, swapped
from pointwise_cases import FUNCTIONS, LOSSES, Function, Loss

GOOD = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(3, 4)
BAD: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("list", [[0.5, 0.5]], TypeError, ["list", "float32, float64, bfloat16 or float16"]),
    ("number", 0.5, TypeError, ["float"]),
    ("integers", np.ones((3, 4), int), TypeError, ["int64", ".astype(np.float32)"]),
    ("scalar", np.float32(0.5), TypeError, ["NumPy scalar (float32)"]),
    ("half", GOOD.astype(np.float16), TypeError, ["float16"]),
    ("swapped", swapped(GOOD), ValueError, ["byte-swapped"]),
    ("misaligned", misaligned(GOOD), ValueError, ["misaligned"]),
    ("masked", np.ma.masked_less(GOOD, 0.5), TypeError, ["masked"]),
    ("other dtype", GOOD.astype(float), TypeError, ["float64", "float32"]),
    ("broadcastable", GOOD[:1], ValueError, ["(1, 4)", "(3, 4)"]),
    ("other axes", GOOD.ravel(), ValueError, ["(12,)", "(3, 4)"]),
]


@pytest.mark.parametrize("row", LOSSES, ids=str)
@pytest.mark.parametrize(("bad", "error", "words"), [pytest.param(*b[1:], id=b[0]) for b in BAD])
def test_losses(bad: Any, error: type[Exception], words: list[str], row: Loss) -> None:
    out, x = np.full((3, 4), 7, np.float32), GOOD.copy()
    loss = row.make((3, 4))
    with refused(error, "target", *words, arrays=[out, x]):
        loss.value_and_grad(x, bad, out=out)
    with refused(error, "target", *words, arrays=[x]):
        loss.value_and_grad(x, bad, out=x)
    with refused(error, *words, arrays=[out, x]):
        loss.value_and_grad(bad, x, out=out)
    with refused(error, *words):
        loss(bad, x)


@pytest.mark.parametrize("row", FUNCTIONS, ids=str)
@pytest.mark.parametrize(("bad", "error", "words"), [pytest.param(*b[1:], id=b[0]) for b in BAD])
def test_functions(bad: Any, error: type[Exception], words: list[str], row: Function) -> None:
    out = np.full((3, 4), 7, np.float32)
    for i in range(row.operands):
        arrays = [GOOD.copy() for _ in range(row.operands)]
        arrays[i] = bad
        with refused(error, *words, arrays=[out]):
            row.fused(*arrays, **row.options, out=out)


def test_out() -> None:
    memory = np.linspace(0.1, 0.9, 40, dtype=np.float32)
    x, y = memory[:12].reshape(3, 4), memory[24:36].reshape(3, 4)
    bad: list[tuple[Any, type[Exception], str]] = [
        (np.ones((3, 4)), TypeError, "float64"),
        (ones(4, 3), ValueError, "(4, 3)"),
        (read_only(ones(3, 4)), ValueError, "read-only"),
        (np.asfortranarray(ones(3, 4)), ValueError, "contiguous"),
        ([[0.0] * 4] * 3, TypeError, "list"),
        (memory[4:16].reshape(3, 4), ValueError, "input"),
        (memory[20:32].reshape(3, 4), ValueError, "target"),
    ]
    for row in LOSSES:
        loss = row.make((3, 4))
        for out, error, word in bad:
            with refused(error, "out", word, arrays=[memory]):
                loss.value_and_grad(x, y, out=out)
        with refused(ValueError, "out", "target", arrays=[memory]):
            loss.value_and_grad(x, y, out=y)
        with refused(ValueError, "out", "target", arrays=[memory]):
            loss.value_and_grad(x, x, out=x)
        f_order = np.asfortranarray(GOOD)
        with refused(ValueError, "contiguous", arrays=[f_order]):
            loss.value_and_grad(f_order, f_order.copy(), out=f_order)
    for function in FUNCTIONS:
        arrays = [x, y][: function.operands]
        for out, error, _ in bad[: 5 + function.operands]:
            with refused(error, "out", arrays=[memory]):
                function.fused(*arrays, **function.options, out=out)


def test_weights() -> None:
    x, y = GOOD.copy(), GOOD.copy()
    weight = np.ones((3, 4), np.float32)

    def loss(name: str, value: Any) -> Any:
        options: dict[str, Any] = {name: value}
        return fo.BCEWithLogitsLoss(**options)

    for name in ("weight", "pos_weight"):
        with refused(ValueError, name, "(3,)", "(3, 4)", arrays=[x]):
            loss(name, ones(3)).value_and_grad(x, y, out=x)
        with refused(ValueError, name, "(2, 3, 4)", arrays=[x]):
            loss(name, ones(2, 3, 4)).value_and_grad(x, y, out=x)
        with refused(TypeError, name, "list", arrays=[x]):
            loss(name, [1.0]).value_and_grad(x, y, out=x)
        with refused(ValueError, "out", name, "share memory", arrays=[weight]):
            loss(name, weight).value_and_grad(x, y, out=weight)
    with refused(ValueError, "weight", "(3,)", arrays=[x]):
        fo.BCELoss(ones(3)).value_and_grad(x, y, out=x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -1e-30, 1.0000002, np.inf, -np.inf])
def test_probabilities_outside_the_unit_interval(bad: float, dtype: Any, isa: str) -> None:
    x = np.full((5, 2 * CHUNK // 3), 0.5, dtype)
    for place in ((0, 0), (3, 17), (4, x.shape[1] - 1)):
        spoiled = x.copy()
        spoiled[place] = spoiled[-1, -1] = bad
        out = np.full_like(x, 7)
        words = [f"input[{place[0]}, {place[1]}] is {dtype(bad)!s}", "[0, 1]"]
        for given in (spoiled, np.asfortranarray(spoiled)):
            with refused(ValueError, *words, arrays=[spoiled, out]):
                fo.BCELoss().value_and_grad(given, x, out=out)
            with refused(ValueError, *words):
                fo.BCELoss(reduction="none")(given, x)
        with refused(ValueError, *words, arrays=[spoiled]):
            fo.BCELoss().value_and_grad(spoiled, x, out=spoiled)
    with refused(ValueError, "input[()]", "BCEWithLogitsLoss"):
        fo.BCELoss()(np.array(bad, dtype), np.array(1, dtype))


def test_options() -> None:
    for bad in (-1.0, float("nan"), float("inf")):
        with refused(ValueError, "beta", repr(bad)):
            fo.SmoothL1Loss(beta=bad)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with refused(ValueError, "delta", repr(bad)):
            fo.HuberLoss(delta=bad)
    for name, word in (("SmoothL1Loss", "beta"), ("HuberLoss", "delta")):
        for kind in ("1", None, 1j, np.ones(1)):
            with refused(TypeError, word, repr(kind)):
                getattr(fo, name)(**{word: kind})
    with refused(ValueError, "log_target", "2"):
        fo.KLDivLoss(log_target=2)  # type: ignore[arg-type]
    for row in LOSSES:
        with refused(ValueError, "reduction", "'average'"):
            row.make((3,), "average")
        with refused(TypeError, "reduction", "None"):
            getattr(fo, row.name)(reduction=None)
        if row.name != "KLDivLoss":
            with refused(ValueError, "reduction", "'batchmean'"):
                row.make((3,), "batchmean")
    with refused(ValueError, "batchmean"):
        fo.KLDivLoss("batchmean")(np.array(-1.0), np.array(1.0))
    x = GOOD.copy()
    huber = fo.HuberLoss()
    huber.delta = -1.0  # options are read at every call
    with refused(ValueError, "delta", arrays=[x]):
        huber.value_and_grad(x, GOOD, out=x)
    huber = fo.HuberLoss()
    huber.reduction = "average"
    with refused(ValueError, "average", arrays=[x]):
        huber.value_and_grad(x, GOOD, out=x)
    for options in ({"L": np.nan}, {"k": np.inf}, {"x0": -np.inf}):
        with refused(ValueError, *options, arrays=[x]):
            fo.functional.logistic(x, **options, out=x)
    with refused(TypeError, "k", "'2'", arrays=[x]):
        fo.functional.logistic(x, k="2", out=x)  # type: ignore[arg-type]


def test_the_private_layer() -> None:
    with refused(ValueError, "'cubic'"):
        _core.pointwise_loss("cubic", GOOD, GOOD, None, None, [], "mean", False, None)
    with refused(ValueError, "'huber' takes 1"):
        _core.pointwise_loss("huber", GOOD, GOOD, None, None, [], "mean", False, None)
    with refused(ValueError, "'relu' is not a loss"):
        _core.pointwise_loss("relu", GOOD, GOOD, None, None, [], "mean", False, None)
    with refused(ValueError, "'average'"):
        _core.pointwise_loss("mse", GOOD, GOOD, None, None, [], "average", False, None)
    with refused(ValueError, "'mse' is not a function"):
        _core.pointwise_function("mse", [("x", GOOD)], [], None)
    with refused(ValueError, "'relu' is not a function of 2"):
        _core.pointwise_function("relu", [("x", GOOD), ("y", GOOD)], [], None)


def test_weights_are_checked_at_once() -> None:
    for make in (fo.BCELoss, fo.BCEWithLogitsLoss):
        with pytest.raises(TypeError, match=r"weight must be a NumPy array.*list"):
            make(weight=[1.0])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"weight must have dtype.*int64"):
            make(weight=np.ones(3, np.int64))
    with pytest.raises(TypeError, match="pos_weight must be a NumPy array"):
        fo.BCEWithLogitsLoss(pos_weight=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [2e39, -1e300, np.float64(np.finfo(np.float32).max) * 1.00000003])
def test_weights_beyond_the_dtype(large: float) -> None:
    x = np.full((3, 4), 0.5, np.float32)
    weight = np.ones((2, 3, 4))[1].T.copy().T  # Fortran order
    weight[1, 2] = weight[2, 0] = large
    words = (f"weight[1, 2] is {large}, too large for float32", "input")
    for name in ("weight", "pos_weight"):
        loss: Any = fo.BCEWithLogitsLoss(**{name: weight})
        with refused(ValueError, *words, arrays=[x]):
            loss.value_and_grad(x, x.copy(), out=x)
    with refused(ValueError, *words, arrays=[x]):
        fo.BCELoss(weight).value_and_grad(x, x.copy(), out=x)
    fo.BCELoss(weight)(x.astype(float), x.astype(float))  # it fits
    largest = np.full((3, 4), np.finfo(np.float32).max, np.float64) * 1.00000002  # rounds down
    largest[0, 0] = np.inf  # an infinity is not too large
    assert fo.BCELoss(largest)(x, x) == np.inf
