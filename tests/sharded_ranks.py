"""What `test_distributed.py` runs on several ranks: every function `check_*`, in order."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import fastopt as fo
from cases import CASES
from fastopt.distributed import Sharded, _exchange
from helpers import same_bits
from type_cases import BFLOAT16, FLOAT32, KINDS, Kind

COMM = MPI.COMM_WORLD
RANKS, RANK = COMM.size, COMM.rank
FLOAT64 = np.dtype(np.float64)
# One parameter is smaller than the number of ranks, one is empty, one has no axis; one spans ranks.
SHAPES = {
    "w": (37, 130),
    "one": (1,),
    "empty": (0, 3),
    "scalar": (),
    "cube": (3, 5, 300),
    "b": (9,),
}


def make_params(dtype: Any, seed: int = 0) -> dict[str, Any]:
    """Return the same parameters on all ranks, in several orders of memory."""
    rng = np.random.default_rng([1, seed])
    params: dict[str, Any] = {
        name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()
    }
    params["w"] = np.asfortranarray(params["w"])
    params["cube"] = np.ascontiguousarray(params["cube"].transpose(1, 2, 0)).transpose(2, 0, 1)
    return params


def make_grads(dtype: Any, step: int, rank: int) -> dict[str, Any]:
    """Return the gradients of a rank; those of "b" have strides."""
    rng = np.random.default_rng([2, step, rank])
    wide = FLOAT64 if dtype == FLOAT64 else FLOAT32
    grads: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(wide) for name, shape in SHAPES.items()
    }
    grads["scalar"] = np.array(grads["scalar"])
    grads["b"] = np.repeat(grads["b"], 2)[::2]
    return grads


def total(all_grads: Iterable[dict[str, Any]], weights: list[float] | None = None) -> Any:
    """Return the sums in the order of the ranks."""
    sums: dict[str, Any] = {}
    for grads, weight in zip(all_grads, weights or repeat(None), strict=False):
        if weight == 0:
            continue
        for name, grad in grads.items():
            part = grad if weight is None else np.asarray(grad * grad.dtype.type(weight))
            sums[name] = np.asarray(sums[name] + part) if name in sums else part
    return sums


def of_all(dtype: Any, step: int) -> list[dict[str, Any]]:
    return [make_grads(dtype, step, rank) for rank in range(RANKS)]


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name in SHAPES:
        assert same_bits(first[name], second[name]), name


def same_states(sharded: Sharded, plain: fo.Optimizer) -> None:
    whole, expected = sharded.state_dict(), plain.state_dict()
    assert whole["param_groups"] == expected["param_groups"]
    for name, entry in expected["state"].items():
        assert entry.keys() == whole["state"][name].keys()
        for key, value in entry.items():
            assert same_bits(whole["state"][name][key], value), (name, key)


def raised(call: Callable[[], object]) -> str:
    """Return the error of a call on this rank."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def check_every_optimizer_and_type_steps_like_the_plain_one() -> None:
    kinds = [*KINDS, Kind(FLOAT64)]
    for number, case in enumerate(CASES):
        fitting = [kind for kind in kinds if kind.fits(case)]
        for kind in fitting[number % 3 :: 3]:
            named = kind.of(case)
            ours, theirs = make_params(kind.param), make_params(kind.param)
            sharded = Sharded(getattr(fo, named.name), ours, **named.options)
            plain = named.fused(theirs)
            for step in range(3):
                sharded.step(make_grads(kind.param, step, RANK), grad_scale=RANKS)
                plain.step(total(of_all(kind.param, step)), grad_scale=RANKS)
                same(ours, theirs)
            same_states(sharded, plain)


def check_small_pieces_and_the_reference() -> None:
    before = _exchange.PIECE, _exchange.LEAST
    _exchange.PIECE = _exchange.LEAST = 1000
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    sharded, plain = Sharded(fo.reference.Adam, ours), fo.Adam(theirs)
    for step in range(3):
        sharded.step(make_grads(FLOAT32, step, RANK))
        plain.step(total(of_all(FLOAT32, step)))
    same(ours, theirs)
    _exchange.PIECE, _exchange.LEAST = before


