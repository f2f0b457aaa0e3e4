"""Mixtral (Jiang et al. 2024), MixtralForCausalLM: Mistral's attention, and several experts for each feed-forward.

Stored are one expert's matrices at a time, w1 the gate, w3 up and w2 down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.conventions import decoder_attributes
from engine.families.family import Family, Target
from engine.families.llama_like import (
    ATTENTION,
    EMBEDDING_AND_HEAD,
    ROTARY_TABLES,
    TWO_NORMS,
    sizes_from_hf,
    window_from_hf,
)
from engine.families.rotary import rotary_from_hf
from engine.model.config import Experts, ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "attention_bias": (False,)}

# What transformers takes where nothing is said.
_KV_HEADS, _THETA = 8, 1_000_000.0
_EXPERTS, _PER_TOKEN = 8, 2

_MOST_EXPERTS = 4096


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED)
    sizes = sizes_from_hf(attributes, kv_heads=_KV_HEADS)
    window = window_from_hf(attributes, None)
    count = attributes.integer("num_local_experts", _EXPERTS, at_most=_MOST_EXPERTS)
    config = ModelConfig(
        **sizes,
        rotary=rotary_from_hf(attributes, sizes["context_tokens"], _THETA),
        tied_head=attributes.boolean("tie_word_embeddings", False),
        windows=() if window is None else (window,) * sizes["layers"],
        experts=Experts(count, attributes.integer("num_experts_per_tok", _PER_TOKEN, at_most=count)),
    )
    attributes.finish()
    return config


_MOE = "model.layers.{layer}.block_sparse_moe"

MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    model_type="mixtral",
    config_from_hf=config_from_hf,
    table={
        **EMBEDDING_AND_HEAD,
        **TWO_NORMS,
        **ATTENTION,
        f"{_MOE}.gate.weight": Target("layers.{layer}.router", "experts embed"),
        f"{_MOE}.experts.{{expert}}.w1.weight": Target("layers.{layer}.gate", "ffn embed"),
        f"{_MOE}.experts.{{expert}}.w3.weight": Target("layers.{layer}.up", "ffn embed"),
        f"{_MOE}.experts.{{expert}}.w2.weight": Target("layers.{layer}.down", "embed ffn"),
    },
    recomputed=ROTARY_TABLES,
)
