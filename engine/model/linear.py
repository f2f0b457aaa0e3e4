"""The one matrix product of activations with weights, and the one lookup in a table of weights.

Everything that multiplies by a parameter comes through here, so this is the only place that knows of int8 weights.
Their product is taken with the integers, converted on the way into the matrix unit, and its result is scaled: scaling
the weights instead would write a floating copy of them to memory, which is what int8 is there to avoid.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int8

from engine.model.quantized import Quantized, dequantize, parts

_BLOCK_BYTES = 1 << 20  # of converted weights


def linear(
    x: Float[Array, "tokens *inputs"],
    weight: Float[Array, "..."] | Quantized,
    bias: Float[Array, "..."] | None = None,
    out_dtype: jnp.dtype | None = None,
    inputs: int = 1,
) -> Float[Array, "tokens ..."]:
    """x @ weight.T with float32 accumulation; `weight` is [*outputs, *inputs] and its outputs keep their axes.

    `inputs` is how many of the last axes are contracted (attention's output has two, heads and head_dim).

    Both operands are contracted over their minor axis: on CPU that makes a row's result independent of how many rows
    there are (from 8 up), which is what makes a record's answer independent of its batch.
    """
    values, scale = parts(weight)
    outputs, contracted = values.shape[: values.ndim - inputs], values.shape[values.ndim - inputs :]
    assert x.shape[1:] == contracted, f"{x.shape=} does not fit {weight.shape=} with {inputs=}"
    x = x.reshape(x.shape[0], math.prod(contracted))
    flat = values.reshape(math.prod(outputs), math.prod(contracted))
    if scale is None:
        product = _product(x, flat)
    else:
        product = lax.platform_dependent(x, flat, cpu=_by_blocks, default=_converted) * scale.reshape(1, -1)
    if bias is not None:
        product = product + bias.reshape(1, -1).astype(jnp.float32)
    return product.astype(out_dtype or x.dtype).reshape(x.shape[0], *outputs)


def _product(x: Float[Array, "tokens inputs"], weight: Array) -> Float[Array, "tokens outputs"]:
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _converted(x: Float[Array, "tokens inputs"], weight: Int8[Array, "outputs inputs"]) -> Array:
    return _product(x, weight.astype(x.dtype))  # exact, in bfloat16 too


def _by_blocks(x: Float[Array, "tokens inputs"], weight: Int8[Array, "outputs inputs"]) -> Array:
    """The same where the compiler does not convert on the way (CPU): as many outputs at a time as its cache holds.

    Converted at once, all weights of a program would stand in memory as float32 before its first product.
    """
    outputs, inputs = weight.shape
    block = min(outputs, max(32, _BLOCK_BYTES // (inputs * x.dtype.itemsize)))

    def one(index: Int[Array, ""], out: Array) -> Array:
        start = index * block  # slices are clamped to the array: the last block overlaps the one before
        some = lax.dynamic_slice_in_dim(weight, start, block)
        return lax.dynamic_update_slice_in_dim(out, _converted(x, some), start, axis=1)

    return lax.fori_loop(0, -(-outputs // block), one, jnp.zeros((x.shape[0], outputs), jnp.float32))


def take(table: Float[Array, "rows columns"] | Quantized, indices: Int[Array, "..."], dtype: jnp.dtype) -> Array:
    """Rows of a table (an embedding), in `dtype`; only those that are taken are dequantised."""
    return dequantize(jax.tree.map(lambda leaf: leaf[indices], table), dtype)
