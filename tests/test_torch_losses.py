"""The losses for torch's autograd beside those of torch; skipped where it is not installed."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional as F  # noqa: N812

import fastopt.torch as ft
from fastopt.torch import losses

# torch says so in each call of kl_div.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")

# The allowed error by dtype, where the true values are at most 1; torch computes them in float64.
BOUNDS = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}


@dataclass(frozen=True)
class Row:
    """A loss with options. `kind` says what its target is; "drawn" options are tensors."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self, shape: tuple[int, ...], dtype: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments and the options; those that are learned need a gradient."""
        draws = torch.Generator().manual_seed(len(self.name))

        def draw(*shape: int) -> Any:  # in [0.1, 0.9]
            return (0.8 * torch.rand(shape, generator=draws) + 0.1).to(dtype)

        classes, rows = shape[min(1, len(shape) - 1)] if shape else 1, shape[:1] + shape[2:]
        inputs, options = [draw(*shape)], dict(self.options)
        if self.name == "linear_cross_entropy":
            classes, rows = 6, shape[:-1]
            inputs.append(draw(classes, shape[-1]))
            shape = (*rows, classes)  # of probabilities
        if self.kind == "indices":
            target = torch.randint(0, classes, rows if len(shape) > 1 else (), generator=draws)
            target.view(-1)[:1] = options.get("ignore_index", 0) if len(shape) > 1 else 2
        else:
            target = draw(*shape)
        for key in [key for key, value in options.items() if value == "drawn"]:
            options[key] = draw(classes if self.kind in ("indices", "classes") else shape[-1])
        for x in (*inputs, options.get("linear_bias")):
            if x is not None:
                x.requires_grad_()
        return [*inputs, target], options

    def __str__(self) -> str:
        return "-".join([self.name, self.kind, *self.options])


SMOOTH = {"weight": "drawn", "label_smoothing": 0.1}
CLASSES = [
    Row("cross_entropy", "indices"),
    Row("cross_entropy", "indices", SMOOTH | {"ignore_index": 1}),
    Row("cross_entropy", "classes", SMOOTH),
    Row("nll_loss", "indices"),
    Row("nll_loss", "indices", {"weight": "drawn", "ignore_index": -7}),
]
POINTWISE = [
    Row("mse_loss", "numbers"),
    Row("l1_loss", "numbers"),
    Row("smooth_l1_loss", "numbers", {"beta": 0.2}),
    Row("huber_loss", "numbers", {"delta": 0.2}),
    Row("binary_cross_entropy", "numbers"),
    Row("binary_cross_entropy_with_logits", "numbers"),
    Row("kl_div", "numbers"),
    Row("kl_div", "numbers", {"log_target": True}),
]
WEIGHTED = [
    Row("binary_cross_entropy", "numbers", {"weight": "drawn"}),
    Row("binary_cross_entropy_with_logits", "numbers", {"weight": "drawn", "pos_weight": "drawn"}),
]
LINEAR = [
    Row("linear_cross_entropy", "indices"),
    Row("linear_cross_entropy", "classes"),
    Row("linear_cross_entropy", "indices", SMOOTH | {"linear_bias": "drawn", "ignore_index": 1}),
]


def loss_and_grads(
    module: Any, name: str, arguments: list[Any], options: dict[str, Any], scale: float = 1.0
) -> list[Any]:
    """Return the loss and the gradients of the loss times `scale`, or times different numbers."""
    loss = getattr(module, name)(*arguments, **options)
    learned = [x for x in (*arguments, options.get("linear_bias")) if x is not None]
    learned = [x for x in learned if x.requires_grad]
    scales = (torch.arange(loss.numel()).reshape(loss.shape) % 5 - 2) * scale
    total = (loss * scales).sum() if loss.ndim else loss * scale
    return [loss.detach(), *torch.autograd.grad(total, learned)]


