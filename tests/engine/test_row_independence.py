"""What a record's sameness rests on: a row's result has the same bits however many rows stand beside it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.linear import linear
from engine.model.quantized import quantize
from engine.model.reductions import log_sum_exp, row_sum
from engine.planning.buckets import MIN_ROWS
from tests.compiling import AS_USERS_DO

ROWS = (MIN_ROWS, 11, 16, 32, 40, 64, 128, 256)


def same_for_all_rows(function, *columns: np.ndarray) -> None:
    run = jax.jit(function, compiler_options=AS_USERS_DO)
    whole = np.asarray(run(*columns))
    for rows in ROWS:
        np.testing.assert_array_equal(np.asarray(run(*(x[:rows] for x in columns))), whole[:rows], f"{rows} rows")
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(np.asarray(run(*(x[order] for x in columns))), whole[order])


SHAPES = [
    pytest.param(inputs, outputs, dtype, marks=pytest.mark.slow if (number + (dtype == "bfloat16")) % 2 else ())
    for number, (inputs, outputs) in enumerate([(100, 52), (64, 64), (576, 1536), (2048, 512), (14336, 64)])
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.parametrize(("inputs", "outputs", "dtype"), SHAPES)
def test_linear(inputs: int, outputs: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal((n, inputs)), jnp.dtype(dtype)) for n in (256, outputs))
    same_for_all_rows(lambda x: linear(x, weight, out_dtype=jnp.dtype("float32")), x)


@pytest.mark.parametrize(("inputs", "outputs", "dtype"), SHAPES)
def test_linear_with_int8_weights(inputs: int, outputs: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((256, inputs)), jnp.dtype(dtype))
    weight = quantize(jnp.asarray(rng.standard_normal((outputs, inputs)), jnp.dtype(dtype)))
    same_for_all_rows(lambda x: linear(x, weight, out_dtype=jnp.dtype("float32")), x)


@pytest.mark.parametrize(
    "columns", [1, 5, *(pytest.param(columns, marks=pytest.mark.slow) for columns in (64, 320, 4096)), 32000]
)
def test_sums(columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((256, columns)).astype(np.float32) * 3
    same_for_all_rows(row_sum, x)
    same_for_all_rows(log_sum_exp, x)
    np.testing.assert_allclose(np.asarray(jax.jit(row_sum)(x)), x.astype(np.float64).sum(-1), atol=1e-3)
