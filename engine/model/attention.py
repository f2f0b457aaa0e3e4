"""Softmax attention over blocks of keys, merged as they come (the online softmax of Milakov and Gimelshein 2018).

Blocks serve three ends. Memory: no [seq, seq] matrix exists. Sameness: a block that a query may not see adds exactly
nothing (its weights are zero, its rescaling is one), so a result depends on the query's own context and on no padding,
no batch mate's length and no bucket. And sequence sharding: what chips found in their own blocks merges by the same
rule.

Keys and values may be int8 with a scale for each position and head: a key's scale multiplies its logits, a value's its
weight, so no floating copy of them is made.

Everywhere logit = softcap(scale * query . key), and a query at position p sees the keys at p - window + 1 up to p.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from engine import collectives
from engine.collectives import Axes
from engine.model.quantized import Quantized, parts
from engine.model.reductions import row_sum

_MASKED = -1e30  # finite: exp(_MASKED - _MASKED) must not be NaN
_TINY = float(jnp.finfo(jnp.float32).tiny)


class Partial(NamedTuple):
    """Attention over the blocks seen so far: running maximum, normaliser, and weighted values, in float32.

    The normaliser is never zero, so that nothing need be asked before dividing by it: over keys that a query may not
    see it is tiny, and beside the 1 or more of keys that it sees that is nothing.
    """

    maximum: Float[Array, "*batch kv_heads queries"]
    normaliser: Float[Array, "*batch kv_heads queries"]
    weighted: Float[Array, "*batch kv_heads queries head_dim"]


class Logits(NamedTuple):
    """How queries and keys become logits."""

    scale: float
    softcap: float | None

    def of(
        self,
        queries: Float[Array, "*batch kv_heads queries head_dim"],
        keys: Float[Array, "*batch kv_heads block head_dim"] | Quantized,
    ) -> Float[Array, "*batch kv_heads queries block"]:
        keys, key_scale = parts(keys)
        keys = keys.astype(queries.dtype)  # of int8, exact
        logits = jnp.einsum("...qd,...sd->...qs", queries, keys, preferred_element_type=jnp.float32)
        if key_scale is not None:
            logits = logits * key_scale[..., None, :]
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


def nothing(*shape: int) -> Partial:
    """Over no block yet; the shape is that of `weighted`."""
    *lead, _ = shape
    return Partial(
        jnp.full(lead, _MASKED, jnp.float32), jnp.full(lead, _TINY, jnp.float32), jnp.zeros(shape, jnp.float32)
    )


def add_block(
    partial: Partial | None,
    logits: Float[Array, "*batch kv_heads queries block"],
    values: Float[Array, "*batch kv_heads block head_dim"] | Quantized,
    visible: Bool[Array, "..."],  # broadcastable to [*batch, kv_heads, queries, block], of that rank
    dtype: jnp.dtype,  # in which weights and values are multiplied
) -> Partial:
    """The attention so far, None over no block yet, and one block more."""
    logits = jnp.where(visible, logits, _MASKED)
    maximum = logits.max(-1)
    if partial is not None:
        maximum = jnp.maximum(partial.maximum, maximum)
    weights = jnp.where(visible, jnp.exp(logits - maximum[..., None]), 0.0)
    normaliser = row_sum(weights if partial else jnp.maximum(weights, _TINY))
    values, value_scale = parts(values)
    if value_scale is not None:
        weights = weights * value_scale[..., None, :]
    block = jnp.einsum(
        "...qs,...sd->...qd", weights.astype(dtype), values.astype(dtype), preferred_element_type=jnp.float32
    )
    if partial is None:
        return Partial(maximum, normaliser, block)
    rescale = jnp.exp(partial.maximum - maximum)
    normaliser = partial.normaliser * rescale + normaliser
    return Partial(maximum, normaliser, partial.weighted * rescale[..., None] + block)


def finish(partial: Partial) -> Float[Array, "*batch kv_heads queries head_dim"]:
    """The attention's result, float32; zeros for a query that has seen nothing."""
    return partial.weighted / partial.normaliser[..., None]