def check_weights() -> None:
    weights = [0, 1.0, 4, 4.0][:RANKS]  # numbers of samples are integers
    if RANKS == 1:
        weights = [3]
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    sharded, plain = Sharded(fo.AdamW, ours), fo.AdamW(theirs)
    for step in range(3):
        grads = make_grads(FLOAT32, step, RANK) if weights[RANK] else None
        sharded.step(grads, weight=weights[RANK], grad_scale=2.0)
        scale = 2.0 if RANKS == 1 else 2.0 * sum(weights)
        given = total(of_all(FLOAT32, step), None if RANKS == 1 else weights)
        plain.step(given, grad_scale=scale)
    same(ours, theirs)
    assert "the weights of all ranks are 0" in raised(lambda: sharded.step(None, weight=0))
    assert "which needs weight=0" in raised(lambda: sharded.step(None))
    same(ours, theirs)


def check_weights_beyond_float32() -> None:
    """The mean of equal gradients is the gradient, whatever the weights."""
    for weight in (1e-300, 1e-42, 1e39, 1e300):
        params = [np.zeros(1000, np.float32)]
        sharded = Sharded(fo.SGD, params, lr=1.0)
        sharded.step([np.full(1000, 2.0, np.float32)], weight=weight)
        np.testing.assert_allclose(params[0], -2.0, rtol=2e-7)


def check_one_parameter_with_gradients_of_any_strides() -> None:
    base = np.random.default_rng(RANK).standard_normal(2000).astype(np.float32)
    bases = [
        np.random.default_rng(r).standard_normal(2000).astype(np.float32) for r in range(RANKS)
    ]
    views: list[Callable[[Any], Any]] = [
        lambda a: a[::2],
        lambda a: a[999::-1],
        lambda a: np.broadcast_to(a[0], 1000),
    ]
    for view in views:
        ours, theirs = [np.zeros(1000, np.float32)], [np.zeros(1000, np.float32)]
        Sharded(fo.AdamW, ours).step([view(base)])
        fo.AdamW(theirs).step([total([{"w": view(every)} for every in bases])["w"]])
        assert same_bits(ours[0], theirs[0])


def check_some_of_the_ranks() -> None:
    """Two groups of ranks have optimizers of their own."""
    comm = COMM.Split(RANK % 2, RANK)
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    Sharded(fo.AdamW, ours, comm).step(make_grads(FLOAT32, 0, RANK))
    members = range(RANK % 2, RANKS, 2)
    sums: dict[str, Any] = {}
    for rank in members:
        for name, grad in make_grads(FLOAT32, 0, rank).items():
            sums[name] = np.asarray(sums[name] + grad) if name in sums else grad
    fo.AdamW(theirs).step(sums)
    same(ours, theirs)
    comm.Free()


def check_norm_and_clipping() -> None:
    for norm_type in (2.0, math.inf):
        ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
        sharded, plain = Sharded(fo.SGD, ours, lr=0.1), fo.SGD(theirs, lr=0.1)
        for step in range(2):
            options: Any = {"max_norm": 0.5, "norm_type": norm_type, "grad_scale": 3.0}
            info = sharded.step(make_grads(FLOAT32, step, RANK), **options)
            expected = plain.step(total(of_all(FLOAT32, step)), **options)
            assert math.isclose(info.grad_norm, expected.grad_norm, rel_tol=1e-15)  # type: ignore[arg-type]
        for name in SHAPES:  # the factor of clipping may differ by its rounding
            np.testing.assert_allclose(ours[name], theirs[name], rtol=3e-7, atol=1e-7)


