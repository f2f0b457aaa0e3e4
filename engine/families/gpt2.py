"""GPT-2 (Radford et al. 2019), GPT2LMHeadModel: learned positions, layer norm, a bias everywhere, no gate.

Its matrices are stored [inputs, outputs], as those of a convolution, and queries, keys and values in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.conventions import MOST_LAYERS, activation_from_hf, decoder_attributes, divided
from engine.families.family import Concatenated, Family, Target
from engine.model.config import ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {"scale_attn_by_inverse_layer_idx": (False,)}


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED)
    embed, heads = attributes.integer("n_embd"), attributes.integer("n_head")
    config = ModelConfig(
        layers=attributes.integer("n_layer", at_most=MOST_LAYERS),
        embed=embed,
        ffn=attributes.integer("n_inner", 4 * embed),
        heads=heads,
        kv_heads=heads,
        head_dim=divided(attributes, "n_head", heads, "n_embd", embed),
        vocab=attributes.integer("vocab_size"),
        context_tokens=attributes.integer("n_positions"),
        norm_epsilon=attributes.number("layer_norm_epsilon", 1e-5),
        rotary=None,
        tied_head=attributes.boolean("tie_word_embeddings", True),
        attention_bias=True,
        ffn_bias=True,
        norm="layer",
        norm_bias=True,
        learned_positions=True,
        activation=activation_from_hf(attributes, "activation_function", "gelu_new"),
        gated=False,
        query_scale=None if attributes.boolean("scale_attn_weights", True) else 1.0,
    )
    attributes.finish()
    return config


_LAYER = "h.{layer}"
_OURS = "layers.{layer}"

GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    config_from_hf=config_from_hf,
    table={
        "wte.weight": Target("embedding", "vocab embed"),
        "wpe.weight": Target("position_embedding", "positions embed"),
        f"{_LAYER}.ln_1.weight": Target(f"{_OURS}.attention_norm", "embed"),
        f"{_LAYER}.ln_1.bias": Target(f"{_OURS}.attention_norm_bias", "embed"),
        f"{_LAYER}.attn.c_attn.weight": Concatenated(
            1,
            (
                Target(f"{_OURS}.query", "embed (heads head_dim)"),
                Target(f"{_OURS}.key", "embed (kv_heads head_dim)"),
                Target(f"{_OURS}.value", "embed (kv_heads head_dim)"),
            ),
        ),
        f"{_LAYER}.attn.c_attn.bias": Concatenated(
            0,
            (
                Target(f"{_OURS}.query_bias", "(heads head_dim)"),
                Target(f"{_OURS}.key_bias", "(kv_heads head_dim)"),
                Target(f"{_OURS}.value_bias", "(kv_heads head_dim)"),
            ),
        ),
        f"{_LAYER}.attn.c_proj.weight": Target(f"{_OURS}.attention_out", "(heads head_dim) embed"),
        f"{_LAYER}.attn.c_proj.bias": Target(f"{_OURS}.attention_out_bias", "embed"),
        f"{_LAYER}.ln_2.weight": Target(f"{_OURS}.ffn_norm", "embed"),
        f"{_LAYER}.ln_2.bias": Target(f"{_OURS}.ffn_norm_bias", "embed"),
        f"{_LAYER}.mlp.c_fc.weight": Target(f"{_OURS}.up", "embed ffn"),
        f"{_LAYER}.mlp.c_fc.bias": Target(f"{_OURS}.up_bias", "ffn"),
        f"{_LAYER}.mlp.c_proj.weight": Target(f"{_OURS}.down", "ffn embed"),
        f"{_LAYER}.mlp.c_proj.bias": Target(f"{_OURS}.down_bias", "embed"),
        "ln_f.weight": Target("final_norm", "embed"),
        "ln_f.bias": Target("final_norm_bias", "embed"),
        "lm_head.weight": Target("head", "vocab embed"),
    },
    recomputed=frozenset({f"{_LAYER}.attn.bias", f"{_LAYER}.attn.masked_bias"}),  # the causal mask
    optional_prefix="transformer.",
)
