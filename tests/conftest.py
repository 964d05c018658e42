"""Fixtures: every instruction set, every team size, and pairs of the two."""

from __future__ import annotations

import signal
from collections.abc import Iterator

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
    wake_size, _core.tuning.wake_size = _core.tuning.wake_size, 0  # the team works, asleep or not
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
    """Return an instruction set with a team, both in use; `use` chooses them again."""
    pair: Setting = request.param
    pair.use()
    return pair
