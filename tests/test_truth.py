"""float32 updates against float64 truth, within stated bounds; u = 2^-24."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case
from fastopt.reference._base import one_minus_power
from helpers import same_bits

U = 2.0**-24


def one_step(case: Case, before: int) -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """Take one step in float32 and one in float64, from equal states, after `before` steps."""
    rng = np.random.default_rng(7)
    size = 20_000
    p32 = rng.standard_normal(size).astype(np.float32)
    scale = (10.0 ** rng.uniform(-4, 2, size)).astype(np.float32)
    opt32 = case.fused({"p": p32})
    for _ in range(before):
        opt32.step({"p": scale * rng.standard_normal(size).astype(np.float32)})
    p64 = p32.astype(np.float64)
    opt64 = case.reference({"p": p64})
    state = opt32.state_dict()
    for entry in state["state"].values():
        for key in entry.keys() - {"step"}:
            entry[key] = entry[key].astype(np.float64)
    opt64.load_state_dict(state)
    old = {"p": p64.copy()} | opt64.state_dict()["state"]["p"]
    old = {k: np.array(v) for k, v in old.items()}
    grad = scale * rng.standard_normal(size).astype(np.float32)
    opt32.step({"p": grad})
    opt64.step({"p": grad.astype(np.float64)})
    new32 = {"p": p32} | dict(opt32.state["p"])
    new64 = {"p": p64} | dict(opt64.state["p"])
    new32 = {k: np.asarray(v, dtype=np.float64) for k, v in new32.items()}
    return new32, new64, old, grad.astype(np.float64)


@pytest.mark.parametrize("before", [0, 1, 50])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("Adam", "AdamW")], ids=str)
def test_adam(case: Case, before: int) -> None:
    got, true, old, grad = one_step(case, before)
    options = case.reference([np.zeros(1)]).param_groups[0]
    beta1, beta2 = options["betas"]
    if options["maximize"]:
        grad = -grad
    if not options["decoupled_weight_decay"]:
        grad = grad + options["weight_decay"] * old["p"]
        pull = abs(options["weight_decay"] * old["p"]) + abs(grad)
    else:
        pull = abs(grad)
    # A gradient with L2 decay is itself a rounded sum: `pull` is the size of its terms.
    terms = abs(beta1 * old.get("exp_avg", 0 * grad)) + (1 - beta1) * pull
    if beta1:  # else there is no first moment
        assert np.all(abs(got["exp_avg"] - true["exp_avg"]) <= 4 * U * terms)
    spacing = np.spacing(true["exp_avg_sq"].astype(np.float32)).astype(np.float64)
    rounded = 0 * pull if options["decoupled_weight_decay"] else 3 * U * pull
    rounded = rounded if options["weight_decay"] else 0 * pull
    slack = (1 - beta2) * (2 * abs(grad) * rounded + rounded**2)
    assert np.all(abs(got["exp_avg_sq"] - true["exp_avg_sq"]) <= 3 * spacing + slack)
    step = before + 1
    second = true["max_exp_avg_sq"] if options["amsgrad"] else true["exp_avg_sq"]
    denom = np.sqrt(second / (1 - beta2**step)) + options["eps"]
    c = options["lr"] / (1 - beta1**step) * terms / denom
    bound = 6 * U * (abs(true["p"]) + abs(old["p"]) + c)
    bound += c * slack / second  # what a gradient rounded after its decay does to the root
    assert np.all(abs(got["p"] - true["p"]) <= bound)


@pytest.mark.parametrize("before", [0, 1, 50])
@pytest.mark.parametrize("case", [c for c in CASES if c.name == "SGD"], ids=str)
def test_sgd(case: Case, before: int) -> None:
    got, true, old, grad = one_step(case, before)
    options = case.reference([np.zeros(1)]).param_groups[0]
    pull = abs(grad) + options["weight_decay"] * abs(old["p"])
    buffer = options["momentum"] * abs(old.get("momentum_buffer", 0 * grad))
    if options["momentum"]:
        assert np.all(
            abs(got["momentum_buffer"] - true["momentum_buffer"]) <= 4 * U * (buffer + pull)
        )
    moved = options["lr"] * (pull + buffer) * (2 if options["nesterov"] else 1)
    bound = 6 * U * (abs(true["p"]) + abs(old["p"]) + moved)
    assert np.all(abs(got["p"] - true["p"]) <= bound)


@pytest.mark.parametrize("before", [0, 1, 50])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name == "RMSprop" and not c.options.get("centered")], ids=str
)
def test_rmsprop(case: Case, before: int) -> None:
    # Centered RMSprop has no such bound: square_avg - grad_avg^2 may cancel altogether.
    got, true, old, grad = one_step(case, before)
    options = case.reference([np.zeros(1)]).param_groups[0]
    decay = options["weight_decay"] * abs(old["p"])
    small = abs(grad) > 10 * decay  # elsewhere decay and gradient cancel
    spacing = np.spacing(true["square_avg"].astype(np.float32)).astype(np.float64)
    error = abs(got["square_avg"] - true["square_avg"])
    assert np.all((error <= (3 if not decay.any() else 6) * spacing)[small])
    push = (abs(grad) + decay) / (np.sqrt(true["square_avg"]) + options["eps"])
    push = push + options["momentum"] * abs(old.get("momentum_buffer", 0 * grad))
    bound = 8 * U * (abs(true["p"]) + abs(old["p"]) + options["lr"] * push)
    assert np.all((abs(got["p"] - true["p"]) <= bound)[small])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_minus_beta_keeps_its_digits(dtype: Any) -> None:
    # 1 - 0.999f, computed in float32, is off by 1.3e-5 relative.
    param, grad = np.zeros(1, dtype), np.ones(1, dtype)
    opt = fo.Adam([param])
    opt.step([grad])
    assert opt.state["0"]["exp_avg_sq"][0] == dtype(1 - 0.999)


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.1, 0.5, 0.9, 0.999, 0.9999999, 1 - 1e-10])
def test_bias_correction_is_rounded_once(beta: float) -> None:
    # With eps = 0, g = 1 the update is lr * m / (1 - beta^t) / sqrt(...): read it back exactly.
    for step in (1, 2, 3, 7, 10, 100, 1000, 4097):
        exact = 1 - Fraction(beta) ** step if step <= 1000 else None
        correction = one_minus_power(beta, step)
        assert exact is None or float(exact) == correction
        param, grad = np.zeros(1), np.zeros(1)
        exp_avg, exp_avg_sq = np.ones(1), np.ones(1)
        fo.functional.adam_(
            param, grad, exp_avg, exp_avg_sq, step=step, lr=1.0, betas=(beta, 0.0), eps=0.0
        )
        reference = fo.reference.Adam([np.zeros(1)], lr=1.0, betas=(beta, 0.0), eps=0.0)
        reference.load_state_dict(
            {
                "state": {"0": {"step": step - 1, "exp_avg": np.ones(1), "exp_avg_sq": np.ones(1)}},
                "param_groups": reference.state_dict()["param_groups"],
            }
        )
        reference.step([np.zeros(1)])
        assert same_bits(param, reference.param_groups[0]["params"][0])


def test_random_bias_corrections_equal_the_reference() -> None:
    rng = np.random.default_rng(8)
    for beta in 1 - 10.0 ** rng.uniform(-9, 0, 400):
        step = int(10 ** rng.uniform(0, 7))
        a, b = np.ones(1), np.zeros(1)
        fo.functional.adam_(
            b, np.zeros(1), a, np.ones(1), step=step, lr=1.0, betas=(beta, 0.5), eps=0.0
        )
        v = np.float64(0.5)
        denom = np.sqrt(v) * (1 / np.sqrt(one_minus_power(0.5, step)))
        assert b[0] == -(1.0 / one_minus_power(beta, step) * beta / denom)
