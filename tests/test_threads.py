"""Every public function that computes gives the same bits on any number of threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, DTYPES, Case
from fastopt import _core
from helpers import TEAMS, same_bits
from pointwise_cases import FUNCTIONS, LOSSES, Function, Loss

F = fo.functional
SHAPE = (400, 300)
# A row takes a dtype and yields its results for fixed numbers.
Work = Callable[[Any], Iterator[Any]]


def numbers(dtype: Any, *shape: int, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(-9, 9, shape).astype(dtype)


def arrays(dtype: Any) -> dict[str, Any]:
    """A large array, an array in another order, and small arrays."""
    sizes = [(200_001,), (300, 401), (17,), (3, 5)]
    made = {f"p{i}": numbers(dtype, *shape) for i, shape in enumerate(sizes)}
    return made | {"columns": np.asfortranarray(numbers(dtype, 250, 301))}


def gradients(dtype: Any, step: int) -> dict[str, Any]:
    return {name: numbers(dtype, *p.shape, seed=step) for name, p in arrays(dtype).items()}


def optimizer(case: Case) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        params = arrays(dtype)
        opt = case.fused(params)
        extras: list[dict[str, Any]] = [{}, {"max_norm": 1.0}, {"skip_nonfinite": True}]
        for step, options in enumerate(extras):
            yield np.float64(opt.step(gradients(dtype, step), **options).grad_norm or 0)
        yield from params.values()
        for state in opt.state.values():
            yield from state.values()

    return work


def in_place(name: str, *states: str) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        param, grad = numbers(dtype, 200_001), numbers(dtype, 200_001, seed=1)
        held = {key: np.zeros_like(param) for key in states}
        getattr(F, name)(param, grad, **held, **({} if name == "rmsprop_" else {"step": 1}))
        yield param
        yield from held.values()

    return work


def losses(make: Callable[..., Any], options: list[dict[str, Any]], call: Any) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        for each in options:
            yield from call(make, each, dtype)

    return work


CLASSES = 300
CE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "weight": True},
    {"label_smoothing": 0.1, "ignore_index": 2},
    {"z_loss": 1e-2},
    {"logit_softcap": 20.0},
    {"soft": True},
    {"soft": True, "weight": True, "z_loss": 1e-3, "logit_softcap": 10.0},
]
NLL_OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "weight": True, "ignore_index": 2},
]


def weighted(options: dict[str, Any], dtype: Any) -> tuple[dict[str, Any], Any]:
    """Return the options with an array for `weight`, and targets: `soft` means probabilities."""
    options = dict(options)
    if options.get("weight"):
        options["weight"] = abs(numbers(dtype, CLASSES))
    rng = np.random.default_rng(1)
    targets: Any = rng.integers(0, CLASSES, SHAPE[0])
    if options.pop("soft", False):
        targets = rng.random((SHAPE[0], CLASSES)).astype(dtype) / CLASSES
    return options, targets


def classes(make: Callable[..., Any], options: dict[str, Any], dtype: Any) -> Iterator[Any]:
    options, targets = weighted(options, dtype)
    x = numbers(dtype, SHAPE[0], CLASSES)
    for logits in (x, np.asfortranarray(x)):
        yield from results(make(logits, targets, **options))


def linear(make: Callable[..., Any], options: dict[str, Any], dtype: Any) -> Iterator[Any]:
    options, targets = weighted(options, dtype)
    hidden, w = numbers(dtype, SHAPE[0], 8) / 9, numbers(dtype, CLASSES, 8, seed=2)
    for limit in (None, 60_000, 150_000):  # chunks of a few rows, whose number it decides
        yield from results(make(hidden, w, targets, **options, memory_limit=limit))


def results(loss_and_grads: Any) -> list[Any]:
    loss, grads, *_ = loss_and_grads
    return [np.asarray(loss), *(grads if isinstance(grads, tuple) else (grads,))]


def of_class(cls: Any) -> Callable[..., Any]:
    return lambda *arrays, **options: cls(**options).value_and_grad(*arrays)


def pointwise(rows: list[Loss], functional: Any = None) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        for row, reduction in itertools.product(rows, ("mean", "sum", "none")):
            x, y = row.data(SHAPE, dtype)
            if functional is not None:
                yield from results(functional(x, y, reduction=reduction))
                continue
            for a in (x, np.asfortranarray(x)):
                yield from results(row.make(SHAPE, reduction).value_and_grad(a, y))

    return work


def function(rows: list[Function]) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        for row in rows:
            operands = row.data(SHAPE, dtype)
            yield row.fused(*operands, **row.options)
            yield row.fused(*map(np.asfortranarray, operands), **row.options)

    return work


def softmax(name: str, operands: int) -> Work:
    def work(dtype: Any) -> Iterator[Any]:
        for axis in (0, 1, 2):
            x = [numbers(dtype, 30, 40, 100, seed=i) / 9 for i in range(operands)]
            yield getattr(F, name)(*x, axis)

    return work


def dropout(dtype: Any) -> Iterator[Any]:
    x = numbers(dtype, *SHAPE)
    yield F.dropout(x, 0.3, seed=5)


def norm(dtype: Any) -> Iterator[Any]:
    yield np.float64(fo.grad_norm(gradients(dtype, 0)))


def clip_norm(dtype: Any) -> Iterator[Any]:
    grads = gradients(dtype, 0)
    yield np.float64(fo.clip_grad_norm_(grads, 1.0))
    yield from grads.values()


def clip_value(dtype: Any) -> Iterator[Any]:
    grads = gradients(dtype, 0)
    fo.clip_grad_value_(grads, 0.5)
    yield from grads.values()


def average(dtype: Any) -> Iterator[Any]:
    params = arrays(dtype)
    ema = fo.WeightEMA(params, decay=0.9, warmup=True)
    for step in range(3):
        for name, grad in gradients(dtype, step).items():
            params[name] -= grad
        ema.update()
    with ema.applied():
        yield from [p.copy() for p in params.values()]
    yield from ema.averages.values()


def accumulated(dtype: Any) -> Iterator[Any]:
    acc = fo.GradAccumulator(arrays(dtype))
    for step in range(3):
        acc.add(gradients(dtype, step), 1.0 + step)
    yield from acc.grads.values()


POINTWISE = {name: [row for row in LOSSES if row.name == name] for name in {r.name for r in LOSSES}}
ROWS: dict[str, Work] = {
    "GradAccumulator": accumulated,
    "WeightEMA": average,
    "CrossEntropyLoss": losses(of_class(fo.CrossEntropyLoss), CE_OPTIONS, classes),
    "LinearCrossEntropyLoss": losses(of_class(fo.LinearCrossEntropyLoss), CE_OPTIONS, linear),
    "NLLLoss": losses(of_class(fo.NLLLoss), NLL_OPTIONS, classes),
    "clip_grad_norm_": clip_norm,
    "clip_grad_value_": clip_value,
    "grad_norm": norm,
    "functional.adam_": in_place("adam_", "exp_avg", "exp_avg_sq"),
    "functional.adamw_": in_place("adamw_", "exp_avg", "exp_avg_sq"),
    "functional.rmsprop_": in_place("rmsprop_", "square_avg"),
    "functional.sgd_": in_place("sgd_"),
    "functional.binary_cross_entropy": pointwise(POINTWISE["BCELoss"][:1], F.binary_cross_entropy),
    "functional.binary_cross_entropy_with_logits": pointwise(
        POINTWISE["BCEWithLogitsLoss"][:1], F.binary_cross_entropy_with_logits
    ),
    "functional.cross_entropy": losses(F.cross_entropy, CE_OPTIONS, classes),
    "functional.dropout": dropout,
    "functional.huber_loss": pointwise(POINTWISE["HuberLoss"][:1], F.huber_loss),
    "functional.kl_div": pointwise(POINTWISE["KLDivLoss"][:1], F.kl_div),
    "functional.l1_loss": pointwise(POINTWISE["L1Loss"], F.l1_loss),
    "functional.linear_cross_entropy": losses(F.linear_cross_entropy, CE_OPTIONS, linear),
    "functional.log_softmax": softmax("log_softmax", 1),
    "functional.log_softmax_backward": softmax("log_softmax_backward", 2),
    "functional.mse_loss": pointwise(POINTWISE["MSELoss"], F.mse_loss),
    "functional.nll_loss": losses(F.nll_loss, NLL_OPTIONS, classes),
    "functional.smooth_l1_loss": pointwise(POINTWISE["SmoothL1Loss"][:1], F.smooth_l1_loss),
    "functional.softmax": softmax("softmax", 1),
    "functional.softmax_backward": softmax("softmax_backward", 2),
}
ROWS |= {name: pointwise(rows) for name, rows in POINTWISE.items()}
ROWS |= {case.name: optimizer(case) for case in CASES}  # the last case of each
for name in {row.name for row in FUNCTIONS}:
    ROWS[f"functional.{name}"] = function([row for row in FUNCTIONS if row.name == name])

# Names that do not compute with several threads, and the reasons.
EXEMPT = {
    "numbers of Python alone": {*fo.schedules.__all__, "decay_groups"},
    "reads, writes or copies arrays as they are": {"Checkpoint", "load", "save", "checkpoint"},
    "the base of the optimizers": {"Optimizer"},
    "what others return": {"StepInfo", "CrossEntropyStats", "IncompatibleKeys"},
    "an error": {"CheckpointError"},
    "NumPy, without the core": {"reference"},
    "calls the caller's function": {"testing"},
    "its names are here one by one": {"functional", "losses", "optim", "schedules"},
    "a setting or a fact": {
        "__version__", "active_isa", "available_isas", "get_num_threads", "set_num_threads",
        "show_config",
    },
}  # fmt: skip


def test_every_public_name_has_a_row() -> None:
    public = {*fo.__all__, *(f"functional.{name}" for name in F.__all__)}
    exempt = set().union(*EXEMPT.values())
    assert not exempt & set(ROWS)
    assert public == exempt | set(ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(ROWS))
def test_same_bits_on_any_number_of_threads(name: str, dtype: Any) -> None:
    computed = []
    for team in TEAMS:
        _core.set_num_threads(team, beyond=True)
        computed.append(list(ROWS[name](dtype)))
    first, *others = computed
    assert first
    for other in others:
        for i, (a, b) in enumerate(zip(first, other, strict=True)):
            assert same_bits(a, b), f"the array {i} that {name} gives"
