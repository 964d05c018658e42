"""Checkpoints: what goes in comes out, damage is refused, a kill leaves no torn file."""

from __future__ import annotations

import math
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from cases import CASES, DTYPES, Case, same_bits

safetensors_numpy = pytest.importorskip("safetensors.numpy")

FILE_DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"]


def equal(a: Any, b: Any) -> bool:
    """Whether two nests are the same, types and bits included."""
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


def arrays() -> st.SearchStrategy[Any]:
    def make(dtype: str, shape: list[int], order: str, seed: int) -> Any:
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
    fo.save(path, extra=extra)
    assert equal(fo.load(path).extra, extra)


def test_arrays_in_any_order_and_names_of_any_kind(tmp_path: Path) -> None:
    params = {
        "a/b": np.arange(6.0).reshape(2, 3),
        "a": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
        "": np.ones(()),
        "empty": np.empty((0, 3)),
        "\u00fc \n\"'": np.ones(1),
        "__metadata__": np.ones(2),
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


def small_file(path: Path) -> bytes:
    params = {"w": np.arange(3, dtype=np.float32)}
    optimizer = fo.SGD(params, momentum=0.9)
    optimizer.step({"w": np.ones(3, np.float32)})
    fo.save(path, params=params, optimizer=optimizer, extra={"epoch": 1, "lr": 0.1})
    return path.read_bytes()


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = small_file(path)
    damage = np.random.default_rng(0).integers(1, 256, len(whole))
    for place in range(len(whole)):
        for flip in (1 << place % 8, int(damage[place])):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
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
    with pytest.raises(fo.CheckpointError, match="no checkpoint of fastopt"):
        fo.load(path)
    safetensors_numpy.save_file({"w": np.ones(1)}, path, {"fastopt": "2"})
    with pytest.raises(fo.CheckpointError, match="format '2'"):
        fo.load(path)
    path.write_bytes(b"")
    with pytest.raises(fo.CheckpointError, match="damaged or no safetensors file"):
        fo.load(path)
    with pytest.raises(FileNotFoundError):
        fo.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        fo.load(tmp_path)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"a": [1, b"x"]}, TypeError, "extra/a/1 is bytes"),
        ({1: 2}, TypeError, "extra has the key 1"),
        (np.array([None]), TypeError, "extra is an array of object"),
        (np.array(["x"]), TypeError, "extra is an array of <U1"),
        ({"x": np.ones(2, ">f4")}, ValueError, "extra/x is byte-swapped"),
        (np.random.default_rng(0), TypeError, "extra is Generator"),
    ],
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
    """A schedule, say, that does not take what was saved."""

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
    read_only = np.zeros(1)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="'b' is read-only"):
        fo.load(path, params={"w": np.zeros(3, np.float32), "b": read_only})
    fo.save(path, params=params)
    with pytest.raises(KeyError, match="holds no scheduler"):
        fo.load(path, scheduler=Refuses())


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
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("OSError\n"), result.stderr
    assert fo.load(tmp_path / "a").extra == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(NotADirectoryError):
        fo.save(tmp_path / "a" / "b", extra=1)


def test_kills_while_saving_leave_no_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = f"""
import numpy as np, fastopt as fo
count = 0
while True:
    count += 1
    fo.save({str(path)!r}, params={{"w": np.full(200_000, count)}}, extra=count)
    if count == 1:
        print("ready", flush=True)
"""
    rng = np.random.default_rng(0)
    for _ in range(50):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while b"ready" not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        loaded = fo.load(path)
        assert loaded.params is not None
        assert np.all(loaded.params["w"] == loaded.extra)
    for leftover in tmp_path.iterdir():
        assert leftover == path or leftover.name.startswith(".a.safetensors.tmp-")


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


def test_without_safetensors_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['safetensors'] = None; import fastopt; fastopt.save('a')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert "pip install 'fastopt[checkpoint]'" in result.stderr
    assert list(tmp_path.iterdir()) == []
