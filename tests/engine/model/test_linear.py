"""The product against float64, of plain and of int8 weights; lookups; and that no floating copy of int8 is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.linear import linear, take
from engine.model.quantized import dequantize, quantize

RNG = np.random.default_rng(0)
F32 = jnp.dtype(jnp.float32)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


SHAPES = [((48,), (96,)), ((4, 16), (96,)), ((96,), (4, 16)), ((), (32,))]  # outputs, inputs


def product(x: Any, weight: np.ndarray, inputs: int) -> np.ndarray:
    return np.tensordot(np.asarray(x, np.float64), weight.astype(np.float64), (range(1, 1 + inputs), range(-inputs, 0)))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_it_contracts_the_last_axes_and_adds_the_bias(
    outputs: tuple[int, ...], inputs: tuple[int, ...], int8: bool
) -> None:
    x, weight, bias = normal(9, *inputs), normal(*outputs, *inputs), normal(*outputs)
    held = quantize(jnp.asarray(weight), len(inputs)) if int8 else jnp.asarray(weight)
    exact = product(x, np.asarray(dequantize(held)), len(inputs))
    out = jax.jit(linear, static_argnames=("inputs", "out_dtype"))(x, held, inputs=len(inputs))
    np.testing.assert_allclose(out, exact, atol=2e-5)
    with_bias = jax.jit(linear, static_argnames=("inputs",))(x, held, bias, inputs=len(inputs))
    np.testing.assert_allclose(with_bias, exact + bias, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_int8_product_is_within_its_bound(dtype: str) -> None:
    """Each weight is off by at most half a step, so a product by at most scale / 2 * sum |x|."""
    x, weight = jnp.asarray(normal(32, 256), jnp.dtype(dtype)), normal(64, 256) * 10.0 ** RNG.uniform(-2, 2, (64, 1))
    held = quantize(jnp.asarray(weight.astype(np.float32)))
    off = np.abs(np.asarray(linear(x, held, out_dtype=F32)) - product(x, weight.astype(np.float32), 1))
    bound = np.asarray(held.scale)[None, :] / 2 * np.abs(np.asarray(x, np.float64)).sum(1, keepdims=True)
    assert (off <= bound * (1 + 1e-4)).all()
    assert off.max() > (bound / 100).max()  # the bound is not met by being far away


def test_in_bfloat16_the_sum_is_rounded_once() -> None:
    """Integers up to 127 are exact in bfloat16 and the sum is float32, so only the result is rounded."""
    x, held = jnp.asarray(normal(16, 4096), jnp.bfloat16), quantize(jnp.asarray(normal(8, 4096)))
    exact = product(x, np.asarray(dequantize(held)), 1)
    np.testing.assert_allclose(np.asarray(linear(x, held, out_dtype=F32)), exact, atol=2e-3)
    np.testing.assert_allclose(np.asarray(linear(x, held)).astype(np.float64), exact, rtol=2**-8, atol=2e-3)


def test_outputs_that_no_block_divides() -> None:
    """On CPU the converted weights stand in memory a block at a time; 349 outputs of 4096 inputs are six of them."""
    x, held = jnp.asarray(normal(8, 4096)), quantize(jnp.asarray(normal(349, 4096)))
    np.testing.assert_allclose(linear(x, held), product(x, np.asarray(dequantize(held)), 1), rtol=1e-4, atol=1e-3)


def test_no_floating_copy_of_the_weights_is_kept() -> None:
    layers = [quantize(jnp.asarray(normal(2048, 2048))) for _ in range(4)]

    def program(x: Any, layers: list[Any]) -> Any:
        for layer in layers:
            x = linear(x, layer)
        return x

    memory = jax.jit(program).lower(normal(8, 2048), layers).compile().memory_analysis()
    assert memory.temp_size_in_bytes < sum(layer.nbytes for layer in layers) / 4


def test_an_activation_of_another_width_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"x\.shape=\(3, 8\)"):
        linear(jnp.zeros((3, 8)), jnp.zeros((4, 16)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_take_looks_rows_up(dtype: str) -> None:
    table, indices = normal(20, 32), jnp.array([[3, 0], [19, 3]], jnp.int32)
    held = quantize(jnp.asarray(table))
    for found, expected in (
        (take(jnp.asarray(table), indices, jnp.dtype(dtype)), table),
        (take(held, indices, jnp.dtype(dtype)), np.asarray(dequantize(held))),
    ):
        assert found.dtype == dtype
        np.testing.assert_array_equal(np.asarray(found), expected[indices].astype(found.dtype))


def test_a_lookup_does_not_dequantise_the_table() -> None:
    held = quantize(jnp.asarray(normal(4096, 64)))
    memory = jax.jit(take, static_argnums=2).lower(held, jnp.arange(8), F32).compile().memory_analysis()
    assert memory.temp_size_in_bytes < held.values.nbytes / 8