def check_a_nonfinite_gradient_skips_the_step_on_all_ranks() -> None:
    ours, before = make_params(FLOAT32), make_params(FLOAT32)
    sharded = Sharded(fo.AdamW, ours)
    grads = make_grads(FLOAT32, 0, RANK)
    if RANK == RANKS - 1:
        grads["b"][4] = np.nan
    info = sharded.step(grads, skip_nonfinite=True, zero_grads=True)
    assert info.skipped
    assert math.isnan(info.grad_norm or 0.0)
    same(ours, before)
    assert sharded.state["w"]["step"] == 0
    assert grads["w"].any()
    info = sharded.step(make_grads(FLOAT32, 0, RANK), skip_nonfinite=True, zero_grads=False)
    assert not info.skipped
    assert sharded.state["w"]["step"] == 1
    grads = make_grads(FLOAT32, 1, RANK)
    sharded.step(grads, zero_grads=True)
    assert not any(grad.any() for grad in grads.values())


def check_a_norm_beyond_float64_skips_nothing() -> None:
    ours, theirs = [np.zeros(600)], [np.zeros(600)]
    huge = np.full(600, 1e307 / RANKS)
    info = Sharded(fo.SGD, ours, lr=1e-300).step([huge], skip_nonfinite=True)
    expected = fo.SGD(theirs, lr=1e-300).step(
        [total([{"w": huge}] * RANKS)["w"]], skip_nonfinite=True
    )
    assert info == expected
    assert same_bits(ours[0], theirs[0])


def check_gradients_sent_in_bfloat16() -> None:
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    sharded = Sharded(fo.AdamW, ours, grad_dtype="bfloat16")
    plain = fo.AdamW(theirs)
    for step in range(3):
        sharded.step(make_grads(FLOAT32, step, RANK))
        parts = of_all(FLOAT32, step)
        if RANKS > 1:
            parts = [
                {k: v.astype(BFLOAT16).astype(FLOAT32) for k, v in grads.items()} for grads in parts
            ]
        plain.step(total(parts))
    same(ours, theirs)


def check_groups_schedules_and_missing_gradients() -> None:
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    more, others = make_params(FLOAT32, 1), make_params(FLOAT32, 1)
    sharded, plain = Sharded(fo.RMSprop, ours), fo.RMSprop(theirs)
    schedules = [fo.StepLR(optimizer, 1, 0.5) for optimizer in (sharded, plain)]
    for step in range(4):
        if step == 2:
            for optimizer, params in ((sharded, more), (plain, others)):
                optimizer.add_param_group(
                    {"params": {f"{n}2": p for n, p in params.items()}, "lr": 0.3}
                )
        parts = of_all(FLOAT32, step)
        for grads in parts:
            if step == 1:
                grads["w"] = None
            if step >= 2:
                grads |= {f"{n}2": g for n, g in make_grads(FLOAT32, step, 7).items()}
        sharded.step(parts[RANK])
        sums = total([{n: g for n, g in grads.items() if g is not None} for grads in parts])
        plain.step({"w": None} | sums)
        for schedule in schedules:
            schedule.step()
    same(ours, theirs)
    same(more, others)
    same_states(sharded, plain)
    assert sharded.param_groups[1]["params"][0] is more["w"]
    for optimizer in (sharded, plain):
        optimizer.remove_param_group(0)
    second = {f"{name}2": grad for name, grad in make_grads(FLOAT32, 9, 7).items()}
    sharded.step(second)
    plain.step(total([second] * RANKS))
    same(more, others)
    same_states(sharded, plain)


def check_state_dicts_and_checkpoints(folder: Path) -> None:
    ours, theirs = make_params(FLOAT32), make_params(FLOAT32)
    sharded, plain = Sharded(fo.AdamW, ours), fo.AdamW(theirs)
    plain.step(total(of_all(FLOAT32, 0)))
    sharded.load_state_dict(plain.state_dict())
    for name, array in theirs.items():
        ours[name][...] = array
    same_states(sharded, plain)
    ema = fo.WeightEMA(ours)
    fo.save(folder / "run", params=ours, optimizer=sharded, ema=ema, extra={"step": 1})
    sharded.step(make_grads(FLOAT32, 1, RANK))
    answer = fo.load(folder / "run", params=ours, optimizer=sharded, ema=ema)
    assert answer.extra == {"step": 1}
    same_states(sharded, plain)
    same(ours, theirs)
    # Rank 0 alone sees the file, and an error comes to all.
    path = folder / "run" if RANK == 0 else folder / "nowhere"
    fo.load(path, optimizer=sharded)
    assert "FileNotFoundError" in raised(lambda: fo.load(folder / "no", optimizer=sharded))
    blocked = folder / "run" / "x"  # the folder is a file
    assert "NotADirectoryError" in raised(lambda: fo.save(blocked, optimizer=sharded))
    other = Sharded(fo.SGD, make_params(FLOAT32), momentum=0.9, lr=0.5)
    assert "was another optimizer saved" in raised(lambda: fo.load(folder / "run", optimizer=other))
    assert other.param_groups[0]["lr"] == 0.5


