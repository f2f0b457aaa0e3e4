"""Activations against their definitions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args, get_type_hints

import jax
import ml_dtypes
import numpy as np
import pytest

from engine.model.activations import activation
from engine.model.config import ModelConfig
from tests.engine.test_row_independence import same_for_all_rows

DEFINITIONS: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}
X = np.concatenate([np.linspace(-12, 12, 481), [-30.0, -1e-3, 0.0, 1e-3, 30.0]]).astype(np.float32)


def expected(name: str, x: np.ndarray) -> np.ndarray:
    return np.array([DEFINITIONS[name](float(one)) for one in x])


def test_there_is_one_for_every_name_of_the_config() -> None:
    assert set(get_args(get_type_hints(ModelConfig)["activation"])) == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_activation_is_its_definition(name: str) -> None:
    np.testing.assert_allclose(np.asarray(jax.jit(activation(name))(X)), expected(name, X), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_bfloat16_is_rounded_once(name: str) -> None:
    """So results are off by half a unit in the last place; a float32 sum may fall on the other side of a tie."""
    x = X.astype(ml_dtypes.bfloat16)
    out = np.asarray(jax.jit(activation(name))(x))
    assert out.dtype == ml_dtypes.bfloat16
    exact = expected(name, x.astype(np.float32))
    np.testing.assert_allclose(out.astype(np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_row_has_the_same_bits_beside_any_others(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((256, 52)).astype(np.float32) * 3
    same_for_all_rows(activation(name), x)