def wide(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().contiguous().requires_grad_(x.requires_grad)


def compare(name: str, arguments: list[Any], options: dict[str, Any], scale: float = 1.0) -> None:
    """Compare loss and gradients with those of torch in float64."""
    got = loss_and_grads(ft, name, arguments, options, scale)
    wider = {key: wide(value) for key, value in options.items()}
    expected = loss_and_grads(F, name, [*map(wide, arguments)], wider, scale)
    dtype = arguments[0].dtype
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == dtype
        size = max(1.0, y.abs().max().item()) if y.numel() else 1.0
        bound = BOUNDS[dtype] * (size if size < float("inf") else 1.0)
        torch.testing.assert_close(x.double(), y, rtol=0, atol=bound, equal_nan=True)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a loss calls the function of torch."""
    monkeypatch.setattr(losses, "functional", None)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("row", [*CLASSES, *POINTWISE, *WEIGHTED, *LINEAR], ids=str)
def test_losses_beside_torch(row: Row, dtype: Any) -> None:
    arguments, options = row.arguments((7, 5), dtype)
    reductions = ["mean", "sum", *(["none"] if row not in LINEAR else [])]
    reductions += ["batchmean"] if row.name == "kl_div" else []
    for reduction in reductions:
        for scale in (1.0, 0.25):
            compare(row.name, arguments, options | {"reduction": reduction}, scale)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("row", [*CLASSES, *POINTWISE], ids=str)
def test_shapes_and_strides(row: Row) -> None:
    shapes = [(5,), (0, 5), (3, 5, 2), (2, 4, 3, 2), *([()] if row in POINTWISE else [])]
    for shape in shapes:
        arguments, options = row.arguments(shape, torch.float32)
        for reduction in ("mean", "none"):
            options["reduction"] = reduction
            compare(row.name, arguments, options)
            if len(shape) > 2:
                strided = [x.mT.contiguous().mT for x in arguments[:-1]]
                doubled = torch.stack([arguments[-1]] * 2, -1)[..., 1]
                compare(row.name, [*strided, doubled], options)


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("row", [*CLASSES, *POINTWISE, *WEIGHTED, *LINEAR], ids=str)
def test_gradcheck(row: Row) -> None:
    arguments, options = row.arguments((3, 4), torch.float64)
    assert torch.autograd.gradcheck(lambda *xs: getattr(ft, row.name)(*xs, **options), arguments)


def logits_and_targets() -> tuple[Any, Any]:
    (logits, targets), _ = CLASSES[0].arguments((7, 5), torch.float32)
    return logits, targets


def test_gradients_are_computed_only_where_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = logits_and_targets()
    expected = ft.cross_entropy(logits, targets)
    monkeypatch.delattr("fastopt.losses.CrossEntropyLoss.value_and_grad")
    with torch.no_grad():
        assert ft.cross_entropy(logits, targets) == expected
    with torch.inference_mode():
        assert ft.cross_entropy(logits, targets) == expected
    assert not ft.cross_entropy(logits.detach(), targets).requires_grad
    with pytest.raises(AttributeError, match="value_and_grad"):
        ft.cross_entropy(logits, targets)


@pytest.mark.usefixtures("without_torch")
def test_the_single_losses_of_a_linear_layer() -> None:
    for row, shape in ((LINEAR[0], (5,)), (LINEAR[1], (0, 5)), (LINEAR[2], (7, 5))):
        arguments, options = row.arguments(shape, torch.float32)
        with torch.no_grad():
            loss = ft.linear_cross_entropy(*arguments, **options, reduction="none")
            expected = F.linear_cross_entropy(*arguments, **options, reduction="none")
        torch.testing.assert_close(loss, expected)


def test_a_linear_layer_that_is_not_learned_has_no_gradient() -> None:
    (hidden, weight, target), options = LINEAR[2].arguments((7, 5), torch.float32)
    weight.requires_grad_(False)
    compare("linear_cross_entropy", [hidden, weight, target], options)
    loss = ft.linear_cross_entropy(hidden, weight, target, **options)
    assert [x is None for x in loss.grad_fn.saved_tensors] == [False, True, False]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("is_leaf", [True, False])
def test_a_kept_graph_gives_the_same_gradients_again(is_leaf: bool, scale: float) -> None:
    leaf, targets = logits_and_targets()
    logits = leaf if is_leaf else leaf * 2
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits, retain_graph=True)
    logits.retain_grad()
    loss = ft.cross_entropy(logits, targets)
    for times in (1, 2):  # the second is added to the first
        (loss * scale).backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, times * scale * expected)
    logits.grad.zero_()
    (loss * scale).backward()
    torch.testing.assert_close(logits.grad, scale * expected)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_changed_gradient_of_a_kept_graph_is_not_seen_again(scale: float) -> None:
    logits, targets = logits_and_targets()
    loss = ft.cross_entropy(logits, targets) * scale
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    expected = first.clone()
    first.mul_(5)
    for retain_graph in (True, False):
        (again,) = torch.autograd.grad(loss, logits, retain_graph=retain_graph)
        assert torch.equal(again, expected)


def test_the_gradient_of_a_leaf_is_not_copied() -> None:
    logits, targets = logits_and_targets()
    loss = ft.cross_entropy(logits, targets)
    address = loss.grad_fn.saved_tensors[0].data_ptr()
    loss.backward()
    assert logits.grad.data_ptr() == address
    kept = logits.grad.clone()
    loss = ft.cross_entropy(logits, targets)
    (loss / 4).backward()  # is added
    torch.testing.assert_close(logits.grad, 1.25 * kept)


def test_two_uses_of_one_loss() -> None:
    logits, targets = logits_and_targets()
    loss = ft.cross_entropy(logits, targets)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    (gradient,) = torch.autograd.grad(loss + 2 * loss, logits)
    torch.testing.assert_close(gradient, 3 * expected)


def test_ignored_rows_have_no_gradient_whatever_comes_in() -> None:
    logits, targets = logits_and_targets()
    targets[2] = -100
    for module in (ft, F):
        loss = module.cross_entropy(logits, targets, reduction="none")
        (gradient,) = torch.autograd.grad((loss / (targets != -100)).nansum(), logits)
        assert gradient[2].eq(0).all()
        assert gradient.isfinite().all()


def test_a_scaled_loss_of_float16_keeps_small_gradients() -> None:
    logits = torch.zeros(4096, 100, dtype=torch.float16, requires_grad=True)
    loss = ft.cross_entropy(logits, torch.zeros(4096, dtype=torch.int64))
    (loss.float() * 2.0**12).backward()  # 0.01 of a loss that is divided by 4096
    torch.testing.assert_close(
        logits.grad[:, 1].float(), torch.full((4096,), 0.01), rtol=1e-3, atol=0
    )


def test_a_sum_beyond_the_type_is_infinite() -> None:
    big = torch.full((2,), 1e30, requires_grad=True)
    assert ft.mse_loss(big, -big.detach(), reduction="sum") == float("inf")


def test_the_loss_is_on_the_device_of_its_arguments() -> None:
    logits, targets = logits_and_targets()
    with torch.device("meta"):
        assert ft.cross_entropy(logits, targets).is_cpu


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_returns_float32(reduction: Any) -> None:
    logits, targets = logits_and_targets()
    narrow = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss_and_grads(ft, "cross_entropy", [narrow, targets], {"reduction": reduction})
        theirs = loss_and_grads(F, "cross_entropy", [narrow, targets], {"reduction": reduction})
    for x, y, bound in zip(ours, theirs, (1e-6, 2**-9), strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=bound)


def test_create_graph_is_refused() -> None:
    loss = ft.cross_entropy(*(pair := logits_and_targets()))
    message = "no second derivative; for create_graph=True use torch.nn.functional.cross_entropy"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(loss, pair[0], create_graph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_transforms_and_forward_mode_are_refused() -> None:
    logits, targets = logits_and_targets()
    logits = logits.detach()
    transforms: list[Callable[[], object]] = [
        lambda: torch.func.grad(ft.cross_entropy)(logits, targets),
        lambda: torch.func.vmap(ft.cross_entropy)(logits, targets),
        lambda: torch.func.jvp(lambda x: ft.cross_entropy(x, targets), (logits,), (logits,)),
    ]
    message = "has no forward-mode derivative and does not work in torch.func; use torch.nn.functio"
    for transform in transforms:
        with pytest.raises(RuntimeError, match=message):
            transform()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        ft.cross_entropy(torch.autograd.forward_ad.make_dual(logits, logits), targets)


def test_what_fastopt_does_not_take_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CLASSES", {})
    x, y = torch.rand(3, 4, requires_grad=True), torch.rand(3, 4, requires_grad=True)
    targets, hidden = torch.tensor([0, 1, 2]), torch.rand(3, 2, requires_grad=True)
    negated = torch.complex(x.detach(), x.detach()).conj().imag
    table: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("mse_loss", [x, y], {}),
        ("mse_loss", [x, y.detach().double()], {}),
        ("mse_loss", [x.as_subclass(type("Named", (torch.Tensor,), {})), y.detach()], {}),
        ("mse_loss", [negated, y.detach()], {}),
        ("huber_loss", [x, y.detach()], {"weight": x.detach()}),
        ("cross_entropy", [x, targets.to(torch.uint8)], {}),
        ("cross_entropy", [x, targets], {"weight": torch.rand(4, dtype=torch.float64)}),
        ("linear_cross_entropy", [hidden, y, targets], {"reduction": "none"}),
        ("linear_cross_entropy", [hidden, torch.rand(4, 1, 2), targets[:, None]], {}),
    ]
    for name, arguments, options in table:
        try:
            expected = getattr(F, name)(*arguments, **options)
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error), match=str(error)[:20]):
                getattr(ft, name)(*arguments, **options)
        else:
            assert torch.equal(getattr(ft, name)(*arguments, **options), expected)
    assert ft.mse_loss(x.to("meta"), y.to("meta")).device.type == "meta"
    for arguments in ([x, y[0].detach()],):
        with pytest.warns(UserWarning, match="target size"):
            ft.mse_loss(*arguments)
    with pytest.warns(UserWarning, match="size_average"):
        ft.l1_loss(x, y.detach(), size_average=False)


def test_signatures_are_those_of_torch() -> None:
    for name in losses._OPTIONS:
        ours = inspect.signature(getattr(ft, name)).parameters.values()
        theirs = inspect.signature(getattr(F, name)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [
            (p.name, p.kind, p.default) for p in theirs
        ]


@pytest.mark.usefixtures("without_torch")
def test_modules() -> None:
    names = [name for name in losses.__all__ if name[0].isupper()]
    names.remove("LinearCrossEntropyLoss")  # which needs arguments
    assert len(names) == 9
    numbers = torch.tensor([[0.2, 0.4], [0.8, 0.1]])
    for name in names:
        module = getattr(ft, name)()
        assert isinstance(module, getattr(torch.nn, name))
        target = torch.tensor([1, 0]) if name in ("CrossEntropyLoss", "NLLLoss") else numbers.mT
        loss = module(numbers, target)
        torch.testing.assert_close(loss, getattr(torch.nn, name)()(numbers, target))
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(twin) is type(module)
            assert twin(numbers, target) == loss
    weight = torch.tensor([1.0, 3.0])
    module = ft.CrossEntropyLoss(weight, ignore_index=1, reduction="sum", label_smoothing=0.5)
    expected = F.cross_entropy(
        numbers, torch.tensor([0, 1]), weight, None, 1, None, "sum", label_smoothing=0.5
    )
    torch.testing.assert_close(module(numbers, torch.tensor([0, 1])), expected)
    assert torch.equal(module.state_dict()["weight"], weight)


@pytest.mark.parametrize("bias", [False, True])
def test_the_module_of_a_linear_layer(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, target = torch.linspace(-1, 1, 20).reshape(4, 5), torch.tensor([0, 2, 1, 1])
    options = {"weight": torch.tensor([1.0, 3.0, 2.0]), "ignore_index": 1, "label_smoothing": 0.1}
    witness = torch.nn.LinearCrossEntropyLoss(5, 3, bias=bias, **options)
    module = ft.LinearCrossEntropyLoss(5, 3, bias=bias, **options)
    module.load_state_dict(witness.state_dict())
    expected = witness(hidden, target)
    expected.backward()
    monkeypatch.setattr(losses, "functional", None)  # torch's own is not called
    loss = module(hidden, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for p, q in zip(module.parameters(), witness.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_compiled_function_has_the_loss_of_torch() -> None:
    logits, targets = logits_and_targets()
    compiled = torch.compile(
        lambda x: ft.cross_entropy(x * 2, targets), backend="eager", fullgraph=True
    )
    assert torch.equal(compiled(logits), F.cross_entropy(logits * 2, targets))


def test_the_rest_of_fastopt_does_not_import_torch() -> None:
    code = "import sys, fastopt; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
