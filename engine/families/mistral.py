"""Mistral (Jiang et al. 2023), MistralForCausalLM: Llama with a sliding window in every layer, or with none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.conventions import decoder_attributes
from engine.families.family import Family
from engine.families.llama_like import (
    ATTENTION,
    EMBEDDING_AND_HEAD,
    FEEDFORWARD,
    ROTARY_TABLES,
    TWO_NORMS,
    sizes_from_hf,
    window_from_hf,
)
from engine.families.rotary import rotary_from_hf
from engine.model.config import ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
_KV_HEADS, _WINDOW = 8, 4096  # what transformers takes where nothing is said


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED)
    sizes = sizes_from_hf(attributes, kv_heads=_KV_HEADS)
    window = window_from_hf(attributes, _WINDOW)
    config = ModelConfig(
        **sizes,
        rotary=rotary_from_hf(attributes, sizes["context_tokens"]),
        tied_head=attributes.boolean("tie_word_embeddings", False),
        windows=() if window is None else (window,) * sizes["layers"],
    )
    attributes.finish()
    return config


MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    config_from_hf=config_from_hf,
    table={**EMBEDDING_AND_HEAD, **TWO_NORMS, **ATTENTION, **FEEDFORWARD},
    recomputed=ROTARY_TABLES,
)