def without_groups() -> fo.Optimizer:
    optimizer = fo.SGD([np.zeros(1)])
    optimizer.remove_param_group(0)
    return optimizer


def check_disagreements() -> None:
    if RANKS == 1:
        return
    first, last = RANK == 0, RANK == RANKS - 1

    def made(params: Any = None, cls: Any = fo.AdamW, **options: Any) -> str:
        return raised(lambda: Sharded(cls, params or make_params(FLOAT32), **options))

    def changed(change: Callable[[dict[str, Any]], Any]) -> str:
        params = make_params(FLOAT32)
        if last:
            change(params)
        return made(params)

    differs = f"differs between the ranks: {{}} on rank 0, {{}} on rank {RANKS - 1}".format
    assert differs("'AdamW'", "'Adam'") in made(cls=fo.Adam if last else fo.AdamW)
    lr = made(lr=0.2 if last else 0.1)
    assert lr.startswith("ValueError: 'lr' of group 0 " + differs(0.1, 0.2)), lr
    text = changed(lambda params: params["cube"].__setitem__((0, 0, 0), 7.0))
    assert text.startswith("ValueError: parameter 'cube', as the hash of its values, differs"), text
    text = changed(lambda params: params.update(w=params["w"].copy("C")))
    assert "the order in memory of parameter 'w' " + differs([1, 0], [0, 1]) in text, text
    text = changed(lambda params: params.update(more=params["b"].copy()))
    assert "the dtype of parameter 'more' " + differs("absent", "'float32'") in text, text
    wrong: Any
    for wrong in ("AdamW", fo.AdamW(make_params(FLOAT32)), dict):
        assert "optimizer_class must be a class of optimizers" in made(cls=wrong)
    wire = made(grad_dtype="bfloat16" if last else None)
    assert "grad_dtype " + differs("'float32'", "'bfloat16'") in wire, wire
    group = {"params": make_params(FLOAT32), "starts": [0] * len(SHAPES)}
    assert "has no 'starts'" in made([group])
    error = "ValueError: lr must be finite and >= 0, not -1"
    text = made(lr=-1 if last else 0.1)
    assert text == (error if last else f"RuntimeError: rank {RANKS - 1} raised {error}"), text

    params, before = make_params(FLOAT32), make_params(FLOAT32)
    optimizer = Sharded(fo.AdamW, params)

    def stepped(grads: Any = None, **options: Any) -> str:
        given = make_grads(FLOAT32, 0, RANK) | (grads or {})
        text = raised(lambda: optimizer.step(given, **options))
        same(params, before)
        assert optimizer.state["w"]["step"] == 0
        return text

    wrong = {"w": np.zeros((130, 37), np.float32)}
    error = "ValueError: gradient of 'w' has shape (130, 37) but parameter 'w' has shape (37, 130)"
    text = stepped(wrong if first else None)
    assert text.startswith(error if first else f"RuntimeError: rank 0 raised {error}"), text
    text = stepped({"b": None} if last else None)
    assert "the list of parameters without a gradient " + differs("[]", "['b']") in text, text
    assert "max_norm " + differs(1.0, "None") in stepped(max_norm=None if last else 1.0)
    assert "whether weight is passed differs" in stepped(weight=None if last else 1.0)
    assert "must be a NumPy array, not 'x'" in stepped({"b": "x"})
    assert "must have dtype float32 or bfloat16 or float16, not int64" in stepped(
        {"b": np.zeros(9, int)}
    )
    assert "max_norm must be" in stepped(max_norm=-1.0)
    text = "parameter 'cube' and gradient of 'b' share memory"
    assert text in stepped({"b": params["cube"].transpose(1, 2, 0).reshape(-1)[20:38:2]})
    base = np.zeros(1000, np.float32)
    other = Sharded(fo.SGD, {"w": base, "none": base[500:500], "b": np.zeros(9, np.float32)})
    grads = {"w": np.ones_like(base), "none": np.ones(0, np.float32), "b": base[600:609]}
    text = "parameter 'w' and gradient of 'b' share memory"
    assert text in raised(lambda: other.step(grads, zero_grads=True))
    other.remove_param_group(0)
    assert raised(lambda: other.step({})) == raised(lambda: without_groups().step({}))
    kept = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["params"] = tuple(make_params(FLOAT32).values())
    assert "cannot be replaced" in stepped()
    optimizer.param_groups[0]["params"] = kept
    state = optimizer.state_dict()
    state["state"]["w"] |= {"step": 5 + last}
    assert "the state of 'w' " in raised(lambda: optimizer.load_state_dict(state))
    no_path: Any = None
    assert "path must be" in raised(lambda: fo.save(no_path if last else "x", optimizer=optimizer))
    assert "path must be" in raised(lambda: fo.load(no_path if first else "x", optimizer=optimizer))
    calls = (lambda: fo.save("x", optimizer=optimizer), lambda: optimizer.step(None, weight=0))
    assert "the method " + differs("'save'", "'step'") in raised(calls[last])
    assert "pickle" in raised(lambda: optimizer.on_first_rank(lambda: lambda: 0))

    def interrupted() -> None:
        if last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if last else RuntimeError):
        optimizer.together(interrupted)
    optimizer.param_groups[0]["lr"] = 0.5 if last else 0.25
    assert "'lr' of group 0 " + differs(0.25, 0.5) in stepped()
    optimizer.param_groups[0]["lr"] = 0.001
    group = {"params": {"new": np.full(4, float(RANK), np.float32)}}
    assert "parameter 'new', as the hash of its values, differs" in raised(
        lambda: optimizer.add_param_group(group)
    )
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == len(SHAPES)
    assert raised(lambda: optimizer.step(make_grads(FLOAT32, 0, RANK))) == "nothing"


