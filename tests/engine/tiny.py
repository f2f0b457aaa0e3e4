"""A random model small enough for a test, without any file."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from engine.compilation.options import DecodeOptions
from engine.model import params as parameters
from engine.model.config import ModelConfig, Rotary
from engine.runtime.engine import Engine

CONFIG = ModelConfig(
    layers=2,
    embed=64,
    ffn=160,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=320,
    context_tokens=512,
    norm_epsilon=1e-5,
    rotary=Rotary(10_000.0),
    tied_head=False,
)
EOS = (2,)


def random_params(config: ModelConfig = CONFIG, seed: int = 0, dtype: str = "float32") -> parameters.Params:
    """Weights spread widely enough that the most likely token is well ahead of the next."""
    rng = np.random.default_rng(seed)

    def make(path: str, declared: parameters.Parameter) -> jnp.ndarray:
        values = rng.standard_normal(declared.shape) * (0.3 if declared.size > config.embed else 1.0)
        return jnp.asarray(values.astype(np.float32), jnp.dtype(dtype))

    return parameters.build(config, make)


def options(**changes: int | str) -> DecodeOptions:
    chosen: dict = {
        "slots": 8,
        "max_length": 256,
        "pages": 8 * 16 + 2,
        "page_tokens": 16,
        "chunk_steps": 8,
        "prefill_tokens": 64,
        "attention": "loop",
    }
    return DecodeOptions(**(chosen | changes))


def tiny_engine(
    config: ModelConfig = CONFIG, seed: int = 0, eos: tuple[int, ...] = EOS, **changes: int | str
) -> Engine:
    return Engine(random_params(config, seed), config, options(**changes), eos)


def prompts(count: int, longest: int, seed: int = 0, vocab: int = CONFIG.vocab) -> list[tuple[int, ...]]:
    """Token ids of random lengths from 1 to `longest`."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, vocab, rng.integers(1, longest + 1)).tolist()) for _ in range(count)]
