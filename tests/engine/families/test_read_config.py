"""Finding and reading a checkpoint's JSON, wherever it lies and however broken it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engine.errors import UnsupportedCheckpoint
from engine.families import read_config
from engine.families.documents import LARGEST_DOCUMENT_BYTES, parse_object
from tests.engine.tiny_checkpoint import tiny_config


def write(directory: Path, *, generation: Any = None, **attributes: Any) -> str:
    (directory / "config.json").write_text(json.dumps(tiny_config(**attributes)))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return str(directory)


@pytest.mark.parametrize(
    ("generation", "attributes", "eos"),
    [
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [2, 7, 2]}, (2, 7)),
        (None, {"eos_token_id": None}, ()),
        ({"eos_token_id": [5, 9]}, {"eos_token_id": 2}, (5, 9)),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (0,)),
        ({"eos_token_id": None, "temperature": 0.6}, {"eos_token_id": 2}, (2,)),
        ({}, {"eos_token_id": 2}, (2,)),
    ],
)
def test_end_tokens_are_the_generation_configs_else_the_configs(
    tmp_path: Path, generation: Any, attributes: dict[str, Any], eos: tuple[int, ...]
) -> None:
    assert read_config(write(tmp_path, generation=generation, **attributes)).eos_token_ids == eos


@pytest.mark.parametrize("eos", ["2", True, 1.0, -1, 320, [2, 320], {}])
def test_end_tokens_that_are_no_token_ids_are_refused(tmp_path: Path, eos: Any) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"generation_config.json: eos_token_id=.*below vocab_size=320"):
        read_config(write(tmp_path, generation={"eos_token_id": eos}))


@pytest.mark.parametrize(
    ("attributes", "dtype"),
    [
        ({}, "float32"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
    ],
)
def test_the_dtype_is_the_one_stated(tmp_path: Path, attributes: dict[str, Any], dtype: str) -> None:
    assert read_config(write(tmp_path, **attributes)).dtype == dtype


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="torch_dtype='float64'"):
        read_config(write(tmp_path, torch_dtype="float64"))


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"architectures": None}, True),
        ({"model_type": None}, True),
        ({"architectures": None, "model_type": None}, False),
        ({"architectures": ["LlamaForSequenceClassification"]}, False),
        ({"architectures": ["LlamaForCausalLM", "Other"]}, False),
        ({"architectures": "LlamaForCausalLM"}, False),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, False),
        ({"model_type": "mistral"}, False),
        ({"model_type": ["llama"]}, False),
    ],
)
def test_the_family_is_named_by_the_config(tmp_path: Path, changes: dict[str, Any], accepted: bool) -> None:
    directory = write(tmp_path, **changes)
    if accepted:
        assert read_config(directory).family.architecture == "LlamaForCausalLM"
    else:
        with pytest.raises(UnsupportedCheckpoint, match="architectures"):
            read_config(directory)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="there is no checkpoint at"):
        read_config(str(tmp_path / "absent"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UnsupportedCheckpoint, match=r"has weights but no config.json"):
        read_config(str(tmp_path))
    with pytest.raises(UnsupportedCheckpoint, match="is a file; give the directory"):
        read_config(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UnsupportedCheckpoint, match=r"config.json cannot be read: Is a directory"):
        read_config(str(tmp_path))


def test_a_slash_at_the_end_does_not_matter(tmp_path: Path) -> None:
    assert read_config(write(tmp_path) + "/") == read_config(str(tmp_path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff{}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": ' + b"1" * 10_000 + b"}",
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"^somewhere .{1,300}$"):
        parse_object(data, "somewhere")


def test_a_config_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(LARGEST_DOCUMENT_BYTES * 100)  # a hole: takes no space
    with pytest.raises(UnsupportedCheckpoint, match=r"config.json has \d+ bytes; no such document"):
        read_config(str(tmp_path))


def test_any_file_system_will_do() -> None:
    opened: list[str] = []

    def open_any(url: str) -> Any:
        opened.append(url)
        return fsspec.open(url, "rb").open()

    files = fsspec.filesystem("memory")
    files.pipe("/read_config/model/config.json", json.dumps(tiny_config()).encode())
    assert read_config("memory://read_config/model", open_any).model.vocab == 320
    assert opened == ["memory://read_config/model/config.json", "memory://read_config/model/generation_config.json"]
