"""Fixtures: instruction sets, numbers of threads, pairs of the two, and MXCSR."""

from __future__ import annotations

import ctypes
import mmap
import platform
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

import fastopt as fo
from fastopt import _core
from helpers import ISAS, SETTINGS, TEAMS, Setting

settings.register_profile("fastopt", deadline=None, max_examples=60)
settings.load_profile("fastopt")

# A background job of a shell ignores Ctrl-C, and so would the processes that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def leave_settings_alone() -> Iterator[None]:
    isa, threads = fo.active_isa(), fo.get_num_threads()
    wake_size, _core.tuning.wake_size = _core.tuning.wake_size, 0  # sleeping threads work too
    yield
    _core.tuning.wake_size = wake_size
    _core.use_isa(isa)
    _core.set_num_threads(threads, beyond=True)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    _core.use_isa(name)
    return name


@pytest.fixture(params=TEAMS)
def threads(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    _core.set_num_threads(count, beyond=True)  # 3 on a machine of 2 cores too
    assert fo.get_num_threads() == count
    return count


@pytest.fixture(params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Select an instruction set and a number of threads; `use` selects them again."""
    pair: Setting = request.param
    pair.use()
    return pair


@pytest.fixture
def mxcsr() -> Any:
    """Return functions that read and write MXCSR; each is two instructions."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("MXCSR is x86's")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("0fae1fc3") + b"\x90" * 12 + bytes.fromhex("0fae17c3"))
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
    store, load = kind(start), kind(start + 16)

    def read() -> int:
        value = ctypes.c_uint32()
        store(ctypes.byref(value))
        return value.value

    def write(value: int) -> None:
        load(ctypes.byref(ctypes.c_uint32(value)))

    before = read()
    yield read, write
    write(before)
