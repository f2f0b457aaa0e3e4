"""Rotary position embedding (Su et al. 2021) and the ways of stretching it. Angles are float32, always."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from engine.model.config import LinearScaling, Llama3Scaling, Rotary


def inverse_frequencies(rotary: Rotary, head_dim: int) -> np.ndarray:
    """Radians per position for each of the head_dim / 2 pairs, float32, after scaling."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.power(np.float32(rotary.theta), exponents)).astype(np.float32)
    match rotary.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return (frequencies / np.float32(factor)).astype(np.float32)
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling)


def _llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    wavelength = 2 * math.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = (scaling.original_context_tokens / wavelength - low) / (high - low)  # 1: as trained, 0: fully stretched
    keep = np.clip(keep, 0.0, 1.0)
    return ((1 - keep) * frequencies / scaling.factor + keep * frequencies).astype(np.float32)


Rotation = tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]]


def rotation(positions: Int[Array, " tokens"], rotary: Rotary, head_dim: int) -> Rotation:
    """cos and sin of every position's angles."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(inverse_frequencies(rotary, head_dim))[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "tokens heads head_dim"], by: Rotation) -> Float[Array, "tokens heads head_dim"]:
    """Rotates pair (i, i + head_dim/2), the Hugging Face pairing, in float32."""
    cos, sin = (part[:, None, :] for part in by)
    first, second = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
