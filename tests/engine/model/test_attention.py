"""Attention against the textbook formula in float64, and what must not change a result: padding, mates, chips."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from engine import collectives
from engine.axes import MeshAxis
from engine.mesh import MeshShape, make_mesh
from engine.model.attention import causal_attention, finish, merge_partials, paged_attention, paged_attention_partial

RNG = np.random.default_rng(0)

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale and softcap": {"scale": 0.7, "softcap": 2.0},
    "window of whole blocks": {"window": 64},
    "window across blocks": {"window": 50, "softcap": 5.0},
    "window of one": {"window": 1},
}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def textbook(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    query_start: int | None = None,
) -> np.ndarray:
    """[queries, heads, d] over [keys, kv_heads, d] in float64; without a start, the last query is at the last key."""
    queries, heads, d = q.shape
    k, v = (np.repeat(x.astype(np.float64), heads // k.shape[1], axis=1) for x in (k, v))
    logits = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * (1 / np.sqrt(d) if scale is None else scale)
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    at = np.arange(queries)[:, None] + (k.shape[0] - queries if query_start is None else query_start)
    key = np.arange(k.shape[0])[None, :]
    logits[:, (key > at) | (key <= at - (window or np.inf))] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("seq", "kv_heads"), [(32, 4), (64, 1), (96, 2), (192, 4), (256, 1), (256, 2)])
def test_causal_attention_is_the_textbook_formula(seq: int, kv_heads: int) -> None:
    q, k, v = normal(2, seq, 4, 16), normal(2, seq, kv_heads, 16), normal(2, seq, kv_heads, 16)
    out = np.asarray(jax.jit(causal_attention)(q, k, v))
    for row in range(2):
        np.testing.assert_allclose(out[row], textbook(q[row], k[row], v[row]), atol=2e-6)


@pytest.mark.parametrize("rule", RULES)
def test_causal_attention_by_each_rule(rule: str) -> None:
    q, k, v = normal(1, 192, 4, 16), normal(1, 192, 2, 16), normal(1, 192, 2, 16)
    out = np.asarray(jax.jit(partial(causal_attention, **RULES[rule]))(q, k, v))[0]
    np.testing.assert_allclose(out, textbook(q[0], k[0], v[0], **RULES[rule]), atol=5e-6)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("seq", "start"), [(64, 0), (64, 192), (96, 100), (128, 128), (32, 7)])
def test_a_chunk_of_queries_sees_all_keys_before_it(seq: int, start: int, window: int | None) -> None:
    q, k, v = normal(1, seq, 4, 16), normal(1, 256, 2, 16), normal(1, 256, 2, 16)
    run = jax.jit(lambda q, k, v, start: causal_attention(q, k, v, window=window, query_start=start))
    expected = textbook(q[0], k[0], v[0], window=window, query_start=start)
    np.testing.assert_allclose(np.asarray(run(q, k, v, start))[0], expected, atol=5e-6)


def test_causal_attention_reads_no_block_that_its_queries_may_not_see() -> None:
    q, k, v = normal(1, 384, 2, 16), normal(1, 384, 2, 16), normal(1, 384, 2, 16)
    run = jax.jit(partial(causal_attention, window=100))
    whole = np.asarray(run(q, k, v))
    for unseen, queries in ((slice(0, 128), slice(256, 384)), (slice(128, 384), slice(0, 128))):
        lost = [x.copy() for x in (k, v)]
        for x in lost:
            x[:, unseen] = np.nan
        np.testing.assert_array_equal(np.asarray(run(q, *lost))[:, queries], whole[:, queries])


def test_padding_changes_no_bit() -> None:
    q, k, v = normal(1, 512, 4, 16), normal(1, 512, 2, 16), normal(1, 512, 2, 16)
    for window in (None, 100):
        run = jax.jit(partial(causal_attention, window=window))
        short = np.asarray(run(q[:, :256], k[:, :256], v[:, :256]))
        np.testing.assert_array_equal(np.asarray(run(q, k, v))[:, :256], short)


PAGE = 16


def paged(context: np.ndarray, table: np.ndarray, pages: int) -> np.ndarray:
    """[slots, positions, kv_heads, d] laid into pages as the table says; the rest of the pool is NaN."""
    pool = np.full((pages, context.shape[2], PAGE, context.shape[3]), np.nan, np.float32)
    for slot in range(len(table)):
        for block, page in enumerate(table[slot]):
            pool[page] = np.swapaxes(context[slot, block * PAGE : (block + 1) * PAGE], 0, 1)
    return pool


def pages_of(slots: int, blocks: int) -> np.ndarray:
    """A table that scatters every slot's blocks over the pool; page 0 is nobody's."""
    return (RNG.permutation(slots * blocks).reshape(slots, blocks) + 1).astype(np.int32)


@pytest.mark.parametrize("loop_over_slots", [True, False])
@pytest.mark.parametrize(("kv_heads", "rule"), [(1, "plain"), (4, "plain"), *((2, rule) for rule in RULES)])
def test_paged_attention_is_the_textbook_formula(kv_heads: int, rule: str, loop_over_slots: bool) -> None:
    slots, blocks, heads, d = 8, 4, 4, 16
    lengths = np.array([1, 15, 16, 17, 33, 64, 50, 0], np.int32)
    keys, values = normal(slots, blocks * PAGE, kv_heads, d), normal(slots, blocks * PAGE, kv_heads, d)
    table = pages_of(slots, blocks)
    q = normal(slots, heads, d)
    pools = [jnp.asarray(paged(x, table, slots * blocks + 1)) for x in (keys, values)]
    run = jax.jit(partial(paged_attention, **RULES[rule]), static_argnums=5)
    out = np.asarray(run(q, *pools, table, lengths, loop_over_slots))
    for slot, length in enumerate(lengths):
        if length:
            expected = textbook(q[slot][None], keys[slot, :length], values[slot, :length], **RULES[rule])[0]
            np.testing.assert_allclose(out[slot], expected, atol=5e-6)
        else:
            np.testing.assert_array_equal(out[slot], 0)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("loop_over_slots", [True, False])
def test_a_slot_does_not_notice_the_others(loop_over_slots: bool, window: int | None) -> None:
    """Bit for bit: alone among empty slots, or beside longer ones, on other pages and in another slot."""
    blocks, heads, kv_heads, d = 6, 4, 2, 16
    run = jax.jit(partial(paged_attention, window=window), static_argnums=5)
    context = [normal(8, blocks * PAGE, kv_heads, d) for _ in range(2)]
    q = normal(8, heads, d)

    def at(slot_of: list[int], lengths: list[int]) -> np.ndarray:
        table = pages_of(8, blocks)
        pools = [jnp.asarray(paged(x[slot_of], table, 8 * blocks + 1)) for x in context]
        return np.asarray(run(q[slot_of], *pools, table, np.array(lengths, np.int32), loop_over_slots))

    alone = at(list(range(8)), [25, 0, 0, 0, 0, 0, 0, 0])[0]
    crowded = at([7, 6, 5, 4, 3, 2, 1, 0], [96, 3, 0, 50, 80, 33, 16, 25])[7]
    np.testing.assert_array_equal(alone, crowded)


@pytest.mark.parametrize("loop_over_slots", [True, False])
def test_paged_attention_reads_no_page_outside_the_window(loop_over_slots: bool) -> None:
    """So long contexts cost no more than the window, and slots of different lengths walk their windows together."""
    q, context = normal(2, 4, 16), normal(2, 6 * PAGE, 2, 16)
    table, lengths = pages_of(2, 6), np.array([96, 40], np.int32)
    run = jax.jit(partial(paged_attention, window=20), static_argnums=5)

    def out() -> np.ndarray:
        pool = jnp.asarray(paged(context, table, 13))
        return np.asarray(run(q, pool, pool, table, lengths, loop_over_slots))

    whole = out()
    context[0, : 4 * PAGE] = context[1, :PAGE] = np.nan  # the windows begin at 76 and 20
    context[1, 3 * PAGE :] = np.nan  # beyond the sequence
    np.testing.assert_array_equal(out(), whole)


@pytest.mark.parametrize("loop_over_slots", [True, False])
@pytest.mark.parametrize(
    ("axes", "window"),
    [
        (("x",), None),
        (("z", "y"), 20),
        (("x", "y", "z"), 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((("x",), 40), (("z", "y"), None))),
    ],
)
def test_positions_over_chips_merge_into_the_whole(
    axes: tuple[MeshAxis, ...], loop_over_slots: bool, window: int | None
) -> None:
    """Block b of a slot is on chip b mod n; every chip ends up with the results of its share of the slots."""
    slots, heads, kv_heads, d = 8, 4, 2, 16
    shape = MeshShape(2, 2, 2)
    chips = shape.size(axes)
    blocks = 2 * chips
    lengths = np.array([1, 15, 16, 17, 33, blocks * PAGE, 50, 0], np.int32)
    keys, values = normal(slots, blocks * PAGE, kv_heads, d), normal(slots, blocks * PAGE, kv_heads, d)
    table = pages_of(slots, blocks)
    q = normal(slots, heads, d)
    pools = [jnp.asarray(paged(x, table, slots * blocks + 1)) for x in (keys, values)]
    by_chip = np.swapaxes(table.reshape(slots, 2, chips), 1, 2)  # [slots, chips, own blocks]

    def program(q: Any, keys: Any, values: Any, by_chip: Any, lengths: Any) -> Any:
        chip = collectives.index(axes)
        own = lax.dynamic_index_in_dim(by_chip, chip, axis=1, keepdims=False)
        found = paged_attention_partial(
            q,
            keys,
            values,
            own,
            lengths,
            loop_over_slots,
            softcap=3.0,
            window=window,
            first_block=chip,
            block_stride=chips,
        )
        return finish(merge_partials(found, axes))

    sharded = jax.shard_map(program, mesh=make_mesh(shape), in_specs=(P(),) * 5, out_specs=P(axes), check_vma=False)
    out = np.asarray(jax.jit(sharded)(q, *pools, by_chip, lengths)).reshape(slots, heads, d)
    one_chip = jax.jit(partial(paged_attention, softcap=3.0, window=window), static_argnums=5)
    whole = one_chip(q, *pools, table, lengths, loop_over_slots)
    np.testing.assert_allclose(out, np.asarray(whole), atol=2e-6)
    assert np.abs(out[:-1]).max(axis=(1, 2)).min() > 0
