"""Kernels equal the reference bit for bit in every row of types, and refuse all other rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from cases import CASES, CHUNK, FUNCTIONS, Case
from fastopt import reference
from fastopt.reference.clipping import memory_order
from fastopt.reference.storage import RUN, join, rounded, widen
from helpers import (
    LOWEST,
    SETTINGS,
    Setting,
    at_offset,
    misaligned,
    ones,
    orders,
    read_only,
    refused,
    same_bits,
    swapped,
)
from type_cases import BFLOAT16, FLOAT16, FLOAT32, KINDS, ROWS, TYPES, Kind, numbers

SIZES = [*range(20), 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, CHUNK - 1, CHUNK + 257]
STEPS = 4
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def moved(array: Any, offset: int) -> Any:
    """Return a copy that starts `offset` elements into a larger array."""
    return at_offset(array.ravel(), offset).reshape(array.shape)


class Problem:
    """Parameters of one kind, and gradients of every type for a few steps; some are None."""

    def __init__(self, kind: Kind, sizes: list[int]) -> None:
        self.kind = kind
        rng = np.random.default_rng(0)
        self.params = [numbers(rng, size, kind.param) for size in sizes]
        self.params += [numbers(rng, 1, kind.param).reshape(()), np.empty((3, 0), kind.param)]
        self.grads: list[list[Any]] = []
        for step in range(STEPS):
            grads: list[Any] = []
            for i, param in enumerate(self.params):
                grad = numbers(rng, param.size, TYPES[(i + step) % 3], odd=0.1)
                late, skipped = i % 7 == 3 and step < 2, i % 5 == 1 and step == 1
                grads.append(None if late or skipped else grad.reshape(param.shape))
            self.grads.append(grads)

    def outcome(self, make: Callable[[Any], fo.Optimizer]) -> list[Any]:
        """Train copies of the parameters at changing offsets; return all arrays of each step."""
        params = [moved(p, i % 17) for i, p in enumerate(self.params)]
        out: list[Any] | None = None
        if self.kind.param == FLOAT32:  # a copy of two parameters of three
            types: list[Any] = [None, BFLOAT16, FLOAT16]
            out = [
                None if types[i % 3] is None else moved(np.zeros(p.shape, types[i % 3]), i % 5)
                for i, p in enumerate(params)
            ]
        optimizer = make(params)
        result = []
        for step, before in enumerate(self.grads):
            grads = [None if g is None else moved(g, (i + step) % 13) for i, g in enumerate(before)]
            last = step == STEPS - 1
            info = optimizer.step(
                grads,
                out=out,
                max_norm=1e4 if step == 2 else None,
                grad_scale=2.0,
                zero_grads=last,
            )
            for grad, old in zip(grads, before, strict=True):
                assert grad is None or same_bits(grad, np.zeros_like(old) if last else old)
            states = [dict(state) for state in optimizer.state.values()]
            result.append(copy.deepcopy([info.grad_norm, params, out, states]))
        return result


def same(a: Any, b: Any) -> bool:
    """Whether lists and dicts of arrays and numbers have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or same_bits(a, b)


# -- every optimizer and row ---------------------------------------------------------------------


@lru_cache(maxsize=1)
def small(kind: Kind) -> Problem:
    return Problem(kind, [1, 7, 64, 71, 300, 2])


@pytest.mark.parametrize(
    ("kind", "case", "number"), [(*row, number) for number, row in enumerate(ROWS)], ids=str
)
def test_every_rule_in_every_row(kind: Kind, case: Case, number: int) -> None:
    SETTINGS[number % len(SETTINGS)].use()
    typed = kind.of(case)
    assert same(small(kind).outcome(typed.fused), small(kind).outcome(typed.reference))


# Each optimizer and kind once, in one of the configurations of the optimizer.
LARGE = [
    (kind, fitting[number % len(fitting)])
    for name in dict.fromkeys(case.name for case in CASES)
    for number, kind in enumerate(KINDS)
    if (fitting := [case for case in CASES if case.name == name and kind.fits(case)])
]


@pytest.mark.parametrize(("kind", "case"), LARGE, ids=str)
def test_sizes_chunks_offsets_threads_and_instruction_sets(kind: Kind, case: Case) -> None:
    problem, typed = Problem(kind, SIZES), kind.of(case)
    expected = problem.outcome(typed.reference)
    for setting in SETTINGS:
        setting.use()
        assert same(problem.outcome(typed.fused), expected), setting


