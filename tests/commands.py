"""The command ``fastopt`` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def fastopt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it in `cwd`, with warnings as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastopt", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        check=False,
    )
