"""Checkpoints: loading returns what was saved, damage is refused, a kill leaves whole files."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import math
import os
import resource
import stat
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from cases import CASES, DTYPES, Case
from fastopt import checkpoint
from helpers import HANG, same_bits

safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

FILE_DTYPES: list[Any] = [*"?bBhHiI", "i8", "u8", *"efdF"]
with contextlib.suppress(ImportError):
    FILE_DTYPES.append(import_module("ml_dtypes").bfloat16)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, with types and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, (np.ndarray, np.generic)):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def child(code: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process that can import what the tests import."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, **options
    )


def run_child(code: str) -> str:
    """Return the output of the code."""
    with child(code) as process:
        printed, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0
    return printed


def arrays() -> st.SearchStrategy[Any]:
    def make(dtype: Any, shape: list[int], order: str, seed: int) -> Any:
        raw = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
        return np.asarray(raw, order="F" if order == "F" else "C")

    return st.builds(
        make,
        st.sampled_from(FILE_DTYPES),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from("CF"),
        st.integers(0, 9),
    )


NESTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats()
    | st.text(max_size=5)
    | arrays()
    | arrays().map(lambda a: a.reshape(-1)[0] if a.size else np.float32(1)),
    lambda children: (
        st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["$array", "$", "$$x", "a/b", "a"]), children
        )
    ),
    max_leaves=8,
)


@given(extra=NESTS)
def test_what_goes_in_comes_out(extra: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "nest.safetensors"
    fo.save(path, params=[np.ones(1)], extra=extra)
    assert equal(fo.load(path).extra, extra)


def test_arrays_in_any_order_and_names_of_any_kind(tmp_path: Path) -> None:
    params: dict[str, Any] = {
        "a/b": np.arange(6.0).reshape(2, 3),
        "a": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        "": np.ones(()),
        "empty": np.empty((0, 3)),
        "\u00fc \n\"'": np.ones(1),
        "__metadata__": np.ones(2),
        "a\0b": np.ones(3),
        "half of a pair \ud800": np.ones(4),
        "x" * 5000: np.ones(5),
    }
    path = tmp_path / "a.safetensors"
    fo.save(path, params=params)
    loaded = fo.load(path).params
    assert loaded is not None
    assert list(loaded) == list(params)
    for name, array in params.items():
        assert same_bits(loaded[name], array)
    fresh = {name: np.full_like(array, -1) for name, array in params.items()}
    fo.load(path, params=fresh)
    for name, array in params.items():
        assert same_bits(fresh[name], array)
        assert fresh[name].strides == np.full_like(array, -1).strides


def test_places_that_have_the_same_path(tmp_path: Path) -> None:
    extra = {"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "a/b#2": np.full(1, 2.0)}
    fo.save(tmp_path / "a", extra=extra)
    assert equal(fo.load(tmp_path / "a").extra, extra)


def half_arrays(ml_dtypes: Any) -> dict[str, Any]:
    """Return arrays of bfloat16, with NaNs and denormals."""
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    rows = np.asfortranarray(every[:12].reshape(3, 4))
    return {"every": every, "rows": rows, "empty": every[:0], "one": np.array(every[3])}


def test_bfloat16_comes_back_with_its_bits(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    params, path = half_arrays(ml_dtypes), tmp_path / "a.safetensors"
    fo.save(path, params=params, extra={"scalar": params["every"][16256], "half": np.float16(1)})
    loaded = fo.load(path)
    assert equal(loaded.params, params)
    assert equal(loaded.extra, {"scalar": ml_dtypes.bfloat16(1), "half": np.float16(1)})
    fresh = {name: np.zeros_like(array) for name, array in params.items()}
    fo.load(path, params=fresh)
    assert equal(fresh, params)
    fresh["every"] = np.zeros(2**16, np.float32)
    with pytest.raises(TypeError, match="'every' is float32, in the checkpoint bfloat16; pass an"):
        fo.load(path, params=fresh)
    swapped = params["every"].astype(params["every"].dtype.newbyteorder())
    with pytest.raises(ValueError, match="extra is byte-swapped"):
        fo.save(path, extra=swapped)


def test_the_library_of_safetensors_opens_bfloat16(tmp_path: Path) -> None:
    params = half_arrays(pytest.importorskip("ml_dtypes"))
    fo.save(tmp_path / "a", params=params)
    tensors = dict(safetensors.deserialize((tmp_path / "a").read_bytes()))
    for name, array in params.items():
        tensor = tensors[f"params/{name}"]
        assert tensor["dtype"] == "BF16"
        assert tuple(tensor["shape"]) == array.shape
        assert bytes(tensor["data"]) == array.tobytes()


def test_bfloat16_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.ones(2, pytest.importorskip("ml_dtypes").bfloat16)
    path, params = tmp_path / "a", {"w": np.zeros(2)}
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for parts in ({"params": {"w": array}}, {"extra": array[0]}):
        fo.save(path, **parts)
        with pytest.raises(ModuleNotFoundError, match=r"a: .*bfloat16.*pip install ml_dtypes"):
            fo.load(path, params=params)
        assert not params["w"].any()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(fo.CheckpointError, match="damaged"):
        fo.load(path)


def test_any_reader_of_safetensors_opens_it(tmp_path: Path) -> None:
    params = {"w": np.arange(3, dtype=np.float32)}
    optimizer = fo.AdamW(params)
    optimizer.step({"w": np.ones(3, np.float32)})
    fo.save(tmp_path / "a.safetensors", params=params, optimizer=optimizer)
    tensors = safetensors_numpy.load_file(tmp_path / "a.safetensors")
    assert same_bits(tensors["params/w"], params["w"])
    assert same_bits(tensors["optimizer/state/w/exp_avg"], optimizer.state["w"]["exp_avg"])
    assert set(tensors) == {
        "params/w",
        "optimizer/state/w/exp_avg",
        "optimizer/state/w/exp_avg_sq",
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_equals_never_having_stopped(case: Case, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (7,), (), (0, 2)]
    start = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    grads = [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(6)]
    for step in range(3):
        grads[step][1] = None  # type: ignore[call-overload]
    one = [p.copy() for p in start]
    optimizer = case.fused(one)
    for step in range(6):
        if step == 3:
            fo.save(tmp_path / "a", params=one, optimizer=optimizer)
        optimizer.step(grads[step])
    other = [np.zeros_like(p) for p in start]
    resumed = case.fused(other)
    fo.load(tmp_path / "a", params=other, optimizer=resumed)
    for step in range(3, 6):
        resumed.step(grads[step])
    assert all(map(same_bits, one, other))
    assert equal(optimizer.state_dict(), resumed.state_dict())


class Run:
    """A small training run with every part of a checkpoint."""

    def __init__(self) -> None:
        self.params = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32, order="F")}
        self.rng = np.random.default_rng(3)
        w, b = self.params.items()
        groups: list[dict[str, Any]] = [{"params": dict([w])}, {"params": dict([b]), "lr": 0.1}]
        self.optimizer = fo.AdamW(groups)
        self.scheduler = fo.CosineAnnealingLR(self.optimizer, 50)
        self.ema = fo.WeightEMA(self.params, decay=0.9)
        self.epoch = 0

    def step(self) -> None:
        grads = {k: self.rng.standard_normal(p.shape, np.float32) for k, p in self.params.items()}
        self.optimizer.step(grads)
        self.ema.update()
        self.scheduler.step()
        self.epoch += 1

    def parts(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("params", "optimizer", "scheduler", "ema")}

    def save(self, path: Path) -> None:
        extra = {"epoch": self.epoch, "rng": self.rng.bit_generator.state}
        fo.save(path, **self.parts(), extra=extra)

    def load(self, path: Path) -> None:
        extra = fo.load(path, **self.parts()).extra
        self.epoch, self.rng.bit_generator.state = extra["epoch"], extra["rng"]

    def all(self) -> Any:
        states = [part.state_dict() for part in (self.optimizer, self.scheduler, self.ema)]
        return copy.deepcopy([self.params, *states, self.epoch, self.rng.bit_generator.state])


# Children of a process that has imported everything kill themselves at an audit event of Python (a
# file is opened, renamed, ...). These are the same places on any machine.
KILLED = """
import os, signal, sys, numpy as np, fastopt as fo
def kill_at(left, which=""):
    def hook(event, arguments):
        nonlocal left
        left -= which in event
        if left == 0:
            left = -1  # a signal is an event, too
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
def dies(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code <= 0, code
    return code < 0
"""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    path, steps = tmp_path / "a.safetensors", 30
    code = f"""{KILLED}
from pathlib import Path
from typing import Any
{inspect.getsource(Run)}
path = Path({str(path)!r})
Run().save(path)
def go_on(saves):
    run = Run()
    run.load(path)
    kill_at(saves, "os.rename")
    while run.epoch < {steps}:
        run.step()
        run.save(path)
kills = 0
while dies(lambda: go_on(2 + kills % 3)):
    kills += 1
print(kills)
"""
    assert int(run_child(code)) > steps // 4
    resumed, straight = Run(), Run()
    resumed.load(path)
    for _ in range(steps):
        straight.step()
    assert equal(resumed.all(), straight.all())


def test_groups_are_saved_under_the_names_that_the_optimizer_gives(tmp_path: Path) -> None:
    arrays: list[Any] = [np.ones(2), np.ones(3), np.ones(4)]
    groups: Any = [{"params": arrays[:1], "lr": 1.0}, {"params": {"named": arrays[1]}}]
    groups.append({"params": arrays[2:]})
    optimizer = fo.SGD(groups)
    fo.save(tmp_path / "a", params=groups)
    for array in arrays:
        array[...] = 0
    loaded = fo.load(tmp_path / "a", params=groups).params
    assert loaded is not None
    assert list(loaded) == list(optimizer.state) == ["0", "named", "2"]
    assert all(array.all() for array in arrays)
    with pytest.raises(ValueError, match="named '0' already"):
        fo.save(tmp_path / "a", params=[{"params": {"0": arrays[0]}}, {"params": {"0": arrays[1]}}])


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert len({small_file(tmp_path / "a") for _ in range(8)}) == 1


def small_file(path: Path) -> bytes:
    params = {"w": np.arange(3, dtype=np.float32)}
    optimizer = fo.SGD(params, momentum=0.9)
    optimizer.step({"w": np.ones(3, np.float32)})
    fo.save(path, params=params, optimizer=optimizer, extra={"epoch": 1, "lr": 0.1})
    return path.read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = small_file(path)
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            with path.open("r+b") as file:  # not from the start, which is slow
                file.write(damaged)
            with pytest.raises(fo.CheckpointError, match=r"a\.safetensors"):
                fo.load(path)


def test_a_file_cut_short_or_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = small_file(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(fo.CheckpointError, match="damaged"):
            fo.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(fo.CheckpointError, match="damaged"):
        fo.load(path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = bytearray(small_file(path))
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(fo.CheckpointError, match=r"the hash of \w+/.* does not match"):
        fo.load(path)
    safetensors_numpy.save_file({"w": np.ones(1)}, path)
    with pytest.raises(fo.CheckpointError, match="not a checkpoint of fastopt"):
        fo.load(path)
    safetensors_numpy.save_file({"w": np.ones(1)}, path, {"fastopt": "3 what comes later"})
    with pytest.raises(fo.CheckpointError, match="format '3'"):
        fo.load(path)
    path.write_bytes(b"")
    with pytest.raises(fo.CheckpointError, match="damaged or not a safetensors file"):
        fo.load(path)
    with pytest.raises(FileNotFoundError):
        fo.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        fo.load(tmp_path)


EMPTY: dict[str, Any] = dict.fromkeys(("params", "optimizer", "scheduler", "ema", "extra"))


@pytest.mark.parametrize(
    "document",
    [
        "no JSON",
        "[" * 100_000,
        "[]",
        "{}",
        {"content": {}, "tensors": {}},
        {"content": EMPTY | {"more": 1}, "tensors": {}},
        {"content": EMPTY, "tensors": None},
        {"content": EMPTY | {"params": {"$array": "w"}}, "tensors": {}},
        {"content": EMPTY | {"extra": {"$array": []}}, "tensors": {}},
        {"content": EMPTY | {"extra": {"$float": "x"}}, "tensors": {}},
        {"content": EMPTY, "tensors": {"w": {"dtype": "float64", "shape": [1]}}},
    ],
    ids=lambda document: str(document)[:40],
)
def test_a_file_that_another_program_has_hashed_is_refused(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = document if isinstance(document, str) else json.dumps(document)
    tensors = {"w": np.ones(1)} if "float64" in text else {}
    entry = f"1 {hashlib.sha256(text.encode()).hexdigest()} {text}"
    safetensors_numpy.save_file(tensors, path, {"fastopt": entry})
    with pytest.raises(fo.CheckpointError, match=r"a\.safetensors"):
        fo.load(path)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ITSELF: list[Any] = []
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (ITSELF, ValueError, "contains itself"),
        (nested(100_000), ValueError, "nested more than 200 deep"),
        ({"x": np.ma.masked_array([1.0], [True])}, TypeError, "extra/x is a masked array"),
        ({"a": [1, b"x"]}, TypeError, "extra/a/1 is bytes"),
        ({1: 2}, TypeError, "extra has the key 1"),
        (np.array([None]), TypeError, "extra is an array of object"),
        (np.array(["x"]), TypeError, "extra is an array of <U1"),
        ({"x": np.ones(2, ">f4")}, ValueError, "extra/x is byte-swapped"),
        (np.random.default_rng(0), TypeError, "extra is Generator"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_saved_is_refused_by_name(
    extra: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fo.save(tmp_path / "a", extra=extra)
    assert list(tmp_path.iterdir()) == []


def zeros() -> Any:
    return {"w": np.zeros(3, np.float32), "b": np.zeros(1)}


class Refuses:
    """A part, such as a schedule, that refuses the saved state."""

    def state_dict(self) -> dict[str, Any]:
        return {"step": 3}

    def load_state_dict(self, state_dict: Any) -> None:
        raise ValueError("not this one")


def test_restoring_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    params: Any = {"w": np.ones(3, np.float32), "b": np.ones(1)}
    optimizer: fo.Optimizer = fo.AdamW(params)
    optimizer.step({"w": np.ones(3, np.float32), "b": np.ones(1)})
    fo.save(path, params=params, optimizer=optimizer, ema=optimizer, scheduler=Refuses())

    def fresh() -> tuple[Any, fo.Optimizer]:
        params = zeros()
        return params, fo.AdamW(params, lr=1.0)

    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"params": {"w": np.zeros(3, np.float32)}}, KeyError, "not known: 'b'"),
        ({"params": {"w": np.zeros(3, np.float32), "c": np.ones(1)}}, KeyError, "missing: 'c'"),
        ({"params": {"w": np.zeros(4, np.float32), "b": np.zeros(1)}}, ValueError, "shape"),
        ({"params": {"w": np.zeros(3), "b": np.zeros(1)}}, TypeError, "float64, in the"),
        (
            {"optimizer": fo.SGD(zeros())},
            KeyError,
            "lr|mom",
        ),
        ({"scheduler": Refuses()}, ValueError, "not this one"),
    ]
    for what, error, message in wrong:
        params, optimizer = fresh()
        average: fo.Optimizer = fo.AdamW(zeros())
        before = repr((optimizer.state_dict(), average.state_dict()))
        with pytest.raises(error, match=message):
            fo.load(path, **({"params": params, "optimizer": optimizer, "ema": average} | what))
        assert repr((optimizer.state_dict(), average.state_dict())) == before
        assert not params["w"].any()
        assert not params["b"].any()
    # The last one refuses after the others have loaded.
    params, optimizer = fresh()
    before_all = repr(optimizer.state_dict())
    other = fo.SGD(zeros())
    with pytest.raises(KeyError):
        fo.load(path, params=params, ema=optimizer, optimizer=other)
    assert repr(optimizer.state_dict()) == before_all
    read_only: Any = np.zeros(1)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="'b' is read-only"):
        fo.load(path, params={"w": np.zeros(3, np.float32), "b": read_only})
    fo.save(path, params=params)
    with pytest.raises(KeyError, match="holds no scheduler"):
        fo.load(path, scheduler=Refuses())


def test_schedule_and_average_go_back_if_the_optimizer_refuses(tmp_path: Path) -> None:
    run = Run()
    for _ in range(3):
        run.step()
    run.save(tmp_path / "a")
    fresh = Run()
    fresh.step()
    before = fresh.all()
    with pytest.raises(ValueError, match="2 groups"):
        fo.load(tmp_path / "a", **fresh.parts() | {"optimizer": fo.SGD(fresh.params)})
    assert equal(fresh.all(), before)
    fresh.load(tmp_path / "a")
    assert equal(fresh.all(), run.all())


def test_mode_and_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        fo.save(path, extra=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    fo.save(path, extra=2)
    assert fo.load(path).extra == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def noting_replace(self: Path, target: Path) -> Path:
        calls.append(("replace", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    fo.save(tmp_path / "a", extra=1)
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("fsync", file), ("replace", file), ("fsync", folder)]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_an_error_on_the_way_leaves_the_old_file(
    owner: Any, name: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fo.save(tmp_path / "a", extra="old")

    def fails(*args: Any, **options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(type(error)):
            fo.save(tmp_path / "a", extra="new")
    assert fo.load(tmp_path / "a").extra == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fo.save(folder / "a", extra="old")
    with pytest.raises(IsADirectoryError):
        fo.save(folder, extra=1)
    with pytest.raises(FileNotFoundError):
        fo.save(tmp_path / "nowhere" / "a", extra=1)
    tmp_path.chmod(0o755)
    folder.chmod(0o555)
    code = f"""
import os, safetensors.numpy, fastopt as fo
if os.geteuid() == 0:  # whom no mode stops
    os.seteuid(65534)
try:
    fo.save({str(folder / "a")!r}, extra="new")
except PermissionError as error:
    print(error)
"""
    for above in tmp_path.parents[:2]:  # the folder of pytest is closed to others
        above.chmod(above.stat().st_mode | 0o011)
    told = run_child(code)
    assert "Permission denied" in told
    assert str(folder) in told
    folder.chmod(0o755)
    assert fo.load(folder / "a").extra == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in folder.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_contiguous_arrays_are_not_copied_to_be_saved(tmp_path: Path) -> None:
    code = f"""
import re, safetensors.numpy, numpy as np, fastopt as fo
def peak():  # not ru_maxrss: that begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
fo.save({str(tmp_path / "a")!r}, params=[np.ones(1000)])
params = [np.ones(1 << 20) for _ in range(8)]  # 8 MiB each
before = peak()
fo.save({str(tmp_path / "a")!r}, params=params)
print(peak() - before)
"""
    assert int(run_child(code)) < 4096


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    code = f"""
import resource, signal, numpy as np, fastopt as fo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fo.save({str(tmp_path / "a")!r}, extra="old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fo.save({str(tmp_path / "a")!r}, params={{"w": np.ones(100_000)}})
except OSError as error:
    print("OSError")
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    assert run_child(code) == "OSError\n"
    assert fo.load(tmp_path / "a").extra == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(NotADirectoryError):
        fo.save(tmp_path / "a" / "b", extra=1)


def test_kills_while_saving_leave_no_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = f"""{KILLED}
import resource
def save(number):
    fo.save({str(path)!r}, params={{"w": np.full(20_000, number)}}, extra=number)
def check():
    loaded = fo.load({str(path)!r})
    assert (loaded.params["w"] == loaded.extra).all()
    return loaded.extra
def save_until(event):
    kill_at(event)
    save(2)
def save_up_to(size):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills at this byte
    save(2)
seen, event = [], 1
save(1)
while dies(lambda: save_until(event)):
    seen.append(check())
    event += 1
assert sorted(seen) == seen and set(seen) == {{1, 2}}, seen  # up to the rename, and after it
save(1)
for size in (0, 1, 7, 8, 1000, 100_000, 160_000):
    assert dies(lambda: save_up_to(size)) and check() == 1, size
"""
    run_child(code)
    leftovers = set(tmp_path.iterdir()) - {path}
    assert leftovers
    assert all(leftover.name.startswith(".fastopt-") for leftover in leftovers)


def test_two_savers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = f"""
import sys, numpy as np, fastopt as fo
for _ in range(30):
    fo.save({str(path)!r}, params={{"w": np.full(50_000, int(sys.argv[1]))}}, extra=sys.argv[1])
"""
    savers = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in range(2)]
    for saver in savers:
        assert saver.wait() == 0
    loaded = fo.load(path)
    assert loaded.params is not None
    assert np.all(loaded.params["w"] == int(loaded.extra))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "value",
    [
        *(np.array([1], dtype)[0] for dtype in [*FILE_DTYPES, "c16"]),
        np.float32("-0.0"),
        np.uint64(2**64 - 1),
        np.array([0x7FF8_0000_0000_0123], np.uint64).view(np.float64)[0],  # NaN with a payload
        10**5000,
        -(16**4000),
        2**2000,
        "\ud800",
        "\udc00\ud800",
        -0.0,
        [],
        (),
        {},
        {"$array": {"$tuple": [1], "$$": ()}},
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_values_come_back_with_their_types_and_bits(value: Any, tmp_path: Path) -> None:
    fo.save(tmp_path / "a", extra={"x": value})
    assert equal(fo.load(tmp_path / "a").extra, {"x": value})


def test_numpy_scalars_take_tens_of_bytes(tmp_path: Path) -> None:
    losses = [np.float64(i / 7) for i in range(20_000)]
    fo.save(tmp_path / "a", extra=losses)
    assert (tmp_path / "a").stat().st_size < 60 * len(losses)
    assert equal(fo.load(tmp_path / "a").extra, losses)


def test_a_file_of_format_1_is_read(tmp_path: Path) -> None:
    tensors = {"params/w": np.arange(3.0), "extra/x": np.asarray(np.float32(2))}
    document = json.dumps(
        {
            "content": EMPTY
            | {
                "params": {"w": {"$array": "params/w"}},
                "extra": {"x": {"$scalar": "extra/x"}, "y": {"$tuple": [1, {"$float": "inf"}]}},
            },
            "tensors": {
                name: {
                    "dtype": tensor.dtype.name,
                    "shape": list(tensor.shape),
                    "sha256": hashlib.sha256(tensor.tobytes()).hexdigest(),
                }
                for name, tensor in tensors.items()
            },
        }
    )
    entry = f"1 {hashlib.sha256(document.encode()).hexdigest()} {document}"
    safetensors_numpy.save_file(tensors, tmp_path / "a", {"fastopt": entry})
    loaded = fo.load(tmp_path / "a")
    assert equal(loaded.params, {"w": np.arange(3.0)})
    assert equal(loaded.extra, {"x": np.float32(2), "y": (1, math.inf)})


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"a": np.longdouble(1)}, TypeError, "extra/a is a NumPy scalar of"),
        ({"a": np.datetime64("2020")}, TypeError, "extra/a is a NumPy scalar of datetime64"),
        ({"a": [{1}]}, TypeError, "extra/a/0 is set"),
        ({"a": Path()}, TypeError, "extra/a is .*Path"),
        ({"a": "\ud83d\ude00"}, ValueError, "extra/a holds both halves"),
        ({"b": {"\ud83d\ude00": 1}}, ValueError, "extra/b/.* holds both halves"),
        (np.ones(1, np.complex128), TypeError, "extra is an array of complex128"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else type(value).__name__,
)
def test_what_a_file_cannot_hold_exactly_is_refused(
    extra: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fo.save(tmp_path / "a", extra=extra)
    assert list(tmp_path.iterdir()) == []


def test_too_much_beside_the_tensors_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastopt.checkpoint._file._LONGEST_HEADER", 20_000)
    extra: Any = {"small": [1.0] * 10, "run": {"losses": [1.0] * 10_000, "other": list(range(99))}}
    with pytest.raises(ValueError, match=r"most of it in extra/run/losses; .*into one array"):
        fo.save(tmp_path / "a", extra=extra)
    assert list(tmp_path.iterdir()) == []
    extra["run"]["losses"] = np.ones(10_000)
    fo.save(tmp_path / "a", extra=extra)


def test_a_file_that_gets_shorter_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    fo.save(path, params=[np.ones(100_000)])
    fstat = os.fstat

    def then_cut(descriptor: int) -> os.stat_result:
        result = fstat(descriptor)
        os.truncate(path, 4096)
        return result

    monkeypatch.setattr(os, "fstat", then_cut)
    with pytest.raises(fo.CheckpointError, match="cut short while it was read"):
        fo.load(path)


def test_without_strict_what_matches_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    params = {"a": np.ones(2), "b": np.ones(3)}
    fo.save(path, params=params, ema=fo.WeightEMA(params))
    mine = {"a": np.zeros(2), "c": np.zeros(4)}
    with pytest.raises(KeyError, match="missing: 'c'; not known: 'b'"):
        fo.load(path, params=mine)
    assert not mine["a"].any()
    found = fo.load(path, params=mine, strict=False).incompatible
    assert found == {"params": (["c"], ["b"])}
    assert mine["a"].all()
    assert not mine["c"].any()
    with pytest.raises(ValueError, match="'b' has shape"):
        fo.load(path, params={"a": np.zeros(2), "b": np.zeros(4)}, strict=False)
    with pytest.raises(KeyError, match="holds no optimizer"):
        fo.load(path, optimizer=fo.SGD(mine), strict=False)
    assert fo.load(path, params=params).incompatible == {}


class Item:
    """An object with a state, which an interrupt may hit at any moment."""

    def __init__(self, value: int, moments: list[int]) -> None:
        self.value = value
        self._moments = moments  # moments until the interrupt

    def _moment(self) -> None:
        self._moments[0] -= 1
        if self._moments[0] == 0:
            raise KeyboardInterrupt

    def state_dict(self) -> dict[str, Any]:
        self._moment()
        return {"value": self.value}

    def load_state_dict(self, state_dict: Any) -> None:
        self._moment()
        self.value = state_dict["value"]
        self._moment()


def test_an_interrupt_at_any_moment_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    path, never = tmp_path / "a", [-1]
    names = ("optimizer", "scheduler", "ema", "extra")
    saved: Any = {name: Item(1, never) for name in names[:3]} | {"extra": {"value": 1}}
    fo.save(path, params=[np.ones(2)], **saved)
    for moment in range(1, 100):
        moments = [moment]
        items: Any = {name: Item(0, moments) for name in names}
        params = [np.zeros(2)]
        try:
            fo.load(path, params=params, **items)
        except KeyboardInterrupt:
            assert not params[0].any()
            assert [item.value for item in items.values()] == [0] * 4
        else:
            break
    assert moment == 13  # four copies, and before and after each of four loads
    assert params[0].all()
    assert [item.value for item in items.values()] == [1] * 4


def test_an_interrupt_between_parameters_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "a"
    params = {name: np.ones(2) for name in "abc"}
    optimizer = fo.SGD(params, momentum=0.5)
    optimizer.step({name: np.ones(2) for name in "abc"})
    fo.save(path, params=params, optimizer=optimizer)
    optimizer.step({name: np.ones(2) for name in "abc"})
    before = copy.deepcopy([params, optimizer.state_dict()])

    seen = 0

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code is not checkpoint._Arrays.load_state_dict.__code__:
            return None
        if event == "line":
            seen += 1
            if seen == at:
                raise KeyboardInterrupt
        return interrupt

    at, interrupts = 0, 0
    while True:
        at, seen = at + 1, 0
        old = sys.gettrace()
        sys.settrace(interrupt)
        try:
            fo.load(path, params=params, optimizer=optimizer)
        except KeyboardInterrupt:
            interrupts += 1
        else:
            break
        finally:
            sys.settrace(old)
        assert equal([params, optimizer.state_dict()], before)
    assert interrupts > 10
    assert not equal([params, optimizer.state_dict()], before)


def test_masked_arrays_are_refused_and_matrices_are_arrays(tmp_path: Path) -> None:
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    with pytest.raises(TypeError, match="'w' is a masked array"):
        fo.save(tmp_path / "a", params={"w": masked})
    fo.save(tmp_path / "a", params={"w": np.ones((1, 2))})
    with pytest.raises(TypeError, match="'w' is a masked array"):
        fo.load(tmp_path / "a", params={"w": np.ma.masked_array(np.zeros((1, 2)))})
    memory = np.memmap(tmp_path / "m", np.float64, "w+", shape=(1, 2))
    fo.load(tmp_path / "a", params={"w": memory})
    assert memory.all()


def test_parameters_that_overlap_are_refused_and_interleaved_ones_are_not(tmp_path: Path) -> None:
    path, memory = tmp_path / "a", np.zeros((4, 6))
    for views in (
        {"a": memory[:, ::2], "b": memory[:, 1::2]},
        {"a": memory[:2], "b": memory[2:], "c": memory[:0]},
        {"a": memory[::-1, :3], "b": memory[:, 3:]},
    ):
        fo.save(path, params={name: np.ones_like(view) for name, view in views.items()})
        memory[...] = 0
        fo.load(path, params=views)
        assert memory.all()
    for views in (
        {"a": memory, "b": memory},
        {"a": memory[:3], "b": memory[::-1][:2]},
        {"a": memory, "b": memory[1, 1:2], "c": memory[2]},
    ):
        fo.save(path, params={name: np.ones_like(view) for name, view in views.items()})
        memory[...] = 0
        with pytest.raises(ValueError, match="overlap in memory"):
            fo.load(path, params=views)
        assert not memory.any()


def test_what_has_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    nothing: Any = {"lr": 1}
    for call in (fo.save, fo.load):
        fo.save(path, params=[np.ones(1)], optimizer=Item(1, [-1]))
        with pytest.raises(TypeError, match="optimizer must have state_dict and load_state_dict"):
            call(path, optimizer=nothing)
    with pytest.raises(TypeError, match="strict must be True or False, not 'no'"):
        fo.load(path, strict="no")  # type: ignore[arg-type]


def test_a_save_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nothing to save"):
        fo.save(path)
    assert path.read_bytes() == b"old"


def test_a_class_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="optimizer must be an object, not the class AdamW"):
        fo.save(tmp_path / "x", optimizer=fo.AdamW)  # type: ignore[arg-type]
    fo.save(tmp_path / "x", extra=1)
    with pytest.raises(TypeError, match="optimizer must be an object, not the class AdamW"):
        fo.load(tmp_path / "x", optimizer=fo.AdamW)  # type: ignore[arg-type]


