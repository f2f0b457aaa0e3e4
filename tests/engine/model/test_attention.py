"""Blocked attention against the textbook formula, and its independence from everything but its own context."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.attention import causal_attention, paged_attention

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def textbook(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """[queries, heads, d] over [keys, kv_heads, d] in float64; query i is at position keys - queries + i."""
    queries, heads, d = q.shape
    k, v = (np.repeat(x.astype(np.float64), heads // k.shape[1], axis=1) for x in (k, v))
    logits = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) / np.sqrt(d)
    hidden = np.arange(k.shape[0])[None, :] > np.arange(k.shape[0] - queries, k.shape[0])[:, None]
    logits[:, hidden] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("seq", [32, 64, 96, 192, 256])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal_attention_is_the_textbook_formula(seq: int, kv_heads: int) -> None:
    q, k, v = normal(2, seq, 4, 16), normal(2, seq, kv_heads, 16), normal(2, seq, kv_heads, 16)
    out = np.asarray(jax.jit(causal_attention)(q, k, v))
    for row in range(2):
        np.testing.assert_allclose(out[row], textbook(q[row], k[row], v[row]), atol=2e-6)


PAGE = 16


def paged(context: np.ndarray, table: np.ndarray, pages: int) -> np.ndarray:
    """[slots, positions, kv_heads, d] laid into pages as the table says; the rest of the pool is NaN."""
    pool = np.full((pages, context.shape[2], PAGE, context.shape[3]), np.nan, np.float32)
    for slot in range(len(table)):
        for block, page in enumerate(table[slot]):
            pool[page] = np.swapaxes(context[slot, block * PAGE : (block + 1) * PAGE], 0, 1)
    return pool


@pytest.mark.parametrize("loop_over_slots", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_paged_attention_is_the_textbook_formula(kv_heads: int, loop_over_slots: bool) -> None:
    slots, blocks, heads, d = 8, 4, 4, 16
    lengths = np.array([1, 15, 16, 17, 33, 64, 50, 0], np.int32)
    keys, values = normal(slots, blocks * PAGE, kv_heads, d), normal(slots, blocks * PAGE, kv_heads, d)
    table = (RNG.permutation(slots * blocks).reshape(slots, blocks) + 1).astype(np.int32)
    q = normal(slots, heads, d)
    pools = [jnp.asarray(paged(x, table, slots * blocks + 1)) for x in (keys, values)]
    out = np.asarray(jax.jit(paged_attention, static_argnums=5)(q, *pools, table, lengths, loop_over_slots))
    for slot, length in enumerate(lengths):
        if length:
            expected = textbook(q[slot][None], keys[slot, :length], values[slot, :length])[0]
            np.testing.assert_allclose(out[slot], expected, atol=2e-6)
        else:
            np.testing.assert_array_equal(out[slot], 0)


@pytest.mark.parametrize("loop_over_slots", [True, False])
def test_a_slot_does_not_notice_the_others(loop_over_slots: bool) -> None:
    """Bit for bit: alone among empty slots, or beside longer ones, on other pages and in another slot."""
    blocks, heads, kv_heads, d = 6, 4, 2, 16
    run = jax.jit(paged_attention, static_argnums=5)
    context = [normal(8, blocks * PAGE, kv_heads, d) for _ in range(2)]
    q = normal(8, heads, d)

    def at(slot_of: list[int], lengths: list[int]) -> np.ndarray:
        table = (RNG.permutation(8 * blocks).reshape(8, blocks) + 1).astype(np.int32)
        pools = [jnp.asarray(paged(x[slot_of], table, 8 * blocks + 1)) for x in context]
        return np.asarray(run(q[slot_of], *pools, table, np.array(lengths, np.int32), loop_over_slots))

    alone = at(list(range(8)), [20, 0, 0, 0, 0, 0, 0, 0])[0]
    crowded = at([7, 6, 5, 4, 3, 2, 1, 0], [96, 3, 0, 50, 80, 33, 16, 20])[7]
    np.testing.assert_array_equal(alone, crowded)
