"""Tensors of torch where NumPy arrays are taken; skipped where torch is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from cases import CASES, Case
from helpers import check, refused, same_bits

torch = pytest.importorskip("torch")
f = fo.functional


@pytest.fixture(autouse=True)
def leave_torch_alone() -> Iterator[None]:
    enabled = torch.is_grad_enabled()
    yield
    assert torch.is_grad_enabled() == enabled


def ones(*shape: int, **options: Any) -> Any:
    return torch.ones(shape or (6,), **options)


def param(*shape: int) -> Any:
    return torch.nn.Parameter(ones(*shape))


def bits(tensor: Any) -> Any:
    """Return the elements as an array of NumPy, those of 16 bits as integers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.element_size() == 2 else tensor).numpy().copy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_steps_have_the_bits_of_numpy(case: Case, dtype: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(65,), (3, 4), (), (0, 5), (2, 3, 2)]
    tensors = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    tensors[1] = tensors[1].T.contiguous().T  # in Fortran order
    arrays = [tensor.numpy().copy("K") for tensor in tensors]
    params = [torch.nn.Parameter(tensor) for tensor in tensors]
    one, two = case.fused(params), case.fused(arrays)
    for step in range(4):
        grads = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
        grads[4] = grads[4].expand(2, 3, 2) if step else grads[4][0].expand(2, 3, 2)
        given: list[Any] = [None if step == 2 and i == 1 else g for i, g in enumerate(grads)]
        plain = [None if g is None else g.numpy() for g in given]
        if step == 3:
            given[0] = plain[0]  # a list may be mixed
        with torch.no_grad():
            info = one.step(given, max_norm=1.0)
        assert info == two.step(plain, max_norm=1.0)
        for tensor, array in zip(params, arrays, strict=True):
            assert same_bits(tensor.detach().numpy(), array)
    for name, state in two.state.items():
        for key, value in state.items():
            assert same_bits(one.state[name][key], value)
    one.load_state_dict(two.state_dict())
    repr(one)


Tensor: Any = torch.Tensor


class Plain(Tensor):  # type: ignore[misc]
    pass


class Wrapper(Tensor):  # type: ignore[misc]
    """Its elements are elsewhere."""

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


def negated() -> Any:
    return torch.ones(6, dtype=torch.complex64).conj().imag


BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("device", lambda: ones(device="meta"), TypeError, "device meta"),
    ("sparse", lambda: ones().to_sparse(), TypeError, ".to_dense()"),
    ("complex", lambda: ones(dtype=torch.complex64), TypeError, "not complex64"),
    (
        "integers",
        lambda: ones(dtype=torch.int64),
        TypeError,
        "not int64; convert it with .to(torch.f",
    ),
    ("bool", lambda: ones(dtype=torch.bool), TypeError, "not bool"),
    ("float8", lambda: ones().to(torch.float8_e5m2), TypeError, "torch.float8_e5m2"),
    ("conj", lambda: ones(dtype=torch.complex64).conj(), TypeError, "not complex64"),
    ("negated", negated, ValueError, ".resolve_neg()"),
    ("subclass", lambda: ones().as_subclass(Plain), TypeError, "Plain, a subclass of Tensor"),
    ("wrapper", lambda: Wrapper(ones()), TypeError, "Wrapper, a subclass of Tensor"),
    ("lazy", lambda: torch.nn.UninitializedParameter(), TypeError, "UninitializedParameter"),
    ("no memory", lambda: torch._efficientzerotensor(6), TypeError, "without plain memory"),
    (
        "misaligned",
        lambda: torch.frombuffer(bytearray(25), dtype=torch.float32, offset=1),
        ValueError,
        "misaligned; convert it with .clone()",
    ),
    (
        "misaligned bfloat16",
        lambda: torch.frombuffer(bytearray(13), dtype=torch.bfloat16, offset=1),
        ValueError,
        "misaligned",
    ),
]
BAD_PARAMS = [
    ("expanded", lambda: torch.ones(1).expand(6), ValueError, "not dense"),
    ("strided", lambda: ones(12)[::2], ValueError, "not dense"),
    ("negated, dense", lambda: negated().as_strided((6,), (1,)), ValueError, ".resolve_neg()"),
]


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*row[1:], id=row[0]) for row in [*BAD, *BAD_PARAMS]]
)
def test_refused_parameters(make: Callable[[], Any], error: type[Exception], word: str) -> None:
    bad, good = make(), ones()
    with refused(error, "parameter 'bad'", word, arrays=[good.numpy()]):
        fo.AdamW({"good": good, "bad": bad})
    with refused(error, "param", word, arrays=[good.numpy()]):
        f.adamw_(bad, good, ones(), ones(), step=1)
    opt = fo.AdamW([good])
    with refused(error, "parameter 'bad'", word, arrays=[good.numpy()], optimizer=opt):
        opt.add_param_group({"params": {"bad": bad}})


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*row[1:], id=row[0]) for row in BAD]
)
def test_refused_gradients_and_scores(
    make: Callable[[], Any], error: type[Exception], word: str
) -> None:
    bad, good = make(), ones()
    opt = fo.AdamW({"a": good, "b": ones()})
    for _ in range(2):  # without a plan, and with one
        with refused(error, "gradient of 'b'", word, arrays=[good.numpy()], optimizer=opt):
            opt.step({"a": ones(), "b": bad})
        opt.step({"a": ones(), "b": ones()})
    calls: dict[str, Callable[[], Any]] = {
        "logits": lambda: fo.CrossEntropyLoss()(bad, torch.tensor(1)),
        "hidden": lambda: fo.LinearCrossEntropyLoss()(bad, ones(5, 6), torch.tensor(1)),
        "input": lambda: f.mse_loss(bad, ones()),
        "x": lambda: f.softmax(bad),
        "gradient '1'": lambda: fo.clip_grad_norm_([good, bad], 0.5),
    }
    for name, call in calls.items():
        with refused(error, name, word, arrays=[good.numpy()]):
            call()


