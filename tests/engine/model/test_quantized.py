"""Quantisation's bound, and a quantised array as a tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from engine.collectives import all_gather
from engine.mesh import MeshShape, make_mesh
from engine.model.quantized import Quantized, dequantize, quantize, quantize_heads

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    """Channels of very different sizes."""
    return (RNG.standard_normal(shape) * 10.0 ** RNG.uniform(-3, 3, (*shape[:-1], 1))).astype(np.float32)


def by_channel(scale: Any, inputs: int) -> np.ndarray:
    return np.asarray(scale)[(..., *(None,) * inputs)]


@pytest.mark.parametrize(("shape", "inputs"), [((5, 64), 1), ((4, 6, 32), 1), ((7, 4, 16), 2), ((2, 7, 16), 1)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_each_number_is_within_half_a_step(shape: tuple[int, ...], inputs: int, dtype: Any) -> None:
    w = weights(*shape).astype(dtype)
    q = quantize(w, inputs)
    assert (q.shape, q.inputs, q.scale.shape) == (shape, inputs, shape[: len(shape) - inputs])
    assert (q.values.dtype, q.scale.dtype, type(q.values)) == (np.int8, np.float32, np.ndarray)
    wide = w.astype(np.float64)
    assert (np.abs(np.asarray(dequantize(q)) - wide) <= by_channel(q.scale, inputs) * (0.5 + 1e-4)).all()
    contracted = tuple(range(len(shape) - inputs, len(shape)))
    np.testing.assert_allclose(q.scale, np.abs(wide).max(contracted) / 127, rtol=1e-6)
    np.testing.assert_array_equal(np.abs(q.values).max(contracted), 127)  # no step is wasted


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numpy_jax_and_a_compiled_program_give_the_same_numbers(dtype: Any) -> None:
    w = weights(64, 256).astype(dtype)
    ours = quantize(w)
    for other in (quantize(jnp.asarray(w)), jax.jit(quantize)(w)):
        np.testing.assert_array_equal(other.values, ours.values)
        np.testing.assert_array_equal(other.scale, ours.scale)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_keys_and_values_quantised_together_are_those_quantised_alone(dtype: Any) -> None:
    keys, values = (jnp.asarray(weights(5, 3, 64).astype(dtype)) for _ in range(2))
    for alone, together in zip((keys, values), jax.jit(quantize_heads)(keys, values), strict=True):
        for one, other in zip(jax.tree.leaves(quantize(alone)), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(one, other)


def test_ties_go_to_even_and_the_sign_does_not_matter() -> None:
    w = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], np.float32)
    np.testing.assert_array_equal(quantize(w).values, [[127, 0, 2, 2, 0, -2, -126]])
    np.testing.assert_array_equal(quantize(-w).values, -quantize(w).values)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38])
def test_a_channel_of_nothing_is_zeros(size: float) -> None:
    w = np.stack([np.full(8, size, np.float32), np.ones(8, np.float32)])
    for q in (quantize(w), quantize(jnp.asarray(w))):
        np.testing.assert_array_equal(q.scale, np.array([1, 1 / 127], np.float32))
        np.testing.assert_array_equal(q.values, np.stack([np.zeros(8), np.full(8, 127)]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_still_shows(bad: float) -> None:
    w = np.ones((2, 8), np.float32)
    w[1, 3] = bad
    for q in (quantize(w), quantize(jnp.asarray(w))):
        assert np.isfinite(q.scale[0])
        assert not np.isfinite(q.scale[1])


def test_it_is_a_tree_of_two_arrays() -> None:
    q = quantize(weights(4, 6, 8))
    (values_path, values), (scale_path, scale) = jax.tree_util.tree_flatten_with_path(q)[0]
    assert (jax.tree_util.keystr(values_path), jax.tree_util.keystr(scale_path)) == (".values", ".scale")
    assert values is q.values
    assert scale is q.scale
    assert q.nbytes == values.nbytes + scale.nbytes == 4 * 6 * 8 + 4 * 4 * 6
    first = jax.tree.map(lambda leaf: leaf[0], q)
    np.testing.assert_array_equal(dequantize(first), dequantize(q)[0])


def test_values_and_scales_are_split_and_gathered_each_by_its_own_axes() -> None:
    """At rest [outputs.x, inputs.y] with scales whole; gathered over y it is int8 that moves."""
    w = weights(8, 64)
    q = quantize(w)

    def gather(part: Quantized) -> Quantized:
        assert part.shape == (4, 32)
        return Quantized(all_gather(part.values, ("y",), dim=1), part.scale)

    split, gathered = Quantized(P("x", "y"), P()), Quantized(P("x"), P())
    mesh = make_mesh(MeshShape(2, 2, 2))
    program = jax.jit(jax.shard_map(gather, mesh=mesh, in_specs=(split,), out_specs=gathered, check_vma=False))
    out = program(q)
    np.testing.assert_array_equal(out.values, q.values)
    np.testing.assert_array_equal(out.scale, q.scale)
    gathers = [line for line in program.lower(q).compile().as_text().splitlines() if " all-gather(" in line]
    assert len(gathers) == 1
    assert "s8[" in gathers[0]
