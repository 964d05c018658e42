"""decay_groups: the parameters that decay, and training with groups."""

from __future__ import annotations

from collections import OrderedDict
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
    # The new group has its own rate, which is halved in each step after it was added.
    assert np.all(p["late"] == -(8 + 4))
    assert np.all(ema.averages["late"] == -8 + 0.5 * -4)


def test_bad_arguments() -> None:
    params = model()
    with pytest.raises(ValueError, match=r"'enbed\*' matches no parameter.*embed\.weight"):
        fo.decay_groups(params, exclude=["head*", "enbed*"])
    with pytest.raises(TypeError, match="list of groups"):
        fo.decay_groups([{"params": params}])  # type: ignore[arg-type]
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


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_items_are_parameters_by_name(module: Any) -> None:
    arrays = {"w": np.ones(3), "b": np.ones(2)}
    for given in (
        arrays.items(),
        list(arrays.items()),
        iter(arrays.items()),  # like named_parameters() of torch
        [{"params": arrays.items()}],
        [{"params": iter(arrays.items())}],
    ):
        optimizer = module.SGD(given, lr=1.0)
        assert list(optimizer.state) == ["w", "b"]
        optimizer.step({"b": np.zeros(2), "w": np.zeros(3)})
        with pytest.raises(TypeError, match="must be a mapping name -> gradient"):
            optimizer.step([[np.ones(3), np.ones(2)]] if optimizer._by_group else [np.ones(3)] * 2)
    assert list(fo.WeightEMA(arrays.items()).averages) == ["w", "b"]
    assert list(fo.GradAccumulator(iter(arrays.items())).grads) == ["w", "b"]
    with pytest.raises(ValueError, match="same name"):
        module.SGD([("w", np.ones(3)), ("w", np.ones(2))])
    with pytest.raises(TypeError, match="pass the mapping itself"):
        optimizer.step(arrays.items())


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_removing_a_group(module: Any) -> None:
    a, b, c = np.zeros(2), np.zeros(3), np.zeros(1)
    optimizer = module.Adam([{"params": [a]}, {"params": [b], "lr": 0.5}, {"params": {"c": c}}])
    grads = [[np.ones(2)], [np.ones(3)], {"c": np.ones(1)}]
    optimizer.step(grads)
    moved = b.copy()
    for index, error in ((3, IndexError), (-4, IndexError), ("1", TypeError), (1.0, TypeError)):
        with pytest.raises(error, match=repr(index)):
            optimizer.remove_param_group(index)
    optimizer.remove_param_group(1)
    assert list(optimizer.state) == ["0", "c"]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    optimizer.step([grads[0], grads[2]])
    assert np.array_equal(b, moved)
    assert a[0] < moved[0] * 1e-3
    assert [optimizer.state[name]["step"] for name in ("0", "c")] == [2, 2]
    assert list(optimizer.state_dict()["state"]) == ["0", "c"]
    # The parameter may be added again, with a new state and a new number.
    optimizer.add_param_group({"params": [b]})
    assert list(optimizer.state) == ["0", "c", "2"]
    assert optimizer.state["2"] == {"step": 0}
    optimizer.remove_param_group(-1)
    optimizer.remove_param_group(0)
    optimizer.add_param_group({"params": [a, b]})
    assert list(optimizer.state) == ["c", "1", "2"]
    optimizer.step({"c": np.ones(1), "1": np.ones(2), "2": None})
    for _ in range(2):
        optimizer.remove_param_group(0)
    assert len(optimizer.state) == 0
    assert optimizer.step([]) == (None, False)


