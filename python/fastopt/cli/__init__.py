"""The command ``fastopt``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the extra ``train``, say how to get it."""
    try:
        from fastopt.cli.app import app
    except (ImportError, ValueError) as error:
        if not isinstance(error, ModuleNotFoundError):
            sys.exit(f"fastopt: error: {error}")
        if error.name is None or error.name.partition(".")[0] == "fastopt":
            raise
        sys.exit(
            f"fastopt: the command needs {error.name}; install it with: "
            "pip install 'fastopt[train]' (in a checkout: '.[train]')"
        )
    app(prog_name="fastopt")
