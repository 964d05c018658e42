"""WeightEMA: parity with the reference, averages in the parameters, state dicts, bad input."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from bad_cases import BAD_PARAMS
from cases import DTYPES, make_grads, make_params
from fastopt import _core
from helpers import Setting, at_offset, hostile, ones, orders, refused, same_bits

OPTIONS: list[dict[str, Any]] = [
    {},
    {"decay": 0.9},
    {"warmup": True},
    {"decay": 0.2, "warmup": True},
    {"decay": 0.0},
    {"decay": 1.0},
]


def bits(array: Any) -> bytes:
    """The bits, also those of NaNs."""
    return bytes(np.ascontiguousarray(array).data)


# -- the average ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_equal_the_reference(options: dict[str, Any], dtype: Any, setting: Setting) -> None:
    params = make_params(dtype)
    assert sum(p.size for p in params) > _core.tuning.serial_size  # uses several threads
    ema, reference = fo.WeightEMA(params, **options), fo.reference.WeightEMA(params, **options)
    for step, values in enumerate(make_grads(params, 4), 1):
        for param, value in zip(params, values, strict=True):
            if value is not None:
                param[...] = value
        before = [p.copy() for p in params]
        ema.update()
        reference.update()
        assert ema.num_updates == reference.num_updates == step
        assert all(same_bits(p, b) for p, b in zip(params, before, strict=True))
        for name, average in reference.averages.items():
            assert same_bits(ema.averages[name], average), name


@given(
    st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=9),
            elements=st.floats(width=32),
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
    st.booleans(),
    st.integers(1, 4),
)
def test_any_values_and_decays(params: list[Any], decay: float, warmup: bool, updates: int) -> None:
    ema = fo.WeightEMA(params, decay, warmup=warmup)
    reference = fo.reference.WeightEMA(params, decay, warmup=warmup)
    alone = [fo.WeightEMA([param], decay, warmup=warmup) for param in params]
    for _ in range(updates):
        for each in (ema, reference, *alone):
            each.update()  # type: ignore[attr-defined]
        for param in params:
            param[...] = param[..., ::-1] * np.float32(0.7) if param.ndim else param + 1
    for name, one in zip(ema.averages, alone, strict=True):
        assert same_bits(ema.averages[name], reference.averages[name])
        assert same_bits(ema.averages[name], one.averages["0"])  # for any grouping


def test_any_dense_order(isa: str) -> None:
    params = orders(np.float32)
    ema = fo.WeightEMA(params, 0.5)
    for factor in (1.0, 3.0, -2.0):
        for param in params:
            param *= np.float32(factor)
        ema.update()
    for param, average in zip(params, ema.averages.values(), strict=True):
        assert average.strides == param.strides
        assert same_bits(average, ema.averages["0"])


def test_beside_the_formula() -> None:
    p = {"w": np.array([1.0])}
    ema = fo.WeightEMA(p, decay=0.75)
    assert ema.averages["w"][0] == 1  # before the first update: copies of the parameters
    p["w"][0] = 4
    ema.update()
    assert ema.averages["w"][0] == 4  # the first one copies
    p["w"][0] = 8
    ema.update()
    assert ema.averages["w"][0] == 4 + 0.25 * 4
    ema.decay = 0.5  # read at each update
    ema.update()
    assert ema.averages["w"][0] == 5 + 0.5 * 3


def test_warmup() -> None:
    p = np.zeros(1)
    ema = fo.WeightEMA([p], decay=0.25, warmup=True)
    ema.update()
    expected = 0.0
    for before, decay in ((1, 2 / 11), (2, 0.25), (3, 0.25)):  # 3 / 12, 4 / 13
        assert ema.num_updates == before
        p += 1
        expected += (1 - decay) * (p[0] - expected)
        ema.update()
        assert ema.averages["0"][0] == expected


@pytest.mark.parametrize("size", [1, 7, 64, 100, 40_000])
def test_the_first_update_copies_every_bit(size: int, isa: str) -> None:
    p = hostile(np.random.default_rng(0), size, np.float32)
    p.view(np.uint32)[0] = 0x7F800001  # a signalling NaN
    ema = fo.WeightEMA([p])
    p.view(np.uint32)[...] ^= 0x80000000
    ema.update()
    assert bits(ema.averages["0"]) == bits(p)


def test_a_constant_stays_what_it_is() -> None:
    p = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ema = fo.WeightEMA([p])
    for _ in range(50):
        ema.update()
    assert same_bits(ema.averages["0"], p)


def test_float32_holds_an_average_back_by_no_more_than_it_says() -> None:
    p = np.linspace(0.5, 1, 1000).astype(np.float32)
    for decay in (0.9, 0.99, 0.999):
        ema = fo.WeightEMA([p], decay)
        for above in (0.1, 0.0):
            start = p.copy()
            p += np.float32(above)
            ema.update()
            p[...] = start
        for _ in range(int(20 / (1 - decay))):
            ema.update()
        behind = abs(ema.averages["0"] - p)
        assert np.all(behind <= 6e-8 / (1 - decay) * p)
        assert np.any(behind > 1e-8 / (1 - decay) * p)


def test_names_and_groups_are_those_of_the_optimizer() -> None:
    w, b, c = np.ones((2, 3)), np.ones(2), np.ones(4)
    structures: list[Any] = [
        {"w": w, "b": b, "c": c},
        [w, b, c],
        iter([w, b, c]),
        [{"params": [w], "lr": 0.1}, {"params": {"b": b, "c": c}}],
    ]
    for structure in structures:
        kept = list(structure)
        same = structure if isinstance(structure, dict) else kept
        assert list(fo.WeightEMA(same).averages) == list(fo.SGD(same).state)


def test_a_group_added_later_is_averaged_from_then_on() -> None:
    first, second = np.zeros(3), np.full(2, 5.0)
    groups: list[dict[str, Any]] = [{"params": {"w": first}}]
    later = {"params": {"v": second}, "lr": 0.25}
    opt, ema = fo.SGD(groups, lr=1.0), fo.WeightEMA(groups, 0.9, warmup=True)
    reference = fo.reference.WeightEMA(groups, 0.9, warmup=True)
    for _ in range(3):
        opt.step({"w": np.ones(3)})
        ema.update()
        reference.update()
    old = ema.averages
    for each in (opt, ema, reference):
        each.add_param_group(later)
    alone = fo.WeightEMA({"v": second}, 0.9, warmup=True)
    assert list(ema.averages) == list(opt.state)
    for _ in range(3):
        opt.step({"w": np.ones(3), "v": np.ones(2)})
        for each in (ema, reference, alone):
            each.update()
    assert same_bits(ema.averages["v"], alone.averages["v"])
    for name in ("w", "v"):
        assert same_bits(ema.averages[name], reference.averages[name])
    assert ema.averages["w"] is old["w"]
    assert ema.num_updates == reference.num_updates == 6
    assert {n: s["step"] for n, s in ema.state_dict()["state"].items()} == {"w": 6, "v": 3}


def test_reference_has_the_same_face() -> None:
    for name in ("__init__", "add_param_group", "update", "state_dict", "load_state_dict"):
        fused, reference = (getattr(c, name) for c in (fo.WeightEMA, fo.reference.WeightEMA))
        assert inspect.signature(fused) == inspect.signature(reference)


def test_repr_says_what_it_holds() -> None:
    text = repr(fo.WeightEMA([np.ones((2, 3)), np.ones(2)], 0.75))
    for part in ("decay=0.75", "warmup=False", "num_updates=0", "2 arrays", "8 elements"):
        assert part in text


# -- applied -------------------------------------------------------------------------------------


def trained(module: Any = fo) -> tuple[dict[str, Any], Any]:
    """Parameters of several layouts, and their average after two updates."""
    rng = np.random.default_rng(3)
    params: dict[str, Any] = {
        "matrix": np.asfortranarray(rng.standard_normal((70, 50)).astype(np.float32)),
        "large": rng.standard_normal(50_000),
        "odd": hostile(rng, 101, np.float32),
        "scalar": np.ones(()),
        "empty": np.ones((0, 3)),
    }
    ema = module.WeightEMA(params, 0.5)
    ema.update()
    params["large"] += 1
    params["matrix"] *= np.float32(2)
    ema.update()
    params["odd"].view(np.uint32)[0] = 0x7F800001  # a signalling NaN stays one
    return params, ema


def test_applied_puts_the_averages_in_and_the_parameters_back(setting: Setting) -> None:
    params, ema = trained()
    before = {name: bits(p) for name, p in params.items()}
    averages = {name: a.copy() for name, a in ema.averages.items()}
    for _ in range(2):
        with ema.applied():
            for name, param in params.items():
                assert same_bits(param, averages[name])
            params["large"] *= 3.0  # lost
        for name, param in params.items():
            assert bits(param) == before[name]
            assert same_bits(ema.averages[name], averages[name])
        assert ema.num_updates == 2
    params, reference = trained(fo.reference)
    with reference.applied():
        assert all(same_bits(p, averages[name]) for name, p in params.items())
    assert {name: bits(p) for name, p in params.items()} == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_applied_restores_after_an_exception(error: type[BaseException]) -> None:
    params, ema = trained()
    before = {name: bits(p) for name, p in params.items()}

    def evaluate() -> None:
        with ema.applied():
            assert bits(params["large"]) != before["large"]
            raise error

    with pytest.raises(error):
        evaluate()
    assert {name: bits(p) for name, p in params.items()} == before
    ema.update()


def test_within_applied_nothing_may_be_averaged() -> None:
    params, ema = trained()
    before = {name: bits(p) for name, p in params.items()}
    with ema.applied():
        averages = {name: a.copy() for name, a in ema.averages.items()}
        attempts: list[Callable[[], Any]] = [
            ema.update,
            ema.applied().__enter__,
            lambda: ema.add_param_group({"params": {"new": np.ones(2)}}),
        ]
        for attempt in attempts:
            with pytest.raises(RuntimeError, match=r"within applied\(\)"):
                attempt()
        for name, param in params.items():
            assert same_bits(param, averages[name])
            assert same_bits(ema.averages[name], averages[name])
    assert {name: bits(p) for name, p in params.items()} == before
    assert ema.num_updates == 2


def test_no_write_beside_the_arrays(threads: int) -> None:
    memory = np.full(60_000, 7, np.float32)
    inner = {"a": memory[5:40_000], "b": memory[40_009:59_997]}
    guards = np.ones(memory.size, bool)
    guards[5:40_000] = guards[40_009:59_997] = False
    ema = fo.WeightEMA(inner)
    ema.update()
    for array in inner.values():
        array *= 2
    ema.update()
    with ema.applied():
        assert np.all(memory[guards] == 7)
        assert not np.any(memory[~guards] == 14)
    assert np.all(memory[guards] == 7)
    assert np.all(memory[~guards] == 14)


# -- state dicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_save_load_continue_equals_continue(options: dict[str, Any], tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    rng = np.random.default_rng(5)
    values = [rng.standard_normal((4, 6)).astype(np.float32) for _ in range(6)]
    p, q = values[0].copy(), np.asfortranarray(values[0])
    straight, resumed = fo.WeightEMA([p], **options), fo.WeightEMA([q], 0.123)
    for value in values[:3]:
        p[...] = value
        straight.update()
    fo.save(tmp_path / "c.safetensors", ema=straight)
    fo.load(tmp_path / "c.safetensors", ema=resumed)
    assert (resumed.decay, resumed.warmup) == (straight.decay, straight.warmup)
    for value in values[3:]:
        p[...] = q[...] = value
        straight.update()
        resumed.update()
    assert same_bits(straight.averages["0"], resumed.averages["0"])
    assert straight.num_updates == resumed.num_updates == 6


def test_loading_copies_in() -> None:
    params, ema = trained()
    saved = copy.deepcopy(ema.state_dict())
    arrays = dict(ema.averages)
    params["large"] += 1
    ema.update()
    ema.load_state_dict(saved)
    for name, entry in saved["state"].items():
        assert ema.averages[name] is arrays[name]
        assert same_bits(arrays[name], entry["average"])
        assert not np.shares_memory(arrays[name], entry["average"])
    assert ema.num_updates == 2
    ema.load_state_dict(ema.state_dict())  # its own
    assert same_bits(ema.averages["large"], saved["state"]["large"]["average"])


def test_state_dicts_that_do_not_match() -> None:
    p, q = ones(3), ones(2)
    ema = fo.WeightEMA({"p": p, "q": q}, 0.9)
    ema.update()

    def load(change: Callable[[dict[str, Any]], object]) -> None:
        saved = copy.deepcopy(ema.state_dict())
        for entry in saved["state"].values():
            entry["average"] += 1  # values that a change would show
            entry["step"] += 1
        saved["decay"] = 0.5
        change(saved)
        ema.load_state_dict(saved)

    cases: list[tuple[Callable[[dict[str, Any]], object], type[Exception], str]] = [
        (lambda d: d.pop("state"), KeyError, "missing: 'state'"),
        (lambda d: d.pop("decay"), KeyError, "missing: 'decay'"),
        (lambda d: d.update(power=1), KeyError, "not known: 'power'"),
        (lambda d: d.update(decay=1.5), ValueError, "decay must be in [0, 1], not 1.5"),
        (lambda d: d.update(warmup="yes"), TypeError, "warmup"),
        (lambda d: d["state"].pop("q"), KeyError, "missing: 'q'"),
        (lambda d: d["state"].update(r={}), KeyError, "not known: 'r'"),
        (lambda d: d["state"].update(q=None), TypeError, "'q'"),
        (lambda d: d["state"]["q"].pop("average"), KeyError, "missing: 'average'"),
        (lambda d: d["state"]["q"].pop("step"), KeyError, "missing: 'step'"),
        (lambda d: d["state"]["q"].update(step=1.5), TypeError, "1.5"),
        (lambda d: d["state"]["q"].update(step=-1), ValueError, "-1"),
        (lambda d: d["state"]["q"].update(average=np.ones(2)), TypeError, "float64"),
        (lambda d: d["state"]["q"].update(average=ones(3)), ValueError, "(3,)"),
        (lambda d: d["state"]["q"].update(average=[1, 2]), TypeError, "list"),
    ]
    arrays = list(ema.averages.values())
    for change, error, word in cases:
        with refused(error, word, arrays=[p, q, *arrays]):
            load(change)
        assert (ema.decay, ema.warmup, ema.num_updates) == (0.9, False, 1)
    with refused(TypeError, "None", arrays=arrays):
        ema.load_state_dict(None)  # type: ignore[arg-type]


def test_copies_are_refused_with_the_way_out() -> None:
    ema = fo.WeightEMA([ones(2)])
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            attempt(ema)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*r[1:], id=r[0]) for r in BAD_PARAMS]
)
def test_parameters(make: Callable[[], Any], error: type[Exception], word: str) -> None:
    good = ones(3)
    with refused(error, "parameter 'bad'", word, arrays=[good]):
        fo.WeightEMA({"good": good, "bad": make()})
    ema = fo.WeightEMA({"good": good})
    with refused(error, "parameter 'bad'", word, arrays=[good]):
        ema.add_param_group({"params": {"bad": make()}})
    assert list(ema.averages) == ["good"]
    ema.update()
    assert ema.num_updates == 1


def test_names_and_overlaps() -> None:
    memory = ones(20)
    with refused(ValueError, "'a'", "'b'", "share memory"):
        fo.WeightEMA({"a": memory[:10], "b": memory[9:15]})
    ema = fo.WeightEMA({"a": memory[:10]})
    with refused(ValueError, "'a'", "'c'", "share memory"):
        ema.add_param_group({"params": {"c": memory[5:8]}})
    with refused(ValueError, "'a'"):
        ema.add_param_group({"params": {"a": ones(2)}})
    with refused(ValueError, "params"):
        ema.add_param_group({"lr": 1.0})
    with refused(ValueError, "empty"):
        fo.WeightEMA([])
    with refused(TypeError, "ndarray"):
        fo.WeightEMA(memory)
    assert list(ema.averages) == ["a"]


@pytest.mark.parametrize("decay", [-0.1, 1.001, float("nan"), float("inf"), "slow", None])
def test_decays(decay: Any) -> None:
    error = ValueError if isinstance(decay, float) else TypeError
    p = ones(3)
    with refused(error, "decay", repr(decay)):
        fo.WeightEMA([p], decay)
    ema = fo.WeightEMA([p])
    ema.update()
    p += 1
    ema.decay = decay
    with refused(error, "decay", repr(decay), arrays=[p, ema.averages["0"]]):
        ema.update()
    assert ema.num_updates == 1


def test_arrays_that_changed_between_updates() -> None:
    p, q = ones(6), ones(4)
    ema = fo.WeightEMA({"p": p, "q": q})
    ema.update()
    p += 1
    arrays = [p, q, *ema.averages.values()]
    q.flags.writeable = False
    ema.update()  # only read
    with refused(ValueError, "parameter 'q'", "read-only", arrays=arrays), ema.applied():
        pass
    q.flags.writeable = True
    ema.averages["q"].flags.writeable = False
    with refused(ValueError, "average of 'q'", "read-only", arrays=arrays):
        ema.update()
    ema.averages["q"].flags.writeable = True
    q.resize(2, refcheck=False)
    with refused(ValueError, "parameter 'q'", "(2,)", "average of 'q'", arrays=arrays):
        ema.update()
    words = ("parameter 'q'", "(2,)", "average of 'q'")
    with refused(ValueError, *words, arrays=arrays), ema.applied():
        pass
    assert ema.num_updates == 2


def test_one_thread_at_a_time() -> None:
    """The second thread gets an error, and every update that was made is counted."""
    ema = fo.WeightEMA([at_offset(np.ones(3_000_000, np.float32), 1)])
    done: list[int] = []

    def work() -> None:
        for _ in range(40):
            try:
                ema.update()
            except RuntimeError as error:
                assert "this WeightEMA is in use by another thread" in str(error)  # noqa: PT017
            else:
                done.append(1)

    team = [threading.Thread(target=work) for _ in range(2)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert ema.num_updates == len(done) >= 40


def test_what_is_saved_within_applied(tmp_path: Path) -> None:
    params = {"w": np.zeros(2)}
    ema = fo.WeightEMA(params, decay=0.5)
    ema.update()
    params["w"][:] = 4
    ema.update()
    with ema.applied():
        with pytest.raises(RuntimeError, match=r"state_dict\(\) within applied\(\)"):
            fo.save(tmp_path / "x", params=params, ema=ema)
        assert not (tmp_path / "x").exists()
        fo.save(tmp_path / "x", params=params)
    saved = fo.load(tmp_path / "x").params
    assert saved is not None
    assert saved["w"].tolist() == [2, 2]
    assert params["w"].tolist() == [4, 4]
