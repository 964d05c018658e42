"""The site and the README: every code block runs and prints what is shown; entries of all names.

The page on the design includes CONTRIBUTING.md. Its commands build and measure fastopt, so they are
not run here; ``.ci/run`` runs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import fastopt as fo
import pages
from helpers import HANG, fastopt
from mpi import needs_mpi, run_ranks

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if "_build" not in p.parts)

# Packages that the blocks of a page import, except NumPy.
NEEDS = {
    "lessons/gradient-descent.md": ["matplotlib"],
    "lessons/learning-rate.md": ["matplotlib", "sklearn", "threadpoolctl"],
    "lessons/loop.md": ["matplotlib", "safetensors", "sklearn", "threadpoolctl"],
    "lessons/losses.md": ["matplotlib"],
    "lessons/neuron.md": ["matplotlib"],
    "lessons/optimizers.md": ["matplotlib"],
    "lessons/schedules.md": ["matplotlib"],
    "lessons/sixteen-bits.md": ["matplotlib", "ml_dtypes", "sklearn", "threadpoolctl"],
    "torch-optimizers.md": ["jax", "torch"],
    "torch.md": ["torch"],
    "tour.md": ["safetensors"],
    "types.md": ["ml_dtypes"],
}

# Pages whose Python blocks are one program for several ranks.
ON_RANKS = ["distributed.md"]

# Lines of shell blocks that are not run, and the reasons.
_MPI = "needs MPI; a test of this module runs the program, or test_bench_distributed.py"
_HOSTS = "needs another MPI or several hosts"
_MINUTES = "takes minutes; test_bench_command.py runs it with small cases"
_PEERS = "installs the peers of a benchmark, as .ci/run does"
_RANKS = "needs MPI; test_sweep_mpi.py runs it with small cases"
NOT_RUN = {
    "mpiexec -n 2 fastopt bench distributed": _MPI,
    "mpiexec -n 4 python -m mpi4py train.py": _MPI,
    "mpiexec -bind-to core -n 4 python -m mpi4py train.py": _MPI,
    "FASTOPT_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 mpiexec -n 4 python -m mpi4py train.py": _MPI,
    "mpiexec -f hosts -n 32 -bind-to core python -m mpi4py train.py": _HOSTS,
    "fastopt bench": _MINUTES,
    "fastopt bench types": _MINUTES,
    "fastopt bench losses": _MINUTES,
    "fastopt bench torch": _MINUTES,
    "fastopt bench accuracy": _MINUTES,
    "mpiexec -n 5 fastopt sweep --workers mpi": _RANKS,
    "mpiexec -hosts node1,node2 -n 33 fastopt sweep --workers mpi": _RANKS,
    "mpiexec -n 4 fastopt train --batch-size 256 --output ranks": "test_train_mpi.py does",
    "pip install '.[train]' torch==2.13.0": _PEERS,
    "pip install jax optax deepspeed setuptools ninja"
    "  # DeepSpeed compiles its CPUAdam at first use": _PEERS,
}

# The languages of blocks that are tested.
LANGUAGES = {"python", "text", "sh"}


def blocks(name: str, language: str) -> list[pages.Block]:
    return [b for b in pages.read_blocks(DOCS / name) if b.language == language]


def commands(name: str) -> list[str]:
    return [line for block in blocks(name, "sh") for line in block.code.splitlines()]


@pytest.mark.parametrize(
    "name", [name for name in SITE if blocks(name, "python") and name not in ON_RANKS]
)
def test_the_python_blocks_run_and_print_what_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    try:
        drawn = pages.draw(DOCS / name, tmp_path)
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
            sys.modules["matplotlib"].rcdefaults()
    shown = pages.pictures(DOCS / name)
    assert all(alt for alt, _ in shown)
    assert sorted(path for _, path in shown) == [f"pictures/{new.name}" for new in drawn]
    for new in drawn:
        old = (DOCS / name).parent / "pictures" / new.name
        assert pages.same_picture(old, new), f"{old} is old; run: python docs/pages.py docs/{name}"


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ON_RANKS)
def test_the_programs_for_ranks_print_what_is_shown(name: str, ranks: int, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("".join(block.code for block in blocks(name, "python")))
    shown = next(block.code for block in blocks(name, "text"))
    result = run_ranks(ranks, "-m", "mpi4py", "train.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert pages.same_output(result.stdout, shown)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "commands.md" else ())
        for name in SITE
        if commands(name)
    ],
)
def test_the_shell_blocks_run(name: str, tmp_path: Path) -> None:
    lines = [line for line in commands(name) if line not in NOT_RUN]
    readme = (ROOT / "README.md").read_text("utf-8")
    for line in lines:
        if not line.startswith("fastopt "):
            # CI runs the lines that make environments, from the README.
            assert line in readme, f"{name}: {line!r} is neither run nor in the README"
    if name != "install.md":  # there, `fastopt info` needs NumPy alone
        for package in ("matplotlib", "rich", "sklearn", "threadpoolctl"):
            pytest.importorskip(package)
    pytest.importorskip("typer")
    for line in lines:
        if line.startswith("fastopt "):
            ran = fastopt(*shlex.split(line, comments=True)[1:], cwd=tmp_path)
            assert ran.returncode == 0, f"{name}: {line}\n{ran.stdout}{ran.stderr}"
        if line == "fastopt train":
            assert not {*rough(output_in_the_readme())} - {"...", *rough(ran.stdout)}
    if name == "commands.md":
        text = (DOCS / name).read_text("utf-8")
        named = set(re.findall(r"`([\w-]*\.(?:png|gif|csv|json|jsonl|safetensors))`", text))
        files = [file for folder in tmp_path.iterdir() for file in folder.iterdir()]
        # The names of the files of a landscape begin with its function.
        written = {file.name.removeprefix("ravine") for file in files}
        assert written == named
        for picture, (_, file) in pages.BY_COMMANDS.items():
            if (tmp_path / file).exists():
                shown = DOCS / "pictures" / picture
                assert pages.same_picture(shown, tmp_path / file), f"{shown} is old; see pages.py"


def output_in_the_readme() -> str:
    """Return what `fastopt train` prints, as the README shows it."""
    blocks = pages.read_blocks(ROOT / "README.md")
    return next(block.code for block in blocks if block.language == "text")


def rough(text: str) -> list[str]:
    """Return the lines without numbers, and without the widths that depend on them."""
    numbers = re.sub(r"[\d.,]*\d", "#", text)
    return [re.sub(r"[\s─━]+", " ", line).strip() for line in numbers.splitlines()]


def test_the_code_of_the_readme_prints_what_is_shown(tmp_path: Path) -> None:
    pages.run_python(ROOT / "README.md", tmp_path)


def test_every_block_is_of_a_language_that_is_tested() -> None:
    for name in SITE:
        found = [b for b in pages.read_blocks(DOCS / name) if b.language not in LANGUAGES]
        # The instructions and figures of the performance page are those of its machine.
        assert not found or name == "performance.md", f"{name}: {found[0]}"


def test_no_line_of_code_is_cut_in_a_window_of_1400_pixels() -> None:
    for path in [*(DOCS / name for name in SITE), ROOT / "CONTRIBUTING.md"]:
        for block in pages.read_blocks(path):
            long = [line for line in block.code.splitlines() if len(line) > 100]
            assert not long, f"{path}:{block.line}: {long[0]}"


def test_what_is_not_run_is_still_there() -> None:
    assert set(NOT_RUN) <= {line for name in SITE for line in commands(name)}


def test_pages_are_in_a_table_of_contents() -> None:
    listed: set[str] = {"index.md"}
    for name in SITE:
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / name).read_text("utf-8"), re.S):
            for line in tree.splitlines():
                if line and not line.startswith(":"):
                    listed.add((Path(name).parent / f"{line}.md").as_posix())
    assert listed == set(SITE)


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "page.md:2: the block prints\n1\n"),
        ("```python\nprint(1)\n```\n", "but the page shows\n$"),
        ("```python\npass\n```\n\n```text\n2\n```\n", "but the page shows\n2\n"),
        ("\n\n```python\n\n1 / 0\n```\n", "page.md:4: ZeroDivisionError"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        ("```python\n1\n", "page.md:1: the block is not closed"),
    ],
)
def test_a_page_that_is_wrong_is_found(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(pages.PageError, match=message):
        pages.run_python(page(tmp_path, text), tmp_path)


def test_blocks_of_a_page_share_their_names_and_their_folder(tmp_path: Path) -> None:
    text = (
        "```python\nn = 2\nopen('file', 'w').close()\n```\n\n"
        "```python\nprint(n)\n```\n\n```text\n2\n```\n"
    )
    pages.run_python(page(tmp_path, text), tmp_path)
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("loss 0.123", "loss 0.124", True),
        ("loss 0.123", "loss 0.125", False),
        ("1.7e-10", "1.8e-10", True),
        ("1.7e-10", "1.7e-11", False),
        ("97%", "98%", True),
        ("96%", "98%", False),
        ("step 1", "step 2", False),
        ("[1. 0.]", "[1. 2.]", False),
        ("loss 0.5", "lost 0.5", False),
        ("0.5", "0.5 0.5", False),
    ],
)
def test_only_the_last_digit_of_a_fraction_may_differ(printed: str, shown: str, same: bool) -> None:
    assert pages.same_output(printed, shown) is same


# Modules whose public names must have entries.
MODULES = [
    "fastopt",
    "fastopt.checkpoint",
    "fastopt.distributed",
    "fastopt.train.experiments",
    "fastopt.functional",
    "fastopt.reference",
    "fastopt.schedules",
    "fastopt.testing",
    "fastopt.train",
]
if importlib.util.find_spec("torch"):
    MODULES += ["fastopt.torch", "fastopt.torch.functional"]


def public_names() -> set[str]:
    """Return the public names of `MODULES`, with the methods and attributes of their classes.

    A name that `fastopt` has too is listed as ``fastopt.X``.
    """
    names = set()
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            thing = getattr(importlib.import_module(module), name)
            if name == "__version__" or inspect.ismodule(thing):
                continue
            own = module in ("fastopt.reference", "fastopt.torch")
            shared = not own and hasattr(fo, name)
            entry = f"{'fastopt' if shared else module}.{name}"
            names.add(entry)
            for cls in inspect.getmro(thing) if inspect.isclass(thing) else ():
                if cls.__module__.startswith("fastopt"):
                    members = {*vars(cls), *vars(cls).get("__annotations__", {})}
                    members -= {"set_score_request"}  # scikit-learn adds it to its estimators
                    names |= {f"{entry}.{m}" for m in members if not m.startswith("_")}
    return names


def entries(site: Path) -> set[str]:
    """Return the Python names that have an entry in a site, from its ``objects.inv``."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" py:")[0] for line in lines if " py:" in line}


def test_the_site_builds_without_a_warning_and_has_an_entry_for_each_name(tmp_path: Path) -> None:
    for package in ("sphinx", "sphinx_copybutton", "myst_parser", "furo", "sklearn"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(site)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert ran.returncode == 0, ran.stderr
    for page in site.rglob("*.html"):  # it is read without a network
        loads = re.findall(
            r"<(?:script|link|img)\b[^>]*\b(?:src|href)=.?(?:https?:)?//[^>]*",
            page.read_text("utf-8"),
        )
        assert not loads, f"{page}: {loads}"
    found, names = entries(site), public_names()
    assert {"fastopt.AdamW.step", "fastopt.train.BUNDLED", "fastopt.LRScheduler.base_lrs"} <= names
    assert not names - found
