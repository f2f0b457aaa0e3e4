"""Every family: published models read in full, and what is not computed is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UnsupportedCheckpoint
from engine.families import FAMILIES, family_of
from engine.families.attributes import shown
from engine.model.config import Rotary
from engine.model.params import count, declare, leaves
from engine.planning.named_models import NAMED_MODELS
from tests.engine.families.published import PUBLISHED

BY_TYPE = {model.family.model_type: model for model in PUBLISHED.values()}


def config(model_type: str, /, **changes: Any) -> Any:
    """What the family's published config gives with some attributes changed; `...` takes one away."""
    published = BY_TYPE[model_type]
    hf = {name: value for name, value in (published.hf | changes).items() if value is not ...}
    return published.family.config_from_hf(hf)


def test_every_family_has_a_published_model() -> None:
    assert {id(model.family) for model in PUBLISHED.values()} == {id(family) for family in FAMILIES}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_reads_in_full(name: str) -> None:
    model = PUBLISHED[name]
    assert family_of(model.hf) is model.family
    assert model.family.config_from_hf(model.hf) == model.config
    assert count(model.config) == model.parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_are_those_of_the_published_files(name: str) -> None:
    model = PUBLISHED[name]
    expected = list(model.family.expected(model.config))
    of_layer = {want.name: want.shape for want in expected if want.name.startswith(model.prefix)}
    assert of_layer == {model.prefix + tensor: shape for tensor, shape in model.layer.items()}
    filled = [path for want in expected for path in {fill.path for fill in want.fills}]
    assert set(filled) == {path for path, _ in leaves(declare(model.config))}
    assert sum(want.size for want in expected) == model.parameters


def test_models_known_by_name_are_the_published_ones() -> None:
    assert NAMED_MODELS["mixtral-8x7b"] == PUBLISHED["mistralai/Mixtral-8x7B-v0.1"].config
    assert NAMED_MODELS["gemma-2-27b"] == PUBLISHED["google/gemma-2-27b"].config


WITH_EVERYTHING: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {},
    "mixtral": {},
    "gemma2": {"attention_bias": True, "tie_word_embeddings": False},
    "falcon": {"bias": True, "tie_word_embeddings": False},
    "gpt2": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("model_type", BY_TYPE)
def test_a_table_names_no_parameter_that_no_config_has(model_type: str) -> None:
    family = BY_TYPE[model_type].family
    whole = config(model_type, **WITH_EVERYTHING[model_type])
    assert {want.name for want in family.expected(whole)} >= {name.format(layer=0, expert=0) for name in family.table}