def test_repr_of_a_checkpoint_is_short(tmp_path: Path) -> None:
    params = {"w": np.zeros(10_000), "b": np.zeros(3)}
    fo.save(tmp_path / "x", params=params, optimizer=fo.SGD(params), extra=list(range(10_000)))
    text = repr(fo.load(tmp_path / "x"))
    assert text == "Checkpoint(params: w, b; optimizer; extra: [0, 1, 2, 3, 4, 5, ...])"
    answer = fo.load(tmp_path / "x", params={"w": np.zeros(10_000)}, strict=False)
    assert "incompatible: {'params': IncompatibleKeys(" in repr(answer)


@pytest.mark.parametrize("cut", [3, 40, -5, -1])
def test_the_message_for_a_file_that_was_cut_short(cut: int, tmp_path: Path) -> None:
    fo.save(tmp_path / "x", params={"w": np.zeros(5)})
    (tmp_path / "y").write_bytes((tmp_path / "x").read_bytes()[:cut])
    with pytest.raises(
        fo.CheckpointError, match="is damaged or not a safetensors file: "
    ) as caught:
        fo.load(tmp_path / "y")
    reason = f"there are {40 + cut} bytes of tensors, not 40"
    assert str(caught.value).endswith(reason if cut < 0 else "it ends within its header")


def test_a_schedule_for_fewer_groups(tmp_path: Path) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    optimizer = fo.SGD([{"params": {"a": params["a"]}}, {"params": {"b": params["b"]}}])
    schedule = fo.StepLR(optimizer, 2)
    fo.save(tmp_path / "x", optimizer=optimizer, scheduler=schedule)
    optimizer.remove_param_group(1)
    with pytest.raises(ValueError, match=r"has 2 rates in .*, but the optimizer has 1 "):
        fo.load(tmp_path / "x", optimizer=optimizer, scheduler=schedule, strict=False)
