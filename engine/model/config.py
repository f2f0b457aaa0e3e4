"""What the weights are: everything the computation depends on and nothing that says where or how fast it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
class Experts:
    """A mixture of feed-forwards (Shazeer et al. 2017) in place of the single one.

    Each token goes to the `per_token` experts its router likes best, weighted by the softmax over just those.
    """

    count: int
    per_token: int


@dataclass(frozen=True)
class ModelConfig:
    """A decoder. The defaults are Llama's: RMSNorm, rotary positions, SwiGLU, no biases, one block after the other."""

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
    rotary: Rotary | None
    tied_head: bool
    """The output projection is the embedding table."""
    attention_bias: bool = False
    ffn_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    norm_scale_from_one: bool = False
    """The stored scale is what is added to one, and multiplies before the cast back (Gemma)."""
    post_norms: bool = False
    """Attention and feed-forward are normalised once more before they are added to the residual stream (Gemma 2)."""
    learned_positions: bool = False
    """A table of position embeddings, `context_tokens` long, is added to the token embeddings (GPT-2)."""
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    gated: bool = True
    """down(activation(gate x) * up x); without it down(activation(up x))."""
    parallel_block: bool = False
    """x + attention(norm x) + feedforward(norm x), with one norm (PaLM)."""
    embedding_scale: float = 1.0
    """Multiplies the token embeddings, rounded to their dtype first (Gemma)."""
    query_scale: float | None = None
    """Multiplies the attention logits; head_dim ** -0.5 if not given."""
    attention_softcap: float | None = None
    """Attention logits l become cap * tanh(l / cap)."""
    logits_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    """For each layer, how many positions back (its own included) a query sees; None: all. Empty: all, everywhere."""
    experts: Experts | None = None

    def window(self, layer: int) -> int | None:
        """How many positions back a query of this layer sees, its own included; None: all."""
        return self.windows[layer] if self.windows else None

    @property
    def expert_count(self) -> int:
        """0 for a model without a mixture."""
        return self.experts.count if self.experts else 0

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale
