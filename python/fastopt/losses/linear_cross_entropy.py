"""Softmax cross-entropy of a linear layer, by chunks of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple, TypeAlias, overload

import numpy as np

import fastopt._core as _core
from fastopt._checks import Reduction, flag, integer
from fastopt._types import FloatArray, IntArray
from fastopt.losses.cross_entropy import CrossEntropyOptions, CrossEntropyStats

Grads: TypeAlias = tuple[FloatArray, ...]

# Where no limit is given. More rows at once than these no longer make the BLAS faster.
SHARE_OF_LOGITS = 0.098
LEAST_LIMIT = 16 << 20
MOST_ROWS = 512
# Rows at once in multiples of this leave the BLAS no narrow rest.
ROW_STEP = 16
# A part of linear_weight's gradient that is computed beside it and then added: small enough to
# stay in cache, large enough for the BLAS.
ADDED_BYTES = 2 << 20
ROW_BYTES = 64  # the targets and losses of a row
MOST_THREADS = 64  # that have a row of scratch each for `logit_softcap`
BUFFER_SIZE = 8192  # elements that NumPy buffers where a row is added to many


class _Plan(NamedTuple):
    """How much is done at once."""

    rows: int
    classes: int  # of linear_weight's gradient; 0 if nothing is added to it
    threads: int | None  # at most


class LinearCrossEntropyLoss(CrossEntropyOptions):
    r"""`CrossEntropyLoss` of ``hidden @ linear_weight.T + linear_bias``, without holding it.

    With many classes the logits :math:`X = H W^\top + b` take more memory than all else. Here they
    are computed for a chunk of rows at a time, become their own gradient :math:`G` in place, and
    go into :math:`\partial H = G W` and :math:`\partial W = G^\top H` before the next chunk:

    =================================================== ==================
    one after the other, in one buffer                  memory
    =================================================== ==================
    logits of :math:`R` rows                            :math:`R \times V`
    their gradient, into ``dhidden`` of these rows      0
    its share of ``dlinear_weight``, a block at a time  up to 2 MB
    =================================================== ==================

    The products are NumPy's (`numpy.matmul`) and run on its BLAS's threads, not on those of
    `fastopt.set_num_threads`. The last bits depend on that BLAS, on the number of its threads and
    on `memory_limit`; they are the same from call to call. All else is `CrossEntropyLoss`, whose
    options these are. Rows that are ignored are left out of the products:
    they cost nothing, and NaN in them stays there.

    Parameters
    ----------
    weight, ignore_index, reduction, label_smoothing, z_loss, logit_softcap
        As in `CrossEntropyLoss`; `weight` has a number for each class.
    memory_limit : int, optional
        Bytes that a call may take besides its results: for the logits of a chunk, and all
        temporaries. By default 9.8 % of what all logits would take, but at least 16 MiB and no
        more than 512 rows need. The fewer rows at once, the slower the BLAS; with
        `logit_softcap` also the fewer threads, at most 64, as each takes a row of its own.

    Raises
    ------
    TypeError, ValueError
        If an option cannot be used.

    References
    ----------
    E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, and
    P.-L. Hsu et al., "Liger Kernel", 2024, do the like on GPUs.

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

    def __init__(
        self,
        weight: FloatArray | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        logit_softcap: float = 0.0,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
        )
        self.memory_limit: int | None = None
        if memory_limit is not None:
            self.memory_limit = integer(1, inf)("memory_limit", memory_limit)

    @overload
    def __call__(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        *,
        stats: Literal[False] = False,
    ) -> float | FloatArray: ...
    @overload
    def __call__(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        *,
        stats: Literal[True],
    ) -> tuple[float | FloatArray, CrossEntropyStats]: ...
    def __call__(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        *,
        stats: bool = False,
    ) -> float | FloatArray | tuple[float | FloatArray, CrossEntropyStats]:
        """Return the loss.

        Parameters
        ----------
        hidden : array of shape (N, D), (D,) or (d1, ..., D)
            float32 or float64.
        linear_weight : array of shape (V, D)
            Of the dtype of `hidden`, V >= 1. Rows or columns that are contiguous are read as they
            lie; other strides are copied, beyond `memory_limit`.
        targets : array of shape (N,), () or (d1, ...), or one axis of V more
            Class indices of any integer dtype, each in [0, V) or `ignore_index`; or probabilities
            of the dtype of `hidden`.
        linear_bias : array of shape (V,), optional
            Of the dtype of `hidden`.
        stats : bool
            Return a `CrossEntropyStats` too, from the same pass.

        Returns
        -------
        loss : float, or array in the shape of the class indices and the dtype of `hidden`
            With "mean", nan if no target counts.
        stats : CrossEntropyStats
            If it was asked for.

        Raises
        ------
        TypeError, ValueError
            If an array cannot be used, or `memory_limit` is too small for one row.
        IndexError
            If a target is outside [0, V) and not `ignore_index`.
        """
        loss, _, summary = self._chunks(
            hidden, linear_weight, targets, linear_bias, want_grad=False, out=None, stats=stats
        )
        return loss if summary is None else (loss, summary)

    @overload
    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
        *,
        stats: Literal[False] = False,
    ) -> tuple[float | FloatArray, Grads]: ...
    @overload
    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
        *,
        stats: Literal[True],
    ) -> tuple[float | FloatArray, Grads, CrossEntropyStats]: ...
    def value_and_grad(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None = None,
        out: Sequence[FloatArray] | None = None,
        *,
        stats: bool = False,
    ) -> tuple[float | FloatArray, Grads] | tuple[float | FloatArray, Grads, CrossEntropyStats]:
        """Return the loss and its gradients.

        Parameters
        ----------
        hidden, linear_weight, targets, linear_bias, stats
            As in `__call__`.
        out : tuple of arrays, optional
            Where the gradients go, in the order of the result, each of the shape and dtype of what
            it belongs to: C-contiguous; the second in Fortran order too. None may share memory with
            another or with an argument. An interrupt (Ctrl-C) or a MemoryError leaves them half
            written.

        Returns
        -------
        loss, stats
            As in `__call__`.
        grads : tuple of arrays
            ``(dhidden, dlinear_weight)``, and ``dlinear_bias`` if there is a bias: those of `out`
            if it was given. With reduction "none", the gradients of the sum.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `__call__`. Nothing has been written then.
        """
        loss, grads, summary = self._chunks(
            hidden, linear_weight, targets, linear_bias, want_grad=True, out=out, stats=stats
        )
        return (loss, grads) if summary is None else (loss, grads, summary)

    def _chunks(
        self,
        hidden: FloatArray,
        linear_weight: FloatArray,
        targets: IntArray | FloatArray | int,
        linear_bias: FloatArray | None,
        *,
        want_grad: bool,
        out: Sequence[FloatArray] | None,
        stats: bool,
    ) -> tuple[float | FloatArray, Grads, CrossEntropyStats | None]:
        wants_stats = flag("stats", stats)
        indices, denominator, given = _core.check_linear_cross_entropy(
            hidden, linear_weight, targets, linear_bias, self.weight, self.ignore_index, out
        )
        # Of subclasses the plain arrays: np.matrix has another product.
        hidden, linear_weight = np.asarray(hidden), np.asarray(linear_weight)
        if linear_bias is not None:
            linear_bias = np.asarray(linear_bias)
        shape, dtype = hidden.shape[:-1], hidden.dtype
        classes, width = linear_weight.shape
        x = hidden.reshape(math.prod(shape), width)
        y = indices
        if y is None:
            y = np.asarray(targets).reshape(len(x), classes)
        kept = None  # the rows that are not ignored, if some are
        if indices is not None and np.any(indices == self.ignore_index):
            kept = np.flatnonzero(indices != self.ignore_index)
        count = len(x) if kept is None else len(kept)
        copies = kept is not None or not _is_for_blas(x)
        plan = self._plan(
            count, len(x), classes, width, dtype.itemsize, linear_bias is not None, copies
        )

        grads: Grads = ()
        if want_grad and out is None:
            grads = (np.empty(hidden.shape, dtype), np.empty_like(linear_weight))
            grads += () if linear_bias is None else (np.empty(classes, dtype),)
        elif want_grad:
            grads = given
        w = linear_weight if _is_for_blas(linear_weight) else np.ascontiguousarray(linear_weight)
        if want_grad:
            dx, dw = np.asarray(grads[0]).reshape(x.shape), np.asarray(grads[1])
        db = np.zeros(classes if want_grad and linear_bias is not None else 0)
        ones = np.ones(plan.rows if db.size else 0, dtype)
        logits = np.empty((plan.rows, classes), dtype)
        part = np.empty_like(dw[: plan.classes]) if want_grad else None
        losses = np.zeros(len(x) if self.reduction == "none" else 0, dtype)
        logsumexp = np.zeros(len(x) if wants_stats else 0, dtype)
        loss, correct = 0.0, 0

        with np.errstate(all="ignore"):  # infinities and NaN are the caller's
            for start in range(0, count, plan.rows):
                rows: slice | IntArray = slice(start, min(start + plan.rows, count))
                if kept is not None:
                    rows = kept[rows]
                h = np.ascontiguousarray(x[rows]) if copies else x[rows]
                g = logits[: len(h)]
                np.matmul(h, w.T, out=g)
                if linear_bias is not None:
                    g += linear_bias
                computed = self._run(
                    g,
                    y[rows],
                    want_grad=want_grad,
                    out=g if want_grad else None,
                    stats=wants_stats,
                    denominator=denominator,
                    most_threads=plan.threads,
                )
                value = computed[0] if want_grad or wants_stats else computed
                if self.reduction == "none":
                    losses[rows] = value
                else:
                    loss += float(value)
                if wants_stats:
                    logsumexp[rows] = computed[-1].logsumexp
                    correct += computed[-1].correct
                if not want_grad:
                    continue
                if kept is None:
                    np.matmul(g, w, out=dx[rows])
                else:
                    dx[rows] = np.matmul(g, w)
                if linear_bias is not None:
                    db += np.matmul(ones[: len(h)], g)
                if start == 0:
                    np.matmul(g.T, h, out=dw)
                    continue
                assert part is not None
                for first in range(0, classes, plan.classes):
                    block = dw[first : first + plan.classes]
                    added = part[: len(block)]
                    np.matmul(g[:, first : first + plan.classes].T, h, out=added)
                    block += added

        if want_grad and kept is not None:
            dx[indices == self.ignore_index] = 0
        if want_grad and count == 0:
            dw[...] = 0
        if want_grad and linear_bias is not None:
            with np.errstate(all="ignore"):
                np.asarray(grads[2])[...] = db
        result: float | FloatArray = loss
        if self.reduction == "none":
            result = losses.reshape(shape)
        elif self.reduction == "mean" and count == 0:
            result = math.nan
        summary = None
        if wants_stats:
            summary = CrossEntropyStats(logsumexp.reshape(shape), correct, count)
        return result, grads, summary

    def _plan(
        self,
        count: int,
        all_rows: int,
        classes: int,
        width: int,
        size: int,
        bias: bool,
        copies: bool,
    ) -> _Plan:
        """Fit the rows at once into the memory, without gradients too: the bits depend on it."""
        row = classes * size + ROW_BYTES
        row += copies * 3 * width * size  # of hidden, those of the chunk before, and dhidden's
        fixed = 8 * all_rows + (size + 8) * classes * ((self.weight is not None) + bias)
        fixed += bias * BUFFER_SIZE * size
        limit = self.memory_limit
        added = max(1, width * size)  # for each class whose gradient is added
        threads = None
        if self.logit_softcap != 0:  # a row for each thread, and one to spare
            threads = MOST_THREADS
            if limit is not None:  # beyond the first, an eighth of what is left
                left = limit - (fixed + 2 * classes * size + row + added)
                threads = 1 + min(MOST_THREADS - 1, max(0, left) // 8 // (classes * size))
            fixed += (threads + 1) * classes * size
        least = fixed + row + added
        if limit is None:
            limit = int(min(SHARE_OF_LOGITS * all_rows * classes * size, MOST_ROWS * row))
            limit = max(limit, LEAST_LIMIT) + fixed
        if count == 0 or row * count + fixed <= limit:
            return _Plan(max(count, 1), 0, threads)
        left = limit - fixed - row
        if self.memory_limit is not None and limit < least:
            raise ValueError(
                f"memory_limit must be at least {least} bytes for {classes} classes, "
                f"so that one row fits, not {limit}"
            )
        at_once = max(1, min(classes, ADDED_BYTES // added, limit // 12 // added, left // added))
        rows = max(1, (limit - fixed - at_once * added) // row)
        even = -(-count // -(-count // rows))  # all chunks alike
        return _Plan(min(-(-even // ROW_STEP) * ROW_STEP, rows), at_once, threads)

    def __repr__(self) -> str:
        limit = "" if self.memory_limit is None else f", memory_limit={self.memory_limit}"
        return f"{super().__repr__()[:-1]}{limit})"


def _is_for_blas(array: FloatArray) -> bool:
    """Whether NumPy hands the matrix to the BLAS: its rows or columns are contiguous."""
    (rows, columns), (down, right), size = array.shape, array.strides, array.itemsize
    lines = ((columns, right, down), (rows, down, right))
    return any(n <= 1 or (step == size and far >= n * size) for n, step, far in lines)
