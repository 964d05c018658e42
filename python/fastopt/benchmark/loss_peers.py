"""One call of a loss of fastopt and of its peers: the value and the gradient.

If a loss is a class in fastopt and torch and takes an input and a target, it needs a line in
`loss_cases.CASES`, one in `KINDS`, and one in `OPTAX` if optax has it. Other losses need a function
for each peer in `MAKERS`, and one in `TRUTHS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

import fastopt as fo
from fastopt.benchmark.loss_cases import CASES, Arrays, LossCase
from fastopt.benchmark.timing import Runner, Suite, torch

Maker: TypeAlias = Callable[[LossCase], Runner | None]

# The largest allowed error, relative to the largest entry: a sum of 32000 products has this error.
LARGEST = {"LinearCrossEntropyLoss": 1e-5}
# The largest allowed error, relative to the entry. A peer must only do the same work.
CLOSE = {"fastopt": 1e-5, "reference": 1e-5}
PEERS_CLOSE = 1e-4
PIECE = 1 << 22  # elements that are converted to float64 at once


def _numpy(module: Any) -> Maker:
    """Return the maker for a loss of `fastopt` or of `fastopt.reference`."""

    def make(case: LossCase) -> Runner:
        loss = getattr(module, case.loss)(**case.options)
        x, *rest = case.arrays
        if case.buffer == "in place":
            logits = x.copy()
            return Runner(
                lambda: loss.value_and_grad(logits, *rest, out=logits),
                prepare=lambda: np.copyto(logits, x),  # the last call left a gradient there
            )
        if case.buffer == "new memory":
            return Runner(lambda: loss.value_and_grad(x, *rest, out=np.empty_like(x)))
        out = np.empty_like(x) if case.buffer == "reused buffer" else None
        return Runner(lambda: loss.value_and_grad(x, *rest, out=out))

    return make


def loss_on_tensors(module: Any, case: LossCase) -> Runner:
    """Return a loss of `torch.nn` or of `fastopt.torch` with its backward pass."""
    torch.set_num_threads(fo.get_num_threads())
    loss = getattr(module, case.loss)(**case.options)
    array, *rest = case.arrays
    logits = array.copy() if case.buffer == "in place" else array
    x, targets = torch.from_numpy(logits).requires_grad_(), list(map(torch.from_numpy, rest))

    def run() -> Any:
        x.grad = None  # the gradient is always in a new tensor
        value = loss(x, *targets)
        if value.ndim:
            value.sum().backward()
            return value.detach().numpy()
        value.backward()
        return value.item()

    # torch does not change the logits. They are restored all the same: caches are then alike.
    prepare = (lambda: np.copyto(logits, array)) if case.buffer == "in place" else None
    return Runner(run, lambda value: (value, x.grad.numpy()), prepare)


def _optax(case: LossCase) -> Runner | None:
    if case.loss not in OPTAX:
        return None
    jax = import_module("jax")
    array, *rest = jax.device_put(list(case.arrays), jax.devices("cpu")[0])
    in_place = case.buffer == "in place"

    def value(x: Any, *targets: Any) -> Any:
        options = dict(case.options)
        reduction = options.pop("reduction", "mean")
        losses = OPTAX[case.loss](x, *targets, **options)
        return (losses.sum(), losses) if reduction == "none" else (losses.mean(), None)

    jitted = jax.jit(
        jax.value_and_grad(value, has_aux=True), donate_argnums=(0,) if in_place else ()
    )
    now = [array]

    def prepare() -> None:  # the last call has reused the memory of its logits
        now[:] = jax.block_until_ready([jax.numpy.array(array, copy=True)])

    def read(answer: Any) -> Any:
        (total, losses), grad = answer
        return jax.device_get((total if losses is None else losses, grad))

    if in_place:
        return Runner(lambda: jax.block_until_ready(jitted(now[0], *rest)), read, prepare)
    return Runner(lambda: jax.block_until_ready(jitted(array, *rest)), read)


def _optax_cross_entropy(x: Any, y: Any, label_smoothing: float = 0.0) -> Any:
    optax = import_module("optax")
    indices = y.ndim < x.ndim  # images too, but only without smoothing
    if indices and label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(x, y, axis=1)
    soft = import_module("jax").nn.one_hot(y, x.shape[1]) if indices else y
    return optax.softmax_cross_entropy(x, optax.smooth_labels(soft, label_smoothing))


def _optax_function(name: str) -> Callable[..., Any]:
    return lambda x, y: getattr(import_module("optax"), name)(x, y)


OPTAX: dict[str, Callable[..., Any]] = {  # without reduction
    "CrossEntropyLoss": _optax_cross_entropy,
    "MSELoss": _optax_function("squared_error"),
    "L1Loss": lambda x, y: abs(x - y),
    "SmoothL1Loss": _optax_function("huber_loss"),  # the same for beta and delta of 1
    "HuberLoss": _optax_function("huber_loss"),
    "BCEWithLogitsLoss": _optax_function("sigmoid_binary_cross_entropy"),
}


def check(case: LossCase, runners: Mapping[str, Runner]) -> None:
    """Compare each peer's loss, and some rows of its gradient, with float64."""
    expected = TRUTHS.get(case.loss, _truth)(case)
    for peer, runner in runners.items():
        if runner.prepare is not None:
            runner.prepare()
        for got, true in zip(runner.read(runner.run()), expected, strict=True):
            some = np.asarray(got)[_rows(got)] if np.ndim(got) else got
            atol = LARGEST.get(case.loss, 1e-6) * np.max(abs(true))
            rtol = CLOSE.get(peer, PEERS_CLOSE)
            np.testing.assert_allclose(some, true, rtol=rtol, atol=atol, err_msg=peer)


