"""The KV cache on the device: one pool of pages a layer, each page the keys or values of `page_tokens` positions.

A slot's context is a list of pages (its row of the page table), so memory is shared by what requests need and not cut
into equal slots of the longest length, and samples of one prompt can hold the same pages. Page 0 is nobody's: writes
that must go nowhere go there. Every function takes the cache and gives it back; programs donate it, so updates happen
in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from engine.model.config import ModelConfig

NULL_PAGE = 0

Pages = Float[Array, "pages kv_heads page_tokens head_dim"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedCache:
    """Keys and values of every layer."""

    keys: list[Any]  # one a layer, [pages, kv_heads, page_tokens, head_dim]
    values: list[Any]  # the same

    @property
    def page_tokens(self) -> int:
        return self.keys[0].shape[2]


def allocate(config: ModelConfig, pages: int, page_tokens: int, dtype: jnp.dtype) -> PagedCache:
    shape = (pages, config.kv_heads, page_tokens, config.head_dim)
    return PagedCache(
        [jnp.zeros(shape, dtype) for _ in range(config.layers)],
        [jnp.zeros(shape, dtype) for _ in range(config.layers)],
    )


def page_bytes(config: ModelConfig, page_tokens: int, dtype: jnp.dtype) -> int:
    """Bytes of one page across all layers, keys and values."""
    return 2 * config.layers * config.kv_heads * config.head_dim * page_tokens * jnp.dtype(dtype).itemsize


def append(
    cache: PagedCache,
    layer: int,
    keys: Float[Array, "slots kv_heads head_dim"],
    values: Float[Array, "slots kv_heads head_dim"],
    pages: Int[Array, " slots"],
    offsets: Int[Array, " slots"],
) -> PagedCache:
    """Writes one position a slot: `offsets[slot]` of page `pages[slot]`."""

    def write(pool: list[Pages], update: Array) -> list[Pages]:
        return [*pool[:layer], pool[layer].at[pages, :, offsets].set(update), *pool[layer + 1 :]]

    return PagedCache(write(cache.keys, keys), write(cache.values, values))


def insert(
    cache: PagedCache,
    keys: list[Float[Array, "rows seq kv_heads head_dim"]],
    values: list[Float[Array, "rows seq kv_heads head_dim"]],
    pages: Int[Array, "rows blocks"],
) -> PagedCache:
    """Writes prefilled rows into pages: block b of row r goes to `pages[r, b]`, the null page where it is padding."""
    rows, blocks = pages.shape
    length = min(cache.page_tokens, keys[0].shape[1])  # a bucket shorter than a page fills a part of one

    def write(pool: Pages, update: Array) -> Pages:
        by_block = jnp.swapaxes(update.reshape(rows * blocks, length, *update.shape[2:]), 1, 2)

        def one(index: Int[Array, ""], pool: Pages) -> Pages:
            page = pages.reshape(-1)[index]
            piece = lax.dynamic_index_in_dim(by_block, index)
            return lax.dynamic_update_slice(pool, piece, (page, 0, 0, 0))

        return lax.fori_loop(0, rows * blocks, one, pool)

    return PagedCache(
        [write(pool, update) for pool, update in zip(cache.keys, keys, strict=True)],
        [write(pool, update) for pool, update in zip(cache.values, values, strict=True)],
    )


def copy(cache: PagedCache, source: Int[Array, " copies"], target: Int[Array, " copies"]) -> PagedCache:
    """Copies whole pages; null to null where there are fewer copies than the program has room for."""

    def write(pool: Pages) -> Pages:
        return pool.at[target].set(pool[source])

    return PagedCache([write(pool) for pool in cache.keys], [write(pool) for pool in cache.values])
