"""Decode attention over a cache in which every slot has one page, as long as the longest sequence.

The pool [slots, kv_heads, positions, head_dim] is what two batched products take as it lies: it is read once, in long
runs, without a gather or a loop, and a TPU fetches the next layer's while it still computes this one's. The price is
that all of it is read at every step, whatever the lengths; `paged_attention` reads what there is, page by page.

The heads come before the positions: with pages of a few heads each, one after the other, a TPU lays an int8 pool out
anew at every step.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from engine.model.attention import Logits, Partial, add_block, visible_to
from engine.model.quantized import Quantized


def contiguous_attention_partial(
    queries: Float[Array, "slots heads head_dim"],
    keys: Float[Array, "slots kv_heads positions head_dim"] | Quantized,
    values: Float[Array, "slots kv_heads positions head_dim"] | Quantized,
    lengths: Int[Array, " slots"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    first_block: int | Int[Array, ""] = 0,
    block_stride: int = 1,
    block_tokens: int = 1,
) -> Partial:
    """One query a slot, at position lengths[slot] - 1, attends to what its page holds of positions up to it.

    The page holds blocks of `block_tokens` positions, of which block b is block first_block + b * block_stride of the
    sequence. The result is over [slots, kv_heads, heads / kv_heads].
    """
    slots, heads, head_dim = queries.shape
    _, kv_heads, held, _ = keys.shape
    grouped = queries.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    at = jnp.arange(held)
    position = (first_block + at // block_tokens * block_stride) * block_tokens + at % block_tokens
    visible = visible_to(position[None], lengths[:, None] - 1, window)[:, None, None]  # [slots, 1, 1, positions]
    logits = Logits(head_dim**-0.5 if scale is None else scale, softcap).of(grouped, keys)
    return add_block(None, logits, values, visible, queries.dtype)
