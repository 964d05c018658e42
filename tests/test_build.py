"""Static facts: the kernel objects, the stubs, the versions, the documentation."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
from graphlib import TopologicalSorter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastopt as fo
from fastopt import _core

ROOT = Path(__file__).parents[1]


def missing(what: str) -> None:
    """Skip a test, or fail it where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"no {what}")
    pytest.skip(f"no {what}")


def kernel_objects() -> list[Path]:
    """The objects in the build folder of an editable build or of CI."""
    folders = [ROOT / "build/editable", ROOT / "build/ci"]
    objects = [o for f in folders for o in f.glob("CMakeFiles/*_*.dir/cpp/kernels/*.cpp.o")]
    if not objects:
        missing("kernel objects under build/")
    return objects


def listing(tool: str, *arguments: str | Path) -> str:
    if shutil.which(tool) is None:
        missing(tool)
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_kernel_objects_export_one_table_and_nothing_weak() -> None:
    for path in kernel_objects():
        table, isa = path.parts[-4].removesuffix(".dir").split("_")
        kinds: dict[str, list[str]] = {}
        for line in listing("nm", "-C", "-P", path).splitlines():
            symbol = re.match(r"(.*?) ([A-Za-z])(?: |$)", line)
            assert symbol is not None
            kinds.setdefault(symbol[2], []).append(symbol[1])
        exported = [
            name for kind in kinds if kind.isupper() and kind != "U" for name in kinds[kind]
        ]
        assert exported == [f"fastopt::{isa}::{table}"]
        assert not set("WwVvu") & set(kinds), "a weak symbol may be the copy that the linker keeps"
        assert set(kinds.get("U", ())) <= {"memset", "memcpy", "memmove", "_GLOBAL_OFFSET_TABLE_"}


def test_kernel_objects_have_no_initialisers() -> None:
    for path in kernel_objects():
        sections = listing("objdump", "-h", path)
        assert ".init_array" not in sections
        assert ".ctors" not in sections
        assert ".gnu.lto" not in sections


def test_the_module_holds_no_fused_multiply_adds() -> None:
    code = listing("objdump", "-d", "--no-show-raw-insn", _core.__file__)
    assert "vsqrtp" in code or fo.available_isas() == ["generic"]
    assert not re.search(r"\bv?fn?m(add|sub|la|ls)", code)


def test_the_module_exports_its_init_alone() -> None:
    lines = listing("nm", "-D", "-P", "--defined-only", _core.__file__).splitlines()
    names = {line.split()[0] for line in lines}
    assert not {name for name in names if "fastopt" in name}
    assert "PyInit__core" in names


def test_kernels_include_each_other_and_two_headers_only() -> None:
    for path in (ROOT / "cpp/kernels").rglob("*.[ch]pp"):
        for include in re.findall(r"#include (.*)", path.read_text()):
            own = re.fullmatch(r'"(.+)"', include)
            assert include in ("<cstddef>", "<cstdint>") or (
                own is not None and (path.parent / own[1]).exists()
            ), (path.name, include)


def test_what_each_folder_may_include() -> None:
    allowed = {
        "kernels": {"kernels"},
        "runtime": {"runtime", "kernels/table.hpp"},
        "bindings": {"bindings", "runtime", "kernels/table.hpp"},
    }
    for folder, known in allowed.items():
        for path in (ROOT / "cpp" / folder).rglob("*.[ch]pp"):
            for include in re.findall(r'#include "(.*)"', path.read_text()):
                target = (path.parent / include).resolve().relative_to(ROOT / "cpp")
                assert {target.parts[0], target.as_posix()} & known, (path.name, include)
            assert folder == "bindings" or "pybind11" not in path.read_text()


# The tools of the package, and what each may import beside the public names of the rest: modules of
# other tools, and the private modules that check options and write files.
TOOLS: dict[str, set[str]] = {
    "train": {"_checks", "_files", "distributed"},
    "torch": {
        "_core",
        "_checks",
        "_types",
    },  # it is for tensors what `optim` and `losses` are for arrays
    "distributed": {"_checks", "_storage", "_structure", "_types"},
    "benchmark": {"distributed"},
    "cli": {"train", "benchmark", "distributed", "_checks"},
    "__main__": {"cli"},
}
MODULES = {
    ".".join(path.relative_to(ROOT / "python").with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in (ROOT / "python").rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Return the modules of fastopt that a file imports, inside its functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                own = name in MODULES or name == "fastopt._core"  # which has no file of Python
                names.add(name if own else str(node.module))
    return {name for name in names if name.split(".")[0] == "fastopt"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"fastopt"}))
def test_what_each_part_may_import(module: str) -> None:
    part = module.split(".")[1]
    used = {".".join(name.split(".")[1:2]) or name for name in imports(MODULES[module])} - {part}
    if part in TOOLS:
        assert {name for name in used if name in TOOLS or name[0] == "_"} <= TOOLS[part]
        if "_core" not in TOOLS[part]:
            assert "_core" not in MODULES[module].read_text()  # also not as `fo._core`
    else:  # neither a tool nor the package itself, which imports them all
        assert not used & {*TOOLS, "fastopt"}
    assert part != "reference" or "_core" not in used


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("fastopt.cli")))
def test_commands_use_public_names_of_the_training_tools(module: str) -> None:
    pytest.importorskip("threadpoolctl")
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fastopt.train"):
            public = getattr(importlib.import_module(str(node.module)), "__all__", ())
            assert {alias.name for alias in node.names} <= set(public), node.module


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    graph["fastopt"].discard("fastopt.train")  # imported when it is first used
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_header_of_the_kernels_has_a_name_that_the_runtime_has() -> None:
    names = [path.name for path in (ROOT / "cpp").rglob("*.hpp")]
    assert sorted(names) == sorted(set(names))


def test_threads_are_known_to_the_pool_alone() -> None:
    for path in (ROOT / "cpp").rglob("*.[ch]pp"):
        if path.name not in ("thread_pool.cpp", "thread_count.cpp"):
            assert not re.search(r"<(thread|mutex|pthread\.h)>", path.read_text()), path


def test_builds_at_the_same_time_have_folders_of_their_own() -> None:
    assert "build-dir" not in (ROOT / "pyproject.toml").read_text()


def test_versions_agree() -> None:
    assert fo.__version__ == _core.__version__ == version("fastopt")
    assert f"## {fo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_show_config_names_what_a_report_needs() -> None:
    text = fo.show_config()
    for part in (fo.__version__, fo.active_isa(), "threads", "compiler", "NumPy"):
        assert part in text


def test_examples_in_docstrings() -> None:
    examples = 0
    for info in pkgutil.walk_packages(fo.__path__, "fastopt."):
        if info.name.split(".")[1] in (
            "train",
            "cli",
            "benchmark",
            "_core",
            "__main__",
            *([] if find_spec("torch") else ["torch"]),
        ):
            continue
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
        examples += result.attempted
    assert examples > 15


def test_every_public_name_has_a_docstring() -> None:
    for name in set(fo.__all__) - {"__version__"}:
        item = getattr(fo, name)
        assert item.__doc__, name
        for attribute, value in vars(item).items() if isinstance(item, type) else ():
            if callable(value) and not attribute.startswith("_"):
                assert value.__doc__, f"{name}.{attribute}"
