"""decay_groups: which parameters decay, and that the groups train as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt as fo
from helpers import same_bits


def model() -> dict[str, Any]:
    return {
        "embed.weight": np.ones((9, 4), np.float32),
        "conv.weight": np.ones((2, 3, 3, 3), np.float32),
        "conv.bias": np.ones(2, np.float32),
        "norm.scale": np.ones(4, np.float32),
        "head.weight": np.ones((4, 3), np.float32),
        "temperature": np.ones((), np.float32),
    }


def split(groups: list[dict[str, Any]]) -> dict[float, list[str]]:
    return {group["weight_decay"]: list(group["params"]) for group in groups}


def test_matrices_decay_vectors_do_not() -> None:
    params = model()
    groups = fo.decay_groups(params, 0.1)
    assert split(groups) == {
        0.1: ["embed.weight", "conv.weight", "head.weight"],
        0.0: ["conv.bias", "norm.scale", "temperature"],
    }
    for group in groups:
        for name, array in group["params"].items():
            assert array is params[name]


@pytest.mark.parametrize(
    ("exclude", "decaying"),
    [
        ("embed.*", ["conv.weight", "head.weight"]),
        (["embed.weight", "head*"], ["conv.weight"]),
        ({"conv.weigh?"}, ["embed.weight", "head.weight"]),
        ("*", None),
    ],
)
def test_names_that_do_not_decay(exclude: Any, decaying: list[str] | None) -> None:
    parts = split(fo.decay_groups(model(), exclude=exclude))
    assert parts.get(0.01) == decaying
    assert sorted(name for names in parts.values() for name in names) == sorted(model())


def test_a_group_without_parameters_is_left_out() -> None:
    assert split(fo.decay_groups([np.ones((2, 2))], 0.5)) == {0.5: ["0"]}
    assert split(fo.decay_groups([np.ones(2)], 0.5)) == {0.0: ["0"]}


def test_sequences_get_the_names_that_optimizers_give() -> None:
    arrays = [np.ones((2, 2)), np.ones(2), np.ones((3, 2))]
    groups = fo.decay_groups(iter(arrays), 0.5)
    assert split(groups) == {0.5: ["0", "2"], 0.0: ["1"]}
    opt = fo.AdamW(groups, lr=1.0)
    opt.step({str(i): np.zeros_like(a) for i, a in enumerate(arrays)})
    assert [float(a.flat[0]) for a in arrays] == [0.5, 1.0, 0.5]


def test_training_with_the_groups_is_training_with_two_optimizers() -> None:
    p, q = model(), model()
    groups = fo.decay_groups(p, 0.1, exclude="embed*")
    opt, ema, acc = fo.AdamW(groups, lr=0.01), fo.WeightEMA(groups), fo.GradAccumulator(groups)
    decaying, others = fo.decay_groups(q, 0.1, exclude="embed*")
    first = fo.AdamW(decaying["params"], lr=0.01, weight_decay=0.1)
    second = fo.AdamW(others["params"], lr=0.01, weight_decay=0.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in p.items()}
        acc.add(grads)
        opt.step(acc.grads, grad_scale=acc.weight)
        ema.update()
        acc.reset()
        first.step({n: grads[n] for n in decaying["params"]})
        second.step({n: grads[n] for n in others["params"]})
    assert all(same_bits(p[n], q[n]) for n in p)
    assert list(ema.averages) == list(opt.state) == list(acc.grads)


def test_a_group_added_later_is_scheduled_averaged_and_accumulated() -> None:
    p: dict[str, Any] = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    late: dict[str, Any] = {"params": {"late": np.zeros(2)}, "lr": 8.0, "weight_decay": 0.0}
    groups = fo.decay_groups(p, 0.0)
    opt, ema, acc = fo.SGD(groups, lr=1.0), fo.WeightEMA(groups, 0.5), fo.GradAccumulator(groups)
    schedule = fo.StepLR(opt, step_size=1, gamma=0.5)
    for epoch in range(4):
        if epoch == 2:
            for each in (opt, ema, acc):
                each.add_param_group(late)
            p |= late["params"]
        for weight in (1, 3):
            acc.add({name: np.ones_like(a) for name, a in p.items()}, weight)
        opt.step(acc.grads, grad_scale=acc.weight)
        ema.update()
        schedule.step()
        acc.reset()
    assert np.all(p["w"] == -(1 + 0.5 + 0.25 + 0.125))
    assert np.all(p["b"] == p["w"][0])
    # The rate of the new group is its own, halved each time from when it came.
    assert np.all(p["late"] == -(8 + 4))
    assert np.all(ema.averages["late"] == -8 + 0.5 * -4)


def test_bad_arguments() -> None:
    params = model()
    with pytest.raises(ValueError, match=r"'enbed\*' matches no parameter.*embed\.weight"):
        fo.decay_groups(params, exclude=["head*", "enbed*"])
    with pytest.raises(TypeError, match="list of groups"):
        fo.decay_groups([{"params": params}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="empty"):
        fo.decay_groups([])
    with pytest.raises(TypeError, match="int"):
        fo.decay_groups(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strings"):
        fo.decay_groups({1: np.ones(2)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight_decay.*-1"):
        fo.AdamW(fo.decay_groups(params, -1.0))
    with pytest.raises(TypeError, match="parameter 'w'"):
        fo.AdamW(fo.decay_groups({"w": [1.0]}))  # type: ignore[arg-type]
