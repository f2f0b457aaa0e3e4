"""The shape that most families since Llama are published in: how sizes are called, and what tensors are called."""

from __future__ import annotations

from typing import Any

from engine.families.attributes import Attributes
from engine.families.conventions import MOST_LAYERS, divided
from engine.families.family import Entry, Target

_LAYER = "model.layers.{layer}"
_OURS = "layers.{layer}"

EMBEDDING_AND_HEAD: dict[str, Entry] = {
    "model.embed_tokens.weight": Target("embedding", "vocab embed"),
    "model.norm.weight": Target("final_norm", "embed"),
    "lm_head.weight": Target("head", "vocab embed"),
}
ATTENTION: dict[str, Entry] = {
    f"{_LAYER}.self_attn.q_proj.weight": Target(f"{_OURS}.query", "(heads head_dim) embed"),
    f"{_LAYER}.self_attn.k_proj.weight": Target(f"{_OURS}.key", "(kv_heads head_dim) embed"),
    f"{_LAYER}.self_attn.v_proj.weight": Target(f"{_OURS}.value", "(kv_heads head_dim) embed"),
    f"{_LAYER}.self_attn.o_proj.weight": Target(f"{_OURS}.attention_out", "embed (heads head_dim)"),
}
ATTENTION_BIASES: dict[str, Entry] = {
    f"{_LAYER}.self_attn.q_proj.bias": Target(f"{_OURS}.query_bias", "(heads head_dim)"),
    f"{_LAYER}.self_attn.k_proj.bias": Target(f"{_OURS}.key_bias", "(kv_heads head_dim)"),
    f"{_LAYER}.self_attn.v_proj.bias": Target(f"{_OURS}.value_bias", "(kv_heads head_dim)"),
    f"{_LAYER}.self_attn.o_proj.bias": Target(f"{_OURS}.attention_out_bias", "embed"),
}
FEEDFORWARD: dict[str, Entry] = {
    f"{_LAYER}.mlp.gate_proj.weight": Target(f"{_OURS}.gate", "ffn embed"),
    f"{_LAYER}.mlp.up_proj.weight": Target(f"{_OURS}.up", "ffn embed"),
    f"{_LAYER}.mlp.down_proj.weight": Target(f"{_OURS}.down", "embed ffn"),
}
TWO_NORMS: dict[str, Entry] = {
    f"{_LAYER}.input_layernorm.weight": Target(f"{_OURS}.attention_norm", "embed"),
    f"{_LAYER}.post_attention_layernorm.weight": Target(f"{_OURS}.ffn_norm", "embed"),
}
ROTARY_TABLES = frozenset(
    {
        "model.rotary_emb.inv_freq",
        f"{_LAYER}.self_attn.rotary_emb.inv_freq",
        f"{_LAYER}.self_attn.rotary_emb.cos_cached",
        f"{_LAYER}.self_attn.rotary_emb.sin_cached",
    }
)
"""Tensors that follow from the config."""


def sizes_from_hf(
    attributes: Attributes, *, kv_heads: int | None = None, head_dim: int | None = None
) -> dict[str, Any]:
    """The fields of ModelConfig about sizes, and the norms' epsilon.

    `kv_heads` and `head_dim` are what transformers takes where nothing is said; where null is said, as many key and
    value heads as heads, and embed / heads.
    """
    embed = attributes.integer("hidden_size")
    heads = attributes.integer("num_attention_heads")
    own_heads = attributes.integer(
        "num_key_value_heads", _default(attributes, "num_key_value_heads", kv_heads) or heads
    )
    divided(attributes, "num_key_value_heads", own_heads, "num_attention_heads", heads)
    dim = attributes.integer("head_dim", _default(attributes, "head_dim", head_dim))
    if dim is None:
        dim = divided(attributes, "num_attention_heads", heads, "hidden_size", embed)
    if dim % 2:
        raise attributes.wrong("head_dim", dim, "must be even: rotary positions turn pairs")
    return {
        "layers": attributes.integer("num_hidden_layers", at_most=MOST_LAYERS),
        "embed": embed,
        "ffn": attributes.integer("intermediate_size"),
        "heads": heads,
        "kv_heads": own_heads,
        "head_dim": dim,
        "vocab": attributes.integer("vocab_size"),
        "context_tokens": attributes.integer("max_position_embeddings"),
        "norm_epsilon": attributes.number("rms_norm_eps"),
    }


def _default(attributes: Attributes, name: str, if_absent: int | None) -> int | None:
    return None if attributes.says_null(name) else if_absent


def window_from_hf(attributes: Attributes, if_absent: int | None) -> int | None:
    """How many positions back a query sees: all (None) if sliding_window is null, `if_absent` if nothing is said."""
    return attributes.integer("sliding_window", _default(attributes, "sliding_window", if_absent))
