"""The TPU's attention kernel, interpreted, against attention by blocks; and that a TPU's prefill has it inside."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.attention import causal_attention
from engine.model.partition import Partition
from engine.model.splash import fits, splash_attention, tile
from engine.steps.prefill import prefill
from tests.engine.tiny import CONFIG, random_params

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def both(q: Any, k: Any, v: Any, start: int, **rules: Any) -> tuple[np.ndarray, np.ndarray]:
    interpreted = jax.jit(lambda q, k, v, start: splash_attention(q, k, v, query_start=start, interpret=True, **rules))
    blocks = jax.jit(lambda q, k, v, start: causal_attention(q, k, v, query_start=start, **rules))
    return np.asarray(interpreted(q, k, v, start)), np.asarray(blocks(q, k, v, start))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "rules"),
    [
        (4, 2, {}),
        (4, 1, {"scale": 0.3, "softcap": 2.0}),
        (2, 2, {"window": 150}),
        (2, 1, {"window": 1, "softcap": 5.0}),
    ],
)
def test_rows_as_by_blocks(heads: int, kv_heads: int, rules: dict[str, Any]) -> None:
    """Three tiles long, so there are tiles that all, some and none of the queries see."""
    q, k, v = normal(2, 384, heads, 16), normal(2, 384, kv_heads, 16), normal(2, 384, kv_heads, 16)
    splash, blocks = both(q, k, v, 0, **rules)
    np.testing.assert_allclose(splash, blocks, atol=1e-5)


@pytest.mark.parametrize(("start", "window"), [(0, None), (128, None), (256, 150)])
def test_a_part_of_the_queries_as_by_blocks(start: int, window: int | None) -> None:
    """What a chip does that has an even part of the sequence; which part it is, is known when it runs."""
    q, k, v = normal(1, 128, 4, 16), normal(1, 384, 2, 16), normal(1, 384, 2, 16)
    splash, blocks = both(q, k, v, start, window=window)
    np.testing.assert_allclose(splash, blocks, atol=1e-5)


@pytest.mark.parametrize(
    ("seq", "kv_seq", "wide"), [(128, 128, 128), (384, 384, 128), (2048, 2048, 512), (1536, 3072, 512), (96, 96, None)]
)
def test_tiles_divide_what_fits(seq: int, kv_seq: int, wide: int | None) -> None:
    assert fits(seq, kv_seq) == (wide is not None)
    if wide:
        assert tile(seq) == wide
        assert seq % tile(seq) == kv_seq % tile(kv_seq) == 0


@pytest.mark.parametrize(
    ("kernel", "seq", "there"), [("splash", 128, True), ("splash", 64, False), ("blocks", 128, False)]
)
def test_a_tpu_prefills_with_the_kernel(kernel: Any, seq: int, there: bool) -> None:
    """Lowered for a TPU, which takes none; for the CPU, which could not run it, it is not there."""
    model = replace(Partition.single(CONFIG), attention_kernel=kernel)
    traced = jax.jit(partial(prefill, model=model)).trace(random_params(), tokens=jnp.zeros((2, seq), jnp.int32))
    assert ("tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()) == there
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
