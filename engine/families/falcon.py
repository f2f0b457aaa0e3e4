"""Falcon 7B (Almazrouei et al. 2023), FalconForCausalLM: attention beside the feed-forward, one key and value head.

PaLM's block (Chowdhery et al. 2022, section 2), but for biases in the norm and a GELU without a gate. The other Falcons
(40B, 180B and the models with ALiBi) are made otherwise and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.families.conventions import MOST_LAYERS, activation_from_hf, decoder_attributes, divided
from engine.families.family import Concatenated, Family, Target
from engine.families.rotary import rotary_from_hf
from engine.model.config import ModelConfig

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "new_decoder_architecture": (False,),
    "multi_query": (True,),
    "parallel_attn": (True,),
    "num_ln_in_parallel_attn": (1,),
    "apply_residual_connection_post_layernorm": (False,),
}
_NO_BEARING = ("num_kv_heads",)  # with multi_query it is not read, and there is one; 71 is what falcon-7b says
_KNOWN_CODE = frozenset(
    {"configuration_falcon.FalconConfig", "modeling_falcon.FalconModel"}
    | {
        f"modeling_falcon.FalconFor{task}"
        for task in ("CausalLM", "QuestionAnswering", "SequenceClassification", "TokenClassification")
    }
)
_POSITIONS = 2048  # what transformers takes where nothing is said, as in falcon-7b


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = decoder_attributes(hf, _COMPUTED, _NO_BEARING, _KNOWN_CODE)
    embed, heads = attributes.integer("hidden_size"), attributes.integer("num_attention_heads")
    head_dim = divided(attributes, "num_attention_heads", heads, "hidden_size", embed)
    if head_dim % 2:
        raise attributes.wrong(
            "num_attention_heads",
            heads,
            f"must divide hidden_size={embed} into even parts: rotary positions turn pairs",
        )
    context_tokens = attributes.integer("max_position_embeddings", _POSITIONS)
    bias = attributes.boolean("bias", False)
    config = ModelConfig(
        layers=attributes.integer("num_hidden_layers", at_most=MOST_LAYERS),
        embed=embed,
        ffn=attributes.integer("ffn_hidden_size", 4 * embed),
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        vocab=attributes.integer("vocab_size"),
        context_tokens=context_tokens,
        norm_epsilon=attributes.number("layer_norm_epsilon", 1e-5),
        rotary=rotary_from_hf(attributes, context_tokens),
        tied_head=attributes.boolean("tie_word_embeddings", True),
        attention_bias=bias,
        ffn_bias=bias,
        norm="layer",
        norm_bias=True,
        activation=activation_from_hf(attributes, "activation", "gelu"),
        gated=False,
        parallel_block=True,
    )
    attributes.finish()
    return config


_LAYER = "transformer.h.{layer}"
_OURS = "layers.{layer}"

FALCON = Family(
    architecture="FalconForCausalLM",
    model_type="falcon",
    config_from_hf=config_from_hf,
    table={
        "transformer.word_embeddings.weight": Target("embedding", "vocab embed"),
        f"{_LAYER}.input_layernorm.weight": Target(f"{_OURS}.attention_norm", "embed"),
        f"{_LAYER}.input_layernorm.bias": Target(f"{_OURS}.attention_norm_bias", "embed"),
        f"{_LAYER}.self_attention.query_key_value.weight": Concatenated(
            0,
            (
                Target(f"{_OURS}.query", "(heads head_dim) embed"),
                Target(f"{_OURS}.key", "(kv_heads head_dim) embed"),
                Target(f"{_OURS}.value", "(kv_heads head_dim) embed"),
            ),
        ),
        f"{_LAYER}.self_attention.query_key_value.bias": Concatenated(
            0,
            (
                Target(f"{_OURS}.query_bias", "(heads head_dim)"),
                Target(f"{_OURS}.key_bias", "(kv_heads head_dim)"),
                Target(f"{_OURS}.value_bias", "(kv_heads head_dim)"),
            ),
        ),
        f"{_LAYER}.self_attention.dense.weight": Target(f"{_OURS}.attention_out", "embed (heads head_dim)"),
        f"{_LAYER}.self_attention.dense.bias": Target(f"{_OURS}.attention_out_bias", "embed"),
        f"{_LAYER}.mlp.dense_h_to_4h.weight": Target(f"{_OURS}.up", "ffn embed"),
        f"{_LAYER}.mlp.dense_h_to_4h.bias": Target(f"{_OURS}.up_bias", "ffn"),
        f"{_LAYER}.mlp.dense_4h_to_h.weight": Target(f"{_OURS}.down", "embed ffn"),
        f"{_LAYER}.mlp.dense_4h_to_h.bias": Target(f"{_OURS}.down_bias", "embed"),
        "transformer.ln_f.weight": Target("final_norm", "embed"),
        "transformer.ln_f.bias": Target("final_norm_bias", "embed"),
        "lm_head.weight": Target("head", "vocab embed"),
    },
    recomputed=frozenset(),
)
