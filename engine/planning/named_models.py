"""Published models by name: shapes alone, for plans and compile checks that need no weights.

Each is the configuration its checkpoint would be read with, so that parameter counts come out as published
(tests/engine/planning/test_named_models.py). Sources stand beside each model.
"""

from __future__ import annotations

from dataclasses import replace

from engine.errors import NoFeasiblePlan
from engine.model.config import Experts, Llama3Scaling, ModelConfig, Rotary

# Chowdhery et al. 2022 (PaLM), section 2 and table 1: SwiGLU, parallel layers, multiquery, rotary, no biases, tied
# embeddings, sequences of 2048. Shapes also in Pope et al. 2022, tables D.1 and 4.
_PALM_8B = ModelConfig(
    layers=32,
    embed=4096,
    ffn=16384,
    heads=16,
    kv_heads=1,
    head_dim=256,
    vocab=256_000,
    context_tokens=2048,
    norm_epsilon=1e-6,
    rotary=Rotary(10_000.0),
    tied_head=True,
    norm="layer",
    parallel_block=True,
)

# Brown et al. 2020 (GPT-3), table 2.1; architecture and 50 257 tokens of GPT-2 (section 2.1). Every second layer of the
# original attends sparsely; here all are dense, which changes no shape.
_GPT3_175B = ModelConfig(
    layers=96,
    embed=12288,
    ffn=49152,
    heads=96,
    kv_heads=96,
    head_dim=128,
    vocab=50_257,
    context_tokens=2048,
    norm_epsilon=1e-5,
    rotary=None,
    tied_head=True,
    attention_bias=True,
    ffn_bias=True,
    norm="layer",
    norm_bias=True,
    learned_positions=True,
    activation="gelu_tanh",
    gated=False,
)

# Touvron et al. 2023 (Llama 2), section 2.2 and appendix A.2; config.json of meta-llama/Llama-2-*-hf.
_LLAMA_2_7B = ModelConfig(
    layers=32,
    embed=4096,
    ffn=11008,
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocab=32_000,
    context_tokens=4096,
    norm_epsilon=1e-5,
    rotary=Rotary(10_000.0),
    tied_head=False,
)

# Grattafiori et al. 2024 (Llama 3), table 3; config.json of meta-llama/Llama-3.1-*.
_LLAMA_3_1_8B = ModelConfig(
    layers=32,
    embed=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128_256,
    context_tokens=131_072,
    norm_epsilon=1e-5,
    rotary=Rotary(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    tied_head=False,
)

NAMED_MODELS: dict[str, ModelConfig] = {
    "palm-8b": _PALM_8B,
    "palm-62b": replace(_PALM_8B, layers=64, embed=8192, ffn=32768, heads=32),
    "palm-540b": replace(_PALM_8B, layers=118, embed=18432, ffn=73728, heads=48),
    # Smith et al. 2022 (Megatron-Turing NLG), section 3.1: 105 layers, hidden 20480, 128 heads, sequences of 2048;
    # GPT-2's 50 257 tokens padded to 51 200 (Pope et al. 2022, section 5).
    "mt-nlg-530b": replace(
        _GPT3_175B, layers=105, embed=20480, ffn=81920, heads=128, kv_heads=128, head_dim=160, vocab=51_200
    ),
    "llama-2-7b": _LLAMA_2_7B,
    "llama-2-13b": replace(_LLAMA_2_7B, layers=40, embed=5120, ffn=13824, heads=40, kv_heads=40),
    "llama-2-70b": replace(_LLAMA_2_7B, layers=80, embed=8192, ffn=28672, heads=64, kv_heads=8),
    "llama-3.1-8b": _LLAMA_3_1_8B,
    "llama-3.1-70b": replace(_LLAMA_3_1_8B, layers=80, embed=8192, ffn=28672, heads=64),
    "llama-3.1-405b": replace(_LLAMA_3_1_8B, layers=126, embed=16384, ffn=53248, heads=128),
    # Jiang et al. 2024 (Mixtral of experts), table 1; config.json of mistralai/Mixtral-8x7B-v0.1.
    "mixtral-8x7b": replace(
        _LLAMA_2_7B,
        ffn=14336,
        kv_heads=8,
        context_tokens=32_768,
        rotary=Rotary(1_000_000.0),
        experts=Experts(count=8, per_token=2),
    ),
    "gpt3-175b": _GPT3_175B,
    # Gemma Team 2024 (Gemma 2), table 1 and section 2; config.json of google/gemma-2-27b: windows of 4096 in every
    # second layer from the first on, logits scaled by (embed / heads) ** -0.5 and not by head_dim ** -0.5.
    "gemma-2-27b": ModelConfig(
        layers=46,
        embed=4608,
        ffn=36864,
        heads=32,
        kv_heads=16,
        head_dim=128,
        vocab=256_000,
        context_tokens=8192,
        norm_epsilon=1e-6,
        rotary=Rotary(10_000.0),
        tied_head=True,
        norm_scale_from_one=True,
        post_norms=True,
        activation="gelu_tanh",
        embedding_scale=4608**0.5,
        query_scale=144**-0.5,
        attention_softcap=50.0,
        logits_softcap=30.0,
        windows=(4096, None) * 23,
    ),
}


def named_model(name: str) -> ModelConfig:
    """The published model of this name, however it is capitalised."""
    config = NAMED_MODELS.get(name.lower())
    if config is None:
        raise NoFeasiblePlan(f"no model is known by the name {name!r}; there are {', '.join(NAMED_MODELS)}")
    return config
