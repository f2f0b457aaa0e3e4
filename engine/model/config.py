"""What the weights are: everything the computation depends on and nothing that says where or how fast it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """Rotary positions divided by `factor` (kaiokendev's position interpolation; HF `rope_type: linear`)."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling (HF `rope_type: llama3`).

    Wavelengths above original_context / low_frequency_factor are stretched by `factor`, those below
    original_context / high_frequency_factor are kept, and those between are interpolated.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding over the whole head."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with RMSNorm, rotary positions, grouped-query attention and a SwiGLU feed-forward."""

    layers: int
    embed: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context_tokens: int
    """The longest sequence the model was trained for."""
    norm_epsilon: float
    rotary: Rotary
    tied_head: bool
    """The output projection is the embedding table."""
    attention_bias: bool = False
    ffn_bias: bool = False