@pytest.mark.parametrize("kind", [k for k in KINDS if "stochastic_rounding" in k.options], ids=str)
def test_noise_over_the_edges_of_runs(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    start = rng.standard_normal(2 * RUN + 3000).astype(kind.param)
    grads = [rng.standard_normal(start.size).astype(BFLOAT16) for _ in range(2)]
    results = []
    case = kind.of(Case("AdamW", {"lr": 1e-3}))
    for make, setting in [(case.reference, LOWEST), *((case.fused, s) for s in SETTINGS)]:
        setting.use()
        param = start.copy()
        optimizer = make({"a weight": param})
        for grad in grads:
            optimizer.step({"a weight": grad})
        results.append([param, dict(optimizer.state["a weight"])])
    for result in results[1:]:
        assert same(result, results[0])


@pytest.mark.parametrize("kind", [k for k in KINDS if "stochastic_rounding" in k.options], ids=str)
def test_parts_get_the_noise_of_their_place(kind: Kind, setting: Setting) -> None:
    rng = np.random.default_rng(4)
    cuts = [0, 1, 512, 1000, 40_003, RUN - 3, RUN + 5, RUN + 700, RUN + 700]  # the last is empty
    rows = [0, 1, 1, 2, 4, 4, 7, 8, 9]
    whole = {"w": rng.standard_normal(cuts[-1]), "m": rng.standard_normal((9, 100))}
    whole = {n: x.astype(kind.param) for n, x in whole.items()}
    grads = [{n: rng.standard_normal(x.shape).astype(BFLOAT16) for n, x in whole.items()}] * 3
    case = kind.of(Case("AdamW", {"lr": 1e-3}))
    copies = {n: x.copy() for n, x in whole.items()}
    optimizer = case.fused(whole)
    ranks = []
    for number, (w, m) in enumerate(zip(pairwise(cuts), pairwise(rows), strict=True)):
        places = {"w": slice(*w), "m": slice(*m)}
        group = {
            "params": {n: copies[n][place] for n, place in places.items()},
            "starts": np.array([w[0], 100 * m[0]]) if number == 1 else (w[0], 100 * m[0]),
        }
        opt = (case.reference if number % 3 else case.fused)(
            [{"params": {"x": np.ones(3, kind.param)}}, group]
        )
        opt.remove_param_group(0)
        assert "starts" not in opt.param_groups[0]
        assert "starts" not in opt.state_dict()["param_groups"][0]
        ranks.append((opt, places))
    for grad in grads:
        optimizer.step(grad)
        for opt, places in ranks:
            opt.step({n: grad[n][place] for n, place in places.items()})
            opt.load_state_dict(opt.state_dict())
    for name, x in whole.items():
        assert same_bits(x, copies[name])
        for key, value in optimizer.state[name].items():
            if key != "step":
                assert same_bits(value, np.concatenate([o.state[name][key] for o, _ in ranks]))


@pytest.mark.parametrize("start", [2**17 * 2**17 + 300, 2**63 - 1])
def test_parts_that_start_far_away(start: int) -> None:
    results = []
    for module in (fo, reference):
        p = np.ones(1000, BFLOAT16)
        optimizer = module.SGD([{"params": [p], "starts": [start]}], stochastic_rounding=True)
        optimizer.step([[np.ones(1000, np.float32)]])
        results.append(p)
    assert same_bits(results[0], results[1])


@kinds
def test_any_dense_order_and_any_strides(kind: Kind, isa: str) -> None:
    rng = np.random.default_rng(2)
    params = [param.astype(kind.param, order="K") for param in orders(np.float32)]
    others = [param.copy(order="K") for param in params]
    case = kind.of(Case("AdamW", {"amsgrad": True}))
    fused, plain = case.fused(params), case.reference(others)
    outs: list[list[Any]] = [[None] * len(params) for _ in range(2)]
    if kind.param == FLOAT32:
        outs = [[np.zeros_like(p, BFLOAT16) for p in params] for _ in range(2)]
    for number, dtype in enumerate(TYPES):
        big = rng.standard_normal((10, 12, 14, 2)).astype(dtype)
        grad = [big[::2, ::2, ::2, 0], big[4::-1, 5::-1, 6::-1, 1], big[:5, :6, :7, 0]][number]
        for each in (grad, np.asfortranarray(grad), np.broadcast_to(grad[..., :1], grad.shape)):
            each.flags.writeable = False
            norms = [
                optimizer.step([each] * len(params), out=out, max_norm=1.0).grad_norm
                for optimizer, out in zip((fused, plain), outs, strict=True)
            ]
            assert norms[0] == norms[1]
    assert same(params, others)
    assert same(outs[0], outs[1])
    for name, param in zip(fused.state, params, strict=True):
        assert same(dict(fused.state[name]), dict(plain.state[name]))
        for key, value in fused.state[name].items():
            if key != "step":
                assert memory_order(value) == memory_order(param)


@pytest.mark.parametrize("dtype", TYPES)
def test_large_gradients_of_another_layout(dtype: Any, threads: int) -> None:
    rng = np.random.default_rng(3)
    grad = rng.standard_normal((601, 1103)).astype(dtype)
    results = []
    for module, layout in ((reference, grad), (fo, np.asfortranarray(grad))):
        param = np.ones(grad.shape, BFLOAT16)
        optimizer = module.AdamW([param], master="split", state_dtype="bfloat16")
        norm = optimizer.step([layout], max_norm=0.5).grad_norm
        results.append([norm, param, dict(optimizer.state["0"])])
    assert same(results[0], results[1])


@pytest.mark.parametrize(("kind", "case"), LARGE, ids=str)
def test_nothing_is_written_beside_the_arrays(kind: Kind, case: Case) -> None:
    names = ["param", "grad", "out"]
    memory = {
        name: np.full(40_000, 7, dtype)
        for name, dtype in zip(names, [kind.param, BFLOAT16, FLOAT16], strict=True)
    }
    inner = {name: array[5:39_990] for name, array in memory.items()}
    optimizer = kind.of(case).fused([inner["param"]])
    out = [inner["out"]] if kind.param == FLOAT32 else None
    for _ in range(2):
        optimizer.step([inner["grad"]], out=out)
    assert np.all(memory["grad"] == 7)
    for array in memory.values():
        assert np.all(array[:5] == 7)
        assert np.all(array[39_990:] == 7)


@st.composite
def lists(draw: Any) -> tuple[Any, list[Any], list[Any], list[dict[str, Any]]]:
    """Groups of different kinds, with gradients and copies of any types for a few steps."""
    case = draw(st.sampled_from(CASES))
    chosen = draw(
        st.lists(st.sampled_from([k for k in KINDS if k.fits(case)]), min_size=1, max_size=3)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups, dtypes = [], []
    for kind in chosen:
        shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=2))
        params = [numbers(rng, int(np.prod(s)), kind.param).reshape(s) for s in shapes]
        seed = draw(st.integers(0, 2**63 - 1))
        groups.append({"params": params} | kind.options | {"seed": seed})
        dtypes += [(tuple(s), kind.param) for s in shapes]
    steps, copies, options = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        grads, out = [], []
        for shape, param in dtypes:
            dtype = draw(st.none() | st.sampled_from(TYPES))
            size = int(np.prod(shape))
            grads.append(None if dtype is None else numbers(rng, size, dtype).reshape(shape))
            dtype = draw(st.none() | st.sampled_from(TYPES[1:])) if param == FLOAT32 else None
            out.append(None if dtype is None else np.zeros(shape, dtype))
        steps.append(grads)
        copies.append(out)
        norm = draw(st.none() | st.floats(1e-3, 1e6))
        options.append({"max_norm": norm, "skip_nonfinite": draw(st.booleans())})
    return (case, groups), steps, copies, options


