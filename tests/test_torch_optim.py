"""`fastopt.torch`: the optimizers beside those of torch 2.13, and what torch expects of them.

The inputs and the errors of the table of torch's own tests, `optim_db`, run on our classes. These
parts of it do not apply, because all tensors are on the CPU:

- the inputs with `capturable`, and the errors of CUDA: torch gives them for CUDA alone
- `differentiable`: it is refused
- the tests of `foreach` and `fused` against the loop: both are accepted and change nothing
"""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from cases import FUNCTIONS, Case
from helpers import check, same_bits
from type_cases import KINDS, Kind

torch = pytest.importorskip("torch")

from torch.nn import Parameter  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import fastopt.torch as ft  # noqa: E402

CASES = [
    Case("SGD", {"lr": 0.1}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}),
    Case("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    Case("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    Case("AdamW", {"lr": 0.01, "betas": (0.8, 0.9), "maximize": True}),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_name = pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
HALF = (torch.bfloat16, torch.float16)
# With these options a step needs every state in `FUNCTIONS`.
ALL_STATES = [
    Case("SGD", {"momentum": 0.9}),
    Case("RMSprop", {"momentum": 0.9, "centered": True}),
    Case("Adam", {"amsgrad": True}),
    Case("AdamW", {"amsgrad": True}),
]


def ours(case: Case, params: Any, **options: Any) -> Any:
    return getattr(ft, case.name)(params, **case.options, **options)


def theirs(case: Case, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, case.name)(params, **case.options, **options)


def noise(seed: int, *shape: int, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def layouts(dtype: Any = torch.float32) -> list[Any]:
    """Return parameters in every memory layout; each call returns new ones of the same values."""
    tensors = [
        noise(0, 3, 4),
        noise(1).reshape(()),
        noise(2, 0, 3),
        noise(3, 20_001),
        noise(4, 5, 7).T,
        noise(5, 6, 8)[:, ::2],
        noise(6, 2, 3, 4, 5).to(memory_format=torch.channels_last),
        noise(7, 2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
        noise(8, 40)[3:],
    ]
    return [Parameter(tensor.to(dtype)) for tensor in tensors]


def small(dtype: Any = torch.float32) -> list[Any]:
    return [Parameter(noise(i, *shape, dtype=dtype)) for i, shape in enumerate([(3, 4), (5,), ()])]


def set_grads(params: list[Any], step: int, dtype: Any = None) -> None:
    """Set gradients that depend on the number of the step, of other strides than the parameters."""
    for i, p in enumerate(params):
        grad = noise(1000 * step + i, *p.shape) + 0.1
        p.grad, p.grad_dtype = None, dtype or p.dtype
        p.grad = grad.to(dtype or p.dtype)


def train(optimizer: Any, params: list[Any], steps: Any, **arguments: Any) -> None:
    for step in steps:
        set_grads(params, step)
        optimizer.step(**arguments)


def states(optimizer: Any) -> list[Any]:
    """Return copies of all parameters and states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy([(p.detach(), optimizer.state.get(p, {})) for p in params])


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@contextmanager
def refused(error: type[Exception], match: str, optimizer: Any) -> Iterator[None]:
    """Expect an error that leaves the parameters, the states and the counters as they were."""
    before = states(optimizer)
    with pytest.raises(error, match=match):
        yield
    assert_same(states(optimizer), before)


def one_group(params: list[Any]) -> Any:
    return params


def two_groups(params: list[Any]) -> Any:
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.03, "weight_decay": 0.2}]


def run_beside_torch(
    case: Case,
    dtype: Any,
    make: Callable[[Any], list[Any]] = small,
    groups: Callable[[list[Any]], Any] = one_group,
    **flags: bool,
) -> None:
    """Compare ten steps with the loop of torch, with missing and late gradients."""
    params, others = make(dtype), make(dtype)
    optimizer = ours(case, groups(params), **flags)
    witness = theirs(case, groups(others), foreach=False)
    before = [p.detach().clone() for p in others]
    travelled = [abs(p) for p in before]
    for step in range(10):
        for tensors in (params, others):
            set_grads(tensors, step)
            if step in (0, 4):
                tensors[0].grad = None
            if step in (3, 5):
                tensors[-1].grad = None
        optimizer.step()
        witness.step()
        for i, p in enumerate(others):
            travelled[i] += abs(p.detach() - before[i])
            before[i] = p.detach().clone()
    # About half a unit in the last place of what moved for each of ten steps; in float64 torch's
    # own 1 - 0.999**1 is off by 500 units.
    bound = 8 * 2.0**-24 if dtype == torch.float32 else 1e-12
    for i, (p, q) in enumerate(zip(params, others, strict=True)):
        assert torch.all(abs(p - q) <= bound * travelled[i]), (case, i)
        state, other = optimizer.state.get(p, {}), witness.state.get(q, {})
        assert state.keys() == other.keys()
        for key, value in state.items():
            assert key == "step" or value.stride() == torch.zeros_like(p).stride()
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            torch.testing.assert_close(value, other[key], rtol=tolerance, atol=tolerance)
    assert len(optimizer.state) == len(witness.state)


def from_torch(name: str) -> Any:
    """Return the row of an optimizer in the table of torch's tests."""
    pytest.importorskip("expecttest")
    import torch.testing._internal.common_optimizers as table

    settings.load_profile("fastopt")  # the import loads another one
    return next(info for info in table.optim_db if info.name == name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_name
def test_inputs_of_optim_db(name: str, dtype: Any) -> None:
    rows = [row.kwargs for row in from_torch(name).optim_inputs_func("cpu", dtype)]
    assert len(rows) >= 5
    rows.append({"lr": torch.tensor([0.01], dtype=dtype)})
    if "Adam" in name:
        rows.append({"betas": tuple(torch.tensor([[0.9], [0.99]], dtype=dtype))})
    for options in rows:
        run_beside_torch(Case(name, options), dtype)
        if name != "RMSprop":  # which has no fused form
            run_beside_torch(Case(name, options), dtype, fused=True)
        if not any(map(torch.is_tensor, (options.get("lr"), *options.get("betas", ())))):
            run_beside_torch(Case(name, options), dtype, foreach=True)  # torch refuses tensors


@each_name
def test_errors_of_optim_db(name: str) -> None:
    rows = from_torch(name).optim_error_inputs_func("cpu", torch.float32)
    assert len(rows) >= 7
    for row in rows:
        given = row.optimizer_error_input
        params = given.params if given.params is not None else small()
        with pytest.raises(row.error_type, match=row.error_regex):
            getattr(ft, name)(params, **given.kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_layouts_and_groups(case: Case, dtype: Any) -> None:
    run_beside_torch(case, dtype, layouts, two_groups)


@each_name
def test_defaults_are_those_of_torch(name: str) -> None:
    optimizer, witness = ours(Case(name), small()), theirs(Case(name), small())
    assert isinstance(optimizer, type(witness))
    own = {"max_norm", "master_weights", "store_param_remainders", "stochastic_rounding", "seed"}
    own |= {"exp_avg_dtype", "exp_avg_sq_dtype"} if "Adam" in name else {"state_dtype"}
    assert optimizer.defaults.keys() - witness.defaults.keys() == own
    assert optimizer.defaults | witness.defaults == optimizer.defaults
    assert isinstance(ft.AdamW(small()), ft.Adam)
    assert repr(optimizer).startswith(name)


@each_case
def test_state_dicts_to_torch_and_back(case: Case) -> None:
    dtype = torch.float64
    params, alone = small(dtype), small(dtype)
    witness = theirs(case, two_groups(alone))
    train(witness, alone, range(9))
    first = theirs(case, two_groups(params))
    train(first, params, range(3))
    optimizer = ours(case, two_groups(params), max_norm=1e9, seed=5)
    optimizer.load_state_dict(first.state_dict())
    assert optimizer.param_groups[1]["lr"] == 0.03
    assert optimizer.param_groups[1]["max_norm"] == 1e9  # torch's state dict does not have it
    assert optimizer.param_groups[1]["seed"] == 5
    train(optimizer, params, range(3, 6))
    last = theirs(case, two_groups(params))
    last.load_state_dict(optimizer.state_dict())
    train(last, params, range(6, 9))
    for p, q in zip(params, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last.state[p], witness.state[q], rtol=1e-12, atol=1e-12)


def by_pickle(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def by_file(optimizer: Any) -> Any:
    params = [copy.deepcopy(group["params"]) for group in optimizer.param_groups]
    result = type(optimizer)([{"params": p} for p in params])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    result.load_state_dict(torch.load(file, weights_only=True))
    return result


@pytest.mark.parametrize("again", [copy.deepcopy, by_pickle, by_file])
@each_case
def test_copies_go_on_with_the_same_bits(case: Case, again: Any) -> None:
    params = layouts()
    optimizer = ours(case, two_groups(params), max_norm=3.0)
    train(optimizer, params, range(2))
    other = again(optimizer)
    train(optimizer, params, range(2, 4))
    train(other, [p for g in other.param_groups for p in g["params"]], range(2, 4))
    assert_same(states(other), states(optimizer))
    assert other.grad_norm == optimizer.grad_norm
    assert type(other) is type(optimizer)


def test_number_as_step_of_an_old_state_dict() -> None:
    (p,) = params = small()[:1]
    optimizer = ft.Adam(params)
    train(optimizer, params, [0])
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = 7
    optimizer.load_state_dict(saved)
    # Without a state dict, too; and a counter that was cast together with a model.
    for number in (7, torch.tensor(7.0, dtype=torch.bfloat16)):
        optimizer.state[p]["step"] = number
        optimizer.step()
        assert_same(optimizer.state[p]["step"], torch.tensor(8.0))


def test_hooks_run_once_and_in_the_order_of_torch() -> None:
    params = small()
    calls: list[str] = []
    ft.SGD(params)  # the hooks are put around the step of each class when it is first used
    for cls in (ft.Adam, ft.AdamW):
        optimizer = cls(params)
        calls.clear()

        def before(opt: Any, args: Any, kwargs: Any) -> Any:
            calls.append("pre")
            return args, kwargs | {"max_norm": 0.5}

        def after(opt: Any, args: Any, kwargs: Any) -> None:
            calls.append(f"post {kwargs['max_norm']} {opt.grad_norm is not None}")

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        everyone = register_optimizer_step_pre_hook(lambda *_: calls.append("global"))
        with everyone:
            train(optimizer, params, [0], max_norm=7.0)
        assert calls == ["global", "pre", "post 0.5 True"]


def test_hooks_and_a_profiler_that_come_later() -> None:
    params = small()
    optimizer = ft.AdamW(params)
    train(optimizer, params, [0])
    calls: list[str] = []
    with optimizer.register_step_post_hook(lambda *_: calls.append("own")):
        train(optimizer, params, [1])
    with register_optimizer_step_post_hook(lambda *_: calls.append("global")):
        train(optimizer, params, [2])
    with torch.profiler.profile() as profile:
        train(optimizer, params, [3])
    train(optimizer, params, [4])
    assert calls == ["own", "global"]
    names = [event.name for event in profile.events()]
    assert names.count("Optimizer.step#AdamW.step") == 1


def test_what_is_behind_the_objects_changes_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    params, others = small(), small()
    optimizer, witness = ft.AdamW(params, lr=0.1), ft.AdamW(others, lr=0.1)
    for step in range(3):
        train(optimizer, params, [step])
        train(witness, others, [step])
        for p in params:
            state = optimizer.state[p]
            for tensor in (p, *state.values()):  # the same object gets the memory of another one
                copied = tensor.detach().clone()
                torch.utils.swap_tensors(tensor, Parameter(copied) if tensor is p else copied)
            state["step"].share_memory_()
            # Equal keys that are other objects, in another order.
            optimizer.state[p] = {"".join([*key]): state[key] for key in reversed(state)}
    grads = {p: torch.full_like(p, 2.0) for p in params}
    monkeypatch.setattr(Parameter, "grad", property(grads.get), raising=False)
    optimizer.step()
    monkeypatch.undo()
    for p in others:
        p.grad = torch.full_like(p, 2.0)
    witness.step()
    assert_same(states(optimizer), states(witness))


def test_hooks_of_state_dicts() -> None:
    params = small(torch.bfloat16)
    optimizer = ft.AdamW(params)
    train(optimizer, params, [0])
    calls: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, d: d | {"extra": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda opt, d: d | {"state": {0: d["state"][0] | {"exp_avg": torch.full((3, 4), 0.3)}}}
    )
    seen = optimizer.register_load_state_dict_post_hook(
        lambda opt: calls.append(opt.state[params[0]]["exp_avg"].dtype)
    )
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["pre", torch.float32]  # a hook sees the states as they are loaded
    assert_same(optimizer.state[params[0]]["exp_avg"], torch.full((3, 4), 0.3))
    assert len(optimizer.state) == 1
    seen.remove()
    assert not optimizer._optimizer_load_state_dict_post_hooks


@each_case
def test_closure(case: Case) -> None:
    p = Parameter(torch.full((3,), 2.0))
    optimizer = ours(case, [p])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert not torch.equal(p, torch.full((3,), 2.0))
    assert optimizer.step() is None
    with torch.no_grad():
        assert optimizer.step(closure=closure).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("unscaled_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@each_case
def test_grad_scaler(case: Case, fused: bool, unscaled_first: bool) -> None:
    if fused and case.name == "RMSprop":
        pytest.skip("torch's RMSprop has no such argument")
    params, others = small(), small()
    optimizer = ours(case, params, **{"fused": True} if fused else {})
    witness = ours(case, others)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        for p, q in zip(params, others, strict=True):
            q.grad = noise(step, *q.shape)
            p.grad = q.grad * 1024.0
        scaler.scale(torch.zeros(()))
        overflow = step in (0, 2)  # the first step too, which makes the states
        if overflow:
            params[1].grad.flatten()[0] = torch.inf
        if unscaled_first:
            scaler.unscale_(optimizer)
        grads = [p.grad.clone() for p in params]
        before = states(optimizer)
        scaler.step(optimizer)
        if fused:  # otherwise the scaler unscales them, and does not call a step after infinity
            assert_same([p.grad for p in params], grads)
            assert optimizer.skipped is overflow
        if overflow:
            assert_same(states(optimizer), before)
        else:
            witness.step()
        scaler.update(1024.0)
    assert_same(states(optimizer), states(witness))
    assert not hasattr(optimizer, "grad_scale")


def test_groups_and_states_swapped_between_steps() -> None:
    """DeepSpeed, Megatron and others replace the groups, the parameters and the states."""
    params, others = small(), small()
    optimizer, witness = ft.AdamW(params, lr=0.1), ft.AdamW(others, lr=0.1)
    groups = optimizer.param_groups
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        for p in params:  # one call for each parameter, from a new group
            optimizer.param_groups = [{**groups[0], "params": [p], "unknown": object()}]
            optimizer.step()
        optimizer.param_groups = groups
        witness.step()
        optimizer.state = copy.copy(optimizer.state)
        for p in params:
            optimizer.state[p] = {k: v.clone() for k, v in optimizer.state[p].items()}
            p.data = p.data.clone()
            p.grad = None
    assert_same(states(optimizer), states(witness))
    optimizer.param_groups = []
    optimizer.step()
    optimizer.param_groups = [{**groups[0], "params": []}]
    optimizer.step()
    # A group that others made, with the options of torch alone.
    torch_group = torch.optim.AdamW(small(), lr=0.1).param_groups[0]
    optimizer.param_groups = [{**torch_group, "params": params}]
    train(optimizer, params, [3])
    train(witness, others, [3])
    assert_same([p.detach() for p in params], [p.detach() for p in others])


@each_case
def test_parameters_of_numpy_and_torch_get_the_same_bits(case: Case) -> None:
    params = [noise(0, 3000), noise(1, 30)]
    arrays = [p.numpy().copy() for p in params]
    tensors = [Parameter(p) for p in params]
    optimizer, witness = ours(case, tensors), case.fused(arrays)
    for step in range(3):
        set_grads(tensors, step)
        optimizer.step(max_norm=1.0)
        info = witness.step([p.grad.numpy() for p in tensors], max_norm=1.0)
        assert info.grad_norm == optimizer.grad_norm
    for tensor, array in zip(tensors, arrays, strict=True):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)


def array_of(tensor: Any) -> Any:
    if tensor.dtype == torch.bfloat16:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


@pytest.mark.parametrize(
    ("case", "kind"), [(c, k) for c in ALL_STATES for k in KINDS if k.fits(c)], ids=str
)
def test_types(case: Case, kind: Kind) -> None:
    """Every mix of types beside the NumPy class, bit for bit."""
    own = dict(kind.options)
    master, state = own.pop("master", None), own.pop("state_dtype", None)
    names = ["exp_avg_dtype", "exp_avg_sq_dtype"] if "Adam" in case.name else ["state_dtype"]
    own |= {name: getattr(torch, state) for name in names if state}
    dtype = getattr(torch, str(kind.param))
    params = [Parameter(noise(i, size, dtype=dtype)) for i, size in enumerate([3000, 30])]
    arrays = [array_of(p).copy() for p in params]
    masters = {"master_weights": bool(master), "store_param_remainders": master == "split"}
    optimizer, witness = ours(case, params, **own, **masters), kind.of(case).fused(arrays)
    for step, grad_type in enumerate([torch.float32, *HALF]):
        set_grads(params, step, grad_type)
        optimizer.step(max_norm=2.0)
        witness.step([array_of(p.grad) for p in params], max_norm=2.0)
    for i, (p, array) in enumerate(zip(params, arrays, strict=True)):
        assert same_bits(array_of(p), array)
        for key, value in witness.state[str(i)].items():
            if key != "step":
                assert same_bits(array_of(optimizer.state[p][key]), value), key


def test_loaded_states_keep_their_type() -> None:
    params = small(torch.bfloat16)
    options = {"master_weights": True, "store_param_remainders": True}
    optimizer = ft.AdamW(params, exp_avg_dtype=torch.bfloat16, **options)
    train(optimizer, params, range(2))
    other = ft.AdamW(small(torch.bfloat16), **options)  # whose own states would be float32
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for (_, state), (_, loaded) in zip(states(optimizer), states(other), strict=True):
        assert_same(loaded, state)
    assert other.param_groups[0]["exp_avg_dtype"] == torch.bfloat16
    kinds = {
        key: value.dtype for key, value in other.state[other.param_groups[0]["params"][0]].items()
    }
    assert kinds == {
        "step": torch.float32,
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.float32,
        "master_param": torch.int16,
    }


FLOATS = (torch.float64, torch.float32, *HALF)


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("saved", FLOATS, ids=str)
@pytest.mark.parametrize("kind", [*FLOATS, torch.complex64], ids=str)
@pytest.mark.parametrize("case", ALL_STATES[:3], ids=str)
@pytest.mark.filterwarnings("ignore:torch steps parameter 0 .*complex64:UserWarning")
def test_a_step_takes_loaded_states_of_every_type(
    case: Case, kind: Any, saved: Any, master: bool
) -> None:
    p = Parameter(noise(0, 3).to(kind))
    p.grad = torch.ones_like(p)
    optimizer = ours(case, [p], master_weights=master)
    optimizer.step()
    state_dict = copy.deepcopy(optimizer.state_dict())
    state = state_dict["state"][0]
    names = FUNCTIONS[case.name][1]
    state |= {name: state[name].to(kind if kind.is_complex else saved) for name in names}
    optimizer.load_state_dict(state_dict)
    expected = kind  # torch's
    if kind in (torch.float32, torch.bfloat16) or (kind == torch.float16 and master):
        expected = saved if saved in (torch.float32, torch.bfloat16) else torch.float32
    assert {optimizer.state[p][name].dtype for name in names} == {expected}
    optimizer.step()


def test_masters_that_torch_has_cast_are_refused() -> None:
    params = small(torch.bfloat16)
    optimizer = ft.AdamW(params, master_weights=True, store_param_remainders=True)
    train(optimizer, params, range(2))
    witness = torch.optim.AdamW(params)
    witness.load_state_dict(optimizer.state_dict())
    with refused(TypeError, "master_param of parameter 0 has dtype torch.bfloat16", optimizer):
        optimizer.load_state_dict(witness.state_dict())


def test_states_that_are_there_are_used_whatever_their_type() -> None:
    (p,) = params = [Parameter(noise(0, 50))]
    optimizer = ft.AdamW(params)
    moment = torch.zeros(50, dtype=torch.bfloat16)
    optimizer.state[p]["exp_avg"] = moment  # as torchtitan does before the first step
    train(optimizer, params, [0])
    assert optimizer.state[p]["exp_avg"] is moment
    assert moment.any()
    assert optimizer.state[p].keys() == {"exp_avg", "step", "exp_avg_sq"}


@pytest.mark.parametrize("kind", HALF, ids=str)
@each_case
def test_masters_make_the_steps_of_float32(case: Case, kind: Any) -> None:
    params = small(kind)
    others = [Parameter(p.detach().float()) for p in params]
    split = kind == torch.bfloat16
    optimizer = ours(case, params, master_weights=True, store_param_remainders=split)
    witness = ours(case, others)
    for step in range(5):
        set_grads(params, step)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        witness.step()
    for p, q in zip(params, others, strict=True):
        if not split:
            assert_same(p.detach(), q.detach().to(kind))
            assert_same(optimizer.state[p]["master_param"], q.detach())
        else:
            assert optimizer.state[p]["master_param"].dtype == torch.int16
            torch.testing.assert_close(p.detach(), q.detach().to(kind))


@each_case
def test_complex_parameters_get_the_step_of_torch(case: Case) -> None:
    def mixed() -> list[Any]:
        return [*small(), Parameter(torch.complex(noise(8, 4), noise(9, 4)))]

    params, others = mixed(), mixed()
    optimizer = ours(case, params)
    witness = theirs(case, others)
    for step in range(3):
        for tensors in (params, others):
            set_grads(tensors[:-1], step)
            tensors[-1].grad = torch.complex(noise(step, 4), noise(step + 9, 4))
        optimizer.grad_scale = torch.tensor(1.0)  # which torch's loop does not take
        optimizer.step()
        witness.step()
    assert_same(params[-1], others[-1])
    assert_same(optimizer.state[params[-1]], witness.state[others[-1]])
    torch.testing.assert_close(params, others)
    for p in params:
        p.grad = p.grad * 4
    for p in others:
        p.grad = p.grad.clone()
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()
    witness.step()
    torch.testing.assert_close(params, others)
    with refused(TypeError, "'3' is left to torch .*max_norm", optimizer):
        optimizer.step(max_norm=1.0)
    with refused(TypeError, "skip_nonfinite", optimizer):
        optimizer.step(skip_nonfinite=True)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("SGD", {"state_dtype": torch.bfloat16}),
        ("RMSprop", {"stochastic_rounding": True}),
        ("AdamW", {"exp_avg_dtype": torch.float32}),
        ("AdamW", {"exp_avg_sq_dtype": torch.bfloat16}),
        ("AdamW", {"master_weights": True}),
    ],
)
def test_one_warning_of_an_option_that_torch_ignores(name: str, option: Any) -> None:
    params = [*small(), Parameter(torch.complex(noise(8, 4), noise(9, 4)))]
    train(ours(Case(name), two_groups(params)), params, [0])
    params[-1].grad = None
    train(ours(Case(name), params, **option), params[:-1], [0])  # without a warning
    optimizer = ours(Case(name), two_groups(params), **option)
    set_grads(params, 0)
    message = f"torch steps parameter 3 .*complex64, on cpu.*the option {next(iter(option))};"
    with pytest.warns(UserWarning, match=message) as record:
        optimizer.step()
    optimizer.step()  # without a warning
    assert [warning.filename for warning in record] == [__file__]


@each_case
def test_float16_without_a_master_gets_the_step_of_torch(case: Case) -> None:
    params, others = small(torch.float16), small(torch.float16)
    eps = {} if case.name == "SGD" else {"eps": 0.1}
    optimizer, witness = ours(case, params, **eps), theirs(Case(case.name), others)
    witness.load_state_dict(optimizer.state_dict())
    train(optimizer, params, range(3))
    train(witness, others, range(3))
    assert_same(states(optimizer), states(witness))


def test_sparse_gradients() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), torch.tensor([1.0, -2.0]), (4,), check_invariants=True
    )
    params, others = [Parameter(noise(0, 4)), *small()], [Parameter(noise(0, 4)), *small()]
    optimizer, witness = ft.SGD(params, lr=0.1), torch.optim.SGD(others, lr=0.1)
    for grad in (sparse, torch.ones(4), sparse):  # also in the place of a dense one
        for tensors in (params, others):
            set_grads(tensors[1:], 0)
            tensors[0].grad = grad
        optimizer.step()
        witness.step()
        torch.testing.assert_close(params, others)
    for cls in (ft.Adam, ft.RMSprop):
        other = cls(params)  # the dense parameters do not move either
        with refused(RuntimeError, "does not support sparse gradients", other):
            other.step()


@pytest.mark.parametrize("name", ["RMSprop", "Adam", "AdamW"])
def test_a_sparse_gradient_in_the_last_group(name: str) -> None:
    params = [Parameter(torch.complex(noise(8, 4), noise(9, 4))), Parameter(noise(0, 4))]
    optimizer = ours(Case(name), two_groups(params))
    params[0].grad = torch.ones_like(params[0])
    params[1].grad = torch.ones(4).to_sparse()
    message = f"{name} does not support sparse gradients; use SGD, or torch.optim.SparseAdam"
    with refused(RuntimeError, message, optimizer):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"capturable": True}, ValueError, "capturable=False"),
        ({"differentiable": True}, ValueError, "differentiable=False"),
        ({"exp_avg_dtype": torch.float64}, ValueError, "exp_avg_dtype must be None"),
        ({"exp_avg_sq_dtype": "bfloat16"}, TypeError, "exp_avg_sq_dtype must be None"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be >= 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"master_weights": "yes"}, TypeError, "master_weights must be True or False"),
        ({"store_param_remainders": True}, ValueError, "needs master_weights=True"),
        ({"momentum": 0.9}, TypeError, "unexpected keyword argument 'momentum'"),
    ],
)
def test_refused_options(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        ft.AdamW(small(), **options)
    params = small()
    optimizer = ft.AdamW(params)
    set_grads(params, 0)
    if "momentum" not in options:  # a key that nobody reads
        optimizer.param_groups[0] |= options
        with refused(error, match, optimizer):
            optimizer.step()


@pytest.mark.parametrize("bound", [0.1, 1e9, None])
@each_case
def test_max_norm_is_clip_grad_norm(case: Case, bound: float | None) -> None:
    params, others = layouts(), layouts()
    optimizer = ours(case, two_groups(params), max_norm=bound)
    witness = theirs(case, two_groups(others), foreach=False)
    for step in range(3):
        set_grads(params, step)
        set_grads(others, step)
        if step == 2:
            bound = 0.02
            optimizer.step(max_norm=bound)
        else:
            optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(others, bound or torch.inf)
        if bound is None:
            assert optimizer.grad_norm is None
        else:
            assert optimizer.grad_norm == pytest.approx(norm.item(), rel=1e-6)
        witness.step()
    torch.testing.assert_close(params, others, rtol=1e-5, atol=1e-5)
    optimizer.step(max_norm=None)
    assert optimizer.grad_norm == pytest.approx(norm.item(), rel=1e-6)  # of the last that had one


def test_groups_must_agree_in_max_norm() -> None:
    params = small()
    optimizer = ft.SGD([{"params": params[:1]}, {"params": params[1:], "max_norm": 2.0}])
    set_grads(params, 0)
    with refused(ValueError, r"differ in max_norm: \[None, 2.0\]", optimizer):
        optimizer.step()
    optimizer.step(max_norm=2.0)
    with refused(ValueError, "max_norm", optimizer):
        optimizer.step(max_norm=-1.0)


@each_case
def test_skip_nonfinite(case: Case) -> None:
    params = small()
    optimizer = ours(case, params)
    set_grads(params, 0)
    params[2].grad.fill_(torch.nan)
    before = states(optimizer)
    optimizer.step(skip_nonfinite=True)
    assert_same(states(optimizer), before)
    assert optimizer.skipped
    assert np.isnan(optimizer.grad_norm)
    train(optimizer, params, [0], skip_nonfinite=True)
    assert not optimizer.skipped


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ALL_STATES, ids=str)
def test_first_step_of_distributed_checkpoints(case: Case, kind: Any, lr: Any) -> None:
    """It has gradients of zero and no learning rate, and makes the states alone."""
    params = [Parameter(torch.tensor([1.5, -0.0, 0.0, 3e-39, torch.inf], dtype=kind)), *small(kind)]
    optimizer = ours(case, params, lr=lr, master_weights=True)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    integers = torch.int32 if kind == torch.float32 else torch.int16
    for p, q in zip(params, before, strict=True):
        assert torch.equal(p.detach()[p.isfinite()].view(integers), q[p.isfinite()].view(integers))
        for key in FUNCTIONS[case.name][1]:
            assert not optimizer.state[p][key].isfinite().logical_not().any() or p is params[0]


