"""Softmax attention over blocks of keys, merged as they come (the online softmax of Milakov and Gimelshein 2018).

Blocks serve two ends. Memory: no [seq, seq] matrix exists. And sameness: a block that a query may not see adds exactly
nothing (its weights are zero, its rescaling is one), so a result depends on the query's own context and on no padding,
no batch mate's length and no bucket.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine.model.reductions import row_sum

_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) must not be NaN


class _Partial(NamedTuple):
    """Attention over the blocks seen so far: running maximum, normaliser, and weighted values, in float32."""

    maximum: Float[Array, "*batch kv_heads queries"]
    normaliser: Float[Array, "*batch kv_heads queries"]
    weighted: Float[Array, "*batch kv_heads queries head_dim"]


def _nothing(*shape: int) -> _Partial:
    *lead, _ = shape
    return _Partial(jnp.full(lead, _MASKED, jnp.float32), jnp.zeros(lead, jnp.float32), jnp.zeros(shape, jnp.float32))


def _add_block(
    partial: _Partial,
    queries: Float[Array, "*batch kv_heads queries head_dim"],
    keys: Float[Array, "*batch kv_heads block head_dim"],
    values: Float[Array, "*batch kv_heads block head_dim"],
    visible: Bool[Array, "..."],  # broadcastable to [*batch, kv_heads, queries, block], of that rank
) -> _Partial:
    scale = 1.0 / math.sqrt(queries.shape[-1])
    logits = jnp.einsum("...qd,...sd->...qs", queries, keys, preferred_element_type=jnp.float32) * scale
    logits = jnp.where(visible, logits, _MASKED)
    maximum = jnp.maximum(partial.maximum, logits.max(-1))
    weights = jnp.where(visible, jnp.exp(logits - maximum[..., None]), 0.0)
    rescale = jnp.exp(partial.maximum - maximum)
    block = jnp.einsum("...qs,...sd->...qd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return _Partial(
        maximum, partial.normaliser * rescale + row_sum(weights), partial.weighted * rescale[..., None] + block
    )


def _finish(partial: _Partial) -> Float[Array, "*batch kv_heads queries head_dim"]:
    return partial.weighted / jnp.maximum(partial.normaliser, jnp.finfo(jnp.float32).tiny)[..., None]


def block_tokens(seq: int) -> int:
    """Block length for causal attention over `seq` positions: 128 or 64 where they divide, else all at once."""
    return next((block for block in (128, 64) if seq % block == 0), seq)


def causal_attention(
    queries: Float[Array, "rows seq heads head_dim"],
    keys: Float[Array, "rows seq kv_heads head_dim"],
    values: Float[Array, "rows seq kv_heads head_dim"],
) -> Float[Array, "rows seq heads head_dim"]:
    """Every position attends to itself and those before it. Blocks above the diagonal are skipped, not masked."""
    _, seq, heads, head_dim = queries.shape
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    block = block_tokens(seq)
    offsets = jnp.arange(block)

    def one_row(row: tuple[Array, Array, Array]) -> Array:
        by_head = [jnp.swapaxes(x, 0, 1) for x in row]  # [heads, seq, head_dim], [kv_heads, seq, head_dim] twice
        grouped = by_head[0].reshape(kv_heads, group, seq, head_dim)

        def one_query_block(index: Int[Array, ""]) -> Array:
            q = lax.dynamic_slice_in_dim(grouped, index * block, block, axis=2)
            q = q.reshape(kv_heads, group * block, head_dim)
            position = index * block + jnp.tile(offsets, group)

            def add(at: Int[Array, ""], partial: _Partial) -> _Partial:
                k, v = (lax.dynamic_slice_in_dim(x, at * block, block, axis=1) for x in by_head[1:])
                visible = (at * block + offsets)[None, :] <= position[:, None]
                return _add_block(partial, q, k, v, visible[None])

            partial = lax.fori_loop(0, index + 1, add, _nothing(kv_heads, group * block, head_dim))
            return _finish(partial).astype(queries.dtype)

        blocks = lax.map(one_query_block, jnp.arange(seq // block))  # [blocks, kv_heads, group * block, head_dim]
        blocks = blocks.reshape(seq // block, heads, block, head_dim)
        return jnp.moveaxis(blocks, 1, 2).reshape(seq, heads, head_dim)

    return lax.map(one_row, (queries, keys, values))


def paged_attention(
    queries: Float[Array, "slots heads head_dim"],
    key_pages: Float[Array, "pages kv_heads page_tokens head_dim"],
    value_pages: Float[Array, "pages kv_heads page_tokens head_dim"],
    table: Int[Array, "slots blocks"],
    lengths: Int[Array, " slots"],
    loop_over_slots: bool,
) -> Float[Array, "slots heads head_dim"]:
    """One query a slot attends to the first `lengths[slot]` positions of the pages its row of `table` names.

    `loop_over_slots` walks the slots one by one, each over its own pages only: the better program on CPU, where work
    is what costs; without it all slots advance page by page together up to the longest, the better program where
    parallelism is free. A slot of length 0 gives zeros.
    """
    slots, heads, head_dim = queries.shape
    _, kv_heads, page_tokens, _ = key_pages.shape
    grouped = queries.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    offsets = jnp.arange(page_tokens)

    def one_slot(slot: tuple[Array, Array, Array]) -> Array:
        q, pages, length = slot

        def add(at: Int[Array, ""], partial: _Partial) -> _Partial:
            k, v = (lax.dynamic_index_in_dim(x, pages[at], keepdims=False) for x in (key_pages, value_pages))
            visible = at * page_tokens + offsets < length
            return _add_block(partial, q, k, v, visible[None, None])

        blocks = (length + page_tokens - 1) // page_tokens
        return _finish(lax.fori_loop(0, blocks, add, _nothing(*q.shape)))

    def all_slots() -> Array:
        def add(at: Int[Array, ""], partial: _Partial) -> _Partial:
            pages = lax.dynamic_index_in_dim(table, at, axis=1, keepdims=False)
            visible = (at * page_tokens + offsets)[None, :] < lengths[:, None]
            return _add_block(partial, grouped, key_pages[pages], value_pages[pages], visible[:, None, None])

        blocks = (lengths.max() + page_tokens - 1) // page_tokens
        return _finish(lax.fori_loop(0, blocks, add, _nothing(*grouped.shape)))

    out = lax.map(one_slot, (grouped, table, lengths)) if loop_over_slots else all_slots()
    return out.astype(queries.dtype).reshape(slots, heads, head_dim)