@given(lists())
def test_mixed_lists(problem: Any) -> None:
    (case, groups), steps, copies, options = problem
    results = []
    for make in (case.fused, case.reference):
        own, out = copy.deepcopy(groups), copy.deepcopy(copies)
        optimizer = make(own)
        norms = []
        for grads, each, given_ in zip(steps, out, options, strict=True):
            named = {str(i): grad for i, grad in enumerate(grads)}
            into = {str(i): array for i, array in enumerate(each)}
            norms.append(list(optimizer.step(named, out=into, **given_)))
        states = [dict(state) for state in optimizer.state.values()]
        params = [array for group in own for array in group["params"]]
        results.append([norms, params, out, states])
    assert same(results[0], results[1])


@pytest.mark.parametrize(
    ("kind", "case"),
    [(k, c) for k, c in ROWS if c.name in FUNCTIONS and "stochastic_rounding" not in k.options],
    ids=str,
)
def test_functions_in_every_row(kind: Kind, case: Case, isa: str) -> None:
    rng = np.random.default_rng(13)
    function, names = FUNCTIONS[case.name]
    param = numbers(rng, 333, kind.param)
    own = param.copy()
    optimizer = kind.of(case).fused([param])
    states: dict[str, Any] = {
        name: np.zeros(333, kind.options.get("state_dtype", FLOAT32)) for name in names
    }
    if case.options.get("betas", (0.9,))[0] == 0:
        states["exp_avg"] = None
    if "master" in kind.options:
        exact = kind.options["master"] == "float32"
        states["master_param"] = widen(own) if exact else np.zeros(333, np.int16)
    for step, dtype in enumerate([*TYPES, FLOAT32], 1):
        grad = numbers(rng, 333, dtype)
        optimizer.step([grad])
        extra = {} if case.name == "RMSprop" else {"step": step}
        function(own, grad, **states, **extra, **case.options)
        assert same_bits(own, param)
        for name, value in optimizer.state["0"].items():
            assert name == "step" or same_bits(states[name], value)


# -- the split master ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_the_split_master_is_the_float32_optimizer(case: Case, state_dtype: Any, isa: str) -> None:
    rng = np.random.default_rng(4)
    param, size = numbers(rng, 3000, BFLOAT16), 3000
    low = rng.integers(-(2**15), 2**15, size, np.int16)
    typed = Case(case.name, case.options | {"state_dtype": state_dtype})
    joined = join(param, low).copy()
    split, plain = (
        Kind(BFLOAT16, {"master": "split"}).of(typed).fused([param]),
        typed.fused([joined]),
    )
    state = {"0": {"step": 0, "master_param": low}}
    split.load_state_dict(split.state_dict() | {"state": state})
    for step in range(6):
        grad = numbers(rng, size, TYPES[step % 3], odd=0.02)
        split.step([grad])
        plain.step([grad])
        assert same_bits(join(param, split.state["0"]["master_param"]), joined)
        nan = np.isnan(joined)
        assert np.array_equal(np.isnan(widen(param)), nan)
        assert np.all(param.view(np.uint16)[nan] == 0x7FC0)
        assert not split.state["0"]["master_param"][nan].any()


@pytest.mark.slow
def test_the_split_master_over_a_thousand_steps() -> None:
    rng = np.random.default_rng(5)
    param = rng.standard_normal(10**6).astype(BFLOAT16)
    joined = widen(param).copy()
    split, plain = fo.AdamW([param], master="split"), fo.AdamW([joined])
    for step in range(1000):
        grad = np.random.default_rng(step).standard_normal(10**6, np.float32).astype(BFLOAT16)
        split.step([grad])
        plain.step([widen(grad)])
    kept = join(param, split.state["0"]["master_param"])
    assert np.count_nonzero(kept.view(np.uint32) != joined.view(np.uint32)) == 0


