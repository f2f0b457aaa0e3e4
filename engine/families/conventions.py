"""What the config.json of every decoder that transformers saves has in common, whatever its family."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import Attributes, shown

MOST_LAYERS = 4096

_COMPUTED: dict[str, tuple[Any, ...]] = {
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
        attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop initializer_range gradient_checkpointing
        tf_legacy_loss router_aux_loss_coef router_jitter_noise""",
    "how another program computes the same numbers": """
        use_cache attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
        cache_implementation reorder_and_upcast_attn""",
    "which of its numbers another program returns": """
        return_dict return_dict_in_generate output_attentions output_hidden_states output_scores output_past
        output_router_logits torchscript""",
    "tokens: the tokenizer's business, and eos_token_id is read with generation_config.json": """
        bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
        predict_special_tokens n_special""",
    "other programs' limits of length: ours is the number of positions": "max_sequence_length model_max_length n_ctx",
    "defaults of sampling, as transformers 4 wrote them: here the job says how to sample": """
        do_sample temperature top_k top_p typical_p min_length max_length early_stopping num_beams num_beam_groups
        num_return_sequences diversity_penalty length_penalty repetition_penalty no_repeat_ngram_size
        encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids remove_invalid_values
        suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id""",
    "heads for other tasks": """
        id2label label2id num_labels problem_type finetuning_task task_specific_params prefix
        summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout""",
}
"""Why attributes do not change the result, and which."""

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Names of activations in transformers; some are one function written in several ways."""


def decoder_attributes(
    hf: Mapping[str, Any],
    computed: Mapping[str, tuple[Any, ...]],
    no_bearing: Iterable[str] = (),
    known_code: Collection[str] = (),
) -> Attributes:
    """The attributes of a config.json less those that are the same for every decoder, or for every one of the family.

    `computed` and `no_bearing` are the family's own. An `auto_map` is refused unless all it names is in `known_code`:
    code that was published with the family and became transformers' own.
    """
    attributes = Attributes(hf)
    if "quantization_config" in attributes:
        raise UnsupportedCheckpoint(
            f"config.json: quantization_config={shown(hf['quantization_config'])}: quantised weights are not read; "
            "take the checkpoint they were made from"
        )
    if "auto_map" in attributes:
        code = hf["auto_map"]
        if not isinstance(code, dict) or not all(
            isinstance(name, str) and name in known_code for name in code.values()
        ):
            raise UnsupportedCheckpoint(
                "config.json has an auto_map: the model is defined by code that came with it, and such code is never "
                f"run; if it is a plain {shown(hf.get('model_type'))} model, remove the attribute"
            )
        attributes.disregard(["auto_map"])
    for name, values in {**_COMPUTED, **computed}.items():
        attributes.only(name, *values)
    for names in _NO_BEARING.values():
        attributes.disregard(names.split())
    attributes.disregard(no_bearing)
    return attributes


def activation_from_hf(attributes: Attributes, name: str, default: str) -> Any:
    """Our name of an activation, as ModelConfig has it."""
    stated = attributes.text(name, default)
    if stated not in _ACTIVATIONS:
        raise attributes.wrong(name, stated, f"is not computed here; only {', '.join(_ACTIVATIONS)} are")
    return _ACTIVATIONS[stated]


def divided(attributes: Attributes, name: str, parts: int, whole_name: str, whole: int) -> int:
    """whole / parts, where the number of parts (attribute `name`) must divide the whole."""
    if whole % parts:
        raise attributes.wrong(name, parts, f"must divide {whole_name}={whole}")
    return whole // parts