def test_tensors_of_transforms() -> None:
    def loss(x: Any) -> Any:
        with pytest.raises(TypeError, match="x is a tensor without plain memory"):
            f.relu(x)
        return (x * x).sum()

    torch.func.grad(loss)(ones())
    torch.vmap(loss)(ones(2, 3))


def test_a_tensor_that_requires_grad_is_written_under_no_grad_only() -> None:
    p, good = param(), ones()
    words = "tensor that requires grad", "torch.no_grad()"
    opt = fo.AdamW({"good": good, "p": p})  # this writes nothing
    ema, sums = fo.WeightEMA({"p": p}), fo.GradAccumulator({"p": p})
    grads = {"good": ones(), "p": ones()}
    for _ in range(2):  # without a plan, and with one
        arrays = [good.numpy(), p.detach().numpy()]
        with refused(ValueError, "parameter 'p'", *words, arrays=arrays, optimizer=opt):
            opt.step(grads)
        with torch.no_grad():
            opt.step(grads)
    other = ones()
    sgd = fo.SGD([other])
    sgd.step([ones()])
    sgd.step([ones()])  # it requires none
    other.requires_grad_()
    with refused(ValueError, "parameter '0'", *words, arrays=[other.detach().numpy()]):
        sgd.step([ones()])
    ema.update()
    sums.add({"p": p})
    held = [p.detach().numpy()]
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("out", lambda: f.relu(ones(), out=p)),
        ("out", lambda: fo.CrossEntropyLoss().value_and_grad(ones(), torch.tensor(1), out=p)),
        ("gradient '0'", lambda: fo.clip_grad_value_([p], 0.1)),
        ("parameter 'p'", lambda: ema.applied().__enter__()),
        ("param", lambda: f.sgd_(p, ones())),
        ("exp_avg_sq", lambda: f.adam_(ones(), ones(), ones(), p, step=1)),
    ]
    for name, call in calls:
        with refused(ValueError, name, *words, arrays=held):
            call()
    empty = param(0)
    with refused(ValueError, "parameter '0'", *words):
        fo.SGD([empty]).step([torch.empty(0)])
    with torch.no_grad(), ema.applied():
        pass
    with torch.inference_mode():
        fo.SGD([p]).step([ones()])