# -- noise, copies, states -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if "stochastic_rounding" in k.options], ids=str)
def test_order_and_groups_do_not_change_the_noise(kind: Kind) -> None:
    rng = np.random.default_rng(6)
    start = {n: rng.standard_normal(CHUNK + k).astype(kind.param) for k, n in enumerate("abc")}
    grads = {n: rng.standard_normal(a.size).astype(FLOAT16) for n, a in start.items()}
    results = []
    for groups in (["abc"], ["c", "ba"], ["bca"]):
        params = {name: value.copy() for name, value in start.items()}
        optimizer = fo.AdamW(
            [{"params": {n: params[n] for n in group}} for group in groups], **kind.options
        )
        for _ in range(3):
            optimizer.step(grads)
        results.append([[params[n], dict(optimizer.state[n])] for n in "abc"])
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_no_copy_of_what_is_skipped() -> None:
    p, q = ones(9), ones(9)
    out = [np.full(9, 3, BFLOAT16), np.full(9, 3, FLOAT16)]
    optimizer = fo.SGD([p, q], lr=1.0)
    optimizer.step([ones(9), None], out=out)
    assert np.all(out[0] == 0)
    assert np.all(out[1] == 3)
    grads = [np.full(9, np.nan, BFLOAT16), ones(9)]
    assert optimizer.step(grads, out=out, skip_nonfinite=True).skipped
    assert np.all(out[0] == 0)
    assert np.all(out[1] == 3)
    optimizer.step([ones(9), ones(9)], out=[None, out[1]])
    assert np.all(p == -1)
    assert np.all(out[0] == 0)
    assert np.all(out[1] == 0)


@pytest.mark.parametrize(("kind", "case"), LARGE, ids=str)
def test_save_load_continue_equals_continue(kind: Kind, case: Case) -> None:
    rng = np.random.default_rng(7)
    param = rng.standard_normal((30, 40)).astype(kind.param)
    optimizer = kind.of(case).fused({"w": param})
    grads = [rng.standard_normal((30, 40)).astype(dtype) for dtype in TYPES]
    for grad in grads:
        optimizer.step({"w": grad})
    again = param.copy()
    master = {"master": "float32"} if kind.param != FLOAT32 else {}
    other = Case(case.name, case.options | master).fused({"w": again})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(dict(other.state["w"]), dict(optimizer.state["w"]))
    assert other.param_groups[0].keys() == optimizer.param_groups[0].keys()
    for grad in grads:
        optimizer.step({"w": grad})
        other.step({"w": grad})
    assert same([param, dict(optimizer.state["w"])], [again, dict(other.state["w"])])


# With noise, the order of the memory numbers the elements.
@pytest.mark.parametrize("kind", [k for k in KINDS if "seed" not in k.options], ids=str)
def test_a_state_loads_into_another_memory_order(kind: Kind) -> None:
    param = np.random.default_rng(8).standard_normal((30, 40)).astype(kind.param)
    moved = np.asfortranarray(param)
    grad = np.ones((30, 40), BFLOAT16)
    first, second = (fo.AdamW([p], **kind.options) for p in (param, moved))
    first.step([grad])
    moved[...] = param
    second.load_state_dict(first.state_dict())
    first.step([grad])
    second.step([grad])
    assert same([param, dict(first.state["0"])], [moved, dict(second.state["0"])])


def test_without_beta1_there_is_no_first_moment() -> None:
    param = ones(50)
    optimizer = fo.AdamW([param], betas=(0.0, 0.9))
    optimizer.step([ones(50)])
    assert optimizer.state["0"].keys() == {"step", "exp_avg_sq"}
    saved = copy.deepcopy(optimizer.state_dict())
    other = fo.AdamW([param.copy()], betas=(0.0, 0.9))
    other.load_state_dict(saved)
    optimizer.param_groups[0]["betas"] = (0.9, 0.9)
    optimizer.step([ones(50)])
    assert "exp_avg" in optimizer.state["0"]


def test_repr_says_which_types() -> None:
    optimizer = fo.AdamW([np.ones(3, BFLOAT16)], master="split", state_dtype="bfloat16", seed=9)
    for part in ("master: split", "state_dtype: bfloat16", "stochastic_rounding: False", "seed: 9"):
        assert part in repr(optimizer)