def test_schedulers() -> None:
    params, others = small(torch.float64), small(torch.float64)
    for lr in (0.1, torch.tensor(0.1)):
        optimizer, witness = ft.AdamW(params, lr=lr), torch.optim.AdamW(others, lr=copy.copy(lr))
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=9)
            for o in (optimizer, witness)
        ]
        for step in range(8):
            train(optimizer, params, [step])
            train(witness, others, [step])
            for schedule in schedules:
                schedule.step()
        torch.testing.assert_close(params, others, rtol=1e-6, atol=1e-6)


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = ft.AdamW(model.named_parameters())
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


def test_parameters_added_later_and_zero_grad() -> None:
    params = small()
    optimizer = ft.SGD(params[:1], lr=0.1, momentum=0.9, foreach=True)
    train(optimizer, params[:1], [0])
    optimizer.add_param_group({"params": params[1:], "lr": 1.0})
    assert optimizer.param_groups[1]["stochastic_rounding"] is False
    set_grads(params, 1)
    before = params[1].detach().clone()
    optimizer.step()
    assert_same(params[1].detach(), before - params[1].grad)
    optimizer.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


BAD_LAST: list[tuple[str, Any, type[Exception]]] = [
    ("exp_avg", torch.zeros(4), ValueError),  # another shape
    ("exp_avg", [0.0] * 3, TypeError),
    ("exp_avg_sq", torch.zeros(3, dtype=torch.int64), TypeError),
    ("exp_avg_sq", torch.zeros(3, device="meta"), (TypeError, ValueError)),  # type: ignore[list-item]
    ("exp_avg", torch.zeros(1).expand(3), ValueError),  # one number in memory, three in the shape
    ("step", torch.zeros(2), TypeError),
    ("step", "7", TypeError),
    ("step", 0.5, ValueError),
    ("step", torch.tensor(-1.0), ValueError),
]


