"""State dicts to torch and back: training goes on in the other library."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo

torch = pytest.importorskip("torch")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "maximize": True}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.9)}),
]
SHAPES = [(3, 4), (5,), ()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_training_goes_on_in_the_other_library(name: str, options: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    grads = [[rng.standard_normal(s).astype(dtype) for s in SHAPES] for _ in range(6)]

    def groups(arrays: list[Any]) -> list[dict[str, Any]]:
        return [{"params": arrays[:1]}, {"params": arrays[1:], "lr": 0.03}]

    def ours(arrays: list[Any]) -> fo.Optimizer:
        optimizer: fo.Optimizer = getattr(fo, name)(groups(arrays), **options)
        return optimizer

    def theirs(arrays: list[Any]) -> Any:
        return getattr(torch.optim, name)(groups(arrays), **options)

    def step(optimizer: Any, arrays: list[Any], gs: list[Any]) -> None:
        if isinstance(optimizer, fo.Optimizer):
            optimizer.step([gs[:1], gs[1:]])
            return
        for tensor, grad in zip(arrays, gs, strict=True):
            tensor.grad = torch.from_numpy(grad)
        optimizer.step()

    def as_tensors(arrays: list[Any]) -> list[Any]:
        return [torch.nn.Parameter(torch.from_numpy(np.array(a))) for a in arrays]

    p_ours, p_theirs = [a.copy() for a in start], as_tensors(start)
    o_ours, o_theirs = ours(p_ours), theirs(p_theirs)
    for gs in grads[:3]:
        step(o_ours, p_ours, gs)
        step(o_theirs, p_theirs, gs)
    # Each continues in the other library.
    q_ours = [p.detach().numpy().copy() for p in p_theirs]
    q_theirs = as_tensors(p_ours)
    n_ours, n_theirs = ours(q_ours), theirs(q_theirs)
    n_ours.load_state_dict(fo.checkpoint.from_torch(o_theirs.state_dict(), n_ours))
    n_theirs.load_state_dict(fo.checkpoint.to_torch(o_ours))
    for gs in grads[3:]:
        for optimizer, arrays in ((o_ours, p_ours), (n_ours, q_ours), (n_theirs, q_theirs)):
            step(optimizer, arrays, gs)
    # Six steps of some roundings each, by different orders of operations; values are of order 1.
    tolerance = 6 * 16 * np.finfo(dtype).eps
    for one, other, third in zip(p_ours, q_ours, q_theirs, strict=True):
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(third.detach().numpy(), one, rtol=tolerance, atol=tolerance)


def test_a_parameter_without_gradients_has_no_state_on_either_side() -> None:
    tensors = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    arrays = [np.ones(2, np.float32), np.ones(3, np.float32)]
    for name, options in CASES:
        theirs: Any = getattr(torch.optim, name)(tensors, **options)
        ours: fo.Optimizer = getattr(fo, name)(arrays, **options)
        tensors[0].grad = torch.ones(2)
        theirs.step()
        ours.load_state_dict(fo.checkpoint.from_torch(theirs.state_dict(), ours))
        assert dict(ours.state["1"]) == {"step": 0}
        back = fo.checkpoint.to_torch(ours)
        assert 1 not in back["state"]
        expected = theirs.state_dict()
        kept = {k: v for k, v in expected["state"].get(0, {}).items() if v is not None}
        assert back["state"].get(0, {}).keys() == kept.keys()
        for key, value in kept.items():
            assert torch.equal(back["state"][0][key], torch.as_tensor(value))
        for group, like in zip(back["param_groups"], expected["param_groups"], strict=True):
            assert group | like == group  # not all of torch's optimizers have all of its options


def test_a_state_dict_of_an_older_torch() -> None:
    tensor = torch.nn.Parameter(torch.ones(2))
    for name, decoupled in (("Adam", False), ("AdamW", True)):
        saved = getattr(torch.optim, name)([tensor]).state_dict()
        del saved["param_groups"][0]["decoupled_weight_decay"]
        ours: fo.Optimizer = getattr(fo, name)([np.ones(2, np.float32)])
        ours.load_state_dict(fo.checkpoint.from_torch(saved, ours))
        assert ours.param_groups[0]["decoupled_weight_decay"] is decoupled


def test_what_does_not_fit_is_refused() -> None:
    tensors = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    saved = torch.optim.SGD(tensors, lr=0.1).state_dict()
    params = [np.ones(2, np.float32), np.ones(3, np.float32)]
    with pytest.raises(ValueError, match="has 2 parameters, the optimizer's 1"):
        fo.checkpoint.from_torch(saved, fo.SGD(params[:1]))
    with pytest.raises(ValueError, match="has 1 group, the optimizer 2"):
        fo.checkpoint.from_torch(saved, fo.SGD([{"params": params[:1]}, {"params": params[1:]}]))
    with pytest.raises(KeyError, match="'betas'"):
        fo.checkpoint.from_torch(saved, fo.AdamW(params))
    with pytest.raises(KeyError, match="none of its groups: 5"):
        fo.checkpoint.from_torch(saved | {"state": {5: {}}}, fo.SGD(params))
    adam64 = torch.optim.Adam([torch.nn.Parameter(torch.ones(2, dtype=torch.float64))])
    adam64.param_groups[0]["params"][0].grad = torch.ones(2, dtype=torch.float64)
    adam64.step()
    ours = fo.Adam(params[:1])
    with pytest.raises(TypeError, match=r"exp_avg.* of '0'.*float64"):
        ours.load_state_dict(fo.checkpoint.from_torch(adam64.state_dict(), ours))
    with pytest.raises(KeyError, match="no 'state'"):
        fo.checkpoint.from_torch({}, fo.AdamW(params))
    with pytest.raises(ValueError, match="no momentum_init='zero'"):
        fo.checkpoint.to_torch(fo.SGD(params, momentum=0.9, momentum_init="zero"))
    assert not fo.checkpoint.to_torch(fo.SGD(params, momentum_init="zero"))["state"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_opens_the_file(dtype: str, tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")

    array = np.arange(4, dtype=dtype)
    fo.save(tmp_path / "a.safetensors", params={"w": array})
    tensor = load_file(tmp_path / "a.safetensors")["params/w"]
    assert torch.equal(tensor, torch.arange(4, dtype=getattr(torch, dtype)))


def saved_by_torch(*states: Any, **options: Any) -> Any:
    """Return a state dict of AdamW of torch with these states and further options of the group."""
    tensors = [torch.zeros(1) for _ in states]
    group = torch.optim.AdamW(tensors).state_dict()["param_groups"][0]
    return {"state": dict(enumerate(states)), "param_groups": [group | options]}


def adam_state(**dtypes: Any) -> dict[str, Any]:
    """Return the state of a parameter of two elements, with the dtypes of its tensors."""
    tensors = {key: torch.tensor([1.5, -2.25]).to(dtype) for key, dtype in dtypes.items()}
    return {"step": torch.tensor(3.0)} | tensors


def test_16_bit_tensors_keep_their_bits_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = pytest.importorskip("ml_dtypes")
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)  # NaNs and denormals too
    for dtype in (torch.bfloat16, torch.float16):
        tensor = bits.view(dtype).reshape(2, -1).T  # another memory order
        state = saved_by_torch({"step": 1, "exp_avg": tensor, "exp_avg_sq": tensor})
        optimizer = fo.AdamW([np.zeros(tensor.shape, np.float32)])
        loaded = fo.checkpoint.from_torch(state, optimizer)
        array = loaded["state"]["0"]["exp_avg"]
        assert array.dtype == (np.float16 if dtype == torch.float16 else dtypes.bfloat16)
        np.testing.assert_array_equal(array.view(np.int16), tensor.view(torch.int16).numpy())
        monkeypatch.setattr(optimizer, "state_dict", partial(dict, loaded))
        back = fo.checkpoint.to_torch(optimizer)["state"][0]["exp_avg"]
        assert back.dtype == dtype
        assert torch.equal(back.view(torch.int16), tensor.view(torch.int16))
    state = saved_by_torch({"step": 1, "exp_avg": torch.zeros(2, dtype=torch.bfloat16).to_sparse()})
    with pytest.raises(TypeError, match=r"exp_avg of '0' cannot be .*; use .to_dense"):
        fo.checkpoint.from_torch(state, optimizer)


def test_training_in_bfloat16_goes_on_in_the_other_library() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16

    def array_of(tensor: Any) -> Any:
        return tensor.detach().view(torch.int16).numpy().view(bfloat16)

    theirs, grad = torch.linspace(1, 2, 50).bfloat16().requires_grad_(), torch.ones(50).bfloat16()
    adam = torch.optim.AdamW([theirs], lr=0.1)
    theirs.grad = grad
    adam.step()
    ours = array_of(theirs).copy()
    optimizer = fo.AdamW([ours], lr=0.1, stochastic_rounding=True)
    optimizer.load_state_dict(fo.checkpoint.from_torch(adam.state_dict(), optimizer))
    assert optimizer.param_groups[0]["state_dtype"] == "bfloat16"
    assert optimizer.param_groups[0]["stochastic_rounding"] is True
    optimizer.step([array_of(grad)])
    adam.load_state_dict(fo.checkpoint.to_torch(optimizer))
    assert adam.state[theirs]["step"] == 2
    for key in ("exp_avg", "exp_avg_sq"):
        x, y = array_of(adam.state[theirs][key]), optimizer.state["0"][key]
        np.testing.assert_array_equal(x.view(np.int16), y.view(np.int16))
    adam.step()
    optimizer.step([array_of(grad)])
    # Before its last step, torch lacked one that we took.
    np.testing.assert_allclose(
        array_of(theirs).astype(np.float32) - 0.1, ours.astype(np.float32), atol=2**-6
    )


@pytest.mark.parametrize("master", ["split", "float32"])
def test_masters_go_to_torch_and_back(master: Any) -> None:
    array = np.linspace(1, 2, 50, dtype=np.float32).astype(
        pytest.importorskip("ml_dtypes").bfloat16
    )
    optimizer = fo.AdamW([array], master=master, state_dtype="bfloat16", seed=3)
    optimizer.step([np.ones(50, np.float32)])
    saved = fo.checkpoint.to_torch(optimizer)
    assert not {"master", "state_dtype", "stochastic_rounding", "seed"} & {
        *saved["param_groups"][0]
    }
    kept = torch.int16 if master == "split" else torch.float32
    assert saved["state"][0]["master_param"].dtype == kept
    other = fo.AdamW([array.copy()])
    other.load_state_dict(fo.checkpoint.from_torch(saved, other))
    assert other.param_groups[0]["master"] == master
    assert other.param_groups[0]["seed"] == 0  # torch has no seed: that of the other stays
    for key, value in optimizer.state["0"].items():
        np.testing.assert_array_equal(other.state["0"][key], value)


def test_the_dtypes_of_states_decide_the_options_of_the_types() -> None:
    dtypes = pytest.importorskip("ml_dtypes")
    half, single = torch.bfloat16, torch.float32
    optimizer = fo.AdamW([np.zeros(2, np.float32)])
    group = optimizer.param_groups[0]

    def options(**types: Any) -> Any:
        saved = saved_by_torch(adam_state(**types))
        loaded = fo.checkpoint.from_torch(saved, optimizer)["param_groups"][0]
        return loaded.get("state_dtype", "that of the optimizer"), loaded.get("master")

    states = {"exp_avg": half, "exp_avg_sq": half}
    assert options(**states) == ("bfloat16", None)
    assert options(**states, master_param=torch.int16) == ("bfloat16", "split")
    states = {"exp_avg": single, "exp_avg_sq": single}
    assert options(**states, master_param=single)[1] == "float32"
    kept = group.get("state_dtype", "that of the optimizer")
    assert options(**states) == (kept, group.get("master"))
    loaded = fo.checkpoint.from_torch(
        saved_by_torch(adam_state(exp_avg=half, master_param=torch.int16)), optimizer
    )
    assert loaded["state"]["0"]["exp_avg"].dtype == dtypes.bfloat16
    assert loaded["state"]["0"]["master_param"].dtype == np.int16
    with pytest.raises(
        TypeError,
        match=r"bfloat16 \(exp_avg of '0'\) and float32 \(exp_avg_sq of '0'\), but a group has "
        "one state_dtype; cast",
    ):
        options(exp_avg=half, exp_avg_sq=single)
    two = fo.AdamW([np.zeros(2, np.float32), np.zeros(2, np.float32)])
    mixed = saved_by_torch(adam_state(master_param=torch.int16), adam_state(master_param=single))
    with pytest.raises(TypeError, match=r"master_param of '1'.*one master"):
        fo.checkpoint.from_torch(mixed, two)
    # float32 beside float64 is no mixture: each has the type of its parameter.
    fo.checkpoint.from_torch(
        saved_by_torch(adam_state(exp_avg=single), adam_state(exp_avg=torch.float64)), two
    )


def test_steps_may_be_counted_in_the_group() -> None:
    optimizer = fo.AdamW([np.zeros(2, np.float32), np.zeros(2, np.float32)])
    entry = adam_state(exp_avg=torch.float32, exp_avg_sq=torch.float32)
    del entry["step"]
    saved = saved_by_torch(entry, {}, step=torch.tensor(7))
    loaded = fo.checkpoint.from_torch(saved, optimizer)
    assert [loaded["state"][name]["step"] for name in "01"] == [7, 0]
    assert "step" not in loaded["param_groups"][0]
    optimizer.load_state_dict(loaded)


def test_bfloat16_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    saved = saved_by_torch(adam_state(exp_avg=torch.bfloat16))
    with pytest.raises(ModuleNotFoundError, match="pip install ml_dtypes"):
        fo.checkpoint.from_torch(saved, fo.AdamW([np.zeros(2, np.float32)]))


def test_tensors_that_numpy_cannot_have_are_refused_by_name() -> None:
    optimizer = fo.SGD({"w": np.ones(2, np.float32)}, momentum=0.9)
    group = optimizer.param_groups[0] | {"params": [0]}
    for tensor, words in (
        (torch.ones(2).to_sparse(), "to_dense"),
        (torch.ones(2, device="meta"), "cpu"),
        (torch.ones(2, dtype=torch.int16), "tensor of floats, not int16"),
        (torch.ones(2, dtype=torch.complex64).conj(), "NumPy"),
        (torch.ones(2, dtype=torch.int64), "tensor of floats, not int64"),
    ):
        state = {"state": {0: {"momentum_buffer": tensor}}, "param_groups": [group]}
        with pytest.raises(TypeError, match=rf"momentum_buffer of 'w'.*{words}"):
            fo.checkpoint.from_torch(state, optimizer)
    buffer = torch.ones(2, requires_grad=True)
    state = {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [group]}
    optimizer.load_state_dict(fo.checkpoint.from_torch(state, optimizer))
    assert optimizer.state["w"]["step"] == 1


def test_numbers_may_be_tensors_of_one_element() -> None:
    optimizer = fo.Adam({"w": np.ones(2, np.float32)})
    group = optimizer.param_groups[0] | {"params": [0], "lr": torch.tensor(0.5)}
    entry = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    state = {"state": {0: entry}, "param_groups": [group]}
    loaded = fo.checkpoint.from_torch(state, optimizer)
    assert loaded["state"]["w"]["step"] == 3
    assert loaded["param_groups"][0]["lr"] == 0.5
    for step in (torch.tensor(float("nan")), torch.tensor(-1.0), torch.tensor(0.5)):
        with pytest.raises(ValueError, match="step of 'w' must be whole"):
            fo.checkpoint.from_torch(state | {"state": {0: entry | {"step": step}}}, optimizer)
    with pytest.raises(TypeError, match="step of 'w' must be one number"):
        fo.checkpoint.from_torch(state | {"state": {0: entry | {"step": torch.ones(2)}}}, optimizer)
    wrong = {"state": {}, "param_groups": [group | {"lr": torch.ones(2)}]}
    with pytest.raises(TypeError, match="'lr' must be one number"):
        fo.checkpoint.from_torch(wrong, optimizer)
    wrong = {"state": {}, "param_groups": [group | {"params": [0, 0]}]}
    with pytest.raises(ValueError, match="the parameter 0 twice"):
        fo.checkpoint.from_torch(wrong, optimizer)
