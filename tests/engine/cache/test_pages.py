"""Pages against plain arrays: what was written is what attention reads, exactly, or in int8 within its bound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.cache import pages
from engine.cache.pages import NULL_PAGE, PagedCache
from engine.model.config import ModelConfig, Rotary
from engine.model.quantized import dequantize

LAYERS, PAGES, PAGE, SLOTS, HEADS, HEAD_DIM = 2, 9, 16, 4, 4, 8
RNG = np.random.default_rng(0)

append = jax.jit(pages.append, static_argnums=1, donate_argnums=0)
insert = jax.jit(pages.insert, donate_argnums=0)
copy = jax.jit(pages.copy, donate_argnums=0)


def normal(*shape: int) -> np.ndarray:
    """Positions and heads of very different sizes, so that a scale shared between them would show."""
    sizes = 10.0 ** RNG.uniform(-2, 2, shape[:-1])
    return (RNG.standard_normal(shape) * sizes[..., None]).astype(np.float32)


def empty(kv_heads: int, dtype: str) -> PagedCache:
    return pages.allocate(LAYERS, PAGES, kv_heads, PAGE, HEAD_DIM, dtype)


def read(pool: Any) -> np.ndarray:
    return np.array(dequantize(pool))


def assert_stored(found: np.ndarray, written: np.ndarray, dtype: str) -> None:
    """Rounded to the dtype; in int8 within half a step of each vector's own scale (and the rounding of that)."""
    if dtype != "int8":
        np.testing.assert_array_equal(found, written.astype(jnp.dtype(dtype)).astype(np.float32))
    else:
        largest = np.abs(written).max(-1, keepdims=True)
        assert (np.abs(found - written) <= largest / 127 * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_append_writes_one_position_of_one_layer(kv_heads: int, dtype: str) -> None:
    keys, values = normal(SLOTS, kv_heads, HEAD_DIM), normal(SLOTS, kv_heads, HEAD_DIM)
    at, offsets = np.array([3, 1, 8, 5], np.int32), np.array([0, 15, 7, 3], np.int32)
    cache = append(empty(kv_heads, dtype), 1, keys, values, at, offsets)
    for found, written in ((cache.keys, keys), (cache.values, values)):
        pool = read(found[1])
        assert_stored(pool[at, :, offsets], written, dtype)
        pool[at, :, offsets] = 0
        assert not pool.any()
        assert not read(found[0]).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("seq", [PAGE // 2, 3 * PAGE])
def test_insert_writes_rows_block_by_block(seq: int, dtype: str) -> None:
    rows, blocks, kv_heads = 2, -(-seq // PAGE), 2
    keys, values = ([normal(rows, seq, kv_heads, HEAD_DIM) for _ in range(LAYERS)] for _ in range(2))
    table = RNG.permutation(PAGES)[: rows * blocks].reshape(rows, blocks).astype(np.int32)
    cache = insert(empty(kv_heads, dtype), keys, values, table)
    length = min(seq, PAGE)
    for layer in range(LAYERS):
        for found, written in ((cache.keys[layer], keys[layer]), (cache.values[layer], values[layer])):
            pool = read(found)
            for row in range(rows):
                for block in range(blocks):
                    piece = written[row, block * length : (block + 1) * length]
                    assert_stored(pool[table[row, block], :, :length], np.swapaxes(piece, 0, 1), dtype)
            assert not pool[np.setdiff1d(np.arange(PAGES), table)].any()


def filled(dtype: str) -> PagedCache:
    updates = [normal(PAGES, PAGE, 2, HEAD_DIM) for _ in range(LAYERS)]
    return insert(empty(2, dtype), updates, updates[::-1], np.arange(PAGES, dtype=np.int32)[:, None])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_goes_to_the_null_page_goes_nowhere(dtype: str) -> None:
    before = jax.tree.map(np.array, filled(dtype))
    rows = [normal(2, 2 * PAGE, 2, HEAD_DIM) for _ in range(LAYERS)]
    vectors = normal(SLOTS, 2, HEAD_DIM)
    at = np.array([4, NULL_PAGE, NULL_PAGE, NULL_PAGE], np.int32)
    for after in (
        insert(filled_again(before), rows, rows, at.reshape(2, 2)),
        append(filled_again(before), 0, vectors, vectors, at, np.array([2, 3, 0, 15], np.int32)),
        copy(filled_again(before), at[[1, 2]], at[[1, 2]]),
    ):
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(np.delete(new, 4, axis=0), np.delete(old, 4, axis=0))


def filled_again(saved: PagedCache) -> PagedCache:
    return jax.tree.map(jnp.asarray, saved)


@pytest.mark.parametrize("seq", [PAGE // 2, PAGE, 2 * PAGE])
def test_a_row_and_one_page_for_it(seq: int) -> None:
    """A contiguous cache: of a row that is padded beyond the longest sequence, what fits is kept."""
    rows = [normal(2, seq, 2, HEAD_DIM) for _ in range(LAYERS)]
    pool = read(insert(empty(2, "float32"), rows, rows, np.array([[3], [5]], np.int32)).keys[1])
    for page, row in ((3, rows[1][0]), (5, rows[1][1])):
        np.testing.assert_array_equal(pool[page, :, : min(seq, PAGE)], np.swapaxes(row[:PAGE], 0, 1))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_copy_is_the_page_itself(dtype: str) -> None:
    updates = [normal(2, PAGE, 2, HEAD_DIM) for _ in range(LAYERS)]
    cache = insert(empty(2, dtype), updates, updates[::-1], np.array([[3], [5]], np.int32))
    before = jax.tree.map(np.array, cache)
    after = copy(cache, np.array([5, 3, NULL_PAGE], np.int32), np.array([7, 8, NULL_PAGE], np.int32))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[7], old[5])
        np.testing.assert_array_equal(new[8], old[3])
        np.testing.assert_array_equal(new[:7], old[:7])


def test_one_position_or_many_a_position_is_quantised_alike() -> None:
    """Whether prefill or decode wrote it, and whatever stands beside it: the same bits."""
    keys, values = (np.repeat(normal(1, PAGE, 2, HEAD_DIM), LAYERS, axis=0) for _ in range(2))
    at_once = insert(empty(2, "int8"), [keys[:1]] * LAYERS, [values[:1]] * LAYERS, np.array([[6]], np.int32))
    one_by_one = empty(2, "int8")
    for offset in range(PAGE):
        others = [normal(1, 2, HEAD_DIM) for _ in range(2)]
        for layer in range(LAYERS):
            k, v = (np.concatenate([other, x[:1, offset]]) for other, x in zip(others, (keys, values), strict=True))
            where = np.array([2, 6], np.int32)
            one_by_one = append(one_by_one, layer, k, v, where, np.array([3, offset], np.int32))
    for whole, built in zip(jax.tree.leaves(at_once), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_array_equal(np.asarray(whole)[6], np.asarray(built)[6])


@pytest.mark.parametrize("what", ["append", "insert", "copy"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_updates_are_in_place(what: str, dtype: str) -> None:
    """No program holds a second cache."""
    cache = pages.allocate(1, 512, 2, PAGE, 32, dtype)
    vector, row = jnp.zeros((SLOTS, 2, 32)), [jnp.zeros((1, PAGE, 2, 32))]
    index = jnp.arange(SLOTS)
    args: tuple[Any, ...] = {
        "append": (cache, 0, vector, vector, index, index),
        "insert": (cache, row, row, jnp.ones((1, 1), jnp.int32)),
        "copy": (cache, index, index),
    }[what]
    memory = {"append": append, "insert": insert, "copy": copy}[what].lower(*args).compile().memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes == held
    assert memory.temp_size_in_bytes < held / 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_page_bytes_is_what_a_page_takes(dtype: str) -> None:
    config = ModelConfig(
        layers=3,
        embed=64,
        ffn=160,
        heads=6,
        kv_heads=2,
        head_dim=24,
        vocab=320,
        context_tokens=512,
        norm_epsilon=1e-5,
        rotary=Rotary(10_000.0),
        tied_head=False,
    )

    def held(kv_heads: int) -> int:
        cache = pages.allocate(config.layers, 5, kv_heads, PAGE, config.head_dim, dtype)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))

    assert 5 * pages.page_bytes(config, PAGE, jnp.dtype(dtype)) == held(config.kv_heads)
    assert 5 * pages.page_bytes(config, PAGE, dtype, kv_heads=3) == held(3)
