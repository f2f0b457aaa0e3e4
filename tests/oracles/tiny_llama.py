"""Random Llama checkpoints made by transformers, and the model that answers for them.

The weights are spread more widely than any training would start from, so that logits are not flat: the likeliest token
leads by far more than rounding, and greedy continuations can be compared token by token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the oracle is transformers' Llama, which needs torch")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers' Llama")

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
    config = transformers.LlamaConfig(
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
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # transformers starts norms at one and biases at zero, where mistakes cannot show
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    # Read back, not cast back: a cast would leave the rotary frequencies rounded to the file's dtype.
    return transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
