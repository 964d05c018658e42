"""Threads, instruction sets and the facts of the build."""

from __future__ import annotations

import platform

import numpy as np

import fastopt._core as _core

__all__ = ["active_isa", "available_isas", "get_num_threads", "set_num_threads", "show_config"]


def set_num_threads(count: int) -> None:
    """Set how many threads a step or a loss may use.

    The count in force is the smallest of `count`, the CPUs of the process's affinity mask and the
    quota of its cgroup; `get_num_threads` returns it. Results do not depend on it.

    Parameters
    ----------
    count : int
        At least 1.
    """
    _core.set_num_threads(count)


def get_num_threads() -> int:
    """Return how many threads a step or a loss may use.

    At first that is ``FASTOPT_NUM_THREADS``, else ``OMP_NUM_THREADS``, else all CPUs, and never
    more than affinity and cgroup allow.
    """
    return _core.get_num_threads()


def available_isas() -> list[str]:
    """Return the instruction sets that this build has and this machine runs, the lowest first."""
    return _core.available_isas()


def active_isa() -> str:
    """Return the instruction set in use: the highest available, or the one ``FASTOPT_ISA`` names.

    The choice changes the speed, never the result.
    """
    return _core.active_isa()


def show_config() -> str:
    """Return what a report of a problem needs: versions, instruction sets, threads.

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
