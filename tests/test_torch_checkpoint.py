"""State dicts to torch and back: training goes on in the other library."""

from __future__ import annotations

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
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    adam = torch.optim.AdamW([half])
    half.grad = torch.ones(2, dtype=torch.bfloat16)
    adam.step()
    with pytest.raises(TypeError, match="exp_avg of '0' cannot be a NumPy array"):
        fo.checkpoint.from_torch(adam.state_dict(), fo.AdamW(params[:1]))
    with pytest.raises(ValueError, match="no momentum_init='zero'"):
        fo.checkpoint.to_torch(fo.SGD(params, momentum=0.9, momentum_init="zero"))
    assert not fo.checkpoint.to_torch(fo.SGD(params, momentum_init="zero"))["state"]


def test_torch_opens_the_file(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file

    fo.save(tmp_path / "a.safetensors", params={"w": np.arange(4, dtype=np.float32)})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["params/w"], torch.arange(4.0))


def test_tensors_that_numpy_cannot_have_are_refused_by_name() -> None:
    optimizer = fo.SGD({"w": np.ones(2, np.float32)}, momentum=0.9)
    group = optimizer.param_groups[0] | {"params": [0]}
    for tensor, words in (
        (torch.ones(2).to_sparse(), "to_dense"),
        (torch.ones(2, device="meta"), "cpu"),
        (torch.ones(2, dtype=torch.bfloat16), "float"),
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