# -- around the step -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_equal_the_reference(dtype: Any, setting: Setting) -> None:
    rng = np.random.default_rng(9)
    params = [numbers(rng, n, dtype) for n in (0, 1, 65, CHUNK + 3)] + [np.ones((30, 50), dtype)]
    fused, plain = fo.GradAccumulator(params), reference.GradAccumulator(params)
    for number in range(4):
        grads: list[Any] = [
            numbers(rng, p.size, TYPES[(i + number) % 3]) for i, p in enumerate(params)
        ]
        grads[-1] = rng.standard_normal((50, 30)).astype(TYPES[number % 3]).T
        grads[number] = None
        fused.add(grads, weight=number + 0.5)
        plain.add(grads, weight=number + 0.5)
    assert all(sums.dtype == np.float32 for sums in fused.grads.values() if sums is not None)
    assert same(dict(fused.grads), plain.grads)
    fused.reset()
    fused.add(grads)
    plain.reset()
    plain.add(grads)
    assert same(dict(fused.grads), plain.grads)


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_averages_equal_the_reference(dtype: Any, setting: Setting) -> None:
    rng = np.random.default_rng(10)
    params = [numbers(rng, n, dtype) for n in (0, 1, 65, CHUNK + 3)] + [np.ones((30, 50), dtype).T]
    fused, plain = fo.WeightEMA(params, 0.9), reference.WeightEMA(params, 0.9)
    for _ in range(3):
        for param in params:
            param[...] = numbers(rng, param.size, dtype, odd=0.05).reshape(param.shape)
        fused.update()
        plain.update()
        assert same(dict(fused.averages), plain.averages)
    assert all(average.dtype == np.float32 for average in fused.averages.values())
    before = [param.copy() for param in params]
    with fused.applied():
        for param, average in zip(params, fused.averages.values(), strict=True):
            assert same_bits(param, rounded(average, dtype))
    for param, copied in zip(params, before, strict=True):
        assert np.array_equal(param.view(np.uint16), copied.view(np.uint16))  # also of NaN
    other = fo.WeightEMA([param.copy() for param in params], 0.5)
    other.load_state_dict(fused.state_dict())
    assert same(dict(other.averages), dict(fused.averages))


@pytest.mark.parametrize("norm_type", [2.0, np.inf])
def test_norms_equal_the_reference(norm_type: float, setting: Setting) -> None:
    rng = np.random.default_rng(11)
    grads = [rng.standard_normal(n).astype(t) for n in (0, 7, 4096, CHUNK + 5) for t in TYPES]
    grads += [(1e-7 * rng.standard_normal(500)).astype(np.float16)]  # denormals
    assert fo.grad_norm(grads, norm_type) == reference.grad_norm(grads, norm_type)
    strided = [np.repeat(grad, 2)[::2] for grad in grads]
    assert fo.grad_norm(strided, norm_type) == reference.grad_norm(grads, norm_type)
    for spoilt in (np.inf, np.nan):
        bad = np.full(3, spoilt, BFLOAT16)
        assert not np.isfinite(fo.grad_norm([*grads, bad], norm_type))
        optimizer = fo.SGD([np.ones(grad.shape, BFLOAT16) for grad in [*grads, bad]])
        assert optimizer.step([*grads, bad], skip_nonfinite=True).skipped


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_clipping_in_place_rounds_once(dtype: Any, setting: Setting) -> None:
    rng = np.random.default_rng(12)
    grads = [(3 * rng.standard_normal(n)).astype(dtype) for n in (1, 70, CHUNK + 5)]
    grads.append((3 * rng.standard_normal((40, 30))).astype(dtype).T[::2])
    before = [widen(grad) for grad in grads]
    norm = fo.clip_grad_norm_(grads, 1.0)
    assert norm == reference.grad_norm(before)
    factor = np.float32(1 / (norm + 1e-6))
    for grad, wide in zip(grads, before, strict=True):
        assert same_bits(grad, rounded(factor * wide, dtype))
    limit = 0.30000001 * float(np.max(widen(grads[2])))
    before = [widen(grad) for grad in grads]
    fo.clip_grad_value_(grads, limit)
    for grad, wide in zip(grads, before, strict=True):
        assert same_bits(grad, rounded(np.clip(wide, -np.float32(limit), np.float32(limit)), dtype))


# -- what is refused -----------------------------------------------------------------------------

BAD_ROWS: list[tuple[str, Any, dict[str, Any], type[Exception], list[str]]] = [
    ("float16", np.ones(6, FLOAT16), {}, TypeError, ["float16", "master='float32'"]),
    ("float16 split", np.ones(6, FLOAT16), {"master": "split"}, TypeError, ["float16", "float32"]),
    ("float64 states", np.ones(6), {"state_dtype": "bfloat16"}, TypeError, ["float64", "bfloat16"]),
    ("float32 states", np.ones(6), {"state_dtype": "float32"}, TypeError, ["float64", "float32"]),
    ("integers", np.ones(6, np.int16), {}, TypeError, ["int16"]),
    ("bits", np.ones(6, np.uint16), {}, TypeError, ["uint16"]),
    ("read-only", read_only(np.ones(6, BFLOAT16)), {}, ValueError, ["read-only"]),
    ("strided", np.ones(12, BFLOAT16)[::2], {}, ValueError, ["dense"]),
    ("misaligned", misaligned(np.ones(6, BFLOAT16)), {}, ValueError, ["misaligned"]),
    (
        "swapped",
        swapped(np.ones(6, FLOAT16)),
        {"master": "float32"},
        ValueError,
        ["byte-swapped"],
    ),
]


