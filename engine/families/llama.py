"""Llama (Touvron et al. 2023) and the models published in its shape, as Hugging Face stores them (LlamaForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.conventions import decoder_attributes
from engine.families.family import Family, Target
from engine.families.llama_like import (
    ATTENTION,
    ATTENTION_BIASES,
    EMBEDDING_AND_HEAD,
    FEEDFORWARD,
    ROTARY_TABLES,
    TWO_NORMS,
    sizes_from_hf,
)
from engine.families.rotary import rotary_from_hf
from engine.model.config import ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
}


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED)
    sizes = sizes_from_hf(attributes)
    config = ModelConfig(
        **sizes,
        rotary=rotary_from_hf(attributes, sizes["context_tokens"]),
        tied_head=attributes.boolean("tie_word_embeddings", False),
        attention_bias=attributes.boolean("attention_bias", False),
        ffn_bias=attributes.boolean("mlp_bias", False),
    )
    attributes.finish()
    return config


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    config_from_hf=config_from_hf,
    table={
        **EMBEDDING_AND_HEAD,
        **TWO_NORMS,
        **ATTENTION,
        **ATTENTION_BIASES,
        **FEEDFORWARD,
        "model.layers.{layer}.mlp.gate_proj.bias": Target("layers.{layer}.gate_bias", "ffn"),
        "model.layers.{layer}.mlp.up_proj.bias": Target("layers.{layer}.up_bias", "ffn"),
        "model.layers.{layer}.mlp.down_proj.bias": Target("layers.{layer}.down_bias", "embed"),
    },
    recomputed=ROTARY_TABLES,
)
