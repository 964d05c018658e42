"""Every row of the table of bad input: the right exception, the names in it, nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt as fo
from bad_cases import BAD_GRADS, BAD_LOSS, BAD_PARAMS, GOOD_LOGITS, GOOD_TARGETS
from helpers import ones, read_only, refused, same_bits


@pytest.mark.parametrize(
    ("make", "error", "word"), [pytest.param(*r[1:], id=r[0]) for r in BAD_PARAMS]
)
def test_parameters(make: Callable[[], Any], error: type[Exception], word: str) -> None:
    good = ones(3)
    with refused(error, "parameter 'bad'", word, arrays=[good]):
        fo.AdamW({"good": good, "bad": make()})
    opt = fo.AdamW({"good": good})
    with refused(error, "parameter 'bad'", word, arrays=[good], optimizer=opt):
        opt.add_param_group({"params": {"bad": make()}})
    assert len(opt.param_groups) == 1
    opt.step({"good": good.copy()})
    state, grad = ones(4), ones(4)
    with refused(error, "param", word, arrays=[state, grad]):
        fo.functional.adam_(make(), grad, state, ones(4), step=1)


@pytest.mark.parametrize(
    ("spoil", "error", "word"), [pytest.param(*r[1:], id=r[0]) for r in BAD_GRADS]
)
def test_gradients(spoil: Callable[[Any], Any], error: type[Exception], word: str) -> None:
    first, second = ones(5), ones(2, 3)
    opt = fo.AdamW({"a": first, "b": second})
    opt.step({"a": ones(5), "b": ones(2, 3)})
    with refused(error, "gradient of 'b'", word, arrays=[first, second], optimizer=opt):
        opt.step({"a": ones(5), "b": spoil(ones(2, 3))})
    fresh = fo.AdamW({"a": first, "b": second})
    with refused(error, "gradient of 'b'", word, arrays=[first, second], optimizer=fresh):
        fresh.step({"a": ones(5), "b": spoil(ones(2, 3))})
    assert all(state == {"step": 0} for state in fresh.state.values())


def test_overlaps() -> None:
    memory = ones(20)
    with refused(ValueError, "'a'", "'b'", "share memory"):
        fo.SGD({"a": memory[:10], "b": memory[9:15]})
    with refused(ValueError, "'a'", "'b'", "share memory"):
        fo.SGD({"a": memory, "b": memory})
    opt = fo.SGD({"a": memory[:10]}, momentum=0.9)
    with refused(ValueError, "'a'", "'c'", optimizer=opt):
        opt.add_param_group({"params": {"c": memory[5:8]}})
    for grad in (memory[:10], memory[5:15], memory[:10][::-1]):
        with refused(
            ValueError, "parameter 'a'", "gradient of 'a'", arrays=[memory], optimizer=opt
        ):
            opt.step({"a": grad})
    opt.step({"a": memory[10:]})
    buffer = opt.state["a"]["momentum_buffer"]
    with refused(
        ValueError, "momentum_buffer of 'a'", "gradient of 'a'", arrays=[memory], optimizer=opt
    ):
        opt.step({"a": buffer})
    with refused(ValueError, "exp_avg", "exp_avg_sq", arrays=[memory]):
        fo.functional.adam_(memory[:5], memory[5:10], memory[10:15], memory[10:15], step=1)


def test_interleaved_gradients_are_not_taken_for_an_overlap() -> None:
    memory = np.arange(1, 41, dtype=np.float32).reshape(2, 20)
    inside = memory[0, 12:18]  # lies between the two rows of the gradient
    grad = memory[:, :10]
    a = np.zeros((2, 10), np.float32)
    opt = fo.SGD({"a": a, "b": inside}, lr=1.0)
    opt.step({"a": grad, "b": ones(6)})
    assert same_bits(a, -grad)
    assert inside[0] == 12
    with refused(ValueError, "'b'", "gradient of 'a'", arrays=[memory, a], optimizer=opt):
        opt.step({"a": memory[:, 5:15], "b": ones(6)})


def test_arrays_that_changed_between_steps() -> None:
    p = ones(6)
    opt = fo.SGD({"p": p}, momentum=0.9)
    opt.step({"p": ones(6)})
    p.flags.writeable = False
    with refused(ValueError, "parameter 'p'", "read-only", arrays=[p], optimizer=opt):
        opt.step({"p": ones(6)})
    p.flags.writeable = True
    p.resize(4, refcheck=False)
    with refused(ValueError, "(4,)", arrays=[p], optimizer=opt):
        opt.step({"p": ones(6)})
    with refused(ValueError, "momentum_buffer of 'p'", "(6,)", arrays=[p], optimizer=opt):
        opt.step({"p": ones(4)})


BAD_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    (name, {key: value})
    for name, keys in {
        "SGD": ["lr", "momentum", "weight_decay"],
        "RMSprop": ["lr", "alpha", "eps", "weight_decay", "momentum"],
        "Adam": ["lr", "eps", "weight_decay"],
        "AdamW": ["lr", "eps", "weight_decay"],
    }.items()
    for key in keys
    for value in (-0.5, float("nan"), float("inf"))
] + [
    ("SGD", {"dampening": float("nan")}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("SGD", {"momentum_init": "ones"}),
    ("SGD", {"maximize": 2}),
    ("RMSprop", {"alpha": 1.5}),
    ("Adam", {"betas": (1.0, 0.9)}),
    ("Adam", {"betas": (0.9, -0.1)}),
    ("Adam", {"betas": (0.9, float("nan"))}),
    ("AdamW", {"betas": (0.9, 1.0)}),
]


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS, ids=str)
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    key, value = next(iter(options.items()))
    shown = repr(value) if not isinstance(value, tuple) else key
    word = "nesterov" if key == "nesterov" else shown
    p = ones(3)
    with refused(ValueError, key, word, arrays=[p]):
        getattr(fo, name)([p], **options)
    opt = getattr(fo, name)([p])
    with refused(ValueError, key, word, arrays=[p], optimizer=opt):
        opt.add_param_group({"params": [ones(2)], **options})
    opt.step([ones(3)])
    opt.param_groups[0].update(options)  # options are read, and checked, at every step
    with refused(ValueError, key, word, arrays=[p], optimizer=opt):
        opt.step([ones(3)])


@pytest.mark.parametrize(
    ("options", "word"),
    [({"lr": "fast"}, "lr"), ({"lr": None}, "lr"), ({"betas": 0.9}, "betas"),
     ({"betas": (0.9,)}, "betas"), ({"betas": "ab"}, "betas")],
)  # fmt: skip
def test_options_of_the_wrong_kind(options: dict[str, Any], word: str) -> None:
    with refused(TypeError, word):
        fo.Adam([ones(3)], **options)


def test_groups_and_names() -> None:
    p, q = ones(3), ones(3)
    with refused(ValueError, "weigth_decay", "weight_decay"):
        fo.Adam([{"params": [p], "weigth_decay": 0.1}])
    with refused(ValueError, "params", "'lr'"):
        fo.Adam([{"lr": 0.1}])
    with refused(ValueError, "'w', 'b'; the arrays of all layers go into one mapping"):
        fo.Adam([{"w": p, "b": q}])
    with refused(TypeError, "parameter 'l1'", "not dict; the arrays of all layers"):
        fo.Adam({"l1": {"w": p}})  # type: ignore[arg-type]
    with refused(KeyError, "given as a sequence", "'w', 'b'", arrays=[p, q]):
        fo.Adam([p, q]).step({"w": p.copy(), "b": q.copy()})
    with refused(ValueError, "empty"):
        fo.Adam([])
    with refused(ValueError, "empty"):
        fo.Adam([{"params": []}])
    with refused(TypeError, "ndarray"):
        fo.Adam(p)
    with refused(TypeError, "int"):
        fo.Adam([{"params": 5}])
    with refused(TypeError, "masked"):
        fo.Adam([np.ma.masked_array(p, mask=p > 0)])
    with refused(TypeError, "strings"):
        fo.Adam({1: p})  # type: ignore[arg-type]
    with refused(ValueError, "'w'"):
        fo.Adam([{"params": {"w": p}}, {"params": {"w": q}}])
    opt = fo.Adam({"w": p})
    opt.param_groups[0]["params"] = [q]
    with refused(ValueError, "replaced", arrays=[p, q], optimizer=opt):
        opt.step({"w": ones(3)})
    opt = fo.Adam({"w": p})
    opt.param_groups.append(dict(opt.param_groups[0]))
    with refused(ValueError, "add_param_group", arrays=[p], optimizer=opt):
        opt.step({"w": ones(3)})
    opt = fo.Adam({"w": p})
    del opt.param_groups[0]["lr"]
    with refused(KeyError, "lr", arrays=[p], optimizer=opt):
        opt.step({"w": ones(3)})


@pytest.mark.parametrize(
    ("starts", "error", "words"),
    [
        ([0], ValueError, ["starts must have 2 values, not 1"]),
        ([0, 1, 2], ValueError, ["starts must have 2 values, not 3"]),
        ([0, -1], ValueError, ["starts[1] must be >= 0, not -1"]),
        ([2**63, 0], ValueError, ["starts[0]", "64 bits"]),
        ([0, 1.0], TypeError, ["starts[1] must be an integer, not 1.0"]),
        ([True, 0], TypeError, ["starts[0] must be an integer, not True"]),
        (np.zeros(2), TypeError, ["starts[0] must be an integer"]),
        (np.zeros((2, 1), int), TypeError, ["starts must be a sequence"]),
        ({"a": 0, "b": 0}, TypeError, ["starts must be a sequence"]),
        ("00", TypeError, ["starts must be a sequence"]),
        (5, TypeError, ["starts must be a sequence, not 5"]),
        (None, TypeError, ["starts must be a sequence, not None"]),
    ],
)
@pytest.mark.parametrize("module", [fo, fo.reference])
def test_starts_of_parts(
    module: Any, starts: Any, error: type[Exception], words: list[str]
) -> None:
    p, group = ones(3), {"params": {"a": ones(2), "b": ones(4)}, "starts": starts}
    with refused(error, *words, arrays=group["params"].values()):
        module.Adam([group])
    opt = module.Adam({"p": p})
    with refused(error, *words, arrays=[p], optimizer=opt):
        opt.add_param_group(group)
    assert list(opt.state) == ["p"]
    opt.step({"p": ones(3)})


def test_structure_of_gradients() -> None:
    p, q = ones(3), ones(2)
    named = fo.SGD({"p": p, "q": q})
    with refused(KeyError, "missing: 'q'", "not known: 'x'", arrays=[p, q], optimizer=named):
        named.step({"p": ones(3), "x": ones(2)})
    with refused(KeyError, "not known: 'x', 1", arrays=[p, q], optimizer=named):
        named.step({"p": ones(3), "q": ones(2), "x": ones(2), 1: ones(2)})  # type: ignore[dict-item]
    for pair in ([ones(3), ones(2)], (ones(3), ones(2))):  # in which order?
        with refused(TypeError, "by name", "'p', 'q'", arrays=[p, q], optimizer=named):
            named.step(pair)
        given: list[Any] = [{"params": [p]}, {"params": {"q": q}}]
        groups = fo.SGD(given)
        with refused(TypeError, "by name", "'q'", arrays=[p, q], optimizer=groups):
            groups.step([pair[:1], pair[1:]])
        groups.step([pair[:1], {"q": pair[1]}])
        groups.param_groups.append(dict(groups.param_groups[0]))
        with refused(ValueError, "add_param_group", arrays=[p, q], optimizer=groups):
            groups.step([pair[:1], {"q": pair[1]}, pair[:1]])
        late = fo.SGD([p])
        late.add_param_group({"params": {"q": q}})
        with refused(TypeError, "by name", "'0', 'q'", arrays=[p, q], optimizer=late):
            late.step(pair)
        late.step({"0": pair[0], "q": pair[1]})
    listed = fo.SGD([p, q])
    with refused(ValueError, "2 parameters", "1 gradient", arrays=[p, q], optimizer=listed):
        listed.step([ones(3)])
    with refused(TypeError, "ndarray", arrays=[p, q], optimizer=listed):
        listed.step(ones(2))
    grouped = fo.SGD([{"params": [p]}, {"params": [q]}])
    with refused(ValueError, "2 parameter groups", "1 group ", arrays=[p, q], optimizer=grouped):
        grouped.step([[ones(3)]])
    with refused(ValueError, "group 1", "2 gradients", arrays=[p, q], optimizer=grouped):
        grouped.step([[ones(3)], [ones(2), ones(2)]])
    with refused(TypeError, "group 1", "ndarray", arrays=[p, q], optimizer=grouped):
        grouped.step([[ones(3)], ones(2)])


def test_state_dicts_that_do_not_match() -> None:
    p, q = ones(3), ones(2)
    opt = fo.Adam({"p": p, "q": q})
    opt.step({"p": ones(3), "q": ones(2)})

    def load(change: Callable[[dict[str, Any]], object]) -> None:
        saved = opt.state_dict()
        for state in saved["state"].values():
            for key, value in state.items():
                state[key] = value + 1  # values that a change would show
        change(saved)
        opt.load_state_dict(saved)

    cases: list[tuple[Callable[[dict[str, Any]], object], type[Exception], str]] = [
        (lambda d: d.pop("state"), KeyError, "state"),
        (lambda d: d.pop("param_groups"), KeyError, "param_groups"),
        (lambda d: d["state"].pop("q"), KeyError, "missing: 'q'"),
        (lambda d: d["state"].update(r={}), KeyError, "not known: 'r'"),
        (lambda d: d["state"]["q"].pop("exp_avg"), KeyError, "exp_avg"),
        (lambda d: d["state"]["q"].update(momentum=1), KeyError, "momentum"),
        (lambda d: d["state"]["q"].pop("step"), KeyError, "step"),
        (lambda d: d["state"]["q"].update(step=1.5), TypeError, "1.5"),
        (lambda d: d["state"]["q"].update(step=-1), ValueError, "-1"),
        (lambda d: d["state"]["q"].update(exp_avg=np.ones(2)), TypeError, "float64"),
        (lambda d: d["state"]["q"].update(exp_avg=ones(3)), ValueError, "(3,)"),
        (lambda d: d["state"]["q"].update(exp_avg=[1, 2]), TypeError, "list"),
        (lambda d: d["state"].update(q=None), TypeError, "'q'"),
        (lambda d: d["param_groups"].append(d["param_groups"][0]), ValueError, "2 groups"),
        (lambda d: d["param_groups"].append({}), TypeError, "group 1"),
        (lambda d: d["param_groups"][0].update(params=["q", "r"]), ValueError, "group 0"),
        (lambda d: d["param_groups"][0].update(params=3), TypeError, "group 0"),
        (lambda d: d.update(param_groups=[3]), TypeError, "group 0"),
        (lambda d: d.update(param_groups=3), TypeError, "'param_groups'"),
        (lambda d: d.update(state=[]), TypeError, "'state'"),
        (lambda d: d["state"]["q"].update(step=2**63 - 1), ValueError, str(2**63 - 1)),
        (lambda d: d["state"]["q"].update(step=2**63), ValueError, "64 bits"),
        (lambda d: d["param_groups"][0].update(lr=1e39), ValueError, "lr"),
        (lambda d: d["param_groups"][0].update(eps=1e-60), ValueError, "eps"),
        (lambda d: d["param_groups"][0].pop("lr"), KeyError, "missing: 'lr' (options of Adam: "),
        (lambda d: d["param_groups"][0].update(lr=-1.0), ValueError, "-1.0"),
    ]
    for change, error, word in cases:
        options = dict(opt.param_groups[0])
        with refused(error, word, arrays=[p, q], optimizer=opt):
            load(change)
        assert opt.param_groups[0] == options


def test_functional_arguments() -> None:
    p, g, m, v = ones(3), ones(3), ones(3), ones(3)
    arrays = [p, g, m, v]
    with refused(ValueError, "step", "0", arrays=arrays):
        fo.functional.adam_(p, g, m, v, step=0)
    with refused(TypeError, "max_exp_avg_sq is None, but amsgrad=True needs it", arrays=arrays):
        fo.functional.adam_(p, g, m, v, step=1, amsgrad=True)
    with refused(TypeError, "step", arrays=arrays):
        fo.functional.sgd_(p, g, m, momentum=0.9)
    with refused(ValueError, "exp_avg", "(4,)", arrays=arrays):
        fo.functional.adamw_(p, g, ones(4), v, step=1)
    with refused(TypeError, "square_avg", "float64", arrays=arrays):
        fo.functional.rmsprop_(p, g, np.ones(3))
    with refused(ValueError, "read-only", arrays=arrays):
        fo.functional.rmsprop_(p, g, read_only(ones(3)))
    square = ones(3, 3)
    with refused(ValueError, "laid out", arrays=[square]):
        fo.functional.rmsprop_(square, ones(3, 3), np.asfortranarray(ones(3, 3)))


@pytest.mark.parametrize(
    ("logits", "targets", "error", "words"), [pytest.param(*r[1:], id=r[0]) for r in BAD_LOSS]
)
def test_cross_entropy_arguments(
    logits: Any, targets: Any, error: type[Exception], words: list[str]
) -> None:
    out = np.full((3, 4), 7, np.float32)
    ce = fo.CrossEntropyLoss()
    with refused(error, *words, arrays=[out]):
        ce.value_and_grad(logits, targets, out=out)
    with refused(error, *words):
        ce(logits, targets)
    if isinstance(logits, np.ndarray) and logits.dtype == np.float32 and logits.ndim == 2:
        with refused(error, *words, arrays=[logits]):
            ce.value_and_grad(logits, targets, out=logits)


def test_cross_entropy_out() -> None:
    ce = fo.CrossEntropyLoss()
    memory = np.arange(24, dtype=np.float32)
    logits = memory[:12].reshape(3, 4)
    bad: list[tuple[Any, type[Exception], str]] = [
        (np.ones((3, 4)), TypeError, "float64"),
        (ones(4, 3), ValueError, "(4, 3)"),
        (read_only(ones(3, 4)), ValueError, "read-only"),
        ([[0.0] * 4] * 3, TypeError, "list"),
        (memory[4:16].reshape(3, 4), ValueError, "share memory"),
        (np.broadcast_to(memory[:4], (3, 4)), ValueError, "read-only"),
        (np.lib.stride_tricks.as_strided(memory[12:], (3, 4), (0, 4)), ValueError, "share memory"),
    ]
    for out, error, word in bad:
        with refused(error, "out", word, arrays=[memory]):
            ce.value_and_grad(logits, GOOD_TARGETS, out=out)
    images = np.zeros((4, 3, 5, 2), np.float32)
    turned = np.zeros((4, 3, 2, 5), np.float32).swapaxes(2, 3)
    with refused(ValueError, "in C order and without gaps", arrays=[turned]):
        ce.value_and_grad(images, np.zeros((4, 5, 2), int), out=turned)
    with refused(ValueError, "share memory", arrays=[memory]):  # at other places than the logits
        ce.value_and_grad(memory[:18].reshape(3, 6)[:, :4], GOOD_TARGETS, out=logits)
    probabilities = np.full((3, 4), 0.25, np.float32)
    with refused(ValueError, "out", "targets", arrays=[probabilities]):
        ce.value_and_grad(logits, probabilities, out=probabilities)
    for kind in (np.int64, np.int32, np.uint8):
        targets = np.zeros(16 // np.dtype(kind).itemsize, kind)
        out = targets.view(np.float32).reshape(2, 2)
        with refused(ValueError, "out", "targets", arrays=[targets]):
            ce.value_and_grad(ones(2, 2), targets[:2], out=out)
    for dtype in (np.float32, np.float64):
        weight = np.ones(16 // np.dtype(dtype).itemsize, dtype)
        out = weight.view(np.float32).reshape(2, 2)
        with refused(ValueError, "out", "weight", arrays=[weight]):
            fo.CrossEntropyLoss(weight[:2]).value_and_grad(ones(2, 2), np.zeros(2, int), out=out)


def test_cross_entropy_options() -> None:
    for bad in (-0.1, 1.1, float("nan")):
        with refused(ValueError, "label_smoothing", repr(bad)):
            fo.CrossEntropyLoss(label_smoothing=bad)
    for cap in (1e-31, 1e31):  # float32 could not hold logits over it
        with refused(ValueError, "logit_softcap", repr(cap)):
            fo.CrossEntropyLoss(logit_softcap=cap)
    for name in ("z_loss", "logit_softcap"):
        for bad in (-1.0, float("nan"), float("inf")):
            with refused(ValueError, name, repr(bad)):
                fo.CrossEntropyLoss(**{name: bad})  # type: ignore[arg-type]
    for options in (
        {"reduction": None},
        {"label_smoothing": "a"},
        {"ignore_index": 1.5},
        {"z_loss": None},
        {"logit_softcap": "30"},
        {"label_smoothing": np.array([0.1, 0.2])},
    ):
        key, value = next(iter(options.items()))
        with refused(TypeError, key, repr(value)):
            fo.CrossEntropyLoss(**options)
    with refused(ValueError, "ignore_index", str(2**70)):
        fo.CrossEntropyLoss(ignore_index=2**70)
    with refused(ValueError, "reduction", "average"):
        fo.CrossEntropyLoss(reduction="average")  # type: ignore[arg-type]
    with refused(TypeError, "weight", "list"):
        fo.CrossEntropyLoss(weight=[1.0, 2.0])  # type: ignore[arg-type]
    with refused(ValueError, "weight", "(2, 2)"):
        fo.CrossEntropyLoss(weight=np.ones((2, 2)))
    with refused(ValueError, "weight", "(4,)", "(3,)"):
        fo.CrossEntropyLoss(weight=np.ones(3))(GOOD_LOGITS, GOOD_TARGETS)


def test_class_weights_beyond_the_dtype() -> None:
    weight, x = np.repeat([1.0, 1.0, 1e39, -1e300], 2)[::2], GOOD_LOGITS.copy()
    for ours, name in ((fo.CrossEntropyLoss(weight), "logits"), (fo.NLLLoss(weight), "log_probs")):
        with refused(ValueError, "weight[2] is 1e+39, too large for float32", name, arrays=[x]):
            ours.value_and_grad(x, GOOD_TARGETS, out=x)
        ours(x.astype(float), GOOD_TARGETS)
    linear = fo.LinearCrossEntropyLoss(weight)
    with refused(ValueError, "weight[2] is 1e+39", "hidden", arrays=[x]):
        linear.value_and_grad(x, ones(4, 4), GOOD_TARGETS, out=(x, x))


@pytest.mark.parametrize("name", ["avx9", "", "AVX2"])
def test_instruction_sets(name: str) -> None:
    from fastopt import _core

    choices = "|".join(fo.available_isas())
    with pytest.raises(ValueError, match=re.compile(f"'{name}' is not available.*({choices})")):
        _core.use_isa(name)


def test_thread_counts() -> None:
    with pytest.raises(TypeError):
        fo.set_num_threads(1.5)  # type: ignore[arg-type]
    for bad in (0, -3):
        with pytest.raises(ValueError, match=str(bad)):
            fo.set_num_threads(bad)
