"""int8 with one float32 scale per output channel: w is about values * scale, off by at most scale / 2.

Symmetric, scale = max|w| / 127 over a channel's inputs, rounded to nearest, ties to even (the per-channel scheme of
Krishnamoorthi 2018, section 2). As the scale is constant along what a product contracts, a product can be taken with
the integers and scaled afterwards; `engine.model.linear` does that, and nothing else knows that a weight is quantised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

LEVELS = 127
"""Largest magnitude of a quantised value; -128 is not used, so that w and -w are the same number negated."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A tree of two arrays, so it can stand wherever an array of parameters does: be donated, placed or gathered."""

    values: Any  # i8[*outputs, *inputs]
    scale: Any  # f32[*outputs]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def inputs(self) -> int:
        """How many of the last axes a product contracts."""
        return self.values.ndim - self.scale.ndim

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes


def quantize(array: np.ndarray | Array, inputs: int = 1) -> Quantized:
    """Quantises over the last `inputs` axes; numpy gives numpy, jax gives jax, and both the same numbers.

    A channel of zeros (or so small that its scale would not be a normal number) becomes zeros with scale one. A channel
    with a NaN or an infinity has that for a scale, so that it still shows.
    """
    xp: Any = np if isinstance(array, np.ndarray) else jnp
    contracted = tuple(range(array.ndim - inputs, array.ndim))
    wide = array.astype(np.float32)
    return _scaled(wide, xp.max(xp.abs(wide), axis=contracted), xp)


def quantize_heads(*arrays: Array) -> tuple[Quantized, ...]:
    """Each array [slots, heads, head_dim] as `quantize` does it, in fewer operations for small ones on a TPU."""
    ends = np.cumsum([array.shape[1] for array in arrays])[:-1].tolist()
    wide = jnp.concatenate(arrays, axis=1).astype(jnp.float32)
    largest = jnp.split(jnp.max(jnp.abs(wide), axis=-1), ends, axis=1)
    return tuple(_scaled(array.astype(jnp.float32), one, jnp) for array, one in zip(arrays, largest, strict=True))


def _scaled(wide: Any, largest: Any, xp: Any) -> Quantized:
    """`largest` is the magnitude of each channel of `wide`."""
    contracted = tuple(range(largest.ndim, wide.ndim))
    scale = largest * np.float32(1 / LEVELS)  # compilers turn x / 127 into this
    scale = xp.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    with np.errstate(invalid="ignore"):  # a channel that is not finite: its scale says so
        # Times the reciprocal: of a quotient of two arrays a compiler may make either.
        steps = xp.rint(wide * xp.expand_dims(np.float32(1) / scale, contracted))
        return Quantized(xp.clip(steps, -LEVELS, LEVELS).astype(np.int8), scale.astype(np.float32))


def parts(array: Array | Quantized) -> tuple[Array, Array | None]:
    """The numbers, and the scales of the channels where they have any."""
    return (array.values, array.scale) if isinstance(array, Quantized) else (array, None)


def dequantize(array: Array | Quantized, dtype: Any = jnp.float32) -> Array:
    """The whole array in a floating dtype. For looking at, not for computing with: it is the copy that int8 avoids."""
    if not isinstance(array, Quantized):
        return array.astype(dtype)
    scale = jnp.expand_dims(array.scale, tuple(range(array.scale.ndim, array.ndim)))
    return (array.values.astype(jnp.float32) * scale).astype(dtype)
