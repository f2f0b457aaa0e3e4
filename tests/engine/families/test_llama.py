"""config.json of Llamas in all its dialects, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UnsupportedCheckpoint
from engine.families.attributes import shown
from engine.families.llama import LLAMA, config_from_hf
from engine.model.config import LinearScaling, Llama3Scaling, Rotary
from engine.model.params import declare, leaves
from tests.engine.families.published import PUBLISHED
from tests.engine.tiny_checkpoint import LLAMA as TINY
from tests.engine.tiny_checkpoint import tensor_shapes, tiny_config

LLAMA_3_2_1B = PUBLISHED["meta-llama/Llama-3.2-1B"].hf


def test_the_oldest_dialect_has_neither_kv_heads_nor_head_dim_nor_theta() -> None:
    old = {
        name: value
        for name, value in TINY.items()
        if name not in ("num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act")
    }
    config = config_from_hf(old)
    assert (config.kv_heads, config.head_dim, config.rotary, config.tied_head) == (4, 16, Rotary(10_000.0), False)


@pytest.mark.parametrize(
    ("attributes", "rotary"),
    [
        ({"rope_theta": 500000}, Rotary(500_000.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rotary(10_000.0, LinearScaling(4.0))),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}},
            Rotary(10_000.0, LinearScaling(2.0)),
        ),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rotary(5e5)),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 8}}, Rotary(5e5, LinearScaling(8.0))),
        ({"rope_parameters": {}}, Rotary(10_000.0)),
        (
            {
                "max_position_embeddings": 300,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "partial_rotary_factor": 1.0,
                },
            },
            Rotary(10_000.0, Llama3Scaling(8.0, 1.0, 4.0, 300)),
        ),
    ],
)
def test_both_dialects_of_rotary_positions(attributes: dict[str, Any], rotary: Rotary) -> None:
    assert config_from_hf(tiny_config(**attributes)).rotary == rotary


@pytest.mark.parametrize(
    "attributes",
    [
        {"hidden_act": "gelu"},
        {"pretraining_tp": 2},
        {"pretraining_tp": True},
        {"rope_interleaved": True},
        {"partial_rotary_factor": 0.5},
        {"sliding_window": 4096},
        {"is_encoder_decoder": True},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"logits_scaling": 8.0},
        {"qk_norm": False},
        {"hidden_size": "64"},
        {"hidden_size": 64.0},
        {"vocab_size": True},
        {"hidden_size": 0},
        {"hidden_size": 2**31},
        {"vocab_size": None},
        {"num_hidden_layers": 1_000_000_000},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"head_dim": 15},
        {"rms_norm_eps": "1e-5"},
        {"rms_norm_eps": 10**400},
        {"rms_norm_eps": 0},
        {"tie_word_embeddings": "false"},
        {"mlp_bias": 1},
        {"rope_theta": -1.0},
        {"rope_scaling": "linear"},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name_and_value(attributes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        config_from_hf(tiny_config(**attributes))
    ((name, value),) = attributes.items()
    assert name in str(refused.value)
    if value is not None and "auto_map" not in attributes:
        assert f"{name}={shown(value)}" in str(refused.value)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type='yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor=2.0"),
        ({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}, "contradicts type='dynamic'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta=5.0 contradicts rope_theta=10000"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention={}"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "=0.5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.2}}, "attention_factor=1.2"),
        ({"rope_parameters": {"a": 1}, "rope_scaling": {"a": 1}}, "both rope_parameters and rope_scaling"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "rope_scaling.high_freq_factor=4.0",
        ),
    ],
)
def test_rotary_positions_that_are_not_computed_are_refused(attributes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedCheckpoint) as refused:
        config_from_hf(tiny_config(**attributes))
    assert named in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted({*LLAMA_3_2_1B, "rope_parameters", "partial_rotary_factor", "quantization_config", "anything"})
ROPE_NAMES = ("rope_type", "type", "factor", "rope_theta", "low_freq_factor", "original_max_position_embeddings")


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    st.none() | st.dictionaries(st.sampled_from(ROPE_NAMES), JSON | st.sampled_from(["linear", "llama3"]), max_size=4),
)
def test_any_json_gives_a_config_or_a_named_refusal(changes: dict[str, Any], rope: dict[str, Any] | None) -> None:
    try:
        config = config_from_hf(LLAMA_3_2_1B | {"rope_scaling": rope} | changes)
    except UnsupportedCheckpoint:
        return
    assert config.heads % config.kv_heads == 0
    assert config.head_dim % 2 == 0
    assert "hidden_act" not in changes or changes["hidden_act"] in ("silu", None)
    assert "anything" not in changes or changes["anything"] is None


def test_a_refusal_is_short_however_long_the_value() -> None:
    deep: Any = 0
    for _ in range(500):
        deep = [deep]
    for value in ("x" * 100_000, 10**4000, list(range(100_000)), deep, {str(key): key for key in range(100_000)}):
        for name in ("anything", "hidden_size", "hidden_act", "rope_theta", "x" * 100_000):
            with pytest.raises(UnsupportedCheckpoint) as refused:
                config_from_hf(tiny_config(**{name: value}))
            assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_has_its_tensor(tied: bool, bias: bool) -> None:
    hf = tiny_config(
        tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias, num_hidden_layers=12, head_dim=24, hidden_size=40
    )
    config = config_from_hf(hf)
    expected = list(LLAMA.expected(config))
    assert {want.name: want.shape for want in expected} == tensor_shapes(hf)
    assert [want.path for want in expected] == [path for path, _ in leaves(declare(config))]
