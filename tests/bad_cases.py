"""The tables of arrays that are refused, with the error and the words of its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from helpers import misaligned, ones, read_only, swapped

BAD_PARAMS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("integers", lambda: np.ones(4, np.int64), TypeError, "int64"),
    ("complex", lambda: np.ones(4, np.complex64), TypeError, "complex64"),
    ("objects", lambda: np.ones(4, object), TypeError, "object"),
    ("list", lambda: [1.0, 2.0], TypeError, "list"),
    ("float", lambda: 1.0, TypeError, "float"),
    ("read-only", lambda: read_only(ones(4)), ValueError, "read-only"),
    ("strided", lambda: ones(8)[::2], ValueError, "dense"),
    ("reversed", lambda: ones(8)[::-1], ValueError, "dense"),
    ("columns", lambda: ones(4, 4)[:, :2], ValueError, "dense"),
    (
        "broadcast",
        lambda: np.lib.stride_tricks.as_strided(ones(1), (4,), (0,)),
        ValueError,
        "dense",
    ),
    ("misaligned", lambda: misaligned(ones(4)), ValueError, "misaligned"),
    ("swapped", lambda: swapped(ones(4)), ValueError, "byte-swapped"),
]


BAD_GRADS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("integers", lambda g: g.astype(np.int32), TypeError, "int32"),
    ("other float", lambda g: g.astype(np.float64), TypeError, "float64"),
    ("list", lambda g: g.tolist(), TypeError, "list"),
    ("shape", lambda g: g.T, ValueError, "(3, 2)"),
    ("flat", lambda g: g.ravel(), ValueError, "(6,)"),
    ("misaligned", misaligned, ValueError, "misaligned"),
    ("swapped", swapped, ValueError, "byte-swapped"),
]


GOOD_LOGITS = np.arange(12, dtype=np.float32).reshape(3, 4)
GOOD_TARGETS = np.array([0, 3, 1])

BAD_LOSS: list[tuple[str, Any, Any, type[Exception], list[str]]] = [
    (
        "list",
        [[1.0, 2.0]],
        GOOD_TARGETS,
        TypeError,
        ["logits", "not list; convert it with np.asarray(logits, np.float32)"],
    ),
    ("integers", GOOD_LOGITS.astype(int), GOOD_TARGETS, TypeError, ["logits", "int64"]),
    ("complex", GOOD_LOGITS + 0j, GOOD_TARGETS, TypeError, ["or float16, not complex64"]),
    ("scalar", GOOD_LOGITS[0, 0, ...], GOOD_TARGETS, ValueError, ["logits", "not ()"]),
    ("flat", GOOD_LOGITS[0], GOOD_TARGETS, ValueError, ["targets", "shape ()", "(3,)"]),
    ("flat and out of range", GOOD_LOGITS[0], 4, IndexError, ["targets[()] is 4"]),
    ("three axes", GOOD_LOGITS[None], GOOD_TARGETS, ValueError, ["targets", "(1, 4)", "(3,)"]),
    (
        "outside in three axes",
        np.zeros((3, 2, 4), np.float32),
        np.array([[0, 1, 1, 1], [1, 1, 2, 0], [3, 0, 0, 0]]),
        IndexError,
        ["targets[1, 2] is 2", "[0, 2)"],
    ),
    ("floating indices", GOOD_LOGITS, GOOD_LOGITS[:, 0], TypeError, ["integer dtype", "float32"]),
    ("wrong probabilities", GOOD_LOGITS, GOOD_LOGITS[:2], ValueError, ["targets", "(2, 4)"]),
    ("one hot", GOOD_LOGITS, np.ones((3, 4), int), ValueError, ["(3,)", "probabilities", "int64"]),
    ("swapped arguments", GOOD_TARGETS, GOOD_LOGITS, TypeError, ["logits", "int64", "swapped"]),
    (
        "classes last",
        np.zeros((3, 5, 4), np.float32),
        np.zeros((3, 5), int),
        ValueError,
        ["targets", "(3, 4)", "along axis 1", "(3, 5)"],
    ),
    ("NumPy scalar", np.float32(1), 0, TypeError, ["logits", "NumPy scalar (float32)"]),
    ("half probabilities", GOOD_LOGITS, GOOD_LOGITS.astype(np.float16), TypeError, ["float16"]),
    ("no classes", GOOD_LOGITS[:, :0], GOOD_TARGETS, ValueError, ["logits", "(3, 0)"]),
    ("swapped", swapped(GOOD_LOGITS), GOOD_TARGETS, ValueError, ["logits", "byte-swapped"]),
    ("misaligned", misaligned(GOOD_LOGITS), GOOD_TARGETS, ValueError, ["logits", "misaligned"]),
    ("float targets", GOOD_LOGITS, GOOD_TARGETS * 1.0, TypeError, ["targets", "float64"]),
    ("bool targets", GOOD_LOGITS, GOOD_TARGETS > 0, TypeError, ["targets", "bool"]),
    (
        "target list",
        GOOD_LOGITS,
        [0, 1, 2],
        TypeError,
        ["targets", "not list; convert it with np.asarray(targets)"],
    ),
    ("masked", GOOD_LOGITS, np.ma.array(GOOD_TARGETS), TypeError, ["targets", "masked array"]),
    ("too few", GOOD_LOGITS, GOOD_TARGETS[:2], ValueError, ["targets", "(3,)", "(2,)"]),
    ("column", GOOD_LOGITS, GOOD_TARGETS[:, None], ValueError, ["targets", "(3, 1)"]),
    ("too large", GOOD_LOGITS, np.array([0, 4, 9]), IndexError, ["targets[1] is 4", "[0, 4)"]),
    ("negative", GOOD_LOGITS, np.array([0, 1, -1]), IndexError, ["targets[2] is -1"]),
    (
        "huge",
        GOOD_LOGITS,
        np.array([0, 1, 2**64 - 100], np.uint64),
        IndexError,
        ["targets[2] is 18446744073709551516"],
    ),
]