@pytest.mark.parametrize(("key", "value", "error"), BAD_LAST)
def test_a_bad_state_of_the_last_parameter(key: str, value: Any, error: Any) -> None:
    params = [*small(), Parameter(noise(9, 3))]
    optimizer = ft.AdamW(params)
    optimizer.state[params[-1]][key] = value
    set_grads(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(error, match=key):
        optimizer.step()
    assert_same([p.detach() for p in params], before)
    assert list(optimizer.state) == params[-1:]
    assert list(optimizer.state[params[-1]]) == [key]


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("lr", float("nan")), ("lr", torch.tensor(-1.0)), ("betas", (0.9, 1.5))],
)
def test_a_bad_option_of_the_last_group(option: str, value: Any) -> None:
    params = small()
    optimizer = ft.AdamW(two_groups(params))
    optimizer.param_groups[1][option] = value
    set_grads(params, 0)
    with refused(ValueError, option.rstrip("s"), optimizer):
        optimizer.step()
    assert not optimizer.state


@each_case
def test_a_step_counts_as_a_change_in_place(case: Case) -> None:
    p, still = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = ours(case, [p, still])
    loss = (p**2).sum()
    p.grad = torch.ones(3)
    version = p._version
    optimizer.step()
    assert p._version > version
    assert still._version == 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_calls_leave_nothing_behind() -> None:
    check(
        """
import gc, sys
import torch, fastopt.torch as ft

params = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(5).bfloat16())]
optimizer = ft.AdamW(params, master_weights=True, max_norm=1.0)
lists = [[torch.zeros(3)] for _ in range(4)]
logits, targets = torch.zeros(6, 4, requires_grad=True), torch.arange(6) % 4

def blocks_after(rounds):
    for _ in range(rounds):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        ft.functional.adamw_(*lists, [torch.zeros(())], out=[torch.zeros(3).bfloat16()])
        ft.cross_entropy(logits, targets).backward()
        (3 * ft.cross_entropy(logits, targets)).backward()
        state = optimizer.state[params[1]]
        optimizer.state[params[1]] = {**state, "exp_avg": torch.zeros(4)}
        try:
            optimizer.step()
        except ValueError:
            optimizer.state[params[1]] = {**state, "exp_avg": state["exp_avg"].clone()}
        try:
            ft.functional.sgd_(lists[0], [torch.zeros(4)])
        except ValueError:
            pass
        optimizer.state.pop(params[0])  # the next step makes it again
    gc.collect()
    return sys.getallocatedblocks()

before = blocks_after(1000)
more = blocks_after(1000) - before
assert more < 500, more  # one object of each round would be 1000
"""
    )