def merge_partials(partial: Partial, axes: Axes) -> Partial:
    """Merges what the chips along `axes` found in different keys for the same queries.

    [batch, ...] (each chip's own keys) -> [batch.axes, ...] (all keys); `axes` must divide batch, the first dimension.
    """
    if not axes:
        return partial
    maximum = collectives.largest(partial.maximum, axes)
    rescale = jnp.exp(partial.maximum - maximum)
    return Partial(
        collectives.shard(maximum, axes),
        collectives.reduce_scatter(partial.normaliser * rescale, axes),
        collectives.reduce_scatter(partial.weighted * rescale[..., None], axes),
    )


def block_tokens(seq: int) -> int:
    """Block length for causal attention over `seq` positions: 128 or 64 where they divide, else all at once."""
    return next((block for block in (128, 64) if seq % block == 0), seq)


def causal_attention(
    queries: Float[Array, "rows seq heads head_dim"],
    keys: Float[Array, "rows kv_seq kv_heads head_dim"],
    values: Float[Array, "rows kv_seq kv_heads head_dim"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    query_start: int | Int[Array, ""] = 0,
) -> Float[Array, "rows seq heads head_dim"]:
    """Every position attends to itself and those before it. Blocks that no query may see are skipped, not masked.

    Keys start at position 0; query i is at position query_start + i, and so is its key. `scale` is head_dim ** -0.5 if
    not given.
    """
    _, seq, heads, head_dim = queries.shape
    kv_seq, kv_heads = keys.shape[1:3]
    group = heads // kv_heads
    logits = Logits(head_dim**-0.5 if scale is None else scale, softcap)
    query_block, key_block = block_tokens(seq), block_tokens(kv_seq)
    query_offsets, key_offsets = jnp.arange(query_block), jnp.arange(key_block)

    def one_row(row: tuple[Array, Array, Array]) -> Array:
        by_head = [jnp.swapaxes(x, 0, 1) for x in row]  # [heads, seq, head_dim], [kv_heads, kv_seq, head_dim] twice
        grouped = by_head[0].reshape(kv_heads, group, seq, head_dim)

        def one_query_block(index: Int[Array, ""]) -> Array:
            q = lax.dynamic_slice_in_dim(grouped, index * query_block, query_block, axis=2)
            q = q.reshape(kv_heads, group * query_block, head_dim)
            start = query_start + index * query_block
            position = start + jnp.tile(query_offsets, group)

            def add(at: Int[Array, ""], partial: Partial) -> Partial:
                k, v = (lax.dynamic_slice_in_dim(x, at * key_block, key_block, axis=1) for x in by_head[1:])
                visible = visible_to((at * key_block + key_offsets)[None, :], position[:, None], window)
                return add_block(partial, logits.of(q, k), v, visible[None], q.dtype)

            last = (start + query_block - 1) // key_block
            partial = lax.fori_loop(
                _first_block(start, window, key_block),
                last + 1,
                add,
                nothing(kv_heads, group * query_block, head_dim),
            )
            return finish(partial).astype(queries.dtype)

        blocks = lax.map(one_query_block, jnp.arange(seq // query_block))  # [blocks, kv_heads, group * block, head_dim]
        blocks = blocks.reshape(seq // query_block, heads, query_block, head_dim)
        return jnp.moveaxis(blocks, 1, 2).reshape(seq, heads, head_dim)

    return lax.map(one_row, (queries, keys, values))


def paged_attention(
    queries: Float[Array, "slots heads head_dim"],
    key_pages: Float[Array, "pages kv_heads page_tokens head_dim"] | Quantized,
    value_pages: Float[Array, "pages kv_heads page_tokens head_dim"] | Quantized,
    table: Int[Array, "slots blocks"],
    lengths: Int[Array, " slots"],
    loop_over_slots: bool,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    first_block: int | Int[Array, ""] = 0,
    block_stride: int = 1,
) -> Float[Array, "slots heads head_dim"]:
    """`paged_attention_partial` where no other chip has keys of these slots. A slot of length 0 gives zeros."""
    partial = paged_attention_partial(
        queries,
        key_pages,
        value_pages,
        table,
        lengths,
        loop_over_slots,
        scale=scale,
        softcap=softcap,
        window=window,
        first_block=first_block,
        block_stride=block_stride,
    )
    return finish(partial).astype(queries.dtype).reshape(queries.shape)


def paged_attention_partial(
    queries: Float[Array, "slots heads head_dim"],
    key_pages: Float[Array, "pages kv_heads page_tokens head_dim"] | Quantized,
    value_pages: Float[Array, "pages kv_heads page_tokens head_dim"] | Quantized,
    table: Int[Array, "slots blocks"],
    lengths: Int[Array, " slots"],
    loop_over_slots: bool,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    first_block: int | Int[Array, ""] = 0,
    block_stride: int = 1,
) -> Partial:
    """One query a slot, at position lengths[slot] - 1, attends to what its row of `table` holds of positions up to it.

    Block b of a row holds the positions from (first_block + b * block_stride) * page_tokens on: with first block i and
    stride n it is the share of chip i of n. The result is over [slots, kv_heads, heads / kv_heads].

    `loop_over_slots` walks the slots one by one, each over its own pages only: the better program on CPU, where work
    is what costs; without it all slots advance page by page together for as long as any has a page left, the better
    program where parallelism is free.
    """
    slots, heads, head_dim = queries.shape
    _, kv_heads, page_tokens, _ = key_pages.shape
    grouped = queries.reshape(slots, kv_heads, heads // kv_heads, head_dim)
    logits = Logits(head_dim**-0.5 if scale is None else scale, softcap)
    offsets = jnp.arange(page_tokens)
    pools = (key_pages, value_pages)

    def own_blocks_before(block: Int[Array, "*slots"]) -> Int[Array, "*slots"]:
        """How many blocks of this table come before a block of the whole sequence."""
        return jnp.maximum(block - first_block + block_stride - 1, 0) // block_stride

    # By slot: the first own block that its query sees, and the end of its own blocks.
    begins = own_blocks_before(_first_block(lengths - 1, window, page_tokens))
    ends = own_blocks_before((lengths + page_tokens - 1) // page_tokens)

    def keys_seen(block: Int[Array, ""], length: Int[Array, ""]) -> Bool[Array, " page_tokens"]:
        return visible_to((first_block + block * block_stride) * page_tokens + offsets, length - 1, window)

    def one_slot(slot: tuple[Array, Array, Array, Array, Array]) -> Partial:
        q, pages, length, begin, end = slot

        def add(at: Int[Array, ""], partial: Partial) -> Partial:
            k, v = jax.tree.map(lambda pool: lax.dynamic_index_in_dim(pool, pages[at], keepdims=False), pools)
            return add_block(partial, logits.of(q, k), v, keys_seen(at, length)[None, None], q.dtype)

        return lax.fori_loop(begin, end, add, nothing(*q.shape))

    def all_slots() -> Partial:
        def add(step: Int[Array, ""], partial: Partial) -> Partial:
            if window is None:
                block = jnp.broadcast_to(step, (slots,))
                pages = lax.dynamic_index_in_dim(table, step, axis=1, keepdims=False)
            else:  # each slot from its own first block on
                block = begins + step
                pages = jnp.take_along_axis(table, block[:, None], axis=1, mode="clip")[:, 0]
            visible = jax.vmap(keys_seen)(block, lengths)[:, None, None]
            k, v = jax.tree.map(lambda pool: pool[pages], pools)
            return add_block(partial, logits.of(grouped, k), v, visible, grouped.dtype)

        return lax.fori_loop(0, (ends - begins).max(), add, nothing(*grouped.shape))

    return lax.map(one_slot, (grouped, table, lengths, begins, ends)) if loop_over_slots else all_slots()


def visible_to(key: Int[Array, "..."], query: Int[Array, "..."], window: int | None) -> Bool[Array, "..."]:
    """Whether a query sees a key, by their positions."""
    return key <= query if window is None else (key <= query) & (key > query - window)


def _first_block(query: Int[Array, "*slots"], window: int | None, block: int) -> Int[Array, "*slots"]:
    """The block of the oldest key that a query sees."""
    return jnp.zeros_like(query) if window is None else jnp.maximum(query - window + 1, 0) // block
