"""Norms against their formulas in float64, the order in which they round, and rows split over chips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from engine.axes import MeshAxis
from engine.mesh import MeshShape, make_mesh
from engine.model.config import ModelConfig
from engine.model.norms import layer_norm, norm, rms_norm
from tests.engine.test_row_independence import same_for_all_rows

KINDS: dict[str, dict[str, Any]] = {
    "Llama's": {"norm": "rms"},
    "Gemma's": {"norm": "rms", "norm_scale_from_one": True},
    "GPT-2's": {"norm": "layer", "norm_bias": True},
    "PaLM's": {"norm": "layer"},
    "all at once": {"norm": "layer", "norm_bias": True, "norm_scale_from_one": True},
}
ROWS, EMBED = 16, 72
CONFIG = ModelConfig(
    layers=1,
    embed=EMBED,
    ffn=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    vocab=8,
    context_tokens=8,
    norm_epsilon=1e-3,
    rotary=None,
    tied_head=True,
)


def config_of(kind: str) -> ModelConfig:
    return replace(CONFIG, **KINDS[kind])


def inputs(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0.5, 2.0, (ROWS, EMBED))
    scale, bias = rng.uniform(0.5, 1.5, EMBED), rng.standard_normal(EMBED)
    found = [part.astype(np.float32) for part in (x, scale, bias)]
    return found[0], found[1], found[2] if config_of(kind).norm_bias else None


def formula(config: ModelConfig, x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    x, scale = x.astype(np.float64), scale.astype(np.float64)
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
    return x * (1 + scale if config.norm_scale_from_one else scale) + (0 if bias is None else bias)


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_its_formula(kind: str) -> None:
    config = config_of(kind)
    x, scale, bias = inputs(kind)
    out = jax.jit(lambda x, scale, bias: norm(x, scale, bias, config))(x, scale, bias)
    np.testing.assert_allclose(np.asarray(out), formula(config, x, scale, bias), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [("x",), ("z", "y"), ("x", "y", "z")])
def test_a_row_split_over_chips_is_normalised_as_one(axes: tuple[MeshAxis, ...], kind: str) -> None:
    config = config_of(kind)
    x, scale, bias = inputs(kind)
    sharded = jax.shard_map(
        lambda x, scale, bias: norm(x, scale, bias, config, axes),
        mesh=make_mesh(MeshShape(2, 2, 2)),
        in_specs=(P(None, axes), P(axes), P(axes)),
        out_specs=P(None, axes),
        check_vma=False,
    )
    out = np.asarray(jax.jit(sharded)(x, scale, bias))
    whole = jax.jit(lambda x, scale, bias: norm(x, scale, bias, config))(x, scale, bias)
    np.testing.assert_allclose(out, np.asarray(whole), atol=1e-6)


@pytest.mark.parametrize("kind", ["Llama's", "all at once"])
def test_a_row_has_the_same_bits_beside_any_others(kind: str) -> None:
    config = config_of(kind)
    _, scale, bias = inputs(kind)
    x = np.random.default_rng(1).standard_normal((256, EMBED)).astype(np.float32)
    vectors = [None if part is None else jnp.asarray(part) for part in (scale, bias)]
    same_for_all_rows(lambda x: norm(x, *vectors, config), x)


def test_llama_rounds_before_it_scales_and_gemma_afterwards() -> None:
    x, scale, _ = (part if part is None else part.astype(ml_dtypes.bfloat16) for part in inputs("Llama's"))
    assert x is not None
    assert scale is not None
    unit = formula(config_of("Llama's"), x, np.ones(EMBED), None).astype(np.float32).astype(ml_dtypes.bfloat16)
    llama = np.asarray(jax.jit(lambda x, scale: rms_norm(x, scale, 1e-3))(x, scale))
    np.testing.assert_array_equal(llama, unit * scale)
    gemma = np.asarray(jax.jit(lambda x, scale: rms_norm(x, scale, 1e-3, scale_from_one=True))(x, scale))
    once = formula(config_of("Gemma's"), x, scale, None).astype(np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(gemma, once)
    twice = unit * (1 + scale.astype(np.float32)).astype(ml_dtypes.bfloat16)
    assert (gemma != twice).any()


def test_layer_norm_loses_no_digits_far_from_zero() -> None:
    """The mean of squares less the square of the mean would: here it has no correct digit left."""
    x = (np.random.default_rng(0).standard_normal((ROWS, EMBED)) + 10_000).astype(np.float32)
    out = jax.jit(lambda x: layer_norm(x, jnp.ones(EMBED), 1e-5))(x)
    expected = formula(replace(CONFIG, norm="layer", norm_epsilon=1e-5), x, np.ones(EMBED), None)
    np.testing.assert_allclose(np.asarray(out), expected, atol=2e-3)  # the mean itself is rounded to 1/1000 of a std
