"""Softmax cross-entropy of a linear layer, by chunks of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fastopt._core as _core
from fastopt._checks import integer
from fastopt._storage import is_16_bit
from fastopt._types import FloatArray, IntArray, Reduction  # noqa: F401 - for get_type_hints
from fastopt.losses.cross_entropy import (
    CrossEntropyOptions,
    CrossEntropyStats,
    checked_grad,
)

Grads: TypeAlias = tuple[FloatArray, ...]

# The default of memory_limit: a tenth of all logits less the block below but at most so many rows,
# or so many bytes if that is more. Each chunk has a cost of its own: the BLAS packs linear_weight
# twice, and the gradient of it is read and written. More rows do not help the BLAS.
LEAST_BYTES = 16 << 20
MOST_ROWS = 512
# The rows of a chunk are a multiple of it, so that the BLAS has no narrow rest.
ROW_STEP = 16
# Bytes of a block of the gradient of linear_weight, which is computed separately and then added. It
# is small enough to stay in cache and large enough for the BLAS.
BLOCK_BYTES = 3 << 19


@dataclass(repr=False, eq=False)
class LinearCrossEntropyLoss(CrossEntropyOptions):
    r"""`CrossEntropyLoss` of ``hidden @ linear_weight.T + linear_bias`` in little memory.

    With many classes the logits :math:`X = H W^\top + b` take most of the memory. This loss
    computes them for one chunk of rows at a time. The gradient :math:`G` of the chunk replaces its
    logits. :math:`G W` is the part of :math:`\partial H` from this chunk, and :math:`G^\top H` that
    of :math:`\partial W`. The next chunk uses the same buffer:

    =================================================== ==================
    in this order, in one buffer                        memory
    =================================================== ==================
    logits of :math:`R` rows                            :math:`R \times V`
    their gradient, into ``dhidden`` of these rows      0
    its part of ``dlinear_weight``, a block at a time   up to 1.5 MiB
    =================================================== ==================

    `numpy.matmul` computes the products, on the threads of its BLAS, not on those of
    `fastopt.set_num_threads`. The last bits depend on the BLAS, on the number of its threads and on
    `memory_limit`; they are the same in every call. Everything else is `CrossEntropyLoss`. Ignored
    rows are left out of the products, so that they cost no time and NaN in them has no effect.

    Arrays of bfloat16 and float16 are computed in float32: `linear_weight` is widened once and its
    gradient summed in float32, two arrays that are kept during the call; the rows of `hidden` are
    widened by chunks. The gradients are those of float32 arrays, rounded at the end.

    Parameters
    ----------
    memory_limit : int, optional
        Bytes of logits in memory at the same time. A limit below one row is taken as one row. By
        default a chunk has at most 512 rows and a tenth of all logits less 1.5 MiB, or 16 MiB if
        that is more. Fewer rows make the BLAS slower. With `logit_softcap` each thread needs the
        memory of one more row.

    References
    ----------
    E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, and
    P.-L. Hsu et al., "Liger Kernel", 2024, do the same on GPUs.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> rng = np.random.default_rng(0)
    >>> hidden, linear_weight = rng.standard_normal((6, 3)), rng.standard_normal((1000, 3))
    >>> targets = rng.integers(0, 1000, 6)
    >>> loss_of = fo.LinearCrossEntropyLoss(label_smoothing=0.1, memory_limit=100_000)
    >>> loss, (dhidden, dlinear_weight) = loss_of.value_and_grad(hidden, linear_weight, targets)
    >>> print(f"{loss:.3f}", dhidden.shape, dlinear_weight.shape)
    7.462 (6, 3) (1000, 3)
    """

    _: KW_ONLY
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory_limit is not None:
            self.memory_limit = integer(1, math.inf)("memory_limit", self.memory_limit)

    def __call__(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
    ) -> float | FloatArray:
        """Return the loss.

        Parameters
        ----------
        hidden : array of shape (N, D), (D,) or (d1, ..., D)
            float32, float64, bfloat16 or float16.
        linear_weight : array of shape (V, D)
            Of the dtype of `hidden`, V >= 1. Contiguous rows or columns are read in place; other
            arrays are copied.
        targets : array of shape (N,), () or (d1, ...), or one axis of V more
            Class indices of any integer dtype, each in [0, V) or `ignore_index`; or probabilities
            of the dtype of `hidden`.
        linear_bias : array of shape (V,), optional
            Of the dtype of `hidden`.

        Returns
        -------
        float, or array in the shape of the class indices and the dtype of `hidden`
            With "mean", nan if no target counts.

        Raises
        ------
        IndexError
            If a target is outside [0, V) and not `ignore_index`.
        """
        return self._by_chunks(hidden, linear_weight, targets, linear_bias, want_grad=False).loss

    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
    ) -> tuple[float | FloatArray, Grads]:
        """Return the loss of `__call__` and its gradients.

        Parameters
        ----------
        out : tuple of arrays, optional
            The arrays for the gradients, in the order of the result. Each has the shape and dtype
            of its argument and is C-contiguous; the second may be in Fortran order. They must not
            share memory with each other or with an argument. After an interrupt (Ctrl-C) or a
            MemoryError they are half written.

        Returns
        -------
        loss : float or array
        grads : tuple of arrays
            ``(dhidden, dlinear_weight)``, and ``dlinear_bias`` if there is a bias. They are the
            arrays of `out` if there is one. With reduction "none", the gradients of the sum.
        """
        result = self._by_chunks(
            hidden, linear_weight, targets, linear_bias, want_grad=True, out=out
        )
        return result.loss, result.grad

    def value_and_stats(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        *,
        grad: bool = True,
        out: Sequence[FloatArray] | None = None,
    ) -> CrossEntropyStats:
        """Return the results of `value_and_grad` and statistics from the same pass.

        The log-sum-exp is float32 for arrays of 16 bits.

        Parameters
        ----------
        grad : bool
            Whether to compute the gradients.
        out : tuple of arrays, optional
            The arrays for the gradients, as in `value_and_grad`; not with ``grad=False``.
        """
        want_grad = checked_grad(grad, out)
        return self._by_chunks(
            hidden,
            linear_weight,
            targets,
            linear_bias,
            want_grad=want_grad,
            out=out,
            want_stats=True,
        )

    def _by_chunks(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None,
        *,
        want_grad: bool,
        out: Sequence[FloatArray] | None = None,
        want_stats: bool = False,
    ) -> CrossEntropyStats:
        indices, denominator, grads = _core.check_linear_cross_entropy(
            hidden, linear_weight, targets, linear_bias, self.weight, self.ignore_index, out
        )
        hidden, linear_weight = _plain(hidden), _plain(linear_weight)
        shape, dtype = hidden.shape[:-1], hidden.dtype
        wide = np.dtype(np.float32) if is_16_bit(dtype) else dtype  # of the arithmetic
        if linear_bias is not None:
            linear_bias = _as_dtype(_plain(linear_bias), wide)
        classes, width = linear_weight.shape
        x = hidden.reshape(math.prod(shape), width)
        y = _plain(targets).reshape(len(x), classes) if indices is None else indices
        kept = None  # the rows that are not ignored; None if no row is ignored
        if indices is not None and np.any(indices == self.ignore_index):
            kept = np.flatnonzero(indices != self.ignore_index)
        count = len(x) if kept is None else len(kept)
        at_once = self._rows_at_once(count, len(x), classes * wide.itemsize)
        copies = kept is not None or not _is_for_blas(x)

        if want_grad and out is None:
            grads = (np.empty(hidden.shape, dtype), np.empty_like(linear_weight))
            grads += () if linear_bias is None else (np.empty(classes, dtype),)
        w = _as_dtype(linear_weight, wide)
        w = w if _is_for_blas(w) else np.ascontiguousarray(w)
        logits = np.empty((at_once, classes), wide)
        losses = np.zeros(len(x) if self.reduction == "none" else 0, wide)
        logsumexp = np.zeros(len(x) if want_stats else 0, wide)
        loss, correct = 0.0, 0
        if want_grad:
            plain = [_plain(grad) for grad in grads]
            dx, dw = plain[0].reshape(x.shape), plain[1]
            dw = dw if wide == dtype else np.empty(dw.shape, wide)
            db = np.zeros(0 if linear_bias is None else classes)
            ones = np.ones(at_once, wide)
            step = max(1, BLOCK_BYTES // max(1, width * wide.itemsize))
            product = np.empty_like(dw[: step if count > at_once else 0])

        with np.errstate(all="ignore"):  # infinities and NaN come from the caller
            for start in range(0, count, at_once):
                rows: slice | IntArray = slice(start, min(start + at_once, count))
                if kept is not None:
                    rows = kept[rows]
                h = _as_dtype(x[rows], wide)
                h = np.ascontiguousarray(h) if copies else h
                g = logits[: len(h)]
                np.matmul(h, w.T, out=g)
                if linear_bias is not None:
                    g += linear_bias
                computed = self._run(
                    g,
                    y[rows] if indices is not None else _as_dtype(y[rows], wide),
                    want_grad=want_grad,
                    out=g if want_grad else None,
                    want_stats=want_stats,
                    denominator=denominator,
                )
                value = computed[0] if want_grad or want_stats else computed
                if self.reduction == "none":
                    losses[rows] = value
                else:
                    loss += float(value)
                if want_stats:
                    logsumexp[rows] = computed.logsumexp
                    correct += computed.correct
                if not want_grad:
                    continue
                if kept is None and wide == dtype:
                    np.matmul(g, w, out=dx[rows])
                else:
                    dx[rows] = _as_dtype(np.matmul(g, w), dtype)
                if linear_bias is not None:
                    db += np.matmul(ones[: len(h)], g)
                if start == 0:
                    np.matmul(g.T, h, out=dw)
                    continue
                for first in range(0, classes, step):
                    block = dw[first : first + step]
                    part = np.matmul(g[:, first : first + step].T, h, out=product[: len(block)])
                    block += part

            if want_grad and kept is not None:
                dx[indices == self.ignore_index] = 0
            if want_grad and count == 0:
                dw[...] = 0
            if want_grad and wide != dtype:
                _core.copy_rounded(dw, plain[1])
            if want_grad and linear_bias is not None:
                plain[2][...] = _as_dtype(db, dtype)
        result: float | FloatArray = loss
        if self.reduction == "none":
            result = _as_dtype(losses, dtype).reshape(shape)
        elif self.reduction == "mean" and count == 0:
            result = math.nan
        lse = logsumexp.reshape(shape) if want_stats else logsumexp
        return CrossEntropyStats(result, grads if want_grad else None, lse, correct, count)

    def _rows_at_once(self, count: int, all_rows: int, row_bytes: int) -> int:
        limit = self.memory_limit
        if limit is None:
            tenth = all_rows * row_bytes // 10 - BLOCK_BYTES
            limit = max(LEAST_BYTES, min(tenth, MOST_ROWS * row_bytes))
        rows = max(1, limit // row_bytes)
        if rows >= count:
            return max(1, count)
        even = -(-count // -(-count // rows))  # all chunks have about the same size
        return min(-(-even // ROW_STEP) * ROW_STEP, rows)

    def __repr__(self) -> str:
        limit = "" if self.memory_limit is None else f", memory_limit={self.memory_limit}"
        return f"{super().__repr__()[:-1]}{limit})"


def _plain(array: object) -> npt.NDArray[Any]:
    """Return a tensor as an array, and a subclass as a plain one: np.matrix has another product."""
    return np.asarray(_core.as_numpy(array, "the array"))


def _as_dtype(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> FloatArray:
    """Return the array, or a rounded C-contiguous copy of it; NumPy is slow with bfloat16."""
    if array.dtype == dtype:
        return array
    copy = np.empty(array.shape, dtype)
    _core.copy_rounded(array, copy)
    return copy


def _is_for_blas(array: FloatArray) -> bool:
    """Whether NumPy passes the matrix to the BLAS: its rows or columns are contiguous."""
    (rows, columns), (down, right), size = array.shape, array.strides, array.itemsize
    lines = ((columns, right, down), (rows, down, right))
    return any(n <= 1 or (step == size and far >= n * size) for n, step, far in lines)
