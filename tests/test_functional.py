"""The functions of the losses: the same bits and the same errors as the classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from helpers import ones, read_only, refused, same_bits

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((6, 5)).astype(np.float32) * 3
LOG_PROBS = np.log(RNG.dirichlet(np.ones(5), 6)).astype(np.float32)
PROBS = RNG.dirichlet(np.ones(5), 6).astype(np.float32)
INDICES = np.array([0, 4, -100, 2, 2, 1])
WEIGHT = RNG.uniform(0.1, 3, 5).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Row:
    """A function with its class, options and data."""

    function: str
    loss: str
    x: Any
    y: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(fo.functional, self.function)
        return function

    def make(self) -> Any:
        return getattr(fo, self.loss)(**self.options)

    def __str__(self) -> str:
        return f"{self.function}({','.join(self.options)})"


CE = ("cross_entropy", "CrossEntropyLoss", LOGITS)
NLL = ("nll_loss", "NLLLoss", LOG_PROBS, INDICES)
BCE = ("binary_cross_entropy", "BCELoss", PROBS, (INDICES[:, None] == range(5)) * np.float32(1))
LOGIT_BCE = ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss", LOGITS, BCE[3])
ROWS = [
    Row(*CE, INDICES),
    Row(*CE, PROBS, {"weight": WEIGHT, "label_smoothing": 0.1}),
    Row(*CE, INDICES % 5, {"weight": WEIGHT, "ignore_index": 2, "reduction": "none"}),
    Row(*CE, INDICES, {"z_loss": 1e-2, "logit_softcap": 5.0, "reduction": "sum"}),
    Row(*NLL),
    Row(*NLL, {"weight": WEIGHT, "reduction": "sum"}),
    Row(*NLL[:3], INDICES % 5, {"ignore_index": 2, "reduction": "none"}),
    Row("mse_loss", "MSELoss", LOGITS, PROBS),
    Row("mse_loss", "MSELoss", LOGITS, PROBS, {"reduction": "none"}),
    Row("l1_loss", "L1Loss", LOGITS, PROBS),
    Row("l1_loss", "L1Loss", LOGITS, PROBS, {"reduction": "sum"}),
    Row("smooth_l1_loss", "SmoothL1Loss", LOGITS, PROBS),
    Row("smooth_l1_loss", "SmoothL1Loss", LOGITS, PROBS, {"beta": 0.3, "reduction": "sum"}),
    Row("huber_loss", "HuberLoss", LOGITS, PROBS),
    Row("huber_loss", "HuberLoss", LOGITS, PROBS, {"delta": 0.3, "reduction": "none"}),
    Row(*BCE),
    Row(*BCE, {"weight": WEIGHT, "reduction": "sum"}),
    Row(*LOGIT_BCE),
    Row(*LOGIT_BCE, {"weight": WEIGHT, "pos_weight": WEIGHT[::-1], "reduction": "none"}),
    Row("kl_div", "KLDivLoss", LOG_PROBS, PROBS),
    Row("kl_div", "KLDivLoss", LOG_PROBS, PROBS, {"reduction": "batchmean"}),
    Row("kl_div", "KLDivLoss", LOG_PROBS, LOG_PROBS[::-1], {"log_target": True}),
]
PLAIN = [row for row in ROWS if not row.options]
EVERY_ROW = pytest.mark.parametrize("row", ROWS, ids=str)


@EVERY_ROW
def test_equals_the_class(row: Row) -> None:
    loss, grad = row.make().value_and_grad(row.x, row.y)
    out, inplace = np.full_like(row.x, np.nan), row.x.copy()
    for again in (
        row.call(row.x, row.y, **row.options),
        row.call(row.x, row.y, **row.options, out=out),
        row.call(inplace, row.y, **row.options, out=inplace),
    ):
        assert same_bits(np.asarray(again[0]), np.asarray(loss))
        assert same_bits(again[1], grad)
    assert same_bits(out, grad)
    assert same_bits(inplace, grad)


def test_each_option_of_a_class_counts() -> None:
    for plain in PLAIN:
        taken = inspect.signature(plain.call).parameters
        options = inspect.signature(type(plain.make())).parameters
        assert list(taken)[2:] != []
        assert set(taken) - set(list(taken)[:2]) - {"out"} == set(options)
        for name, option in options.items():
            assert taken[name].default == option.default, (plain.function, name)
        assert {name for row in ROWS if row.loss == plain.loss for name in row.options} == set(
            options
        ), "an option without a row"


@EVERY_ROW
def test_refuses_what_the_class_refuses(row: Row) -> None:
    out = np.full_like(row.x, 7)
    bad: list[tuple[Any, Any, dict[str, Any]]] = [
        (row.x.tolist(), row.y, {}),
        (row.x.astype(np.float16), row.y, {}),
        (row.x, row.y[:2], {}),
        (row.x, row.y, {"out": read_only(row.x)}),
        (row.x, row.y, {"out": row.x[:3]}),
    ]
    for x, y, more in bad:
        with pytest.raises((TypeError, ValueError)) as expected:
            row.make().value_and_grad(x, y, **{"out": out, **more})
        with refused(expected.type, str(expected.value), arrays=[out]):
            row.call(x, y, **row.options, **{"out": out, **more})
    with pytest.raises((TypeError, ValueError)) as expected:
        getattr(fo, row.loss)(**{**row.options, "reduction": "average"})
    with refused(expected.type, str(expected.value), arrays=[out]):
        row.call(row.x, row.y, **{**row.options, "reduction": "average"}, out=out)


def test_options_reach_their_checks() -> None:
    x = ones(3, 4)
    bad: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
        (
            "cross_entropy",
            np.zeros(3, int),
            {"label_smoothing": 2.0},
            ValueError,
            "label_smoothing",
        ),
        ("cross_entropy", np.array([0, 9, 0]), {}, IndexError, "targets[1] is 9"),
        ("nll_loss", np.zeros(3, int), {"weight": ones(3)}, ValueError, "weight"),
        ("nll_loss", np.zeros(3, int), {"ignore_index": 0.5}, TypeError, "ignore_index"),
        ("smooth_l1_loss", x.copy(), {"beta": -1.0}, ValueError, "beta"),
        ("huber_loss", x.copy(), {"delta": 0.0}, ValueError, "delta"),
        ("binary_cross_entropy", x.copy(), {"weight": [1.0]}, TypeError, "weight"),
        (
            "binary_cross_entropy_with_logits",
            x.copy(),
            {"pos_weight": 2.0},
            TypeError,
            "pos_weight",
        ),
        ("kl_div", x.copy(), {"log_target": 2}, ValueError, "log_target"),
    ]
    for name, y, options, error, word in bad:
        with refused(error, word, arrays=[x]):
            getattr(fo.functional, name)(x, y, **options, out=x)


# -- beside torch ------------------------------------------------------------------------------


def test_names_order_and_defaults_are_torchs() -> None:
    functional = pytest.importorskip("torch.nn.functional")
    renamed = {"logits": "input", "log_probs": "input", "targets": "target"}
    ours_alone = {"out", "z_loss", "logit_softcap"}
    for row in PLAIN:
        theirs = inspect.signature(getattr(functional, row.function)).parameters
        ours = inspect.signature(row.call).parameters
        shared = [renamed.get(name, name) for name in ours if name not in ours_alone]
        assert [name for name in theirs if name in shared] == shared
        by_position = [
            renamed.get(p.name, p.name) for p in ours.values() if p.kind is not p.KEYWORD_ONLY
        ]
        assert by_position == list(theirs)[: len(by_position)]
        for name in set(ours) - ours_alone - set(renamed):
            default = inspect.Parameter.empty if name in ("input", "target") else ours[name].default
            assert theirs[name].default == default, (row.function, name)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("row", [r for r in ROWS if "z_loss" not in r.options], ids=str)
def test_values_beside_torch(row: Row) -> None:
    torch = pytest.importorskip("torch")

    def tensor(value: Any) -> Any:
        return torch.tensor(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

    theirs = tensor(row.x).requires_grad_()
    options = {name: tensor(value) for name, value in row.options.items()}
    expected = getattr(torch.nn.functional, row.function)(theirs, tensor(row.y), **options)
    expected.sum().backward()
    loss, grad = row.call(row.x, row.y, **row.options)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(grad, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)
