"""Checkpoints that transformers saved: the same model is declared, and every parameter holds transformers' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from engine.compilation.placement import Placement
from engine.families import read_config
from engine.families.llama import LLAMA
from engine.layout import Layouts
from engine.model.config import LinearScaling, Llama3Scaling
from engine.model.params import count, leaves
from engine.model.quantized import Quantized, quantize
from engine.weights.load import load_params
from engine.weights.shards import Shards
from engine.weights.tensor_files import INDEX, SINGLE
from tests.oracles.tiny_checkpoints import make_tiny, torch
from tests.oracles.tiny_llama import ROPES, make_tiny_llama


def numbers(tensor: Any) -> np.ndarray:
    return tensor.to(torch.float32).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_parameters_are_those_of_transformers(
    tmp_path: Path, heads: int, kv_heads: int, tied: bool, dtype: str
) -> None:
    model = make_tiny_llama(tmp_path, heads=heads, kv_heads=kv_heads, tied=tied, dtype=dtype, bias=tied)
    facts = read_config(str(tmp_path))
    params = dict(leaves(load_params(str(tmp_path), facts.model, dtype="float32")))
    state = model.state_dict()
    assert facts.dtype == dtype
    assert facts.eos_token_ids == (2,)
    assert count(facts.model) == model.num_parameters()
    for want in LLAMA.expected(facts.model):
        np.testing.assert_array_equal(params.pop(want.path).reshape(want.shape), numbers(state[want.name]))
    assert not params


def test_rounding_is_that_of_torch(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path, heads=4, kv_heads=2, tied=False)
    config = read_config(str(tmp_path)).model
    params = dict(leaves(load_params(str(tmp_path), config, dtype="bfloat16")))
    for want in LLAMA.expected(config):
        rounded = numbers(model.state_dict()[want.name].to(torch.bfloat16))
        np.testing.assert_array_equal(params[want.path].astype(np.float32).reshape(want.shape), rounded)


def test_shards_as_transformers_cuts_them(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "whole", heads=4, kv_heads=2, tied=False)
    model.save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    assert (tmp_path / "cut" / INDEX).exists()
    assert not (tmp_path / "cut" / SINGLE).exists()
    config = read_config(str(tmp_path / "cut")).model
    whole, cut = (load_params(str(tmp_path / name), config, dtype="float32") for name in ("whole", "cut"))
    for (path, one), (_, other) in zip(leaves(whole), leaves(cut), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_rotary_positions_in_the_dialect_transformers_writes(tmp_path: Path, rope: str) -> None:
    make_tiny_llama(tmp_path, heads=4, kv_heads=2, tied=False, rope=rope, layers=1)
    rotary = read_config(str(tmp_path)).model.rotary
    assert rotary.theta == 10_000.0
    assert (
        rotary.scaling
        == {
            "default": None,
            "linear": LinearScaling(4.0),
            "llama3": Llama3Scaling(8.0, 1.0, 4.0, 64),
        }[rope]
    )


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("LMHeadModel", {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64}),
    "Falcon": ("ForCausalLM", {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "bias": True}),
    "Mixtral": (
        "ForCausalLM",
        {
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
        },
    ),
}


@pytest.mark.parametrize("family", OTHERS)
def test_shards_of_every_family_are_the_whole_cut_up(tmp_path: Path, family: str) -> None:
    """Transposed, concatenated and by expert; that the whole is right, the logits of each family show."""
    head, attributes = OTHERS[family]
    make_tiny(family, tmp_path, head=head, dtype="bfloat16", **attributes)
    config = read_config(str(tmp_path)).model
    on = Placement.on_devices(config, Layouts.asked(config.kv_heads, "2x2x2"))
    plain = dict(leaves(load_params(str(tmp_path), config, dtype="float32", held=on.held)))
    for weights in (None, "int8"):
        to = Shards(on.param_sharding)
        shards = load_params(str(tmp_path), config, dtype="float32", held=on.held, weights=weights, to=to)
        for path, array in leaves(shards):
            expected = [plain[path]]
            if isinstance(array, Quantized):
                expected = jax.tree.leaves(quantize(plain[path], array.inputs))
            for part, whole in zip(jax.tree.leaves(array), expected, strict=True):
                for shard in part.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index], err_msg=path)
