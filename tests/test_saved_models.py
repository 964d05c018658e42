"""Saved models: the bits of their predictions, probabilities, and files that are refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")

from sklearn.datasets import load_iris

import fastopt as fo
from fastopt import train as ft
from test_damaged_checkpoints import (
    JUNK,
    changed,
    document_of,
    join,
    nodes,
    put,
    remove,
    sealed,
    split,
)


def trained(data: str, **options: Any) -> ft.Trainer:
    trainer = ft.RunConfig(data=data, hidden=(8,), epochs=2, **options).build()
    trainer.fit(2)
    return trainer


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("digits", {"dropout": 0.5, "ema": 0.9}),
        ("wine", {"loss": "mse", "activation": "tanh"}),
        ("wine", {"loss": "bce-with-logits"}),
        ("breast-cancer", {}),
        ("breast-cancer", {"loss": "l1", "activation": "gelu"}),
        ("diabetes", {"loss": "huber"}),
    ],
)
def test_a_loaded_model_has_the_bits_of_the_live_one(
    data: str, options: Any, tmp_path: Path
) -> None:
    trainer = trained(data, **options)
    ft.save_model(tmp_path / "model.safetensors", trainer)
    loaded = ft.load_model(tmp_path)  # a folder with the file
    for model in (loaded, pickle.loads(pickle.dumps(loaded))):
        model = replace(model, preprocessing=None)  # the trainer has the inputs only
        x, outputs = trainer.data.x_val, trainer.predict(trainer.data.x_val)
        np.testing.assert_array_equal(model.outputs(x), outputs, strict=True)
        if data == "diabetes":
            values = trainer.data.in_units(outputs)[:, 0]
            np.testing.assert_array_equal(model.predict(x), values, strict=True)
            with pytest.raises(ValueError, match="of a regression"):
                model.predict_proba(x)
            continue
        predicted = trainer.objective.predicted(outputs)
        assert model.predict(x).tolist() == [trainer.data.labels[i] for i in predicted]
        probabilities = model.predict_proba(x)
        assert probabilities.dtype == np.float32
        assert probabilities.min() >= 0
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(probabilities.argmax(axis=1), predicted)


def test_the_nearest_probabilities() -> None:
    objective = ft.Objective("classification", "mse")
    outputs = np.array([[1.2, 1.1, -3], [0.2, 0.3, 0.5], [1e9, 0, 0], [0, 0, 0]], np.float32)
    wanted = np.array([[0.55, 0.45, 0], [0.2, 0.3, 0.5], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(objective.probabilities(outputs), wanted, rtol=1e-6)
    binary = ft.Objective("binary", "mse").probabilities(np.array([[-1], [0.25], [2]], np.float32))
    np.testing.assert_array_equal(binary, [[1, 0], [0.75, 0.25], [0, 1]])


def test_probabilities_of_the_smallest_sigmoids() -> None:
    objective = ft.Objective("classification", "bce-with-logits")
    probabilities = objective.probabilities(np.array([[-1000, -1001]], np.float32))
    np.testing.assert_allclose(probabilities, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e)]], rtol=1e-6)


@pytest.fixture(scope="module")
def data_of_a_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m"
    ft.save_model(path, trained("iris"))
    return path.read_bytes()


def test_each_damaged_byte_is_refused(data_of_a_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    for _ in range(600):
        damaged = bytearray(data_of_a_file)
        damaged[rng.integers(len(damaged))] ^= rng.integers(1, 256)
        path.write_bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.1 else damaged)
        with pytest.raises(fo.CheckpointError, match=r"model\.safetensors"):
            ft.load_model(path)


def test_contents_of_another_program_are_refused_or_harmless(
    data_of_a_file: bytes, tmp_path: Path
) -> None:
    """The hashes match, as in a file of an attacker: each node is replaced, and each is removed."""
    path = tmp_path / "model.safetensors"
    header, body = split(data_of_a_file)
    document = document_of(header)
    refused = harmless = 0
    for place in nodes(document):
        if "extra" not in place or {1, 2, 3} & {*place}:  # the columns are alike
            continue
        for change in (remove, *map(put, JUNK)):
            path.write_bytes(join(sealed(header, changed(document, place, change)), body))
            try:
                model = ft.load_model(path)
            except fo.CheckpointError:
                refused += 1
            else:  # another name or number
                assert np.isfinite(model.outputs(np.zeros((2, 4)))).all()
                model.predict(np.zeros((2, 4)))
                harmless += 1
    assert refused > 10 * harmless > 0


def test_older_versions_refuse_what_they_would_compute_with_relu(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ft.save_model(path, trained("iris"))
    extra = fo.load(path).extra
    assert extra["kind"] == "fastopt model 1"
    assert "activation" not in extra
    assert ft.load_model(path).activation == "relu"
    ft.save_model(path, trained("iris", activation="silu"))
    model, saved = ft.load_model(path), fo.load(path)
    assert repr(model) == "SavedModel(4-8-3 silu, classification of class)"
    assert saved.extra["kind"] == "fastopt model 2"
    for value, words in ((None, "'sigmoid', not None"), ("elu", "'sigmoid', not 'elu'")):
        fo.save(path, params=saved.params, extra=saved.extra | {"activation": value})
        with pytest.raises(fo.CheckpointError, match=words):
            ft.load_model(path)
    fo.save(path, params=saved.params, extra=extra | {"kind": "fastopt model 2"})
    with pytest.raises(fo.CheckpointError, match="it lacks 'activation'"):
        ft.load_model(path)


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ft.save_model(path, trained("iris"))
    saved = fo.load(path)
    assert saved.params is not None
    bias = np.zeros(3, np.float32)
    for change, message in (
        ({"1.bias": bias.astype(np.float16)}, "1.bias is float16"),
        ({"1.bias": bias.astype(np.float64)}, "1.bias is float64"),
        ({"1.bias": bias[:2]}, r"1.bias has shape \(2,\), not \(3,\)"),
        ({"1.weight": np.zeros((3, 9), np.float32)}, r"shape \(3, 9\), not \(outputs, 8\)"),
        ({"1.weight": np.zeros((1, 8), np.float32), "1.bias": bias[:1]}, "3 labels, but the wei"),
        ({"0.weight": np.zeros((8, 5), np.float32)}, "take 5 inputs, but there are 4"),
        ({"2.weight": np.zeros((3, 3), np.float32)}, "not those of an MLP"),
        ({"1.bias": bias - np.float32(np.inf)}, "1.bias is not finite"),
    ):
        fo.save(path, params=saved.params | change, extra=saved.extra)
        with pytest.raises(fo.CheckpointError, match=message):
            ft.load_model(path)
    for labels in ([], ["a"], ["a", "b", "a"], ["a", "b", "c", "d"], "abc", 3, [1, 2, 3]):
        fo.save(path, params=saved.params, extra=saved.extra | {"labels": labels})
        with pytest.raises(fo.CheckpointError, match="label"):
            ft.load_model(path)
    fo.save(path, params=saved.params, extra=saved.extra | {"kind": "fastopt model 3"})
    with pytest.raises(fo.CheckpointError, match="that a newer version of fastopt reads"):
        ft.load_model(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(bad: float, tmp_path: Path) -> None:
    trainer = trained("iris")
    trainer.model.params["1.bias"][0] = bad
    with pytest.raises(ValueError, match=r"1\.bias is not finite: training has diverged"):
        ft.save_model(tmp_path / "m", trainer)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_not_a_model(tmp_path: Path) -> None:
    trained("iris").save(tmp_path / "run")
    with pytest.raises(fo.CheckpointError, match=r"run is a checkpoint, but not a model; save_"):
        ft.load_model(tmp_path / "run")


def test_a_model_knows_the_rows_of_its_data(tmp_path: Path) -> None:
    ft.save_model(tmp_path / "m", trained("iris"))
    model = ft.load_model(tmp_path / "m")
    rows = load_iris(as_frame=True).data
    assert model.knows(rows[::-1])
    assert model.knows(np.asfortranarray(rows))
    assert not model.knows(rows[1:])
    saved = fo.load(tmp_path / "m")
    del saved.extra["rows_hash"]  # as in older files
    fo.save(tmp_path / "m", params=saved.params, extra=saved.extra)
    assert not ft.load_model(tmp_path / "m").knows(rows)


def test_inputs_without_a_finite_output_are_named() -> None:
    model = replace(ft.SavedModel.from_trainer(trained("iris")), preprocessing=None)
    x = np.zeros((3, 4))
    x[1, 2] = np.nan
    with pytest.raises(ft.DataError, match="the outputs for row 2 are not finite"):
        model.predict(x)