def test_distributed_tensors() -> None:
    """A process has the first of two parts of each parameter; the last part is empty."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))

        def part(tensor: Any, rows: int) -> Any:
            return DTensor.from_local(
                tensor.detach().clone(),
                mesh,
                [Shard(0)],
                run_check=False,
                shape=(rows, *tensor.shape[1:]),
                stride=tensor.stride(),
            )

        plain = [Parameter(noise(0, 2, 4)), Parameter(noise(1, 3)), Parameter(noise(2, 0, 3))]
        rows = [3, 6, 1]
        params = [Parameter(part(p, n)) for p, n in zip(plain, rows, strict=True)]
        optimizer, witness = ft.AdamW(params, lr=0.1), ft.AdamW(plain, lr=0.1)
        for step in range(2):
            set_grads(plain, step)
            for p, q, n in zip(params, plain, rows, strict=True):
                p.grad = part(q.grad, n)
            optimizer.step()
            witness.step()
        for p, q in zip(params, plain, strict=True):
            assert_same(p.detach().to_local(), q.detach())
            moment = optimizer.state[p]["exp_avg"]
            assert isinstance(moment, DTensor)
            assert (moment.shape, moment.placements) == (p.shape, p.placements)
            assert_same(moment.to_local(), witness.state[q]["exp_avg"])
        for arguments in ({"max_norm": 1.0}, {"skip_nonfinite": True}):
            with pytest.raises(TypeError, match="a DTensor over 2 processes"):
                optimizer.step(**arguments)
        # The parts of such a gradient are still to be added: torch does that.
        whole, parts = (
            DTensor.from_local(noise(i, 3), mesh, [kind], run_check=False)
            for i, kind in enumerate([Replicate(), Partial()])
        )
        left: list[Any] = []
        p = Parameter(whole)
        p.grad = parts
        optimizer = ft.AdamW([p])
        optimizer._step_in_torch = lambda group, scale: left.extend(group["params"])  # type: ignore[method-assign]
        optimizer.step()
        assert left[0] is p
    finally:
        torch.distributed.destroy_process_group()


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = type("AdamW", (torch.optim.Optimizer,), {})  # it was no subclass of Adam
    monkeypatch.setattr(torch.optim, "AdamW", old)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    with pytest.raises(ImportError, match=r"needs torch 2\.7 or newer, not 2\.6\.0"):
        importlib.reload(ft)


def test_nothing_changes_if_an_option_does_not_fit_the_kernels() -> None:
    params = [*small(), Parameter(torch.complex(noise(8, 4), noise(9, 4)))]
    optimizer = ft.AdamW(params, eps=1e-60)  # which vanishes in float32
    set_grads(params[:-1], 0)
    params[-1].grad = params[-1].detach().clone()
    with refused(ValueError, "eps is 1e-60", optimizer):
        optimizer.step()
    params = small()
    optimizer = ft.SGD(params, momentum=0.5)
    optimizer.state[params[0]]["momentum_buffer"] = None  # as torch writes it
    set_grads(params, 0)
    params[0].grad[0] = torch.nan
    optimizer.step(skip_nonfinite=True)
    assert dict(optimizer.state) == {params[0]: {"momentum_buffer": None}}


def test_examples_in_docstrings() -> None:
    for module in (ft, ft.optimizers, ft.functional):
        result = doctest.testmod(module)
        assert result.failed == 0
        assert result.attempted > 3 or module is ft


def test_views_of_one_tensor() -> None:
    """Parts of a tensor are stepped each by itself, and refused if they have elements in common."""
    base, plain = noise(0, 4, 5), noise(0, 4, 5)
    params, others = [[Parameter(x[:, :2]), Parameter(x[:, 2:])] for x in (base, plain)]
    optimizer, witness = ft.AdamW(params), torch.optim.AdamW(others)
    train(optimizer, params, range(3))
    train(witness, others, range(3))
    torch.testing.assert_close(base, plain)
    before = base.clone()
    params = [Parameter(base[:, :3]), Parameter(base[:, 2:])]
    set_grads(params, 0)
    with pytest.raises(ValueError, match="'0' and parameter '1' share memory"):
        ft.AdamW(params).step()
    assert_same(base, before)
