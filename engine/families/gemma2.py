"""Gemma 2 (Gemma Team 2024), Gemma2ForCausalLM: windows in every second layer, capped logits, four norms a layer.

Embeddings are multiplied by sqrt(embed), norms' scales are counted from one, and attention logits are scaled by a
number of their own (query_pre_attn_scalar ** -0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.attributes import Attributes
from engine.families.conventions import activation_from_hf, decoder_attributes
from engine.families.family import Family, Target
from engine.families.llama_like import (
    ATTENTION,
    ATTENTION_BIASES,
    EMBEDDING_AND_HEAD,
    FEEDFORWARD,
    ROTARY_TABLES,
    sizes_from_hf,
    window_from_hf,
)
from engine.families.rotary import rotary_from_hf
from engine.model.config import ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (False,),
    "hidden_act": ("gelu_pytorch_tanh",),  # transformers goes by hidden_activation; published beside it, and the same
}
_NO_BEARING = ("sliding_window_size",)  # of the original code; transformers reads sliding_window

# What transformers takes where nothing is said.
_WINDOW = 4096
_ATTENTION_SOFTCAP, _LOGITS_SOFTCAP = 50.0, 30.0
_QUERY_SCALAR = 256.0
_HEAD_DIM, _KV_HEADS = 256, 4

_SLIDING, _FULL = "sliding_attention", "full_attention"


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED, _NO_BEARING)
    sizes = sizes_from_hf(attributes, kv_heads=_KV_HEADS, head_dim=_HEAD_DIM)
    config = ModelConfig(
        **sizes,
        rotary=rotary_from_hf(attributes, sizes["context_tokens"]),
        tied_head=attributes.boolean("tie_word_embeddings", True),
        attention_bias=attributes.boolean("attention_bias", False),
        norm_scale_from_one=True,
        post_norms=True,
        activation=activation_from_hf(attributes, "hidden_activation", "gelu_pytorch_tanh"),
        embedding_scale=sizes["embed"] ** 0.5,
        query_scale=attributes.number("query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        attention_softcap=_softcap(attributes, "attn_logit_softcapping", _ATTENTION_SOFTCAP),
        logits_softcap=_softcap(attributes, "final_logit_softcapping", _LOGITS_SOFTCAP),
        windows=_windows(attributes, sizes["layers"]),
    )
    attributes.finish()
    return config


def _softcap(attributes: Attributes, name: str, if_absent: float) -> float | None:
    return None if attributes.says_null(name) else attributes.number(name, if_absent)


def _windows(attributes: Attributes, layers: int) -> tuple[int | None, ...]:
    """Every second layer's from the first on, unless layer_types says otherwise."""
    window = window_from_hf(attributes, _WINDOW)
    kinds = attributes.choices("layer_types", (_SLIDING, _FULL)) or [(_SLIDING, _FULL)[at % 2] for at in range(layers)]
    if len(kinds) != layers:
        raise attributes.wrong("layer_types", kinds, f"must name num_hidden_layers={layers} layers")
    if window is None and _SLIDING in kinds:
        raise attributes.wrong("sliding_window", None, "must be a whole number: some layers see a window")
    return tuple(window if kind == _SLIDING else None for kind in kinds)


_LAYER = "model.layers.{layer}"

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    config_from_hf=config_from_hf,
    table={
        **EMBEDDING_AND_HEAD,
        **ATTENTION,
        **ATTENTION_BIASES,
        **FEEDFORWARD,
        f"{_LAYER}.input_layernorm.weight": Target("layers.{layer}.attention_norm", "embed"),
        f"{_LAYER}.post_attention_layernorm.weight": Target("layers.{layer}.post_attention_norm", "embed"),
        f"{_LAYER}.pre_feedforward_layernorm.weight": Target("layers.{layer}.ffn_norm", "embed"),
        f"{_LAYER}.post_feedforward_layernorm.weight": Target("layers.{layer}.post_ffn_norm", "embed"),
    },
    recomputed=ROTARY_TABLES,
)