def test_what_changes_between_steps_is_seen() -> None:
    p = ones()
    opt = fo.SGD({"p": p}, lr=1.0)
    opt.step({"p": ones()})
    p.resize_(3)
    opt.step({"p": ones(3)})
    assert p.tolist() == [-1.0] * 3
    p = param()
    opt = fo.SGD({"p": p}, lr=1.0)
    with torch.no_grad():
        opt.step({"p": ones()})
        old = p.data
        p.data = torch.full((6,), 5.0)
        opt.step({"p": ones()})
        assert (old.tolist(), p.tolist()) == ([0.0] * 6, [4.0] * 6)
        p.data = torch.full((12,), 5.0)[::2]
        with refused(ValueError, "parameter 'p'", "not dense"):
            opt.step({"p": ones()})
        p.data = torch.full((7,), 5.0)
        with refused(ValueError, "'p'", "(7,)", arrays=[p.detach().numpy()]):
            opt.step({"p": ones()})
        opt.step({"p": ones(7)})
        p.data = ones(3, dtype=torch.float64)
        opt.step({"p": ones(3, dtype=torch.float64)})
        p.untyped_storage().resize_(0)  # as FSDP does
        with refused(TypeError, "parameter 'p'", "without plain memory"):
            opt.step({"p": ones(3, dtype=torch.float64)})


