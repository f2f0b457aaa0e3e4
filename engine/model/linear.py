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
from jaxtyping import Array, Float, Int

from engine.model.quantized import Quantized, dequantize, parts


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
    if scale is not None:
        flat = flat.astype(x.dtype)  # exact, in bfloat16 too
    product = lax.dot_general(x, flat, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    if scale is not None:
        product = product * scale.reshape(1, -1)
    if bias is not None:
        product = product + bias.reshape(1, -1).astype(jnp.float32)
    return product.astype(out_dtype or x.dtype).reshape(x.shape[0], *outputs)


def take(table: Float[Array, "rows columns"] | Quantized, indices: Int[Array, "..."], dtype: jnp.dtype) -> Array:
    """Rows of a table (an embedding), in `dtype`; only those that are taken are dequantised."""
    return dequantize(jax.tree.map(lambda leaf: leaf[indices], table), dtype)
