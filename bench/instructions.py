"""Instructions of a step beyond its arithmetic: ``python bench/instructions.py`` (needs valgrind).

Each case runs under callgrind with 200 and with 600 steps; the difference is what 400 steps take,
Python's part included. Unlike time, it is the same in every run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

STEPS = (200, 600)
ENVIRONMENT = {"FASTOPT_ISA": "baseline", "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
CASES = {
    "SGD, 1 parameter": ("SGD", "[1]", "p, g"),
    "AdamW, 1 parameter": ("AdamW", "[1]", "p, g"),
    "AdamW, 200 tensors of 1": ("AdamW", "[1] * 200", "p, g"),
    "AdamW, 200 tensors of 1, as a mapping": (
        "AdamW",
        "[1] * 200",
        "{str(i): x for i, x in enumerate(p)}, {str(i): x for i, x in enumerate(g)}",
    ),
}
SCRIPT = """
import sys, numpy as np, fastopt as fo
sizes = {sizes}
p, g = [np.ones(n, np.float32) for n in sizes], [np.ones(n, np.float32) for n in sizes]
p, g = {arrays}
step = fo.{name}(p, lr=1e-3).step
for _ in range({steps}):
    step(g)
"""


def instructions(name: str, sizes: str, arrays: str, steps: int) -> int:
    """Return the instructions of a process that takes this many steps."""
    script = SCRIPT.format(sizes=sizes, arrays=arrays, name=name, steps=steps)
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    result = subprocess.run(
        [*valgrind, sys.executable, "-c", script],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", result.stderr)
    if result.returncode != 0 or found is None:
        raise SystemExit(result.stderr)
    return int(found[1])


def per_step(label: str) -> float:
    few, many = (instructions(*CASES[label], steps) for steps in STEPS)
    return (many - few) / (STEPS[1] - STEPS[0])


def main() -> None:
    if shutil.which("valgrind") is None:
        raise SystemExit("bench/instructions.py needs valgrind")
    for label in CASES:
        print(f"{label:45} {per_step(label):10,.0f} a step")


if __name__ == "__main__":
    main()
