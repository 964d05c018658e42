"""Parameters, gradients and states of 16 bits: the rows of the reference, and the options."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case
from fastopt import reference
from fastopt._storage import DEFAULTS
from fastopt.reference.storage import join, noise, rounded, widen
from helpers import check, same_bits
from type_cases import BFLOAT16, FLOAT16, FLOAT32, KINDS, ROWS, TYPES, Kind, numbers

STEPS = 4
rows = pytest.mark.parametrize(("kind", "case"), ROWS, ids=str)


def gradients(seed: int, size: int) -> list[Any]:
    """Gradients of each type in turn."""
    rng = np.random.default_rng(seed)
    return [numbers(rng, size, TYPES[step % 3], odd=0.1) for step in range(STEPS)]


# -- the rows ------------------------------------------------------------------------------------


@rows
def test_a_row_is_the_rule_in_float32_between_conversions(kind: Kind, case: Case) -> None:
    """Each step of each row from the states of the step before, by a float32 optimizer."""
    rng = np.random.default_rng(0)
    param = numbers(rng, 300, kind.param, odd=0.1)
    optimizer = kind.of(case).reference({"w": param})
    for step, grad in enumerate(gradients(1, 300), 1):
        before = dict(optimizer.state["w"])
        low = before.pop("master_param", None)
        wide = widen(param) if low is None else low
        if low is not None and low.dtype == np.int16:
            wide = join(param, low)
        master = wide.copy()
        plain = case.reference({"w": master})
        state = {key: widen(v) if key != "step" else v for key, v in before.items()}
        plain.load_state_dict(plain.state_dict() | {"state": {"w": state}})
        plain.step({"w": widen(grad)})
        optimizer.step({"w": grad})
        after = dict(optimizer.state["w"])
        assert after.pop("step") == step
        random = "stochastic_rounding" in kind.options
        low = after.pop("master_param", None)
        if kind.options.get("master") == "split":
            assert same_bits(join(param, low), master)
        elif kind.options.get("master") == "float32":
            assert same_bits(low, master)
            assert same_bits(param, rounded(master, kind.param))
        else:
            bits = noise(optimizer.defaults["seed"], step, "w", 0, 300) if random else None
            assert same_bits(param, rounded(master, kind.param, bits))
        assert after.keys() == plain.state["w"].keys() - {"step"}
        for key, value in after.items():
            second = random and key in ("exp_avg_sq", "square_avg")
            bits = noise(optimizer.defaults["seed"], step, "w", 1, 300) if second else None
            dtype = BFLOAT16 if kind.options.get("state_dtype") == "bfloat16" else FLOAT32
            assert same_bits(value, rounded(plain.state["w"][key], dtype, bits)), key


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("master", "dtype"), [("split", BFLOAT16), ("float32", FLOAT16)])
def test_a_master_is_the_float32_optimizer(master: str, dtype: Any, case: Case) -> None:
    param = numbers(np.random.default_rng(2), 500, dtype)
    exact = widen(param).copy()
    low, high = Kind(dtype, {"master": master}).of(case).reference([param]), case.reference([exact])
    for grad in gradients(3, 500):
        low.step([grad], max_norm=1e30, grad_scale=3.0)
        high.step([grad], max_norm=1e30, grad_scale=3.0)
        kept = low.state["0"]["master_param"]
        assert same_bits(join(param, kept) if master == "split" else kept, exact)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_are_the_parameters_rounded(case: Case) -> None:
    rng = np.random.default_rng(4)
    params = {name: numbers(rng, 60, FLOAT32).reshape(4, 15) for name in "abcd"}
    out = {
        name: np.full((4, 15), 3, dtype) for name, dtype in zip("abc", TYPES[1:] * 2, strict=False)
    }
    others = {name: value.copy() for name, value in params.items()}
    optimizer, plain = case.reference(params), case.reference(others)
    grads = {name: numbers(rng, 60, FLOAT32).reshape(4, 15) for name in "abd"} | {"c": None}
    for _ in range(2):
        optimizer.step(grads, out=out | {"d": None})
        plain.step(grads)
    for name in "ab":
        assert same_bits(params[name], others[name])
        assert same_bits(out[name], rounded(params[name], out[name].dtype))
    assert np.all(out["c"] == 3)  # no gradient, no copy
    before = {name: value.copy() for name, value in out.items()}
    grads["a"] = np.full((4, 15), np.inf, np.float32)
    assert optimizer.step(grads, out=out | {"d": None}, skip_nonfinite=True).skipped
    assert all(same_bits(out[name], before[name]) for name in out)


def test_what_16_bits_cannot_hold_becomes_infinite() -> None:
    param = np.array([60000, -60000, 6e-8], np.float16)
    optimizer = reference.SGD([param], lr=1.0, master="float32")
    optimizer.step([np.array([-5519, 5520, 0], np.float32)])
    assert same_bits(param, np.array([65504, -np.inf, 6e-8], np.float16))
    assert np.array_equal(optimizer.state["0"]["master_param"][:2], [65519, -65520])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_beta1_there_is_no_first_moment(amsgrad: bool, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    param = rng.standard_normal(50).astype(dtype)
    other = param.copy()
    optimizer = reference.AdamW([param], betas=(0.0, 0.9), amsgrad=amsgrad)
    # The smallest beta1, with which the moment is the gradient too.
    kept = reference.AdamW([other], betas=(5e-324, 0.9), amsgrad=amsgrad)
    for _ in range(4):
        grad = rng.standard_normal(50).astype(dtype)
        optimizer.step([grad])
        kept.step([grad])
    assert same_bits(param, other)
    assert optimizer.state["0"].keys() == kept.state["0"].keys() - {"exp_avg"}
    optimizer.param_groups[0]["betas"] = (0.9, 0.9)
    optimizer.step([grad])
    assert "exp_avg" in optimizer.state["0"]


# -- rounding to nearest and stochastically ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("RMSprop", {"alpha": 0.999}, "square_avg"),
        ("AdamW", {"betas": (0.9, 0.999)}, "exp_avg_sq"),
    ],
)
def test_a_second_moment_stands_still_if_it_is_rounded_to_nearest(
    name: str, options: dict[str, Any], key: str
) -> None:
    """Gradients shrink to a tenth: the moment falls by 0.1 % a step, less than half a unit."""
    ends = {}
    for kind, more in (
        ("float32", {}),
        ("nearest", {"state_dtype": "bfloat16"}),
        ("random", {"state_dtype": "bfloat16", "stochastic_rounding": True}),
    ):
        optimizer = getattr(reference, name)({"w": np.zeros(2000, np.float32)}, **options, **more)
        dtype = BFLOAT16 if more else FLOAT32
        state = {"step": 1000, key: np.ones(2000, dtype)}
        if name == "AdamW":
            state["exp_avg"] = np.zeros(2000, dtype)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": {"w": state}})
        grad = np.full(2000, 0.1, np.float32)
        for _ in range(700):
            optimizer.step({"w": grad})
        ends[kind] = widen(optimizer.state["w"][key])
    true = 0.01 + 0.99 * 0.999**700
    np.testing.assert_allclose(ends["float32"], true, rtol=1e-4)
    assert np.all(ends["nearest"] == 1)
    assert abs(ends["random"].mean() - true) < 4 * ends["random"].std() / np.sqrt(2000)
    assert ends["random"].std() < 0.1 * true


def test_small_steps_are_lost_to_nearest_and_not_stochastically() -> None:
    """A step of a tenth of the distance between neighbours, 200 times."""
    ends = {}
    for random in (False, True):
        param = np.full(1000, 1.0, BFLOAT16)
        optimizer = reference.SGD({"w": param}, lr=2.0**-7 / 10, stochastic_rounding=random)
        for _ in range(200):
            optimizer.step({"w": np.full(1000, -1, np.float32)})
        ends[random] = widen(param)
    assert np.all(ends[False] == 1)
    assert abs(ends[True].mean() - (1 + 20 / 128)) < 4 * ends[True].std() / np.sqrt(1000)


@pytest.mark.parametrize("kind", [k for k in KINDS if "stochastic_rounding" in k.options], ids=str)
def test_order_and_groups_do_not_change_the_noise_but_names_do(kind: Kind) -> None:
    sizes = {"a": 70, "b": 300, "c": 1}
    rng = np.random.default_rng(6)
    start = {name: rng.standard_normal(size).astype(kind.param) for name, size in sizes.items()}
    grads = [
        {name: rng.standard_normal(size).astype(BFLOAT16) for name, size in sizes.items()}
        for _ in range(STEPS)
    ]

    def train(names: dict[str, str], *groups: str) -> dict[str, Any]:
        params = {name: value.copy() for name, value in start.items()}
        optimizer = reference.AdamW(
            [{"params": {names[n]: params[n] for n in group}} for group in groups], **kind.options
        )
        for step in grads:
            optimizer.step({names[n]: step[n] for group in groups for n in group})
        return {n: [params[n], *dict(optimizer.state[names[n]]).values()] for n in params}

    plain = {name: name for name in sizes}
    first = train(plain, "abc")
    for result in (train(plain, "cba"), train(plain, "b", "ca")):
        for name, arrays in first.items():
            assert all(same_bits(x, y) for x, y in zip(arrays, result[name], strict=True))
    renamed = train({"a": "x", "b": "y", "c": "z"}, "abc")
    assert not all(same_bits(x, y) for x, y in zip(first["b"], renamed["b"], strict=True))


def test_numbers_as_names_give_the_same_noise() -> None:
    p, q = np.ones(400, BFLOAT16), np.ones(400, BFLOAT16)
    listed = reference.SGD([p], lr=1e-3, stochastic_rounding=True)
    named = reference.SGD({"0": q}, lr=1e-3, stochastic_rounding=True)
    for _ in range(9):
        listed.step([np.ones(400, BFLOAT16)])
        named.step({"0": np.ones(400, BFLOAT16)})
    assert same_bits(p, q)
    assert np.unique(p).size > 1


def test_elements_are_numbered_in_the_order_of_memory() -> None:
    flat = np.ones(60, BFLOAT16)
    moved = np.ones((3, 4, 5), BFLOAT16).transpose(2, 0, 1).copy().transpose(1, 2, 0)
    for param in (flat, moved):
        optimizer = reference.SGD({"w": param}, lr=1e-3, stochastic_rounding=True)
        optimizer.step({"w": np.ones(param.shape, np.float32)})
    assert np.unique(flat).size == 2
    assert same_bits(moved.transpose(2, 0, 1).ravel(), flat)


# -- around the step -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_and_averages_are_float32(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    param = rng.standard_normal((5, 6)).astype(dtype)
    total = reference.GradAccumulator([param])
    sums = np.zeros((5, 6), np.float32)
    for number, kind in enumerate(TYPES, 1):
        grad = rng.standard_normal((5, 6)).astype(kind)
        total.add([grad], weight=number)
        sums += np.float32(number) * widen(grad)
    assert same_bits(total.grads["0"], sums)
    ema, plain = (reference.WeightEMA([p], decay=0.7) for p in (param, widen(param)))
    start = param.copy()
    for _ in range(3):
        param[...] = rng.standard_normal((5, 6)).astype(dtype)
        plain._params["0"] = widen(param)
        ema.update()
        plain.update()
    assert same_bits(ema.averages["0"], plain.averages["0"])
    assert not same_bits(param, start)
    before = param.copy()
    with ema.applied():
        assert same_bits(param, rounded(ema.averages["0"], dtype))
    assert same_bits(param, before)


@pytest.mark.parametrize("norm_type", [2.0, np.inf])
def test_norms_are_those_of_the_widened_gradients(norm_type: float) -> None:
    rng = np.random.default_rng(8)
    grads = [rng.standard_normal((70, 300)).astype(dtype).T for dtype in TYPES]
    wide = [widen(grad) for grad in grads]
    norm = reference.grad_norm(grads, norm_type)
    assert norm == reference.grad_norm(wide, norm_type)
    params = [np.ones(grad.shape, np.float32) for grad in grads]
    assert reference.SGD(params).step(wide, max_norm=1.0, norm_type=norm_type).grad_norm == norm
    assert reference.SGD(params).step(grads, max_norm=1.0, norm_type=norm_type).grad_norm == norm


# -- the options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [fo, reference])
def test_spellings_of_a_dtype(module: Any) -> None:
    p = [np.ones(3, np.float32)]
    for given, stored in (
        (None, None),
        ("float32", "float32"),
        (np.float32, "float32"),
        (np.dtype(np.float32), "float32"),
        ("bfloat16", "bfloat16"),
        (BFLOAT16.type, "bfloat16"),
        (BFLOAT16, "bfloat16"),
    ):
        optimizer = module.Adam(p, state_dtype=given, seed=np.int64(3))
        assert optimizer.defaults["state_dtype"] == stored
        group = optimizer.param_groups[0]
        assert {key: group[key] for key in DEFAULTS} == DEFAULTS | {
            "state_dtype": stored,
            "seed": 3,
        }
        assert type(group["seed"]) is int
        optimizer.add_param_group({"params": [np.ones(2, np.float32)], "state_dtype": given})
        assert optimizer.param_groups[1]["state_dtype"] == stored


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"state_dtype": "float16"}, ValueError, "state_dtype must be None, 'float32' or 'bfloat16'"),
    ({"state_dtype": np.float64}, ValueError, "state_dtype must be None, .*float64"),
    ({"state_dtype": 16}, TypeError, "state_dtype must be None, .*not 16"),
    ({"state_dtype": ["float32"]}, TypeError, "state_dtype must be None"),
    ({"master": "bfloat16"}, ValueError, "master must be None, 'float32' or 'split'"),
    ({"master": True}, TypeError, "master must be None, .*True"),
    ({"stochastic_rounding": "yes"}, TypeError, "stochastic_rounding must be True or False"),
    ({"seed": -1}, ValueError, "seed must be >= 0, not -1"),
    ({"seed": 2**63}, ValueError, "seed must be an integer of 64 bits"),
    ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ({"seed": None}, TypeError, "seed must be an integer"),
    # Nothing in the group needs them.
    ({"master": "split"}, ValueError, "master='split' is for parameters of bfloat16 or float16"),
    ({"master": "float32"}, ValueError, "use master=None"),
    ({"stochastic_rounding": True}, ValueError, "second moments in bfloat16"),
    (
        {"stochastic_rounding": True, "state_dtype": "float32"},
        ValueError,
        "use stochastic_rounding=False",
    ),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS)
@pytest.mark.parametrize("module", [fo, reference])
def test_options_that_are_refused(
    options: dict[str, Any], error: type[Exception], words: str, module: Any
) -> None:
    p = {"p": np.ones(3, np.float32), "q": np.ones(2)}
    with pytest.raises(error, match=words):
        module.AdamW(p, **options)
    optimizer = module.AdamW(p)
    with pytest.raises(error, match=words):
        optimizer.add_param_group({"params": {"r": np.ones(3, np.float32)}, **options})
    assert len(optimizer.param_groups) == 1
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0] |= options
    for strict in (True, False):
        with pytest.raises(error, match=words):
            optimizer.load_state_dict(state, strict=strict)
    assert {k: optimizer.param_groups[0][k] for k in DEFAULTS} == DEFAULTS


def test_stochastic_rounding_needs_something_to_round() -> None:
    cases: list[tuple[Any, dict[str, Any]]] = [
        (BFLOAT16, {"master": "split"}),
        (BFLOAT16, {"master": "float32", "state_dtype": "bfloat16"}),
        (FLOAT32, {"state_dtype": "bfloat16"}),
    ]
    for param, options in cases:
        p = [np.ones(3, param)]
        with pytest.raises(ValueError, match="stochastic_rounding is for parameters of bfloat16"):
            reference.SGD(p, momentum=0.9, stochastic_rounding=True, **options)
    mixed = {"p": np.ones(3, np.float32), "q": np.ones(3, BFLOAT16)}
    reference.SGD(mixed, stochastic_rounding=True)
    reference.SGD(mixed, master="split")


@pytest.mark.parametrize("module", [fo, reference])
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_of_before_has_the_defaults(strict: bool, module: Any) -> None:
    optimizer = module.AdamW({"w": np.ones(3, np.float32)})
    optimizer.step({"w": np.ones(3, np.float32)})
    saved = copy.deepcopy(optimizer.state_dict())
    for key in DEFAULTS:
        del saved["param_groups"][0][key]
    other = module.AdamW({"w": np.ones(3, np.float32)}, seed=5, state_dtype="bfloat16")
    assert other.load_state_dict(saved, strict=strict) == ([], [])
    assert {key: other.param_groups[0][key] for key in DEFAULTS} == DEFAULTS
    assert other.state["w"]["exp_avg"].dtype == np.float32


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_options_come_from_the_group_that_is_loaded(kind: Kind) -> None:
    param = np.random.default_rng(9).standard_normal(40).astype(kind.param)
    optimizer = reference.AdamW({"w": param}, **kind.options)
    optimizer.step({"w": np.ones(40, np.float32)})
    copied = param.copy()
    options: dict[str, Any] = {"master": "float32"} if kind.param != FLOAT32 else {}
    other = reference.AdamW({"w": copied}, **options)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other):
        each.step({"w": np.full(40, 0.5, BFLOAT16)})
    assert same_bits(param, copied)
    assert other.state["w"].keys() == optimizer.state["w"].keys()
    for key, value in other.state["w"].items():
        assert same_bits(value, optimizer.state["w"][key])


def test_copies_have_the_structure_of_the_gradients() -> None:
    w = np.ones(3, np.float32)
    half = np.zeros(3, np.float16)
    for params, out, error, words in (
        ({"w": w}, {}, KeyError, "names in the copies do not match; missing: 'w'"),
        ({"w": w}, {"w": half, "v": half}, KeyError, "not known: 'v'"),
        ({"w": w}, [half], TypeError, "copies of parameters .* must be a mapping name -> copy"),
        ({"w": w}, half, TypeError, "out must be a mapping or a sequence of arrays"),
        ([{"params": [w]}], [[half], [half]], ValueError, "out has 2 groups for 1"),
        ([{"params": [w]}], [[half, half]], ValueError, "group 0 of out has 2 copies for 1"),
    ):
        grads: Any = {"w": w.copy()} if isinstance(params, dict) else [[w.copy()]]
        for module in (fo, reference):
            optimizer = module.SGD(params)
            with pytest.raises(error, match=words):
                optimizer.step(grads, out=out)
    assert not half.any()


def test_bfloat16_states_say_which_package_they_need() -> None:
    script = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, fastopt as fo
p = np.ones(3, np.float32)
optimizer = fo.reference.SGD([p], momentum=0.9, state_dtype="bfloat16")
try:
    optimizer.step([p.copy()])
except ModuleNotFoundError as error:
    print(error)
assert (p == 1).all() and dict(optimizer.state["0"]) == {"step": 0}
"""
    assert "pip install ml_dtypes" in check(script)
