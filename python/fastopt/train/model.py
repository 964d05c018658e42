"""A multilayer perceptron in NumPy, with forward and backward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np

from fastopt import functional
from fastopt._checks import below_one, choice, integer, list_of
from fastopt.train.checks import ieee, plain_array, seed_of
from fastopt.train.data import Array

# Functions of `fastopt.functional`, each with a backward function.
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid")
activation_of = choice(*ACTIVATIONS)
_FROM_RESULT = ("relu", "tanh", "sigmoid")  # backward takes the result, not the input
_XAVIER = ("tanh", "sigmoid")  # initial weights of Glorot and Bengio; the others have those of He


def mlp_outputs(params: Mapping[str, Array], x: Array, activation: str) -> Array:
    """Return the outputs (N, outputs) of the MLP with these `params`, without dropout."""
    last = len(params) // 2 - 1
    for i in range(last + 1):
        x = np.matmul(x, params[f"{i}.weight"].T)
        x += params[f"{i}.bias"]
        if i < last:
            getattr(functional, activation)(x, out=x)
    return x


class _Buffers(NamedTuple):
    """The arrays of a batch between `MLP.forward` and `MLP.backward`, for each layer."""

    inputs: list[Array]
    sums: list[Array]  # the outputs of the linear layers; then what the activation's backward takes
    outputs: list[Array]  # after activation and dropout; the same arrays as `sums` for ReLU
    dinputs: list[Array]  # gradients with respect to the inputs; the first is not used
    ones: Array  # (N,)
    seeds: list[int]  # of dropout


class MLP:
    """Linear layers with an activation and dropout between them; float32.

    Parameters
    ----------
    sizes : sequence of int
        Widths from the inputs to the outputs, such as ``(64, 128, 10)``.
    dropout : float
        Probability in [0, 1) that training drops a hidden unit. The others are scaled up, so that
        the mean stays the same (Srivastava et al. 2014).
    seed : int or sequence of int
        For the initial weights and the dropout.
    activation : {"relu", "gelu", "silu", "tanh", "sigmoid"}
        The function after each hidden layer; see `fastopt.functional`. The initial weights are
        normally distributed, with variance ``2 / inputs`` (He et al. 2015) for the first three, and
        ``2 / (inputs + outputs)`` of each layer (Glorot and Bengio 2010) for tanh and sigmoid.

    Attributes
    ----------
    params : dict of str to array
        ``"0.weight"`` of shape (out, in), ``"0.bias"`` of shape (out,), ``"1.weight"``, ...
    grads : dict of str to array
        The gradients, with the same names; `backward` overwrites them.
    first_row : int
        The number of the first row of the next `forward` in the whole batch, 0 by default. It gives
        a part of a batch the dropout that it has in the batch.

    Examples
    --------
    >>> import numpy as np
    >>> from fastopt import train
    >>> model = train.MLP([4, 16, 3])
    >>> model
    MLP(4-16-3, dropout=0.0)
    >>> outputs = model.forward(np.ones((8, 4), np.float32), training=True)
    >>> grads = model.backward(np.ones_like(outputs))
    >>> grads["1.bias"]
    array([8., 8., 8.], dtype=float32)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dropout: float = 0.0,
        seed: int | Sequence[int] = 0,
        activation: str = "relu",
    ) -> None:
        sizes = list_of(integer(1), 2)("sizes", sizes)
        self.dropout = below_one("dropout", dropout)
        self._activation = activation_of("activation", activation)
        if sum(n_in * n_out for n_in, n_out in pairwise(sizes)) >= 2**60:
            raise MemoryError(f"weights for widths {sizes}")  # NumPy has several errors
        rng = np.random.default_rng(seed_of("seed", seed))
        self._bits = np.random.SFC64(rng.integers(2**63))  # of the seeds for dropout
        self._names = [(f"{i}.weight", f"{i}.bias") for i in range(len(sizes) - 1)]
        self.params: dict[str, Array] = {}
        for (weight, bias), (n_in, n_out) in zip(self._names, pairwise(sizes), strict=True):
            values = rng.standard_normal((n_out, n_in), dtype=np.float32)
            fans = n_in + n_out if self.activation in _XAVIER else n_in
            self.params[weight] = values * np.float32(np.sqrt(2 / fans))
            self.params[bias] = np.zeros(n_out, np.float32)
        self.grads = {name: np.empty_like(param) for name, param in self.params.items()}
        self._kept: dict[int, _Buffers] = {}  # for each size of a batch
        self._last = self._make_buffers(0)
        self.first_row = 0

    @property
    def activation(self) -> str:
        """The name of the function after each hidden layer."""
        return self._activation

    @property
    def rng_state(self) -> Mapping[str, Any]:
        """The state of the random generator of dropout, for checkpoints."""
        return self._bits.state

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None:
        self._bits.state = cast("Any", state)

    @ieee
    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return the outputs (N, outputs) of inputs (N, features).

        With `training`, units are dropped and the arrays for `backward` are kept. The result is
        then a buffer, which the next call with `training` overwrites.
        """
        first = self.params[self._names[0][0]]
        x = plain_array("x", x, "numbers of shape (N, features)")
        if x.ndim != 2 or x.shape[1] != first.shape[1]:
            raise ValueError(f"x must have shape (N, {first.shape[1]}), not {x.shape}")
        x = x.astype(first.dtype, copy=False)
        if not training:
            return mlp_outputs(self.params, x, self.activation)
        buffers = self._last = self._make_buffers(len(x))
        activate = getattr(functional, self.activation)
        in_place = self.activation in _FROM_RESULT
        last = len(self._names) - 1
        for i, (weight, bias) in enumerate(self._names):
            buffers.inputs[i] = x
            sums, outputs = buffers.sums[i], buffers.outputs[i]
            x = np.matmul(x, self.params[weight].T, out=sums)
            x += self.params[bias]
            if i < last:
                x = activate(x, out=sums if in_place else outputs)
                if self.dropout > 0:
                    seed = buffers.seeds[i] = self._bits.random_raw()
                    first = self.first_row * x.shape[1]
                    x = functional.dropout(x, self.dropout, seed=seed, first=first, out=outputs)
        return x

    @ieee
    def backward(self, doutputs: Array) -> dict[str, Array]:
        """Fill and return `grads`, from the gradient of the loss with respect to the outputs.

        They are the gradients for the last call of `forward` with ``training=True``.
        """
        buffers = self._last
        outputs = buffers.sums[-1]
        dy: Array = plain_array("doutputs", doutputs, "numbers")
        if dy.shape != outputs.shape:
            raise ValueError(
                f"doutputs must have shape {outputs.shape}, that of the outputs of the last "
                f"forward(x, training=True), not {dy.shape}"
            )
        dy = dy.astype(outputs.dtype, copy=False)
        activation_backward = getattr(functional, f"{self.activation}_backward")
        for i in reversed(range(len(self._names))):
            weight, bias = self._names[i]
            x = buffers.inputs[i]
            np.matmul(dy.T, x, out=self.grads[weight])
            np.matmul(buffers.ones, dy, out=self.grads[bias])  # the sums, faster than np.sum
            if i > 0:
                dy = np.matmul(dy, self.params[weight], out=buffers.dinputs[i])
                if self.dropout > 0:
                    seed, first = buffers.seeds[i - 1], self.first_row * dy.shape[1]
                    functional.dropout(dy, self.dropout, seed=seed, first=first, out=dy)
                activation_backward(dy, buffers.sums[i - 1], out=dy)
        return self.grads

    def _make_buffers(self, batch: int) -> _Buffers:
        """Return the arrays for a batch of `n` rows; they are kept for the next batch."""
        if batch not in self._kept:
            if len(self._kept) == 4:  # an epoch has two sizes of batches: full, and the last
                self._kept.clear()
            widths = [self.params[bias].size for _, bias in self._names]
            dtype = self.params[self._names[0][0]].dtype
            sums = [np.empty((batch, n), dtype) for n in widths]
            self._kept[batch] = _Buffers(
                inputs=[sums[0], *sums[:-1]],
                sums=sums,
                # Dropout may set ReLU's results to 0 in place: their gradient is 0 there too.
                outputs=sums if self.activation == "relu" else [np.empty_like(s) for s in sums],
                dinputs=[np.empty((batch, n), dtype) for n in [0, *widths[:-1]]],
                ones=np.ones(batch, dtype),
                seeds=[0] * len(widths),
            )
        return self._kept[batch]

    def __repr__(self) -> str:
        sizes = [self.params[self._names[0][0]].shape[1]]
        sizes += [self.params[bias].size for _, bias in self._names]
        named = "" if self.activation == "relu" else f", activation={self.activation!r}"
        return f"MLP({'-'.join(map(str, sizes))}, dropout={self.dropout}{named})"