class Counting(MPI.Intracomm):
    """Counts the bytes that a rank sends to others in a step."""

    sent = 0

    def Ialltoallv(self, sendbuf: Any, recvbuf: Any) -> Any:  # noqa: N802
        counts = sendbuf[1][0] if isinstance(sendbuf[1], tuple) else sendbuf[1]
        assert counts[self.rank] == 0
        self.sent += sum(counts)
        return super().Ialltoallv(sendbuf, recvbuf)


def check_bytes_sent_and_memory() -> None:
    size = 100_000
    for wire, width in ((None, 4), ("bfloat16", 2)):
        comm = Counting(COMM)
        params = [np.ones(size, np.float32)]
        optimizer = Sharded(fo.AdamW, params, comm, grad_dtype=wire)
        optimizer.step([np.ones(size, np.float32)])
        own = optimizer.state["0"]["exp_avg"].size
        assert abs(own - size / RANKS) <= 256
        assert comm.sent == (RANKS > 1) * ((size - own) * width + (RANKS - 1) * own * 4)


def check_the_memory_of_sums_and_buffers() -> None:
    """It is what the page `distributed` says: of so many parameters, all buffers are full."""
    size = 8_000_000
    params, grads = [np.ones(size, np.float32)], [np.ones(size, np.float32)]
    optimizer = Sharded(fo.SGD, params, lr=0.1)
    tracemalloc.start()
    optimizer.step(grads)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if RANKS == 1:
        assert peak < 1 << 20
    else:
        sums, buffers = 4 * size / RANKS, 48 << 20
        assert sums + buffers / 2 < used <= peak < sums + buffers


def main() -> None:
    """Run all checks; an assertion on one rank ends all."""
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            arguments = [Path(sys.argv[1])] if "folder" in check.__annotations__ else []
            check(*arguments)
            if RANK == 0:
                print(name, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        COMM.Abort(1)
