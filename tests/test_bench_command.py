"""The command ``fastopt bench``."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastopt.benchmark import (
    LOSSES,
    OPTIMIZERS,
    TORCH,
    TYPES,
    Bandwidth,
    Result,
    TypeCase,
    UpdateCase,
    measure_case,
)
from fastopt.benchmark.report import plot_updates
from fastopt.benchmark.update_cases import NAMES
from helpers import fastopt

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")


def test_the_number_of_cases() -> None:
    assert {"SGD", "Adam", "AdamW", "RMSprop"} <= set(NAMES)
    between_torch = bool(find_spec("torch"))
    assert len(OPTIMIZERS.cases) == 5 * len(NAMES) + 6 + between_torch
    assert len(LOSSES.cases) == 20
    assert len(TYPES.cases) == 4 * 11
    assert len(TORCH.cases) == 8


def test_bench_without_a_case(tmp_path: Path) -> None:
    result = fastopt("bench", "--largest", "10", cwd=tmp_path)
    assert result.returncode == 2
    assert "--largest must be at least 4096" in result.stderr


def test_bench_optimizers(tmp_path: Path) -> None:
    result = fastopt("bench", "--largest", "70000", "--seconds", "0.01", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    small = [f"{name}, {size}" for name in NAMES for size in ("4 K", "64 K")]
    small.append("AdamW, 200 tensors of 64")
    for text in ("memory     copy", "GB/s", *small):
        assert text in result.stdout
    facts = json.loads((tmp_path / "fastopt-bench/bench.json").read_text())
    assert [row["case"] for row in facts["results"]] == small
    for row in facts["results"]:
        assert row["gb_per_s"] == pytest.approx(
            row["bytes_moved"] / row["seconds"]["fastopt"] / 1e9
        )
        assert row["peer_time_over_ours"]["reference"] > 0
    assert (tmp_path / "fastopt-bench/bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_every_optimizer() -> None:
    results = [Result(case, {"fastopt": 1e-3}, {}) for case in OPTIMIZERS.cases]
    (axes,) = plot_updates(Bandwidth(1.0, 1.0), results).axes
    assert {f"fastopt {name}" for name in NAMES} < set(axes.get_legend_handles_labels()[1])


def test_the_bytes_of_the_types() -> None:
    moved_and_held = {
        "float32": (28, 16),
        "bf16 gradients": (26, 14),
        "bf16 gradients and copy": (28, 16),
        "fp16 gradients and copy": (28, 16),
        "split master": (26, 14),
        "float32 master": (28, 16),
        "bf16 parameters": (22, 12),
        "bf16 states": (18, 10),
        "split master, bf16 states, stochastic": (18, 10),
        "all bf16": (14, 8),
        "all bf16, stochastic": (14, 8),
    }
    for case in TYPES.cases:
        assert (case.bytes_per_param, case.bytes_held) == moved_and_held[case.label]


def test_bench_types(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    result = fastopt("bench", "types", "--largest", "70000", "--seconds", "0.01", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "fastopt-bench/bench-types.json").read_text())["results"]
    assert [row["case"] for row in rows] == [f"{case.label}, 64 K" for case in TYPES.cases[:11]]
    for row in rows:
        assert row["case"] in result.stdout
        assert row["bytes_moved"] == row["B moved"] * row["elements"]
        assert row["peer_time_over_ours"].keys() >= {"float32", "reference"}
    table = (tmp_path / "fastopt-bench/bench-types.md").read_text().splitlines()
    assert table[0].startswith("| case | B moved | B held | us | GB/s | of memory | float32 / ours")
    assert (tmp_path / "fastopt-bench/bench-types.png").read_bytes().startswith(b"\x89PNG")


def test_bench_torch(tmp_path: Path) -> None:
    result = fastopt("bench", "torch", "--largest", "5000", "--seconds", "0.01", cwd=tmp_path)
    if find_spec("torch") is None:
        assert result.returncode == 2
        assert "bench torch needs torch; run: pip install torch" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "fastopt-bench/bench-torch.json").read_text())["results"]
    assert row["case"] == "AdamW, 4 K"
    assert row["peer_time_over_ours"].keys() == {"torch", "NumPy", "reference"}
    assert (tmp_path / "fastopt-bench/bench-torch.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", TORCH.cases, ids=str)
def test_small_arrays_in_the_cases_of_torch(case: Any) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    small: dict[str, Any] = {"shape": (16, 20)}
    if isinstance(case, UpdateCase):
        small = {"shapes": [(5,) for shape in case.shapes if len(shape) == 1]}
    elif isinstance(case, TypeCase):
        small = {"size": 1000}
    result = measure_case(TORCH, replace(case, **small), seconds=0)  # compares the answers
    assert {"torch", "reference"} <= result.ratios.keys()


def test_bench_losses(tmp_path: Path) -> None:
    result = fastopt("bench", "losses", "--largest", "2000", "--seconds", "0.01",
                     "--output", "here", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    for text in ("memory     copy", "cross-entropy 128 x 10, reused buffer", "timing 1/1: "):
        assert text in result.stdout
    facts = json.loads((tmp_path / "here/bench-losses.json").read_text())
    (row,) = facts["results"]
    assert row["bytes_moved"] == 8 * row["elements"] == 8 * 1280
    assert row["gb_per_s"] == pytest.approx(row["bytes_moved"] / row["seconds"]["fastopt"] / 1e9)
    assert row["peer_time_over_ours"]["reference"] > 0
    assert (tmp_path / "here/bench-losses.md").read_text().count("\n") == 3
    assert (tmp_path / "here/bench-losses.png").read_bytes().startswith(b"\x89PNG")


def test_bench_accuracy(tmp_path: Path) -> None:
    result = fastopt("bench", "accuracy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "fastopt-bench/accuracy.json").read_text())
    names = [row["case"] for row in facts["results"]]
    assert "cross-entropy 8192 x 1000, sure model" in names
    for row in facts["results"]:
        assert row["case"] in result.stdout
        ours = row["errors"]["fastopt"]
        assert 0 < ours["loss_mean"] < ours["loss_max"] < 34 * 2**-23  # logits differ by up to 34
        if "torch" in row["errors"]:
            assert ours["loss_max"] < row["errors"]["torch"]["loss_max"]
            assert ours["grad_max"] <= row["errors"]["torch"]["grad_max"]  # both may be exact
    table = (tmp_path / "fastopt-bench/accuracy.md").read_text().splitlines()
    assert len(table) == 2 + len(names)


def test_bench_of_what(tmp_path: Path) -> None:
    result = fastopt("bench", "speed", cwd=tmp_path)
    assert result.returncode == 2
    for name in ("optimizers", "types", "losses", "torch", "distributed", "accuracy"):
        assert name in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--largest", "5000"), ("--seconds", "1")])
def test_the_accuracy_takes_no_option_of_a_timing(option: str, value: str, tmp_path: Path) -> None:
    result = fastopt("bench", "accuracy", option, value, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        f"fastopt: error: {option} is for bench optimizers, types, losses, torch, distributed, "
        "not for bench accuracy\n"
    )
    assert not list(tmp_path.iterdir())