@pytest.mark.parametrize(
    ("param", "options", "error", "words"), [pytest.param(*r[1:], id=r[0]) for r in BAD_ROWS]
)
def test_parameters(
    param: Any, options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    good = np.ones(3, BFLOAT16)
    words = ["parameter 'bad'", *words]
    with refused(error, *words, arrays=[good]):
        fo.AdamW({"good": good, "bad": param}, **options)
    optimizer = fo.AdamW({"good": good})
    with refused(error, *words, arrays=[good], optimizer=optimizer):
        group = {"params": {"more": np.ones(2, BFLOAT16), "bad": param}}
        optimizer.add_param_group(group | options)
    assert len(optimizer.param_groups) == 1
    optimizer.step({"good": np.ones(3, FLOAT16)})


@kinds
def test_gradients(kind: Kind) -> None:
    first, second = np.ones(5, kind.param), np.ones((2, 3), kind.param)
    optimizer = fo.AdamW({"a": first, "b": second}, **kind.options)
    good = np.ones(5, BFLOAT16)
    for steps in range(2):
        bad: list[tuple[Any, type[Exception], str]] = [
            (np.ones((2, 3)), TypeError, "float64"),
            (np.ones((2, 3), np.int16), TypeError, "int16"),
            (np.ones((2, 3), np.uint16), TypeError, "uint16"),
            (np.ones((3, 2), BFLOAT16), ValueError, "(3, 2)"),
            (misaligned(np.ones((2, 3), BFLOAT16)), ValueError, "misaligned"),
            (swapped(np.ones((2, 3), FLOAT16)), ValueError, "byte-swapped"),
        ]
        for grad, error, word in bad:
            with refused(
                error, "gradient of 'b'", word, arrays=[first, second], optimizer=optimizer
            ):
                optimizer.step({"a": good, "b": grad})
        with refused(ValueError, "gradient of 'b'", "parameter 'b'", arrays=[first, second]):
            optimizer.step({"a": good, "b": second})
        optimizer.step({"a": good, "b": np.ones((2, 3), TYPES[steps])})


BAD_CALLS: list[tuple[Any, Any, dict[str, Any], list[str]]] = [
    (FLOAT32, np.float64, {}, ["gradient", "float64"]),
    (np.float64, FLOAT32, {}, ["gradient", "float32"]),
    (FLOAT32, FLOAT32, {"exp_avg": np.float64}, ["exp_avg", "float32", "float64"]),
    (FLOAT32, FLOAT32, {"exp_avg": FLOAT16, "exp_avg_sq": FLOAT16}, ["exp_avg", "float16"]),
    (FLOAT32, FLOAT32, {"exp_avg_sq": BFLOAT16}, ["exp_avg", "bfloat16", "float32"]),
    (BFLOAT16, FLOAT32, {"exp_avg": BFLOAT16}, ["exp_avg", "bfloat16", "float32"]),
    (np.float64, np.float64, {"exp_avg": FLOAT32}, ["exp_avg", "float64", "float32"]),
    (FLOAT16, FLOAT32, {}, ["param", "float16", "float32"]),
    (FLOAT16, FLOAT32, {"master_param": np.int16}, ["param", "float16", "float32"]),
    (BFLOAT16, FLOAT32, {"master_param": np.int32}, ["master_param", "int16", "int32"]),
    (BFLOAT16, FLOAT32, {"master_param": np.uint16}, ["master_param", "float32", "uint16"]),
    (BFLOAT16, FLOAT32, {"master_param": BFLOAT16}, ["master_param", "float32", "bfloat16"]),
    (FLOAT32, FLOAT32, {"master_param": FLOAT32}, ["master_param", "float32"]),
    (np.float64, np.float64, {"master_param": np.int16}, ["master_param", "float64"]),
]


@pytest.mark.parametrize(("param", "grad", "states", "words"), BAD_CALLS)
def test_arrays_of_functions(param: Any, grad: Any, states: dict[str, Any], words: Any) -> None:
    usual = np.float64 if param == np.float64 else FLOAT32
    arrays: dict[str, Any] = {
        name: np.ones(5, dtype)
        for name, dtype in ({"exp_avg": usual, "exp_avg_sq": usual} | states).items()
    }
    p, g = np.ones(5, param), np.ones(5, grad)
    with refused(TypeError, *words, arrays=[p, g, *arrays.values()]):
        fo.functional.adam_(p, g, **arrays, step=1)


@pytest.mark.parametrize("dtype", TYPES)
def test_float64_parameters_take_float64_gradients(dtype: Any) -> None:
    p = np.ones(4)
    optimizer = fo.AdamW([p])
    with refused(TypeError, "gradient of '0'", "float64", str(dtype), arrays=[p]):
        optimizer.step([np.ones(4, dtype)])


def test_copies() -> None:
    p, q, d, h = ones(2, 3), ones(4), np.ones(4), np.ones(4, BFLOAT16)
    optimizer = fo.AdamW({"p": p, "q": q, "d": d, "h": h})
    good: dict[str, Any] = {"p": np.zeros((2, 3), BFLOAT16), "q": np.zeros(4, FLOAT16)}
    good |= {"d": None, "h": None}
    grads = {"p": ones(2, 3), "q": np.ones(4, BFLOAT16), "d": np.ones(4), "h": np.ones(4, FLOAT16)}
    arrays = [p, q, d, h, good["p"], good["q"], *grads.values()]
    optimizer.step(grads, out=good)
    memory = np.zeros(10, BFLOAT16)
    bad: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
        ({"q": ones(4)}, TypeError, ["copy of 'q'", "float32", "bfloat16"]),
        ({"q": np.ones(4)}, TypeError, ["copy of 'q'", "float64"]),
        ({"q": np.ones(4, np.uint16)}, TypeError, ["copy of 'q'", "uint16"]),
        ({"q": [0.0] * 4}, TypeError, ["copy of 'q'", "list"]),
        ({"d": np.ones(4, BFLOAT16)}, TypeError, ["'d'", "float64"]),
        ({"h": np.ones(4, BFLOAT16)}, TypeError, ["'h'", "bfloat16"]),
        ({"q": np.ones(5, BFLOAT16)}, ValueError, ["copy of 'q'", "(5,)", "(4,)"]),
        ({"q": np.ones(8, BFLOAT16)[::2]}, ValueError, ["copy of 'q'"]),
        ({"p": np.asfortranarray(good["p"])}, ValueError, ["copy of 'p'", "order"]),
        ({"q": read_only(good["q"])}, ValueError, ["copy of 'q'", "read-only"]),
        ({"q": misaligned(good["q"])}, ValueError, ["copy of 'q'", "misaligned"]),
        ({"q": swapped(good["q"])}, ValueError, ["copy of 'q'", "byte-swapped"]),
        ({"q": p.view(BFLOAT16).ravel()[:4]}, ValueError, ["copy of 'q'", "parameter 'p'"]),
        ({"q": grads["q"]}, ValueError, ["copy of 'q'", "gradient of 'q'"]),
        ({"q": h}, ValueError, ["copy of 'q'", "parameter 'h'"]),
        (
            {"p": memory[:6].reshape(2, 3), "q": memory[5:9]},
            ValueError,
            ["copy of 'p'", "copy of 'q'", "share memory"],
        ),
        (
            {"q": optimizer.state["q"]["exp_avg"].view(BFLOAT16)[:4]},
            ValueError,
            ["copy of 'q'", "exp_avg of 'q'"],
        ),
    ]
    for spoilt, error, words in bad:
        with refused(error, *words, arrays=arrays, optimizer=optimizer):
            optimizer.step(grads, out=good | spoilt)
    fresh = fo.AdamW({"p": p, "q": q, "d": d, "h": h})
    for spoilt, error, words in bad[:-1]:
        with refused(error, *words, arrays=arrays, optimizer=fresh):
            fresh.step(grads, out=good | spoilt)
    assert all(state == {"step": 0} for state in fresh.state.values())
    listed = fo.SGD([ones(2), ones(2)])
    for count in (1, 3):
        with refused(ValueError, f"{count} cop", "2 parameters"):
            listed.step([ones(2)] * 2, out=[None] * count)
    optimizer.step(grads, out=good)


