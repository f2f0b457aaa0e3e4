"""Rotary positions against rotation of complex numbers in float64, and the two ways of stretching them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.model.config import LinearScaling, Llama3Scaling, Rotary
from engine.model.positions import inverse_frequencies, rotate, rotation

HEAD_DIM = 64
SCALINGS = {"none": None, "linear": LinearScaling(4.0), "llama3": Llama3Scaling(8.0, 1.0, 4.0, 8192)}


def frequencies(theta: float) -> np.ndarray:
    return theta ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)


def turned(x: np.ndarray, positions: np.ndarray, rotary: Rotary) -> np.ndarray:
    angles = np.exp(1j * positions[:, None] * inverse_frequencies(rotary, HEAD_DIM).astype(np.float64))
    pairs = (x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :]) * angles[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_pair_is_turned_by_its_angle(scaling: str) -> None:
    rotary = Rotary(500_000.0, SCALINGS[scaling])
    positions = np.array([0, 1, 2, 100, 4000], np.int32)
    x = np.random.default_rng(0).standard_normal((5, 3, HEAD_DIM)).astype(np.float32)
    out = jax.jit(lambda x, positions: rotate(x, rotation(positions, rotary, HEAD_DIM)))(x, positions)
    # A float32 angle of 4000 radians is right to 2e-4.
    np.testing.assert_allclose(np.asarray(out), turned(x, positions, rotary), atol=1e-3)
    np.testing.assert_allclose(np.asarray(out)[:3], turned(x, positions, rotary)[:3], atol=2e-6)


def test_only_the_distance_matters() -> None:
    rotary, rng = Rotary(10_000.0), np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, HEAD_DIM)).astype(np.float32)

    @jax.jit
    def logit(at_query: jax.Array, at_key: jax.Array) -> jax.Array:
        turned = (
            rotate(jnp.asarray(x), rotation(at[None], rotary, HEAD_DIM)) for x, at in ((q, at_query), (k, at_key))
        )
        return (next(turned) * next(turned)).sum()

    here, there = (float(logit(jnp.int32(at + 7), jnp.int32(at))) for at in (0, 500))
    assert here == pytest.approx(there, abs=1e-4)
    assert here != pytest.approx(float(logit(jnp.int32(8), jnp.int32(0))), abs=1e-2)


def test_angles_are_float32_whatever_the_activations_are() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, HEAD_DIM)).astype(np.float32)
    positions = np.array([1001], np.int32)  # bfloat16 has no such number
    run = jax.jit(lambda x, positions: rotate(x, rotation(positions, Rotary(10_000.0), HEAD_DIM)))
    out = run(x.astype(jnp.bfloat16), positions)
    assert out.dtype == jnp.bfloat16
    exact = turned(x.astype(jnp.bfloat16).astype(np.float64), positions, Rotary(10_000.0))
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2**-7)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = inverse_frequencies(Rotary(10_000.0, LinearScaling(4.0)), HEAD_DIM)
    np.testing.assert_allclose(scaled, frequencies(10_000.0) / 4, rtol=1e-6)


def test_llama3_scaling_keeps_short_waves_stretches_long_ones_and_mixes_between() -> None:
    scaling = Llama3Scaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context_tokens=8192
    )
    plain = frequencies(500_000.0)
    ratio = inverse_frequencies(Rotary(500_000.0, scaling), HEAD_DIM) / plain
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    assert short.any()
    assert long.any()
    assert not (short | long).all()
    np.testing.assert_allclose(ratio[short], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[long], 1 / 8, rtol=1e-6)
    share = (8192 / wavelength - 1) / 3  # of the frequency as it was
    np.testing.assert_allclose(ratio, np.clip(share, 0, 1) * 7 / 8 + 1 / 8, rtol=1e-5)