@pytest.mark.parametrize(
    ("model_type", "changes", "fields"),
    [
        ("mistral", {"sliding_window": None}, {"windows": ()}),
        ("mistral", {"sliding_window": ...}, {"windows": (4096,) * 32}),  # transformers' default
        ("mistral", {"num_key_value_heads": ...}, {"kv_heads": 8}),  # the same
        ("mistral", {"num_key_value_heads": None}, {"kv_heads": 32}),
        ("mixtral", {"sliding_window": 512}, {"windows": (512,) * 32}),
        ("mixtral", {"sliding_window": ...}, {"windows": ()}),
        ("mixtral", {"rope_theta": ...}, {"rotary": Rotary(1_000_000.0)}),
        ("gemma2", {"sliding_window": ...}, {"windows": (4096, None) * 23}),
        ("gemma2", {"layer_types": ["full_attention"] * 46}, {"windows": (None,) * 46}),
        ("gemma2", {"layer_types": ["full_attention"] * 46, "sliding_window": None}, {"windows": (None,) * 46}),
        (
            "gemma2",
            {"num_hidden_layers": 3, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
            {"windows": (None, None, 4096)},
        ),
        ("gemma2", {"attn_logit_softcapping": None}, {"attention_softcap": None, "logits_softcap": 30.0}),
        ("gemma2", {"attn_logit_softcapping": ...}, {"attention_softcap": 50.0}),
        ("gemma2", {"final_logit_softcapping": None}, {"attention_softcap": 50.0, "logits_softcap": None}),
        ("gemma2", {"final_logit_softcapping": ...}, {"logits_softcap": 30.0}),
        ("gemma2", {"query_pre_attn_scalar": ...}, {"query_scale": 1 / 16}),
        ("gemma2", {"head_dim": ..., "num_key_value_heads": ...}, {"head_dim": 256, "kv_heads": 4}),
        ("gemma2", {"hidden_activation": "gelu"}, {"activation": "gelu"}),
        ("falcon", {"ffn_hidden_size": 100}, {"ffn": 100}),
        ("falcon", {"bias": True}, {"attention_bias": True, "ffn_bias": True}),
        ("falcon", {"max_position_embeddings": 8192}, {"context_tokens": 8192}),
        ("falcon", {"activation": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
        ("falcon", {"auto_map": ...}, {}),
        ("gpt2", {"n_inner": 100}, {"ffn": 100}),
        ("gpt2", {"n_inner": None}, {"ffn": 3072}),
        ("gpt2", {"scale_attn_weights": False}, {"query_scale": 1.0}),
        ("gpt2", {"activation_function": "gelu"}, {"activation": "gelu"}),
        ("gpt2", {"tie_word_embeddings": False}, {"tied_head": False}),
    ],
    ids=str,
)
def test_an_attribute_means_what_it_means_to_transformers(
    model_type: str, changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    read = config(model_type, **changes)
    assert {name: getattr(read, name) for name in fields} == fields


@pytest.mark.parametrize("model_type", BY_TYPE)
@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM", "AutoConfig": "other.Config"}},
        {"auto_map": {"AutoConfig": ["configuration_falcon.FalconConfig"]}},
        {"auto_map": ["configuration_falcon.FalconConfig"]},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"is_encoder_decoder": True},
        {"add_cross_attention": True},
        {"qk_norm": True},
        {"vocab_size": None},
        {"vocab_size": "big"},
        {"tie_word_embeddings": 1},
    ],
    ids=str,
)
def test_what_no_family_computes_is_refused_by_name(model_type: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=next(iter(attributes))):
        config(model_type, **attributes)


@pytest.mark.parametrize(
    ("model_type", "attributes"),
    [
        ("mistral", {"hidden_act": "gelu"}),
        ("mistral", {"attention_bias": True}),
        ("mistral", {"sliding_window": 0}),
        ("mistral", {"sliding_window": "4096"}),
        ("mistral", {"layer_types": ["full_attention"] * 32}),
        ("mixtral", {"num_local_experts": 0}),
        ("mixtral", {"num_local_experts": 10_000_000}),
        ("mixtral", {"num_experts_per_tok": 9}),
        ("mixtral", {"shared_expert_intermediate_size": 100}),
        ("mixtral", {"mlp_bias": True}),
        ("gemma2", {"hidden_activation": "relu"}),
        ("gemma2", {"hidden_act": "gelu"}),
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma2", {"layer_types": ["full_attention"]}),
        ("gemma2", {"layer_types": "full_attention"}),
        ("gemma2", {"layer_types": ["chunked_attention"] * 46}),
        ("gemma2", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": 0}),
        ("gemma2", {"final_logit_softcapping": "30"}),
        ("gemma2", {"query_pre_attn_scalar": 0}),
        ("falcon", {"alibi": True}),
        ("falcon", {"new_decoder_architecture": True}),
        ("falcon", {"multi_query": False}),
        ("falcon", {"parallel_attn": False}),
        ("falcon", {"num_ln_in_parallel_attn": 2}),
        ("falcon", {"apply_residual_connection_post_layernorm": True}),
        ("falcon", {"activation": "relu"}),
        ("falcon", {"num_attention_heads": 64 * 71}),  # heads of one number each
        ("falcon", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": "no"}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"n_head": 7}),
        ("gpt2", {"n_positions": None}),
        ("gpt2", {"rope_theta": 10_000.0}),
    ],
    ids=str,
)
def test_what_a_family_does_not_compute_is_refused_by_name_and_value(
    model_type: str, attributes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        config(model_type, **attributes)
    ((name, value),) = attributes.items()
    assert name in str(refused.value)
    assert value is None or isinstance(value, dict) or f"{name}={shown(value)}" in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted({name for model in PUBLISHED.values() for name in model.hf} | {"layer_types", "n_inner", "anything"})


@given(st.sampled_from(sorted(BY_TYPE)), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
@settings(max_examples=300)
def test_any_json_gives_a_config_or_a_named_refusal(model_type: str, changes: dict[str, Any]) -> None:
    try:
        read = config(model_type, **changes)
    except UnsupportedCheckpoint:
        return
    assert read.heads % read.kv_heads == 0
    assert read.windows == () or len(read.windows) == read.layers
    assert changes.get("anything") is None