def _rows(array: Any) -> slice:
    """Return which rows of an array are compared."""
    return slice(None, None, max(1, array.size // PIECE))


def _truth(case: LossCase) -> Sequence[Any]:
    """Return the mean loss, and some rows of the gradient."""
    loss = getattr(fo.reference, case.loss)(**case.options | {"reduction": "sum"})
    arrays = case.arrays
    count = arrays[-1].size  # the mean is over as many losses as there are targets
    rows = max(1, PIECE * len(arrays[0]) // case.elements)
    total = 0.0
    for begin in range(0, len(arrays[0]), rows):
        piece: Arrays = tuple(array[begin : begin + rows] for array in arrays)
        total += loss(*piece)
    some = _rows(arrays[0])
    _, grad = loss.value_and_grad(*(array[some] for array in arrays))
    return total / count, grad / count


# -- log_softmax: no gradient, and torch reuses a buffer too -------------------------------------


def _log_softmax(case: LossCase) -> Runner:
    (x,) = case.arrays
    out = np.empty_like(x) if case.buffer == "reused buffer" else None
    return Runner(lambda: fo.functional.log_softmax(x, out=out), lambda answer: (answer,))


def _log_softmax_reference(case: LossCase) -> Runner:
    return Runner(lambda: fo.reference.log_softmax(case.arrays[0]), lambda answer: (answer,))


def _log_softmax_torch(case: LossCase) -> Runner:
    torch.set_num_threads(fo.get_num_threads())
    x = torch.from_numpy(case.arrays[0])
    out = torch.empty_like(x) if case.buffer == "reused buffer" else None
    return Runner(lambda: torch.log_softmax(x, 1, out=out), lambda answer: (answer.numpy(),))


def _log_softmax_optax(case: LossCase) -> Runner:
    jax = import_module("jax")
    x = jax.device_put(case.arrays[0], jax.devices("cpu")[0])
    jitted = jax.jit(jax.nn.log_softmax)
    return Runner(
        lambda: jax.block_until_ready(jitted(x)), lambda answer: (jax.device_get(answer),)
    )


def _log_softmax_truth(case: LossCase) -> Sequence[Any]:
    (x,) = case.arrays
    some = x[_rows(x)].astype(np.float64)
    some -= some.max(axis=1, keepdims=True)
    return (some - np.log(np.exp(some).sum(axis=1, keepdims=True)),)


# -- linear cross-entropy: two gradients ---------------------------------------------------------


def _linear_numpy(module: Any) -> Maker:
    def make(case: LossCase) -> Runner:
        loss, arrays = module.LinearCrossEntropyLoss(**case.options), case.arrays
        return Runner(lambda: loss.value_and_grad(*arrays), lambda answer: (answer[0], *answer[1]))

    return make


def _linear_torch(kind: str) -> Maker:
    def make(case: LossCase) -> Runner | None:
        torch.set_num_threads(fo.get_num_threads())
        functional = torch.nn.functional
        if kind == "chunked" and not hasattr(functional, "linear_cross_entropy"):  # before 2.13
            return None
        arrays = map(torch.from_numpy, case.arrays)
        hidden, weight = (next(arrays).requires_grad_() for _ in range(2))
        (targets,) = arrays

        def value() -> Any:
            if kind == "plain":
                return functional.cross_entropy(functional.linear(hidden, weight), targets)
            options = torch.nn.LinearCrossEntropyOptions()
            return functional.linear_cross_entropy(hidden, weight, targets, options=options)

        def run() -> Any:
            hidden.grad = weight.grad = None
            loss = value()
            loss.backward()
            return loss.item()

        return Runner(run, lambda loss: (loss, hidden.grad.numpy(), weight.grad.numpy()))

    return make


def _linear_optax(case: LossCase) -> Runner:
    jax = import_module("jax")
    hidden, weight, targets = jax.device_put(list(case.arrays), jax.devices("cpu")[0])

    def value(hidden: Any, weight: Any) -> Any:
        return _optax_cross_entropy(hidden @ weight.T, targets).mean()

    jitted = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))

    def read(answer: Any) -> Any:
        loss, grads = jax.device_get(answer)
        return loss, *grads

    return Runner(lambda: jax.block_until_ready(jitted(hidden, weight)), read)


def _linear_truth(case: LossCase) -> Sequence[Any]:
    """Return the mean loss, and some rows of both gradients, by pieces of the rows."""
    hidden, weight, targets = case.arrays
    loss = fo.reference.CrossEntropyLoss(reduction="sum")
    w = weight.astype(np.float64)
    total, dhidden, dweight = 0.0, np.empty(hidden.shape), np.zeros(weight.shape)
    rows = max(1, PIECE // len(weight))
    for begin in range(0, len(hidden), rows):
        piece = slice(begin, begin + rows)
        h = hidden[piece].astype(np.float64)
        value, dlogits = loss.value_and_grad(h @ w.T, targets[piece])
        total += float(value)
        dhidden[piece] = dlogits @ w
        dweight += dlogits.T @ h
    grads = (grad[_rows(grad)] / len(hidden) for grad in (dhidden, dweight))
    return total / len(hidden), *grads


# For losses that are not a class with an input and a target: the true value, and the maker of the
# runner for each peer.
TRUTHS: dict[str, Callable[[LossCase], Sequence[Any]]] = {
    "LinearCrossEntropyLoss": _linear_truth,
    "log_softmax": _log_softmax_truth,
}
MAKERS: dict[tuple[str, str], Maker] = {
    ("fastopt", "LinearCrossEntropyLoss"): _linear_numpy(fo),
    ("reference", "LinearCrossEntropyLoss"): _linear_numpy(fo.reference),
    ("torch", "LinearCrossEntropyLoss"): _linear_torch("plain"),
    ("torch chunked", "LinearCrossEntropyLoss"): _linear_torch("chunked"),
    ("jitted optax", "LinearCrossEntropyLoss"): _linear_optax,
    ("fastopt", "log_softmax"): _log_softmax,
    ("reference", "log_softmax"): _log_softmax_reference,
    ("torch", "log_softmax"): _log_softmax_torch,
    ("jitted optax", "log_softmax"): _log_softmax_optax,
}


def _maker(peer: str, maker: Maker) -> Maker:
    return lambda case: MAKERS.get((peer, case.loss), maker)(case)


_makers: dict[str, Maker] = {"fastopt": _numpy(fo), "reference": _numpy(fo.reference)}
if torch:
    _makers |= {"torch": partial(loss_on_tensors, torch.nn), "torch chunked": lambda case: None}
if find_spec("jax") and find_spec("optax"):
    _makers["jitted optax"] = _optax
PEERS = {peer: _maker(peer, maker) for peer, maker in _makers.items()}

LOSSES = Suite(name="losses", cases=CASES, peers=PEERS, check=check, unit="call", yardstick="copy")
