"""What changes a checkpoint's identity, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.compilation.preflight import preflight
from engine.weights import fingerprint as module
from tests.engine.tiny_checkpoint import save_tensors, tiny_config, tiny_tensors


def identity(directory: Path, tensors: dict[str, np.ndarray] | None = None, shards: int = 1, **attributes: Any) -> str:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(tiny_config(**attributes)))
    tensors = tensors or tiny_tensors(tiny_config(**attributes))
    if shards == 1:
        save_tensors(directory / "model.safetensors", tensors)
    else:
        weight_map = {name: f"{at % shards}.safetensors" for at, name in enumerate(tensors)}
        for file in set(weight_map.values()):
            save_tensors(directory / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return preflight(str(directory)).fingerprint


@pytest.fixture(params=["whole", "sampled"])
def hashed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sampled":
        monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    return request.param


def test_what_has_no_bearing_on_answers_leaves_it_alone(tmp_path: Path, hashed: str) -> None:
    plain = identity(tmp_path / "plain")
    assert len(plain) == 64
    assert identity(tmp_path / "elsewhere") == plain
    assert identity(tmp_path / "sharded", shards=3) == plain
    assert identity(tmp_path / "saved by another version", transformers_version="9.9", use_cache=False) == plain
    assert identity(tmp_path / "in the other dialect", rope_theta=None, rope_parameters={"rope_theta": 1e4}) == plain
    with_extra = tiny_tensors(tiny_config()) | {"model.rotary_emb.inv_freq": np.ones(8, np.float32)}
    assert identity(tmp_path / "with a recomputed tensor", with_extra) == plain


def test_what_decides_answers_changes_it(tmp_path: Path, hashed: str) -> None:
    tensors = tiny_tensors(tiny_config())
    swapped = dict(tensors)
    first, second = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    swapped[first], swapped[second] = swapped[second], swapped[first]
    identities = [
        identity(tmp_path / "plain"),
        identity(tmp_path / "theta", rope_theta=20_000.0),
        identity(tmp_path / "scaled", rope_scaling={"type": "linear", "factor": 2.0}),
        identity(tmp_path / "epsilon", rms_norm_eps=1e-6),
        identity(tmp_path / "context", max_position_embeddings=1024),
        identity(tmp_path / "eos", eos_token_id=[2, 3]),
        identity(tmp_path / "other weights", tiny_tensors(tiny_config(), seed=1)),
        identity(tmp_path / "other dtype", tiny_tensors(tiny_config(), dtype="float16")),
        identity(tmp_path / "two layers swapped", swapped),
    ]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_one_number_is_noticed_in_a_small_checkpoint_and_only_in_the_middle_of_a_large(
    tmp_path: Path, hashed: str, at: str
) -> None:
    plain = identity(tmp_path / "plain")
    tensors = tiny_tensors(tiny_config())
    table = tensors["model.embed_tokens.weight"].reshape(-1)
    table[{"first": 0, "middle": table.size // 2, "last": -1}[at]] += 1
    noticed = identity(tmp_path / "edited", tensors) != plain
    assert noticed == (hashed == "whole" or at == "middle")


def test_a_small_and_a_sampled_identity_are_never_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1 << 30)  # the same bytes either way
    whole = identity(tmp_path / "whole")
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    assert identity(tmp_path / "sampled") != whole


def test_it_is_the_same_in_later_versions(tmp_path: Path) -> None:
    """A changed fingerprint orphans every finished job: change this only on purpose, and say so in the changelog."""
    shapes = {name: array.shape for name, array in tiny_tensors(tiny_config()).items()}
    counted = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}
    assert identity(tmp_path / "fixed", counted) == "b0f43bca324d9ab32d9f01daa2cda5178a13be3eba8ebbee7457326de0764f80"
