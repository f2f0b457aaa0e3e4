"""Which files hold the weights: one file, an index of shards, or nothing that may be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import UnsupportedCheckpoint
from engine.families import open_local
from engine.weights.tensor_files import stored_tensors
from tests.engine.tiny_checkpoint import save_tensors

A, B, C = (np.full(3, value, np.float32) for value in (1, 2, 3))


def shards(directory: Path, files: dict[str, dict[str, np.ndarray]], weight_map: Any = None) -> str:
    for name, tensors in files.items():
        save_tensors(directory / name, tensors)
    placed = {tensor: name for name, tensors in files.items() for tensor in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": placed if weight_map is None else weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(directory)


def found(directory: str) -> dict[str, str]:
    return {name: Path(tensor.file).name for name, tensor in stored_tensors(directory, open_local).items()}


def test_an_index_names_its_shards(tmp_path: Path) -> None:
    directory = shards(tmp_path, {"1.safetensors": {"a": A, "b": B}, "2.safetensors": {"c": C}})
    assert found(directory) == {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    directory = shards(tmp_path, {"1.safetensors": {"a": A}})
    save_tensors(tmp_path / "model.safetensors", {"b": B})
    assert found(directory) == {"b": "model.safetensors"}


def test_shards_the_index_does_not_name_are_left_alone(tmp_path: Path) -> None:
    directory = shards(tmp_path, {"1.safetensors": {"a": A}})
    save_tensors(tmp_path / "2.safetensors", {"a": B})
    assert found(directory) == {"a": "1.safetensors"}


def test_tensors_the_index_does_not_name_are_found_too(tmp_path: Path) -> None:
    directory = shards(tmp_path, {"1.safetensors": {"a": A, "b": B}}, {"a": "1.safetensors"})
    assert found(directory) == {"a": "1.safetensors", "b": "1.safetensors"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = shards(tmp_path, {"1.safetensors": {"a": A}, "2.safetensors": {"b": B, "c": C}})
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"2\.safetensors is missing; .* says it holds 2 tensors"):
        found(directory)


@pytest.mark.parametrize(
    ("files", "weight_map", "said"),
    [
        ({"1.safetensors": {"a": A}}, {"a": "1.safetensors", "b": "1.safetensors"}, "1.safetensors lacks b"),
        (
            {"1.safetensors": {"a": A}, "2.safetensors": {"b": B}},
            {"a": "2.safetensors", "b": "1.safetensors"},
            "2.safetensors lacks a",
        ),
        ({"1.safetensors": {"a": A, "b": B}, "2.safetensors": {"b": C}}, None, "b is both in"),
        ({}, {}, "weight_map must say"),
        ({}, [], "weight_map must say"),
        ({}, {"a": 1}, "a is said to be in 1"),
        ({}, {"a": "../other/model.safetensors"}, "no safetensors file beside the index"),
        ({}, {"a": "/etc/passwd"}, "no safetensors file beside the index"),
        ({}, {"a": "pytorch_model.bin"}, "no safetensors file beside the index"),
    ],
)
def test_an_index_that_is_wrong_is_refused(
    tmp_path: Path, files: dict[str, dict[str, np.ndarray]], weight_map: Any, said: str
) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        found(shards(tmp_path, files, weight_map))
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not even looked at")
    with pytest.raises(UnsupportedCheckpoint, match=r"as a pickle \(" + name) as refused:
        found(str(tmp_path))
    assert f"from_pretrained('{tmp_path}').save_pretrained" in str(refused.value)


def test_a_pickle_beside_safetensors_does_no_harm(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", {"b": B})
    (tmp_path / "pytorch_model.bin").touch()
    assert found(str(tmp_path)) == {"b": "model.safetensors"}


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"has no weights: neither model.safetensors nor"):
        found(str(tmp_path))
