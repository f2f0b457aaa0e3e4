"""Attention over an int8 cache is attention over the numbers it stands for, with no floating copy of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.attention import paged_attention
from engine.model.quantized import Quantized, dequantize, quantize

RNG = np.random.default_rng(0)
SLOTS, BLOCKS, PAGE, HEADS, HEAD_DIM = 8, 4, 16, 4, 32
LENGTHS = np.array([1, 15, 16, 17, 33, 64, 50, 0], np.int32)
TABLE = (RNG.permutation(SLOTS * BLOCKS).reshape(SLOTS, BLOCKS) + 1).astype(np.int32)


def pool(kv_heads: int) -> Quantized:
    """Positions and heads of different sizes."""
    shape = (SLOTS * BLOCKS + 1, kv_heads, PAGE, HEAD_DIM)
    return quantize(jnp.asarray((RNG.standard_normal(shape) * RNG.uniform(0.2, 2, (*shape[:3], 1))).astype(np.float32)))


def attend(queries: np.ndarray, keys: Any, values: Any, loop_over_slots: bool, **rules: Any) -> np.ndarray:
    run = jax.jit(partial(paged_attention, **rules), static_argnums=5)
    return np.asarray(run(jnp.asarray(queries), keys, values, TABLE, LENGTHS, loop_over_slots))


RULES: list[dict] = [{}, {"softcap": 2.0, "scale": 0.3}, {"window": 20}]
EVERY_WAY = [
    pytest.param(kv_heads, loop, rules, marks=pytest.mark.slow if kv_heads != 2 and (rules or not loop) else ())
    for kv_heads in (1, 2, 4)
    for loop in (True, False)
    for rules in RULES
]


@pytest.mark.parametrize(("kv_heads", "loop_over_slots", "rules"), EVERY_WAY)
def test_it_is_attention_over_the_dequantised_cache(kv_heads: int, loop_over_slots: bool, rules: dict) -> None:
    queries = RNG.standard_normal((SLOTS, HEADS, HEAD_DIM)).astype(np.float32)
    keys, values = pool(kv_heads), pool(kv_heads)
    out = attend(queries, keys, values, loop_over_slots, **rules)
    np.testing.assert_allclose(
        out, attend(queries, dequantize(keys), dequantize(values), loop_over_slots, **rules), atol=3e-6
    )


def test_in_bfloat16_the_integers_are_exact() -> None:
    """Only queries, softmax weights and the result are rounded, as over a bfloat16 cache."""
    queries = jnp.asarray(RNG.standard_normal((SLOTS, HEADS, HEAD_DIM)), jnp.bfloat16)
    keys, values = pool(2), pool(2)
    run = jax.jit(paged_attention, static_argnums=5)
    out = run(queries, keys, values, TABLE, LENGTHS, False)
    wide = run(queries.astype(jnp.float32), dequantize(keys), dequantize(values), TABLE, LENGTHS, False)
    assert out.dtype == jnp.bfloat16
    largest = np.abs(np.asarray(wide)).max()
    np.testing.assert_allclose(np.asarray(out).astype(np.float32), wide, atol=3 * 2**-9 * largest)


@pytest.mark.parametrize("loop_over_slots", [True, False])
def test_a_slot_does_not_notice_the_others(loop_over_slots: bool) -> None:
    queries = RNG.standard_normal((SLOTS, HEADS, HEAD_DIM)).astype(np.float32)
    keys, values = pool(2), pool(2)
    run = jax.jit(paged_attention, static_argnums=5)
    crowded = np.asarray(run(jnp.asarray(queries), keys, values, TABLE, LENGTHS, loop_over_slots))
    for slot in (4, 6):
        alone = np.where(np.arange(SLOTS) == 0, LENGTHS[slot], 0).astype(np.int32)
        order = np.roll(np.arange(SLOTS), -slot)
        out = run(jnp.asarray(queries[order]), keys, values, TABLE[order], alone, loop_over_slots)
        np.testing.assert_array_equal(np.asarray(out)[0], crowded[slot])


@pytest.mark.parametrize("loop_over_slots", [True, False])
def test_the_cache_is_not_dequantised(loop_over_slots: bool) -> None:
    big = jax.eval_shape(lambda: Quantized(jnp.zeros((4096, 2, 16, 64), jnp.int8), jnp.zeros((4096, 2, 16))))
    queries = jax.ShapeDtypeStruct((SLOTS, HEADS, 64), jnp.float32)
    table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((SLOTS, 512), (SLOTS,)))
    lowered = jax.jit(paged_attention, static_argnums=5).lower(queries, big, big, table, lengths, loop_over_slots)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < big.values.size / 4
