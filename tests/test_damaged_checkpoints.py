"""Damaged files and state dicts: a documented error refuses them and changes nothing."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt as fo

DOCUMENTED = (KeyError, TypeError, ValueError)
# One value of each kind in JSON, and the worst numbers, names and nesting.
JUNK: list[Any] = [
    None,
    True,
    -1,
    2**63,
    10**400,
    1.5,
    "x",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1, "b": 2},
    {"$array": "nope"},
    {"$array": []},
    {"$numpy": "float32 00"},
    {"$numpy": "object 00"},
    {"$numpy": "bfloat16 00"},
    {"$numpy": 3},
    {"$scalar": "params/w"},
    {"$float": "x"},
    {"$int": "1e9"},
    {"$tuple": 3},
    {"$tuple": [1, {"$array": "params/w"}]},
    {"$unknown": 1},
]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors of a file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def document_of(header: dict[str, Any]) -> Any:
    return json.loads(header["__metadata__"]["fastopt"].split(" ", 2)[2])


def sealed(header: dict[str, Any], document: Any) -> dict[str, Any]:
    """Return the header with another document and the correct hash."""
    text = document if isinstance(document, str) else json.dumps(document)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return header | {"__metadata__": {"fastopt": f"1 {digest} {text}"}}


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each node of a nested value."""
    if path:
        yield path
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(item, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """Return a copy in which one node has been changed in its container."""
    value = copy.deepcopy(value)
    container = value
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return value


def put(junk: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = junk

    return change


def remove(container: Any, key: Any) -> None:
    del container[key]


def bits(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


class Parts:
    """An object for each part of a checkpoint."""

    def __init__(self) -> None:
        self.params = {"w": np.arange(3, dtype=np.float32)}
        self.optimizer = fo.SGD(self.params, lr=1.0, momentum=0.5)
        self.scheduler = fo.StepLR(self.optimizer, 2)
        self.ema = fo.WeightEMA(self.params)

    def step(self) -> None:
        self.optimizer.step({"w": np.ones(3, np.float32)})
        self.scheduler.step()
        self.ema.update()

    def all(self) -> dict[str, Any]:
        return vars(self)

    def bits(self) -> Any:
        states = [part.state_dict() for part in (self.optimizer, self.scheduler, self.ema)]
        return bits([self.params, *states])


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Parts]:
    """Return a checkpoint, and objects with other values into which it can be loaded."""
    parts, path = Parts(), tmp_path / "a.safetensors"
    parts.step()
    extra = {"n": [1, 2.5, None, "x", (1, np.float32(2)), float("nan")], "a": np.arange(2)}
    fo.save(path, **parts.all(), extra=extra)
    parts.step()
    return path, parts


def attempt(path: Path, parts: Parts) -> bool:
    """Load a file; return whether a documented error refused it."""
    before, readable = parts.bits(), False
    with contextlib.suppress(fo.CheckpointError):
        readable = bool(fo.load(path))
    try:
        fo.load(path, **parts.all())
    except DOCUMENTED:
        assert parts.bits() == before
        return True
    assert readable
    for name, part in Parts().all().items():
        setattr(parts, name, part)
    return False


def test_any_node_of_the_document_may_be_anything(saved: tuple[Path, Parts]) -> None:
    path, parts = saved
    header, body = split(path.read_bytes())
    document = document_of(header)
    refused = tried = 0
    for node in nodes(document):
        for change in (remove, *map(put, JUNK)):
            damaged = changed(document, node, change)
            path.write_bytes(join(sealed(header, damaged), body))
            refused += attempt(path, parts)
            tried += 1
    assert refused > tried / 2


def test_any_node_of_the_header_may_be_anything(saved: tuple[Path, Parts]) -> None:
    path, parts = saved
    header, body = split(path.read_bytes())
    shapes: list[Any] = [[0], [0, 2**62], [2**32, 2**32], [1] * 70, [-0.0], [3, True], [2**63, 0]]
    offsets = [[0, 2**63], [8, 4], [-4, 8], [0, len(body) + 4], [0, 1, 2]]
    for node in nodes(header):
        for junk in (*JUNK, *shapes, *offsets, "F32", "BF16", "f32"):
            damaged = changed(header, node, put(junk))
            path.write_bytes(join(damaged, body))
            assert attempt(path, parts) == (damaged != header), (node, junk)
        path.write_bytes(join(changed(header, node, remove), body))
        assert attempt(path, parts)


def test_tensors_that_overlap_or_leave_gaps_are_refused(saved: tuple[Path, Parts]) -> None:
    path, parts = saved
    header, body = split(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    for one in names:
        for other in names:
            damaged = copy.deepcopy(header)
            damaged[one]["data_offsets"] = header[other]["data_offsets"]
            path.write_bytes(join(damaged, body))
            assert attempt(path, parts) == (one != other)
    last = max(names, key=lambda name: header[name]["data_offsets"])
    begin, end = header[last]["data_offsets"]
    damaged = copy.deepcopy(header)
    damaged[last]["data_offsets"] = [begin + 4, end + 4]
    path.write_bytes(join(damaged, body + b"\0" * 4))
    assert attempt(path, parts)


def test_headers_that_are_none_are_refused(saved: tuple[Path, Parts]) -> None:
    path, parts = saved
    whole = path.read_bytes()
    header, body = split(whole)
    text = json.dumps(header).encode()
    for length in (0, 1, len(whole), len(whole) - 7, 2**31, 2**63, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + whole[8:])
        assert attempt(path, parts)
    name = next(iter(header)).encode()
    for damaged in (
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 5000,
        b"\xff\xfe",
        text.replace(b'"' + name + b'"', b'"' + name + b'": 1, "' + name + b'"'),  # comes twice
        text + b"\0",
        text.replace(b": [0", b": [NaN", 1),
        text.replace(b"[0, ", b"[" + b"9" * 5000 + b", ", 1),
    ):
        path.write_bytes(join(damaged, body))
        assert attempt(path, parts), damaged[:40]


def test_documents_that_are_none_are_refused(saved: tuple[Path, Parts]) -> None:
    path, parts = saved
    header, body = split(path.read_bytes())
    text = json.dumps(document_of(header))
    for damaged in (
        "",
        text[:-1],
        text + text,
        "[" * 100_000,
        text.replace('"extra"', '"extra": 1, "extra"', 1),
        text.replace("2.5", "1e999"),
        text.replace("2.5", "Infinity"),
        text.replace("2.5", "9" * 5000),
        text.replace("2.5", "[" * 3000 + "]" * 3000),
    ):
        assert damaged != text
        path.write_bytes(join(sealed(header, damaged), body))
        assert attempt(path, parts), damaged[:40]


def test_truth_values_are_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "a"
    fo.save(path, extra=np.array([True, False]))
    header, _ = split(path.read_bytes())
    document = document_of(header)
    document["tensors"]["extra"]["sha256"] = hashlib.sha256(b"\1\2").hexdigest()
    path.write_bytes(join(sealed(header, document), b"\1\2"))
    with pytest.raises(fo.CheckpointError, match="neither True nor False"):
        fo.load(path)


# What torch saves


ADAM: dict[str, Any] = {
    "state": {
        0: {"step": 1, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)},
        1: {"step": np.float32(2), "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)},
    },
    "param_groups": [
        {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "params": [0, 1]}
    ],
}
FOREIGN: list[Any] = [
    *JUNK,
    float("nan"),
    float("inf"),
    -1.0,
    0.5,
    b"x",
    {1: 2},
    np.array(3),
    np.array([1, 2]),
    np.array([None]),
    np.ma.masked_array([1.0], [True]),
    np.ma.masked,
    1j,
    object(),
    [0, 0],
    [[0], 1],
    iter([1]),
]


def test_any_node_of_a_torch_state_may_be_anything() -> None:
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    optimizer = fo.Adam(params)
    optimizer.load_state_dict(fo.checkpoint.from_torch(ADAM, optimizer))
    before = bits(optimizer.state_dict())
    for node in nodes(ADAM):
        for change in (remove, *map(put, FOREIGN)):
            group = ADAM["param_groups"][0] | {"params": [0, 1], "betas": [0.9, 0.999]}
            states = {number: dict(entry) for number, entry in ADAM["state"].items()}
            damaged: Any = {"state": states, "param_groups": [group]}
            container = damaged
            for key in node[:-1]:
                container = container[key]
            change(container, node[-1])
            with contextlib.suppress(*DOCUMENTED):
                fo.checkpoint.from_torch(damaged, optimizer)
            assert bits(optimizer.state_dict()) == before
    for damaged in FOREIGN:
        with pytest.raises(DOCUMENTED):
            fo.checkpoint.from_torch(damaged, optimizer)


@pytest.mark.parametrize(
    ("name", "own", "added"),
    [
        ("SGD", {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0}, {"nesterov": False}),
        (
            "RMSprop",
            {"alpha": 0.9, "eps": 1e-8, "weight_decay": 0.0},
            {"momentum": 0.0, "centered": False},
        ),
        ("Adam", {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}, {"amsgrad": False}),
        (
            "AdamW",
            {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0},
            {"decoupled_weight_decay": True},
        ),
    ],
)
def test_options_that_torch_has_added_have_its_defaults(
    name: str, own: dict[str, Any], added: dict[str, Any]
) -> None:
    # The optimizer has other options; those of the state count.
    options: Any = {"maximize": True} | {"amsgrad": {"amsgrad": True}}.get(next(iter(added)), {})
    optimizer: fo.Optimizer = getattr(fo, name)({"w": np.ones(2)}, **options)
    group = own | {"lr": 0.5, "params": [0]}
    state = fo.checkpoint.from_torch({"state": {}, "param_groups": [group]}, optimizer)
    optimizer.load_state_dict(state)
    loaded = optimizer.param_groups[0]
    assert {key: loaded[key] for key in (*own, *added, "lr", "maximize")} == (
        own | added | {"lr": 0.5, "maximize": False}
    )


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (float("nan"), ValueError),
        (-1, ValueError),
        (2**63, ValueError),
        (1.5, ValueError),
        (10**400, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (np.ones(2), TypeError),
        (None, TypeError),
    ],
)
def test_steps_that_are_none_are_refused_by_name(step: Any, error: type[Exception]) -> None:
    saved = copy.deepcopy(ADAM)
    saved["state"][1]["step"] = step
    with pytest.raises(error, match="step of 'b'"):
        fo.checkpoint.from_torch(saved, fo.Adam({"a": np.zeros(2), "b": np.zeros(3)}))