@kinds
def test_states_of_another_type_are_refused(kind: Kind) -> None:
    param = np.ones(4, kind.param)
    optimizer = fo.AdamW({"w": param}, **kind.options)
    optimizer.step({"w": np.ones(4, BFLOAT16)})
    saved = copy.deepcopy(optimizer.state_dict())
    own = saved["state"]["w"]["exp_avg"].dtype
    other = BFLOAT16 if own == np.float32 else FLOAT32
    bad: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
        ({"exp_avg": np.ones(4, dtype)}, TypeError, ["exp_avg of 'w'", str(dtype), str(own)])
        for dtype in (other, FLOAT16, np.dtype(np.float64))
    ]
    master = saved["state"]["w"].get("master_param")
    if master is None:
        bad.append(({"master_param": ones(4)}, KeyError, ["'w'", "master_param"]))
    else:
        wrong = ones(4) if master.dtype == np.int16 else np.ones(4, np.int16)
        for array in (wrong, np.ones(4, BFLOAT16), np.ones(4, np.uint16)):
            words = ["master_param of 'w'", str(array.dtype), str(master.dtype)]
            bad.append(({"master_param": array}, TypeError, words))
        words = ["master_param of 'w'", "(5,)"]
        bad.append(({"master_param": np.ones(5, master.dtype)}, ValueError, words))
    for spoilt, error, words in bad:
        state = copy.deepcopy(saved)
        state["state"]["w"] |= spoilt
        with refused(error, *words, arrays=[param], optimizer=optimizer):
            optimizer.load_state_dict(state)
    if master is not None:
        state = copy.deepcopy(saved)
        del state["state"]["w"]["master_param"]
        with refused(KeyError, "'w'", "master_param", arrays=[param], optimizer=optimizer):
            optimizer.load_state_dict(state)
    state = copy.deepcopy(saved)
    state["param_groups"][0]["state_dtype"] = str(other)
    state["param_groups"][0]["stochastic_rounding"] = False
    with refused(TypeError, "exp_avg of 'w'", str(own), str(other), optimizer=optimizer):
        optimizer.load_state_dict(state)
    optimizer.load_state_dict(saved)


def test_loaded_groups_that_do_not_fit_the_parameters() -> None:
    half = np.ones(4, FLOAT16)
    optimizer = fo.AdamW({"w": half}, master="float32")
    optimizer.step({"w": np.ones(4, FLOAT16)})
    for key in (None, "split"):
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0]["master"] = key
        with refused(TypeError, "parameter 'w'", "float16", arrays=[half], optimizer=optimizer):
            optimizer.load_state_dict(state)
    double = fo.AdamW({"w": np.ones(4)})
    state = copy.deepcopy(double.state_dict())
    state["param_groups"][0]["state_dtype"] = "bfloat16"
    with refused(TypeError, "parameter 'w'", "float64", "bfloat16", optimizer=double):
        double.load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [("state_dtype", "float32"), ("master", None), ("stochastic_rounding", False), ("seed", 8)],
)
def test_options_of_types_are_fixed(key: str, value: Any) -> None:
    param = np.ones(4, BFLOAT16)
    options: dict[str, Any] = {"state_dtype": "bfloat16", "stochastic_rounding": True}
    optimizer = fo.AdamW({"w": param}, master="split", seed=7, **options)
    optimizer.step({"w": np.ones(4, BFLOAT16)})
    before = optimizer.param_groups[0][key]
    optimizer.param_groups[0][key] = value
    with refused(ValueError, key, arrays=[param], optimizer=optimizer):
        optimizer.step({"w": np.ones(4, BFLOAT16)})
    optimizer.param_groups[0][key] = before
    optimizer.step({"w": np.ones(4, BFLOAT16)})