def test_a_group_cannot_leave_by_another_way() -> None:
    optimizer = fo.SGD([{"params": [np.ones(2)]}, {"params": [np.ones(2)]}])
    with pytest.raises(AttributeError, match=r"cannot be replaced: .* remove_param_group"):
        optimizer.param_groups = []
    group = optimizer.param_groups.pop()
    with pytest.raises(ValueError, match="remove one with remove_param_group"):
        optimizer.step({"0": np.ones(2), "1": np.ones(2)})
    optimizer.param_groups += [group, group]
    with pytest.raises(ValueError, match="add one with add_param_group"):
        optimizer.step({"0": np.ones(2), "1": np.ones(2)})


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_names_of_a_state_in_any_order(module: Any) -> None:
    arrays = {"w": np.arange(3.0), "b": np.ones(2)}
    optimizer = module.AdamW(arrays)
    optimizer.step({name: array + 1 for name, array in arrays.items()})
    other = module.AdamW({name: arrays[name].copy() for name in ("b", "w")})
    saved = optimizer.state_dict()
    assert other.load_state_dict(saved) == ([], [])
    assert list(other.state) == ["b", "w"]
    for name, state in other.state.items():
        assert all(np.array_equal(value, saved["state"][name][key]) for key, value in state.items())


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_states_that_fit_in_part(module: Any) -> None:
    def make(*groups: dict[str, Any], **options: Any) -> Any:
        optimizer = module.Adam(
            [
                {
                    "params": {n: np.ones(2) for n in "".join(g["params"])},
                    **{k: v for k, v in g.items() if k != "params"},
                }
                for g in groups
            ],
            **options,
        )
        optimizer.step({name: np.ones(2) for name in optimizer.state})
        return optimizer

    saved = make({"params": "ab", "lr": 0.5}, {"params": "cd", "lr": 0.25}).state_dict()
    saved["param_groups"][1]["initial_lr"] = 7.0
    for name in "abcd":
        saved["state"][name]["step"] += 10
    del saved["param_groups"][0]["eps"]
    own = make({"params": "x", "lr": 0.75}, {"params": "da"}, {"params": "b"}, eps=1e-3)
    with pytest.raises(KeyError, match="missing: 'x'; not known: 'c'"):
        own.load_state_dict(saved)
    found = own.load_state_dict(saved, strict=False)
    missing = [f"param_groups[0].{key}" for key in own.defaults]
    assert found.missing_keys == ["x", *missing, "param_groups[2].eps"]
    assert found.unexpected_keys == ["c", "param_groups[1].initial_lr"]
    assert {name: state["step"] for name, state in own.state.items()} == {
        "x": 1,
        "d": 11,
        "a": 11,
        "b": 11,
    }
    assert [group["lr"] for group in own.param_groups] == [0.75, 0.25, 0.5]
    assert [group["eps"] for group in own.param_groups] == [1e-3, 1e-8, 1e-3]
    assert "initial_lr" not in own.param_groups[1]
    own.param_groups[1]["initial_lr"] = 1.0
    own.load_state_dict(saved, strict=False)
    assert own.param_groups[1]["initial_lr"] == 7.0  # it has one now
    other = module.SGD({"a": np.ones(2), "z": np.ones(2)})
    keys = other.load_state_dict(module.Adam({"a": np.ones(2)}).state_dict(), strict=False)
    assert keys.missing_keys[0] == "z"
    assert "param_groups[0].betas" in keys.unexpected_keys
    assert "betas" not in other.param_groups[0]
    saved["state"]["a"]["exp_avg"] = np.ones(3)
    with pytest.raises(ValueError, match="exp_avg of 'a' has shape"):
        fo.Adam({"a": np.ones(2)}).load_state_dict(saved, strict=False)
    with pytest.raises(TypeError, match="strict must be True or False"):
        own.load_state_dict(saved, strict="no")


def test_groups_that_were_moved_by_hand_are_refused() -> None:
    arrays = [np.ones(2), np.ones(2)]
    optimizer = fo.SGD([{"params": [a]} for a in arrays], lr=1.0)
    grads = [[np.ones(2)], [np.ones(2)]]
    for change in (list.reverse, list.pop):
        groups = optimizer.param_groups[:]
        change(optimizer.param_groups)
        for call in (
            lambda: optimizer.step(grads[: len(optimizer.param_groups)]),
            lambda: optimizer.remove_param_group(0),
            lambda: optimizer.load_state_dict(optimizer.state_dict(), strict=False),
        ):
            with pytest.raises(ValueError, match="remove_param_group"):
                call()
        optimizer.param_groups[:] = groups
    optimizer.step(grads)
    assert all((a == 0).all() for a in arrays)


