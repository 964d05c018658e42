"""The import of mpi4py, which starts MPI."""

from __future__ import annotations

from typing import Any


def import_mpi() -> Any:
    """Return the module ``mpi4py.MPI``.

    Raises
    ------
    ModuleNotFoundError
        If mpi4py is not installed.
    RuntimeError
        If it does not find the library of MPI.
    """
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the ranks of MPI need mpi4py; install it with: pip install 'fastopt[mpi]' "
            "(in a checkout: '.[mpi]')",
            name="mpi4py",
        ) from error
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"mpi4py does not find the MPI library; pip install mpich is one ({reason})"
        ) from error
    return MPI