def test_sums_and_averages_refuse_other_types() -> None:
    total = fo.GradAccumulator({"w": np.ones(4, BFLOAT16), "d": np.ones(4)})
    good = {"w": np.ones(4, FLOAT16), "d": np.ones(4)}
    total.add(good)
    for spoilt, word in (
        ({"w": np.ones(4)}, "float64"),
        ({"w": np.ones(4, np.int16)}, "int16"),
        ({"d": ones(4)}, "float32"),
        ({"d": np.ones(4, BFLOAT16)}, "bfloat16"),
    ):
        with refused(TypeError, "gradient of", word):
            total.add(good | spoilt)
    assert total.weight == 1
    bad: Any
    for bad in (np.ones(4, np.int16), np.ones(4, np.complex64)):
        with refused(TypeError, "parameter 'w'", str(bad.dtype)):
            fo.GradAccumulator({"w": bad})
        with refused(TypeError, "parameter 'w'", str(bad.dtype)):
            fo.WeightEMA({"w": bad})
    ema = fo.WeightEMA({"w": np.ones(4, BFLOAT16)})
    state = copy.deepcopy(ema.state_dict())
    state["state"]["w"]["average"] = np.ones(4, BFLOAT16)
    with refused(TypeError, "'w'", "bfloat16", "float32"):
        ema.load_state_dict(state)


@pytest.mark.parametrize(
    ("dtype", "master"), [(BFLOAT16, "split"), (BFLOAT16, "float32"), (FLOAT16, "float32")]
)
def test_a_step_takes_written_parameters(dtype: Any, master: Any, isa: str) -> None:
    values = np.tile(np.array([1, -1, 3, -3, 2, 5, 7], dtype), 30)
    for written in (0.0, -0.0, np.inf, -np.inf, 7.0):
        fused, plain = values.copy(), values.copy()
        optimizers = [
            fo.SGD([fused], lr=0.001, master=master),
            reference.SGD([plain], lr=0.001, master=master),
        ]
        for optimizer in optimizers:
            optimizer.step([values])
        fused[::3] = plain[::3] = written
        for optimizer in optimizers:
            optimizer.step([np.zeros(210, dtype)])
        assert same_bits(fused, plain)
        assert np.array_equal(fused[::3], np.full(70, written, dtype))
        kept, exact = (np.asarray(o.state["0"]["master_param"]) for o in optimizers)
        assert np.array_equal(kept, exact)


@pytest.mark.parametrize("name", ["a\n", "\ud800", "größe"])
def test_the_noise_depends_on_the_exact_name(name: str) -> None:
    results = []
    for module in (fo, reference):
        param = np.ones(300, BFLOAT16)
        optimizer = module.SGD({name: param}, lr=1e-3, stochastic_rounding=True)
        optimizer.step({name: np.ones(300, BFLOAT16)})
        results.append(param)
    assert same_bits(*results)


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_the_kernels_load_and_store_every_value(dtype: Any, isa: str) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    ema = fo.WeightEMA([every], 0.5)
    ema.update()
    assert np.array_equal(ema.averages["0"].view(np.uint32), widen(every).view(np.uint32))
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0xFFF, 0x1000, 0x1001], np.uint32)
    values = (upper[:, None] | lower).ravel().view(np.float32)
    copied = np.empty(values.size, dtype)
    fo.SGD([values], lr=0.0).step([np.zeros_like(values)], out=[copied])
    assert same_bits(copied, rounded(values, dtype))


def test_a_state_that_is_not_loaded_must_fit_the_loaded_options() -> None:
    def make(*names: str, **options: Any) -> fo.SGD:
        optimizer = fo.SGD({name: np.ones(2, BFLOAT16) for name in names}, **options)
        optimizer.step({name: np.ones(2, BFLOAT16) for name in names})
        return optimizer

    error: type[Exception]
    for own, other, error, word in (
        (None, "float32", ValueError, "master_param"),
        ("float32", None, ValueError, "master_param"),
        ("split", "float32", TypeError, "int16"),
    ):
        optimizer = make("b", "c", master=own)
        saved = make("b", master=other).state_dict()
        with refused(error, "'c'", word, optimizer=optimizer):
            optimizer.load_state_dict(saved, strict=False)


def test_a_master_of_another_kind_is_refused_with_the_way_out() -> None:
    optimizer = fo.SGD({"w": np.ones(2, BFLOAT16)}, master="split")
    optimizer.step({"w": np.ones(2, BFLOAT16)})
    saved = optimizer.state_dict()
    saved["param_groups"][0]["master"] = "float32"
    with refused(TypeError, "master_param of 'w'", "int16", "saved with", optimizer=optimizer):
        optimizer.load_state_dict(saved)
