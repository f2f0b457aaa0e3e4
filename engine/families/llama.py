"""Llama (Touvron et al. 2023) and the models published in its shape, as Hugging Face stores them (LlamaForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import Attributes, shown
from engine.families.family import Family, Target
from engine.families.rotary import rotary_from_hf
from engine.model.config import ModelConfig

_MOST_LAYERS = 4096

_COMPUTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),  # a decoder either way
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "use_bfloat16": (False,),
}
"""Attributes with the values that are computed; any other is refused."""

_NO_BEARING = {
    "names and provenance": """
        architectures model_type _name_or_path name_or_path transformers_version _commit_hash is_llama_config
        transformers.js_config unsloth_fixed unsloth_version""",
    "how the weights are stored: every tensor says so itself": "dtype torch_dtype",
    "training alone: at inference dropout is off and nothing is initialised": """
        attention_dropout initializer_range gradient_checkpointing tf_legacy_loss""",
    "how another program computes the same numbers": """
        use_cache attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled""",
    "which of its numbers another program returns": """
        return_dict return_dict_in_generate output_attentions output_hidden_states output_scores torchscript""",
    "tokens: the tokenizer's business, and eos_token_id is read with generation_config.json": """
        bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class""",
    "other programs' limits of length: ours is max_position_embeddings": "max_sequence_length model_max_length",
    "defaults of sampling, as transformers 4 wrote them: here the job says how to sample": """
        do_sample temperature top_k top_p typical_p min_length max_length early_stopping num_beams num_beam_groups
        num_return_sequences diversity_penalty length_penalty repetition_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids remove_invalid_values
        suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id""",
    "heads for other tasks": """
        id2label label2id num_labels problem_type finetuning_task task_specific_params prefix""",
}
"""Why attributes do not change the result, and which."""


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """Reads config.json; UnsupportedCheckpoint names the attribute that this engine does not compute."""
    attributes = Attributes(hf)
    if "quantization_config" in attributes:
        raise UnsupportedCheckpoint(
            f"config.json: quantization_config={shown(hf['quantization_config'])}: quantised weights are not read; "
            "take the checkpoint they were made from"
        )
    if "auto_map" in attributes:
        raise UnsupportedCheckpoint(
            "config.json has an auto_map: the model is defined by code that came with it, and such code is never run; "
            "if it is a plain Llama, remove the attribute"
        )
    for name, values in _COMPUTED.items():
        attributes.only(name, *values)
    for names in _NO_BEARING.values():
        attributes.disregard(names.split())

    embed = attributes.integer("hidden_size")
    heads = attributes.integer("num_attention_heads")
    kv_heads = attributes.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise attributes.wrong("num_key_value_heads", kv_heads, f"must divide num_attention_heads={heads}")
    head_dim = attributes.integer("head_dim", None)
    if head_dim is None:
        if embed % heads:
            raise attributes.wrong(
                "num_attention_heads", heads, f"must divide hidden_size={embed} where head_dim is not given"
            )
        head_dim = embed // heads
    if head_dim % 2:
        raise attributes.wrong("head_dim", head_dim, "must be even: rotary positions turn pairs")
    context_tokens = attributes.integer("max_position_embeddings")
    config = ModelConfig(
        layers=attributes.integer("num_hidden_layers", at_most=_MOST_LAYERS),
        embed=embed,
        ffn=attributes.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=attributes.integer("vocab_size"),
        context_tokens=context_tokens,
        norm_epsilon=attributes.number("rms_norm_eps"),
        rotary=rotary_from_hf(attributes, context_tokens),
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
        "model.embed_tokens.weight": Target("embedding", "vocab embed"),
        "model.layers.{layer}.input_layernorm.weight": Target("layers.{layer}.attention_norm", "embed"),
        "model.layers.{layer}.self_attn.q_proj.weight": Target("layers.{layer}.query", "(heads head_dim) embed"),
        "model.layers.{layer}.self_attn.k_proj.weight": Target("layers.{layer}.key", "(kv_heads head_dim) embed"),
        "model.layers.{layer}.self_attn.v_proj.weight": Target("layers.{layer}.value", "(kv_heads head_dim) embed"),
        "model.layers.{layer}.self_attn.o_proj.weight": Target(
            "layers.{layer}.attention_out", "embed (heads head_dim)"
        ),
        "model.layers.{layer}.self_attn.q_proj.bias": Target("layers.{layer}.query_bias", "(heads head_dim)"),
        "model.layers.{layer}.self_attn.k_proj.bias": Target("layers.{layer}.key_bias", "(kv_heads head_dim)"),
        "model.layers.{layer}.self_attn.v_proj.bias": Target("layers.{layer}.value_bias", "(kv_heads head_dim)"),
        "model.layers.{layer}.self_attn.o_proj.bias": Target("layers.{layer}.attention_out_bias", "embed"),
        "model.layers.{layer}.post_attention_layernorm.weight": Target("layers.{layer}.ffn_norm", "embed"),
        "model.layers.{layer}.mlp.gate_proj.weight": Target("layers.{layer}.gate", "ffn embed"),
        "model.layers.{layer}.mlp.up_proj.weight": Target("layers.{layer}.up", "ffn embed"),
        "model.layers.{layer}.mlp.down_proj.weight": Target("layers.{layer}.down", "embed ffn"),
        "model.layers.{layer}.mlp.gate_proj.bias": Target("layers.{layer}.gate_bias", "ffn"),
        "model.layers.{layer}.mlp.up_proj.bias": Target("layers.{layer}.up_bias", "ffn"),
        "model.layers.{layer}.mlp.down_proj.bias": Target("layers.{layer}.down_bias", "embed"),
        "model.norm.weight": Target("final_norm", "embed"),
        "lm_head.weight": Target("head", "vocab embed"),
    },
    recomputed=frozenset(
        {
            "model.rotary_emb.inv_freq",
            "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
            "model.layers.{layer}.self_attn.rotary_emb.cos_cached",
            "model.layers.{layer}.self_attn.rotary_emb.sin_cached",
        }
    ),
)
