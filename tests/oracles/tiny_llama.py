"""Random Llama checkpoints made by transformers, and the model that answers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.oracles.tiny_checkpoints import make_tiny

ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,  # so short that all three regimes occur in a 16-wide head
    },
}
"""Values of rope_scaling: transformers 4 and 5 both take them, and each saves its own dialect."""


def make_tiny_llama(
    directory: str | Path,
    *,
    heads: int,
    kv_heads: int,
    tied: bool,
    rope: str = "default",
    dtype: str = "float32",
    seed: int = 0,
    layers: int = 2,
    embed: int = 64,
    ffn: int = 160,
    vocab: int = 320,
    bias: bool = False,
) -> Any:
    """Saves a random LlamaForCausalLM in `directory`; returns it in float32, holding exactly the saved values."""
    return make_tiny(
        "Llama",
        directory,
        dtype=dtype,
        seed=seed,
        vocab_size=vocab,
        hidden_size=embed,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=ROPES[rope] and dict(ROPES[rope]),
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
    )
