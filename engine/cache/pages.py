"""The KV cache on the device: one pool of pages a layer, each page the keys or values of `page_tokens` positions.

A slot's context is a list of pages (its row of the page table), so memory is shared by what requests need and not cut
into equal slots of the longest length, and samples of one prompt can hold the same pages. Where there is memory for
that, a cache can be contiguous instead: pages as long as the longest sequence, page s being slot s's; what is written
is written by the same functions, and attention reads it as it lies (engine/model/contiguous_attention.py).

Every function takes the cache and gives it back; programs donate it, so updates happen in place. What is to go to the
null page goes nowhere.

A pool is an array, or in int8 a `Quantized` one with a scale for each position of each head. A position is quantised
once, when it is written, from its own numbers alone; so int8, too, gives a slot the same results whatever is beside it
and however decode is cut into chunks. Attention scales logits and weights, never a copy of the cache.

Shapes are those of the arrays at hand: on a mesh, one chip's part of the pages and of the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.model.config import ModelConfig
from engine.model.quantized import Quantized, quantize, quantize_heads

NULL_PAGE = -1

Pool = Array | Quantized
"""[pages, kv_heads, page_tokens, head_dim]; the scales of an int8 pool are [pages, kv_heads, page_tokens]."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedCache:
    """Keys and values of every layer."""

    keys: list[Any]  # one Pool a layer
    values: list[Any]  # the same

    @property
    def page_tokens(self) -> int:
        return self.keys[0].shape[2]


def allocate(
    layers: int, pages: int, kv_heads: int, page_tokens: int, head_dim: int, dtype: jnp.dtype | str
) -> PagedCache:
    """An empty cache; `dtype` is float32, bfloat16 or int8."""
    shape = (pages, kv_heads, page_tokens, head_dim)

    def pool() -> Pool:
        numbers = jnp.zeros(shape, dtype)
        return Quantized(numbers, jnp.zeros(shape[:-1], jnp.float32)) if numbers.dtype == jnp.int8 else numbers

    return PagedCache([pool() for _ in range(layers)], [pool() for _ in range(layers)])


def page_bytes(config: ModelConfig, page_tokens: int, dtype: jnp.dtype | str, kv_heads: int | None = None) -> int:
    """Bytes of one page across all layers, keys and values; `kv_heads` where a chip holds fewer or more than all."""
    numbers = jnp.dtype(dtype)
    scale_bytes = 4 if numbers == jnp.int8 else 0
    positions = 2 * config.layers * (kv_heads or config.kv_heads) * page_tokens
    return positions * (config.head_dim * numbers.itemsize + scale_bytes)


def stored(numbers: Pool, like: Pool) -> Pool:
    """Keys or values in the form that this pool keeps; what is quantised already stays as it is."""
    if isinstance(numbers, Quantized):
        assert isinstance(like, Quantized), f"int8 keys or values for a cache of {like.dtype}"
        return numbers
    return quantize(numbers) if isinstance(like, Quantized) else numbers.astype(like.dtype)


def append(
    cache: PagedCache,
    layer: int,
    keys: Float[Array, "slots kv_heads head_dim"],
    values: Float[Array, "slots kv_heads head_dim"],
    pages: Int[Array, " slots"],
    offsets: Int[Array, " slots"],
) -> PagedCache:
    """Writes one position a slot: `offsets[slot]` of page `pages[slot]`."""

    def write(pool: Array, update: Array) -> Array:
        # Single rows, each of one head: with a window over heads a TPU would lay an int8 pool out anew, and back.
        heads = pool.shape[1]
        first = jnp.where(pages == NULL_PAGE, pool.shape[0], pages) * heads  # beyond the end: dropped
        rows = first[:, None] + jnp.arange(heads)[None]
        by_head = pool.reshape(-1, *pool.shape[2:])
        flat = update.reshape(-1, *update.shape[2:])
        by_head = by_head.at[rows.reshape(-1), jnp.repeat(offsets, heads)].set(flat, mode="drop")
        return by_head.reshape(pool.shape)

    def written(pools: list[Pool], update: Pool) -> list[Pool]:
        return [*pools[:layer], _both(write, pools[layer], update), *pools[layer + 1 :]]

    new = quantize_heads(keys, values) if isinstance(cache.keys[layer], Quantized) else (keys, values)
    return PagedCache(written(cache.keys, new[0]), written(cache.values, new[1]))


def insert(
    cache: PagedCache,
    keys: list[Any],  # one a layer, [rows, seq, kv_heads, head_dim]
    values: list[Any],  # the same
    pages: Int[Array, "rows blocks"],
) -> PagedCache:
    """Writes prefilled rows into pages: block b of row r goes to `pages[r, b]`, a block being as long as a page."""
    rows, blocks = pages.shape
    length = min(cache.page_tokens, keys[0].shape[1])  # a row shorter than a page fills a part of one

    def write(pool: Array, update: Array) -> Array:
        held = update[:, : blocks * length].reshape(rows * blocks, length, *update.shape[2:])
        by_block = jnp.swapaxes(held, 1, 2)

        def one(index: Int[Array, ""], pool: Array) -> Array:
            page = pages.reshape(-1)[index]
            start = (jnp.maximum(page, 0), *(0,) * (pool.ndim - 1))
            piece = lax.dynamic_index_in_dim(by_block, index)
            there = lax.dynamic_slice(pool, start, piece.shape)
            return lax.dynamic_update_slice(pool, jnp.where(page == NULL_PAGE, there, piece), start)

        return lax.fori_loop(0, rows * blocks, one, pool)

    def written(pools: list[Pool], updates: list[Pool]) -> list[Pool]:
        return [_both(write, pool, update) for pool, update in zip(pools, updates, strict=True)]

    return PagedCache(written(cache.keys, keys), written(cache.values, values))


def copy(cache: PagedCache, source: Int[Array, " copies"], target: Int[Array, " copies"]) -> PagedCache:
    """Copies whole pages, one after another; where there are fewer than the program has room for, null ones follow."""

    def one(index: Int[Array, ""], cache: PagedCache) -> PagedCache:
        def write(pool: Array) -> Array:
            page = lax.dynamic_index_in_dim(pool, source[index])
            return lax.dynamic_update_slice(pool, page, (target[index], *(0,) * (pool.ndim - 1)))

        return jax.tree.map(write, cache)

    return lax.fori_loop(0, jnp.sum(target != NULL_PAGE), one, cache)


def _both(write: Callable[[Array, Array], Array], pool: Pool, update: Pool) -> Pool:
    """Writes the numbers and, where a pool has them, their scales."""
    return jax.tree.map(write, pool, stored(update, pool))