def test_groups_with_odd_keys_or_of_other_kinds() -> None:
    optimizer = fo.SGD([np.ones(2)])
    state = optimizer.state_dict()

    class Key:
        def __hash__(self) -> int:
            optimizer.param_groups[0].clear()
            return 1

    group = optimizer.param_groups[0]
    before = dict(group)
    for key in (3, None, Key):
        group[key] = 1  # type: ignore[index]
        with pytest.raises(TypeError, match="strings as names"):
            optimizer.load_state_dict(state)
        del group[key]  # type: ignore[arg-type]
    assert group == before
    optimizer.param_groups[0] = OrderedDict(group)
    with pytest.raises(TypeError, match=r"param_groups\[0\] must be a dict, not OrderedDict"):
        optimizer.step([np.ones(2)])


def test_odd_values_of_options() -> None:
    class Pair(list[float]):
        def __len__(self) -> int:
            return 2

    p = np.ones(2)
    for betas in (np.array(0.9), Pair([0.5]), "ab", 0.9, [0.9], None):
        with pytest.raises(TypeError, match="betas must be a pair of numbers, not"):
            fo.Adam([p], betas=betas)  # type: ignore[arg-type]
    fo.Adam([p], betas=np.array([0.5, 0.5])).step([np.ones(2)])  # type: ignore[arg-type]
    for value in (np.array(["grad", "zero"]), 1, None):
        with pytest.raises(ValueError, match="momentum_init must be 'grad' or 'zero', not"):
            fo.SGD([p], momentum=0.9, momentum_init=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dampening = 0, not momentum=0.9, dampening=0.5"):
        fo.SGD([p], momentum=0.9, dampening=0.5, nesterov=True)
    with pytest.raises(TypeError, match="index must be an integer, not"):
        fo.SGD([p]).remove_param_group(np.arange(3))  # type: ignore[arg-type]

    class Grads(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fo.SGD({"p": p}).step(Grads(p=p))


@pytest.mark.parametrize("module", [fo, fo.reference])
def test_gradients_by_group_after_a_group_was_added(module: Any) -> None:
    for first, second in (([np.ones(2)], [np.ones(3)]), ({"a": np.ones(2)}, {"b": np.ones(3)})):
        optimizer = module.SGD(first, lr=1.0)
        optimizer.add_param_group({"params": second})
        parts = [first, second]
        grads = [
            {n: np.ones_like(a) for n, a in p.items()}
            if isinstance(p, dict)
            else [np.ones_like(a) for a in p]
            for p in parts
        ]
        optimizer.step(grads)
        arrays = [a for p in parts for a in (p.values() if isinstance(p, dict) else p)]
        assert all((a == 0).all() for a in arrays)


@pytest.mark.parametrize(("params", "shown"), [({}, "{}"), ([], "[]"), ([{"params": []}], "[]")])
def test_empty_params(params: Any, shown: str) -> None:
    with pytest.raises(ValueError, match="there is nothing to optimize") as caught:
        fo.AdamW(params)
    assert f"params is empty, {shown}:" in str(caught.value)


def test_what_decay_groups_can_exclude() -> None:
    params = {"w": np.ones((2, 2))}
    with pytest.raises(TypeError, match="exclude must be a string or a list of them, not 3"):
        fo.decay_groups(params, exclude=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="exclude must hold strings, not 3"):
        fo.decay_groups(params, exclude=[3])  # type: ignore[list-item]


def test_a_keyword_of_step_that_is_misspelt() -> None:
    with pytest.raises(TypeError, match=r"^Optimizer\.step\(\) got .* 'maxnorm'"):
        fo.SGD([np.ones(2)]).step([np.ones(2)], maxnorm=1.0)  # type: ignore[call-arg]