def test_memory_that_is_shared() -> None:
    memory = ones(12)
    array = memory.numpy()
    for a, b in ((memory[:7], memory[6:]), (memory[:7], array[6:]), (memory, memory.view(3, 4))):
        with refused(ValueError, "'a'", "'b'", "share memory", arrays=[array]):
            fo.SGD({"a": a, "b": b})
    opt = fo.SGD({"a": memory[:6]})
    for grad in (memory[3:9], array[3:9], memory[:6]):
        with refused(ValueError, "'a'", "share memory", arrays=[array], optimizer=opt):
            opt.step({"a": grad})
    opt.step({"a": memory[6:]})
    with refused(ValueError, "out", "x", "share memory", arrays=[array]):
        f.relu(memory[:6], out=array[1:7])
    with refused(ValueError, "out", "targets", "share memory", arrays=[array]):
        fo.CrossEntropyLoss().value_and_grad(ones(3, 4), memory.view(3, 4), out=array.reshape(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_losses_and_functions(dtype: Any) -> None:
    pytest.importorskip("ml_dtypes")
    from type_cases import BFLOAT16

    def numpy(tensor: Any) -> Any:
        array = bits(tensor)
        if tensor.element_size() > 2:
            return array
        return array.view(BFLOAT16 if tensor.dtype == torch.bfloat16 else np.float16)

    logits, other, out = (torch.randn(5, 7).to(dtype) for _ in range(3))
    targets = torch.tensor([0, 6, 3, -100, 2])
    weight = torch.rand(7)
    cross = fo.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    assert cross(logits, targets) == fo.CrossEntropyLoss(
        weight=weight.numpy(), label_smoothing=0.1
    )(numpy(logits), targets.numpy())
    calls: list[Callable[[Any, Any, Any], Any]] = [
        lambda x, y, out: cross.value_and_grad(x, targets, out=out),
        lambda x, y, out: f.mse_loss(x, y, out=out),
        lambda x, y, out: (0.0, f.log_softmax(x, out=out)),
    ]
    for call in calls:
        loss, grad = call(logits, other, out)
        expected, expected_grad = call(numpy(logits), numpy(other), None)
        assert grad is out
        assert loss == expected
        assert same_bits(numpy(out), expected_grad)
    logits.requires_grad_()  # it is only read
    for column in (logits.T, logits[:, ::2]):
        assert same_bits(f.softmax(column), f.softmax(numpy(column)))
    w, grads = (
        torch.randn(9, 7).to(dtype),
        (torch.empty(5, 7, dtype=dtype), torch.empty(9, 7, dtype=dtype)),
    )
    linear = fo.LinearCrossEntropyLoss()
    loss, result = linear.value_and_grad(logits, w, targets, out=grads)
    value, (dx, dw) = linear.value_and_grad(numpy(logits), numpy(w), targets.numpy())
    assert (loss, result) == (value, grads)
    assert same_bits(numpy(grads[0]), dx)
    assert same_bits(numpy(grads[1]), dw)
    loss, grad = cross.value_and_grad(logits.detach(), targets)
    assert isinstance(grad, np.ndarray)
    into = logits.detach()
    cross.value_and_grad(into, targets, out=into)  # the gradient replaces the logits
    assert same_bits(numpy(into), grad)


def test_targets() -> None:
    ce = fo.CrossEntropyLoss()
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert ce(ones(2, 3), torch.tensor([1, 2], dtype=dtype)) == ce(ones(2, 3), np.array([1, 2]))
    assert ce(ones(3), torch.tensor(1)) == ce(ones(3), 1)
    with refused(IndexError, "targets[1] is 3"):
        ce(ones(2, 3), torch.tensor([1, 3]))
    with refused(TypeError, "targets", "device meta"):
        ce(ones(2, 3), torch.ones(2, dtype=torch.int64, device="meta"))
    with refused(TypeError, "targets must have an integer dtype", "float32"):
        ce(ones(2, 3), ones(2))
    with refused(TypeError, "logits", "int64", "swapped"):
        ce(torch.tensor([1, 2]), ones(2, 3))
    with refused(TypeError, "out", "float64"):
        ce.value_and_grad(ones(2, 3), torch.tensor([1, 2]), out=ones(2, 3).double())


def test_averages_sums_norms_and_checkpoints(tmp_path: Any) -> None:
    params = {"w": param(3, 4), "half": torch.nn.Parameter(ones(5, dtype=torch.bfloat16))}
    plain = {"w": np.ones((3, 4), np.float32), "half": np.ones(5, np.float32)}
    ema, other = fo.WeightEMA(params, decay=0.5), fo.WeightEMA(plain, decay=0.5)
    with torch.no_grad():
        for change in range(3):
            for name, tensor in params.items():
                tensor += change
                plain[name] += change
            ema.update()
            other.update()
        for name, average in other.averages.items():
            assert same_bits(ema.averages[name], average)
        with ema.applied():
            assert same_bits(params["w"].numpy(), other.averages["w"])
            assert (
                bits(params["half"]).tolist()
                == bits(torch.tensor(other.averages["half"]).bfloat16()).tolist()
            )
        assert params["half"].tolist() == plain["half"].tolist()
        with ema.applied():
            params["w"].data = torch.full((3, 4), 9.0)  # it has no earlier elements
        assert params["w"].tolist() == [[9.0] * 4] * 3
        assert params["half"].tolist() == plain["half"].tolist()
    sums = fo.GradAccumulator(params)
    sums.add({"w": ones(3, 4), "half": ones(5, dtype=torch.bfloat16)})
    sums.add({"w": ones(4, 3).T, "half": None}, weight=2)
    assert same_bits(sums.grads["w"], np.full((3, 4), 3, np.float32))
    grads = [ones(3), np.ones(3, np.float32), None, ones(3, dtype=torch.float16)]
    assert fo.clip_grad_norm_(grads, 0.5) == 3.0
    assert grads[0].tolist() == grads[1].tolist()
    opt = fo.SGD(params, momentum=0.9, state_dtype="bfloat16")
    with torch.no_grad():
        opt.step(sums.grads, grad_scale=sums.weight)
    saved = {name: bits(tensor) for name, tensor in params.items()}
    pytest.importorskip("ml_dtypes")
    fo.save(tmp_path / "file", params=params, optimizer=opt, ema=ema)
    with torch.no_grad():
        opt.step(sums.grads, zero_grads=True)
        fo.load(tmp_path / "file", params=params, optimizer=opt, ema=ema)
    for name, tensor in params.items():
        assert same_bits(bits(tensor), saved[name])
    fo.load(tmp_path / "file", params=params)  # as torch's load_state_dict does
    with refused(TypeError, "extra/w", "Parameter"):
        fo.save(tmp_path / "file", extra={"w": params["w"]})


def test_options_may_be_tensors() -> None:
    p = ones()
    fo.SGD([p], lr=torch.tensor(0.5)).step([ones()], max_norm=torch.tensor(100.0))
    assert p.tolist() == [0.5] * 6
    with refused(TypeError, "lr"):
        fo.SGD([p], lr=torch.tensor([0.5, 0.5]))


OLD_TORCH = """
import numpy as np, torch, fastopt as fo
del torch.Tensor.__dlpack_c_exchange_api__  # torch < 2.10 has none
p, q = torch.nn.Parameter(torch.ones(6)), torch.ones(6, dtype=torch.bfloat16)
opt, ema = fo.AdamW([p, q], lr=0.5, weight_decay=0.0), fo.WeightEMA([p, q])

def refused(error, word, call):
    try:
        call()
    except error as caught:
        assert word in str(caught), caught
    else:
        raise SystemExit(f"nothing was refused: {word}")

refused(ValueError, "torch.no_grad()", lambda: opt.step([torch.ones(6), torch.ones(6)]))
with torch.no_grad():
    for _ in range(2):
        opt.step([torch.ones(6), q.clone()], max_norm=1e9)
    p.data = torch.full((6,), 5.0)
    opt.step([torch.ones(6), None])
    assert 4.4 < p[0] < 4.6, p
    before = p.tolist(), q.tolist()
    assert 0 < q[0] < 0.1, q
    ema.update()
    p += 1
    with ema.applied():
        assert p.tolist() == before[0]
    assert p.tolist() == [x + 1 for x in before[0]] and q.tolist() == before[1]
refused(ValueError, "torch.no_grad()", lambda: opt.step([torch.ones(6), torch.ones(6)]))
out = torch.empty(2, 3)
fo.CrossEntropyLoss().value_and_grad(torch.ones(2, 3), torch.tensor([1, 2]), out=out)
assert abs(out.sum()) < 1e-6 and out[0, 1] < 0
for bad, error, word in (
    (torch.ones(6).to_sparse(), TypeError, "gradient '0'"),
    (torch.ones(6, device="meta"), TypeError, "device meta"),
    (torch.ones(6, dtype=torch.complex64).conj().imag, ValueError, ".resolve_neg()"),
    (torch.nn.UninitializedParameter(), TypeError, "UninitializedParameter"),
    (torch.ones(6).to(torch.float8_e5m2), TypeError, "float8"),
):
    refused(error, word, lambda: fo.grad_norm([bad]))
"""


def test_torch_without_the_exchange_api() -> None:
    check(OLD_TORCH)


def test_16_bits_without_ml_dtypes() -> None:
    check(
        """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, torch, fastopt as fo
for dtype in (torch.bfloat16, torch.float16):
    make = lambda: torch.ones(6, dtype=dtype)
    p, grad, out = make(), make(), make()
    options = {} if dtype == torch.bfloat16 else {"master": "float32"}
    fo.AdamW([p], lr=0.25, **options).step([grad], max_norm=1e9)
    assert 0.7 < p[0] < 0.8, p
    w = np.ones(6, np.float32)
    fo.SGD([w], lr=0.5).step([grad], out=[out])
    assert out.tolist() == w.tolist() == [0.5] * 6
    ema = fo.WeightEMA([p])
    with ema.applied():
        pass
    fo.CrossEntropyLoss().value_and_grad(p, torch.tensor(1), out=out)
    fo.functional.softmax(p, out=out)
    fo.clip_grad_norm_([grad], 0.5)
states = [torch.zeros(6, dtype=torch.bfloat16) for _ in range(2)]
fo.functional.adamw_(p := torch.ones(6, dtype=torch.bfloat16), grad, *states, step=1, lr=0.25)
assert states[0][0] != 0 and p[0] < 1
"""
    )


@pytest.mark.parametrize("order", ["torch, fastopt", "fastopt, torch"])
def test_imports_in_any_order_and_fork(order: str) -> None:
    check(
        f"""
import os
import {order}
import fastopt as fo, numpy as np
fo.SGD([np.ones(3)]).step([np.ones(3)])  # before the first tensor
p, grad = torch.ones(100_000), torch.ones(100_000)
opt, array = fo.SGD([p], lr=0.5), p.numpy()
opt.step([grad])
if (child := os.fork()) == 0:
    opt.step([grad])
    os._exit(int(array[-1] != 0))  # the threads of torch itself do not survive a fork
assert os.waitpid(child, 0)[1] == 0
assert p[0] == 0.5
"""
    )


def test_fastopt_does_not_import_torch() -> None:
    check("import sys, fastopt as fo\nfo.grad_norm([])\nassert 'torch' not in sys.modules")
