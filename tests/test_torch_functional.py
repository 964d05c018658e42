"""`fastopt.torch.functional`: updates of lists of tensors, beside the classes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fastopt.torch as ft  # noqa: E402

CASES: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("SGD", {"lr": 0.1}, {}),
    (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"momentum_buffers": "momentum_buffer"},
    ),
    ("RMSprop", {"weight_decay": 0.1}, {"square_avgs": "square_avg"}),
    (
        "RMSprop",
        {"momentum": 0.9, "centered": True, "maximize": True},
        {
            "square_avgs": "square_avg",
            "momentum_buffers": "momentum_buffer",
            "grad_avgs": "grad_avg",
        },
    ),
    ("Adam", {"lr": torch.tensor(0.1)}, {"exp_avgs": "exp_avg", "exp_avg_sqs": "exp_avg_sq"}),
    (
        "AdamW",
        {"amsgrad": True, "weight_decay": 0.1},
        {
            "exp_avgs": "exp_avg",
            "exp_avg_sqs": "exp_avg_sq",
            "max_exp_avg_sqs": "max_exp_avg_sq",
        },
    ),
]


def normals(seed: int, dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (20_001,), (), (0, 2)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def zeros(tensors: list[Any], dtype: Any = torch.float32) -> list[Any]:
    return [torch.zeros_like(t, dtype=dtype) for t in tensors]


def steps(count: int) -> list[Any]:
    return [torch.zeros(()) for _ in range(count)]


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options", "names"), CASES)
def test_lists_get_the_bits_of_the_class(name: str, options: Any, names: Any, kind: Any) -> None:
    """In a thread, with a scale, with masters for 16 bits and copies for float32."""
    params = normals(0, kind)
    tensors = [torch.nn.Parameter(p.clone()) for p in params]
    half = kind == torch.bfloat16
    optimizer = getattr(ft, name)(
        tensors, master_weights=half, store_param_remainders=half, **options
    )
    function = getattr(ft.functional, f"{name.lower()}_")
    states: dict[str, Any] = {key: zeros(params) for key in names}
    counted = "Adam" in name or "momentum_buffers" in names
    states |= {"state_steps": steps(len(params))} if counted else {}
    copies = [None, *zeros(params[1:], torch.bfloat16)]
    extra = {"master_params": zeros(params, torch.int16)} if half else {"out": copies}
    with ThreadPoolExecutor(1) as pool:
        for step in range(1, 4):
            grads = normals(step, torch.bfloat16)
            for tensor, grad in zip(tensors, grads, strict=True):
                tensor.grad = grad.to(kind)
            optimizer.step()
            scaled = [4 * grad for grad in grads]
            pool.submit(
                function, params, scaled, **states, **extra, grad_scale=4.0, **options
            ).result()
    same([t.detach() for t in tensors], params)
    for key, state in names.items():
        same(states[key], [optimizer.state[t][state] for t in tensors])
    if counted:
        same(states["state_steps"], [torch.tensor(3.0)] * len(params))
    if not half:
        same(copies[1:], [p.to(torch.bfloat16) for p in params[1:]])


def call(**changes: Any) -> Any:
    params = normals(0)
    given: dict[str, Any] = {
        "params": params,
        "grads": normals(1),
        "exp_avgs": zeros(params),
        "exp_avg_sqs": zeros(params),
        "state_steps": steps(len(params)),
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"grads": normals(1)[:3]}, ValueError, "grads"),
        ({"grads": [*normals(1)[:3], torch.zeros(2, 0)]}, ValueError, "grads|gradient"),
        ({"exp_avg_sqs": [*normals(1)[:3], None]}, TypeError, "exp_avg_sq"),
        ({"state_steps": steps(3)}, ValueError, "state_steps"),
        ({"state_steps": [*steps(3), 0]}, TypeError, "step"),
        ({"out": [None] * 3}, ValueError, "out"),
        ({"out": [None, None, None, torch.zeros(0, 2)]}, TypeError, "copy of '3'"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"amsgrad": True}, TypeError, "max_exp_avg_sq"),
        ({"grad_scale": 0.0}, ValueError, "grad_scale"),
        ({"momentum": 0.9}, TypeError, "momentum"),
    ],
)
def test_nothing_has_changed_after_an_error(changes: Any, error: Any, match: str) -> None:
    given = call(**changes)
    before = copy.deepcopy(given)
    with pytest.raises(error, match=match):
        ft.functional.adamw_(**given)
    for key in ("params", "exp_avgs", "exp_avg_sqs", "state_steps"):
        for value, old in zip(given[key], before[key], strict=True):
            assert value is old or torch.is_tensor(value)
            if torch.is_tensor(value):
                same(value, old)


def test_sgd_with_momentum_needs_the_counters() -> None:
    with pytest.raises(TypeError, match="needs state_steps"):
        ft.functional.sgd_(normals(0), normals(1), zeros(normals(0)), momentum=0.9)


def test_a_call_counts_as_a_change_in_place() -> None:
    given = call()
    copies = zeros(given["params"], torch.float16)
    ft.functional.adamw_(**given, out=copies)
    assert all(p._version > 0 for p in [*given["params"], *copies])
    assert not any(g._version for g in given["grads"])


def test_parameters_that_require_grad() -> None:
    """As in `torch.optim`, no `no_grad` is needed."""
    given = call()
    params = [p.clone().requires_grad_() for p in given["params"]]
    ft.functional.adamw_(**(given | {"params": tuple(params)}))
    ft.functional.adamw_(**call(params=given["params"]))
    same([p.detach() for p in params], given["params"])


@pytest.mark.parametrize("narrow", ["exp_avgs", "exp_avg_sqs"])
def test_states_of_two_types(narrow: str) -> None:
    """One moment is bfloat16: the step is that of float32 moments, of which it is rounded."""
    params, grads = normals(0), normals(1)
    states: dict[str, Any] = {"exp_avgs": normals(2), "exp_avg_sqs": [x.abs() for x in normals(3)]}
    states[narrow] = [x.bfloat16() for x in states[narrow]]
    wide: dict[str, Any] = {
        name: [x.to(torch.float32, copy=True) for x in state] for name, state in states.items()
    }
    witness = copy.deepcopy(params)
    ft.functional.adamw_(params, grads, **states, state_steps=steps(4))
    ft.functional.adamw_(witness, grads, **wide, state_steps=steps(4))
    same(params, witness)
    for name, state in states.items():
        same(state, [x.to(y.dtype) for x, y in zip(wide[name], state, strict=True)])


def test_states_of_float16_are_refused() -> None:
    params, states = normals(0), zeros(normals(0), torch.float16)
    with pytest.raises(TypeError, match="exp_avg of '0' has dtype float16"):
        ft.functional.adamw_(params, normals(1), states, zeros(params), steps(4))
    same(params, normals(0))


def test_the_default_type_of_torch_changes_nothing() -> None:
    (p,), (g,) = [torch.ones(3)], [torch.ones(3)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        ft.functional.sgd_([p], [g], lr=0.5)  # makes the counters of its steps
    finally:
        torch.set_default_dtype(before)
    same(p, torch.full((3,), 0.5))


@pytest.mark.parametrize("grads", [[None], [torch.ones(3), None]])
def test_missing_gradients_are_refused(grads: list[Any]) -> None:
    count = len(grads)
    params, counters = [torch.ones(3) for _ in grads], steps(count)
    moments = [torch.zeros(3) for _ in range(2 * count)]
    last = count - 1
    with pytest.raises(TypeError, match=f"gradient of '{last}' is None"):
        ft.functional.adamw_(params, grads, moments[:count], moments[count:], counters)
    with pytest.raises(TypeError, match=f"gradient of '{last}' is None"):
        ft.functional.sgd_(params, grads)
    same([*params, *counters], [*[torch.ones(3) for _ in grads], *steps(count)])


def test_masters_that_do_not_fit_are_refused() -> None:
    half, one = [torch.ones(3, dtype=torch.float16)], [torch.ones(3)]
    m, v = [torch.zeros(3)], [torch.zeros(3)]
    with pytest.raises(TypeError, match="float16, which needs master_params of float32"):
        ft.functional.adamw_(half, one, m, v, steps(1))
    with pytest.raises(TypeError, match="master_param of '0' is given"):
        ft.functional.adamw_(one, one, m, v, steps(1), master_params=[torch.ones(3)])
    base = torch.zeros(8)  # a strided parameter, and a copy in the memory between
    out = [base.view(torch.bfloat16)[1:5]]
    m, v = [torch.zeros(4)], [torch.zeros(4)]
    with pytest.raises(ValueError, match="share memory"):
        ft.functional.adamw_([base[::2]], [torch.ones(4)], m, v, steps(1), out=out)
    assert not base.any()


def test_what_is_no_list_of_tensors_is_refused() -> None:
    p, g, m, v, (t,) = *(torch.ones(3) for _ in range(4)), steps(1)
    for bad, match in (
        (([p.numpy()], [g], [m], [v], [t]), "params\\[0\\] must be a tensor, not ndarray"),
        ((p, [g], [m], [v], [t]), "params must be a list of tensors, not Tensor"),
        (([p], [g], [m], [v], [1]), "state_steps\\[0\\] must be a tensor, not int"),
    ):
        with pytest.raises(TypeError, match=match):
            ft.functional.adamw_(*bad)
    with pytest.raises(TypeError, match="out\\[0\\] must be a tensor, not ndarray"):
        ft.functional.adamw_([p], [g], [m], [v], [t], out=[p.numpy()])
    same([p, g, m, v, t], [*(torch.ones(3) for _ in range(4)), torch.zeros(())])
