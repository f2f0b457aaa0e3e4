"""Root-mean-square normalisation (Zhang and Sennrich 2019), in float32 whatever the activations are."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from engine.model.reductions import row_sum


def rms_norm(
    x: Float[Array, "tokens embed"], scale: Float[Array, " embed"], epsilon: float
) -> Float[Array, "tokens embed"]:
    """x / rms(x) * scale. The scale multiplies after the cast back, as the Llama family's reference does."""
    wide = x.astype(jnp.float32)
    mean_square = row_sum(wide * wide)[:, None] / x.shape[-1]
    return (wide * lax.rsqrt(mean_square + epsilon)).astype(x.dtype) * scale[None, :]
