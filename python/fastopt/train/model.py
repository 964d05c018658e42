"""A multilayer perceptron in NumPy: forward and backward by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt.train.data import Array


class MLP:
    """Linear layers with ReLU between them and dropout after each ReLU; float32.

    Parameters
    ----------
    sizes : sequence of int
        Widths from the inputs to the outputs, such as ``(64, 128, 10)``.
    dropout : float
        Probability in [0, 1) that a hidden unit is left out while training.
    seed : int or sequence of int
        For the initial weights (He et al. 2015) and the dropout.

    Attributes
    ----------
    params : dict of str to array
        ``"0.weight"`` of shape (out, in), ``"0.bias"`` of shape (out,), ``"1.weight"``, ...
    grads : dict of str to array
        The gradients, with the same names; `backward` overwrites them.

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
        self, sizes: Sequence[int], dropout: float = 0.0, seed: int | Sequence[int] = 0
    ) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be two or more positive widths, not {tuple(sizes)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.dropout = dropout
        self._rng = np.random.default_rng(seed)
        self._layers = len(sizes) - 1
        self.params: dict[str, Array] = {}
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            weight = self._rng.standard_normal((n_out, n_in), dtype=np.float32)
            self.params[f"{i}.weight"] = weight * np.float32(np.sqrt(2 / n_in))
            self.params[f"{i}.bias"] = np.zeros(n_out, np.float32)
        self.grads = {name: np.empty_like(param) for name, param in self.params.items()}
        self._inputs: list[Array] = []
        self._masks: list[Array] = []

    @property
    def rng_state(self) -> Mapping[str, Any]:
        """The state of the generator that dropout draws from; a checkpoint keeps it."""
        return self._rng.bit_generator.state

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return the outputs (N, outputs) of inputs (N, features).

        With `training`, units are dropped and what `backward` needs is kept.
        """
        self._inputs, self._masks = [], []
        for i in range(self._layers):
            if training:
                self._inputs.append(x)
            x = x @ self.params[f"{i}.weight"].T
            x += self.params[f"{i}.bias"]
            if i + 1 < self._layers:
                np.maximum(x, 0, out=x)
                if training and self.dropout > 0:
                    keep = np.float32(1 - self.dropout)
                    mask = (self._rng.random(x.shape, dtype=np.float32) < keep) / keep
                    x *= mask
                    self._masks.append(mask)
        return x

    def backward(self, doutputs: Array) -> dict[str, Array]:
        """Fill and return `grads`, from the gradient of the loss with respect to the outputs."""
        dy = doutputs
        for i in reversed(range(self._layers)):
            x = self._inputs[i]
            np.matmul(dy.T, x, out=self.grads[f"{i}.weight"])
            np.sum(dy, axis=0, out=self.grads[f"{i}.bias"])
            if i > 0:
                dy = dy @ self.params[f"{i}.weight"]
                dy *= x > 0  # x is the output of ReLU and dropout: what was cut has no slope
                if self._masks:
                    dy *= self._masks[i - 1]
        return self.grads

    def __repr__(self) -> str:
        sizes = [self.params["0.weight"].shape[1]]
        sizes += [self.params[f"{i}.bias"].size for i in range(self._layers)]
        return f"MLP({'-'.join(map(str, sizes))}, dropout={self.dropout})"
