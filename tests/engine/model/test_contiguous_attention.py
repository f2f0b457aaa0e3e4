"""A page a slot against the textbook formula and against pages: the same numbers, and no slot notices another."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from engine import collectives
from engine.axes import MeshAxis
from engine.mesh import MeshShape, make_mesh
from engine.model.attention import finish, merge_partials
from engine.model.contiguous_attention import contiguous_attention_partial
from engine.model.quantized import dequantize, quantize
from tests.engine.model.test_attention import RULES, normal, textbook

SLOTS, HEADS, HEAD_DIM, HELD = 8, 4, 16, 96
LENGTHS = np.array([1, 15, 16, 17, 33, 96, 50, 0], np.int32)


def attend(q: Any, keys: Any, values: Any, lengths: Any = LENGTHS, **rules: Any) -> np.ndarray:
    run = jax.jit(lambda *args: finish(contiguous_attention_partial(*args, **rules)))
    return np.asarray(run(q, keys, values, lengths)).reshape(q.shape)


@pytest.mark.parametrize(("kv_heads", "rule"), [(1, "plain"), (4, "plain"), *((2, rule) for rule in RULES)])
def test_it_is_the_textbook_formula(kv_heads: int, rule: str) -> None:
    q, keys, values = normal(SLOTS, HEADS, HEAD_DIM), *(normal(SLOTS, kv_heads, HELD, HEAD_DIM) for _ in range(2))
    out = attend(q, keys, values, **RULES[rule])
    for slot, length in enumerate(LENGTHS):
        if length:
            k, v = (np.swapaxes(x[slot, :, :length], 0, 1) for x in (keys, values))
            np.testing.assert_allclose(out[slot], textbook(q[slot][None], k, v, **RULES[rule])[0], atol=5e-6)
        else:
            np.testing.assert_array_equal(out[slot], 0)


@pytest.mark.parametrize("rules", [{}, {"softcap": 3.0, "window": 20}])
def test_int8_is_attention_over_the_dequantised_cache(rules: dict[str, Any]) -> None:
    q, pools = normal(SLOTS, HEADS, HEAD_DIM), [quantize(jnp.asarray(normal(SLOTS, 2, HELD, HEAD_DIM))) for _ in "kv"]
    out = attend(q, *pools, **rules)
    np.testing.assert_allclose(out, attend(q, *map(dequantize, pools), **rules), atol=3e-6)


@pytest.mark.parametrize("rules", [{}, {"window": 20}])
@pytest.mark.parametrize("int8", [False, True])
def test_a_slot_does_not_notice_the_others(int8: bool, rules: dict[str, Any]) -> None:
    """Bit for bit: alone among empty slots, beside others, in another slot, on a page with other leavings."""
    q, pools = normal(SLOTS, HEADS, HEAD_DIM), [normal(SLOTS, 2, HELD, HEAD_DIM) for _ in range(2)]
    stored = quantize if int8 else lambda pool: pool
    crowded = attend(q, *(stored(jnp.asarray(pool)) for pool in pools), **rules)
    order = np.array([7, 6, 5, 4, 3, 2, 1, 0])
    for slot in (2, 4, 6):
        alone = np.where(order == slot, LENGTHS[order], 0).astype(np.int32)
        dirty = [pool[order].copy() for pool in pools]
        for pool in dirty:
            pool[order != slot] = 7
            pool[order == slot, :, LENGTHS[slot] :] = -3
        out = attend(q[order], *(stored(jnp.asarray(pool)) for pool in dirty), alone, **rules)
        np.testing.assert_array_equal(out[list(order).index(slot)], crowded[slot])


@pytest.mark.parametrize(("axes", "window"), [(("x",), None), (("z", "y"), 20), (("x", "y", "z"), None)])
def test_positions_over_chips_merge_into_the_whole(axes: tuple[MeshAxis, ...], window: int | None) -> None:
    """Block b of a slot is on chip b mod n, in its page beside that chip's others."""
    shape = MeshShape(2, 2, 2)
    chips, block = shape.size(axes), 4
    q, pools = normal(SLOTS, HEADS, HEAD_DIM), [normal(SLOTS, 2, HELD, HEAD_DIM) for _ in range(2)]

    def by_chip(pool: np.ndarray) -> np.ndarray:
        blocks = pool.reshape(SLOTS, 2, HELD // block // chips, chips, block, HEAD_DIM)
        return np.moveaxis(blocks, 3, 0).reshape(chips, SLOTS, 2, HELD // chips, HEAD_DIM)

    def program(q: Any, keys: Any, values: Any, lengths: Any) -> Any:
        how = partial(contiguous_attention_partial, softcap=3.0, window=window)
        where = {"first_block": collectives.index(axes), "block_stride": chips, "block_tokens": block}
        return finish(merge_partials(how(q, keys[0], values[0], lengths, **where), axes))

    specs = (P(), P(axes), P(axes), P())
    sharded = jax.shard_map(program, mesh=make_mesh(shape), in_specs=specs, out_specs=P(axes), check_vma=False)
    out = np.asarray(jax.jit(sharded)(q, *map(by_chip, pools), LENGTHS)).reshape(q.shape)
    np.testing.assert_allclose(out, attend(q, *pools, softcap=3.0, window=window), atol=2e-6)
