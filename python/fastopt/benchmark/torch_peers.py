"""``fastopt.torch`` beside torch, on tensors: steps of AdamW, and a loss with its backward pass.

The cases, the peers and the comparisons are those of the other suites, where torch is a peer of the
functions for NumPy. "NumPy" is the optimizer of fastopt for NumPy: it shows what the class for
torch costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from fastopt.benchmark.loss_cases import LossCase
from fastopt.benchmark.loss_peers import LOSSES, loss_on_tensors
from fastopt.benchmark.timing import Runner, Suite, torch
from fastopt.benchmark.type_cases import LR, TypeCase
from fastopt.benchmark.type_peers import TYPES, tensor_of
from fastopt.benchmark.update_cases import SIZES, Shapes, UpdateCase
from fastopt.benchmark.update_peers import (
    OPTIMIZERS,
    make_grads,
    make_params,
    step_on_tensors,
)

TorchCase: TypeAlias = UpdateCase | TypeCase | LossCase

SMALL: Shapes = [(64 << i % 7,) for i in range(300)]
GPT2: Shapes = [
    (50257, 768),
    (1024, 768),
    *12
    * [
        *2 * [(768,)],
        *[(768, 2304), (2304,)],
        *[(768, 768), (768,)],
        *2 * [(768,)],
        *[(768, 3072), (3072,)],
        *[(3072, 768), (768,)],
    ],
    *2 * [(768,)],
]
CASES: list[TorchCase] = [
    UpdateCase("AdamW", "300 tensors of 64 to 4096", SMALL),
    UpdateCase("AdamW", "148 tensors of GPT-2", GPT2),
    *(UpdateCase("AdamW", size, [(SIZES[size],)]) for size in ("4 K", "1 M", "64 M")),
    TypeCase(
        "AdamW, bf16 and fp32 master", SIZES["16 M"], "bfloat16", options={"master": "float32"}
    ),
    *(
        LossCase("CrossEntropyLoss", (n, c), label=f"cross_entropy {n} x {c}")
        for n, c in ((2048, 32000), (8192, 1000))
    ),
]

# The suite of each kind of case, and the name of torch there.
SUITE_OF: dict[type[TorchCase], tuple[Suite[Any], str]] = {
    UpdateCase: (OPTIMIZERS, "torch fused"),
    TypeCase: (TYPES, "torch cast"),
    LossCase: (LOSSES, "torch"),
}


def _fastopt(case: TorchCase) -> Runner:
    """Return the call of ``fastopt.torch``."""
    module = import_module("fastopt.torch")
    if isinstance(case, LossCase):
        return loss_on_tensors(module, case)
    if isinstance(case, UpdateCase):
        make = partial(module.AdamW, **case.options)
        return step_on_tensors(make, case, make_params(case), make_grads(case), copies=False)
    array = case.draw(0, case.param)
    param = torch.nn.Parameter(tensor_of(array))
    param.grad = tensor_of(case.draw(1, case.grad))
    optimizer = module.AdamW([param], lr=LR, master_weights=True)
    names = ("exp_avg", "exp_avg_sq", "master_param")
    return Runner(
        optimizer.step,
        lambda _: [array, *(optimizer.state[param][name].numpy() for name in names)],
    )


def _torch(case: TorchCase) -> Runner | None:
    suite, name = SUITE_OF[type(case)]
    return suite.peers[name](case)


def _numpy(case: TorchCase) -> Runner | None:
    if isinstance(case, UpdateCase) and case.elements <= 1 << 20:
        return OPTIMIZERS.peers["fastopt"](case)
    return None


def _reference(case: TorchCase) -> Runner | None:
    return SUITE_OF[type(case)][0].peers["reference"](case)


def check(case: TorchCase, runners: Mapping[str, Runner]) -> None:
    """Compare the peers as in the suite of the case, where "NumPy" has the name fastopt."""
    suite, name = SUITE_OF[type(case)]
    names = {"torch": name, "NumPy": "fastopt"}
    for peer, runner in runners.items():
        suite.check(case, {names.get(peer, peer): runner})


TORCH = Suite(
    name="torch",
    cases=CASES,
    peers={"fastopt": _fastopt, "torch": _torch, "NumPy": _numpy, "reference": _reference},
    check=check,
    unit="call",
)
