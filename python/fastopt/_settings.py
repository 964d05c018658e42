"""Threads, instruction sets and the facts of the build."""

from __future__ import annotations

import platform

import numpy as np

import fastopt._core as _core

__all__ = ["active_isa", "available_isas", "get_num_threads", "set_num_threads", "show_config"]


def set_num_threads(count: int) -> None:
    """Set the number of threads of a step or a loss.

    The number in use is the smallest of `count`, the CPUs in the affinity mask of the process and
    the quota of its cgroup. `get_num_threads` returns it. Results do not depend on it.

    Parameters
    ----------
    count : int
        At least 1.
    """
    _core.set_num_threads(count)


def get_num_threads() -> int:
    """Return the number of threads of a step or a loss.

    The default is ``FASTOPT_NUM_THREADS``, or else ``OMP_NUM_THREADS``, or else all CPUs. It is
    never more than affinity and cgroup allow.
    """
    return _core.get_num_threads()


def available_isas() -> list[str]:
    """Return the instruction sets of this build that this machine can run, the lowest first."""
    return _core.available_isas()


def active_isa() -> str:
    """Return the instruction set in use: the highest available, or that of ``FASTOPT_ISA``.

    It changes the speed, never the result.
    """
    return _core.active_isa()


def show_config() -> str:
    """Return versions, instruction sets and threads, for a bug report.

    Examples
    --------
    >>> import fastopt as fo
    >>> "instruction set" in fo.show_config()
    True
    """
    quota = _core.cgroup_cpus()
    facts = {
        "fastopt": _core.__version__,
        "compiler": _core.compiler,
        "instruction set": f"{active_isa()} (available: {', '.join(available_isas())})",
        "threads": f"{get_num_threads()} (affinity: {_core.affinity_cpus()}, "
        f"cgroup quota: {quota or 'none'})",
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "platform": platform.platform(),
    }
    return "\n".join(f"{name + ':':<17}{fact}" for name, fact in facts.items())
