"""A pipeline over slices gives what one chip gives: through prefill, hand-over, decode and scoring, and its errors.

On 8 CPU devices, which are slices as they are cut. Logits within 1e-5 of the largest in float32, the same tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine.compilation.options import DecodeOptions, Parts
from engine.compilation.placement import Placement
from engine.errors import NoFeasiblePlan
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.model.config import ModelConfig
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from engine.steps.prefill import flatten
from tests.engine.tiny_models import MODELS, all_logits, padded, place, random_weights

TOLERANCE = 1e-5
TOKENS = np.random.default_rng(1).integers(0, 325, (16, 32)).astype(np.int32)

Phase = tuple[Any, Any]


def model(name: str, layers: int) -> ModelConfig:
    """Small enough that rounding stays below the tolerance."""
    config = MODELS[name]
    return replace(config, layers=layers, windows=config.windows * (layers // 2))


@cache
def weights(config: ModelConfig) -> Any:
    return random_weights(config)


def on_chips(config: ModelConfig, layouts: Layouts) -> tuple[Any, Placement]:
    placement = Placement.on_devices(config, layouts)
    return place(padded(weights(config), placement), placement), placement


@cache
def plain_logits(config: ModelConfig) -> np.ndarray:
    return all_logits(*on_chips(config, Layouts()), TOKENS)


@pytest.mark.parametrize(
    ("name", "layers", "mesh", "layout", "micro_batches"),
    [
        ("gemma2", 4, "2*2x2x1", ("wg-x", "sequence"), 2),
        pytest.param("llama", 8, "8*1x1x1", ("ws2d", "heads"), 4, marks=pytest.mark.slow),
    ],
)
def test_logits(name: str, layers: int, mesh: str, layout: Phase, micro_batches: int) -> None:
    config = model(name, layers)
    params, placement = on_chips(config, Layouts.of(MeshShape.parse(mesh), layout, layout))
    got = all_logits(params, placement, TOKENS, micro_batches)
    tokens = jnp.arange(TOKENS.size).reshape(TOKENS.shape)
    order = np.asarray(flatten(tokens, placement.prefill, micro_batches))
    expected = plain_logits(config)[order]
    np.testing.assert_allclose(got, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def requests(vocab: int) -> tuple[list[GenerateRequest], list[ScoreRequest]]:
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(3, vocab, rng.integers(18, 30)).tolist()) for _ in range(10)]
    generate = [
        GenerateRequest(
            prompt,
            Sampling(temperature=[0.0, 0.8][number % 2], max_tokens=2 + 5 * (number % 4), logprobs=2 * (number % 3)),
            seed=7,
            record=number,
            samples=1 + number % 3,
        )
        for number, prompt in enumerate(prompts)
    ]
    return generate, [ScoreRequest((*prompt, 5, 6, 7)) for prompt in prompts[:3]]


def run(config: ModelConfig, layouts: Layouts, attention: Any) -> tuple[list[Any], list[Any]]:
    options = DecodeOptions(
        slots=12,
        max_length=64,
        pages=12 * 4 + 1,
        page_tokens=16,
        chunk_steps=6,
        prefill_tokens=256,
        attention=attention,
        parts=Parts.of(layouts),
    )
    params, placement = on_chips(config, layouts)
    generate, score = requests(config.vocab)
    with Engine(params, placement, options, (2,)) as engine:
        futures = [engine.submit(request) for request in generate], [engine.submit(request) for request in score]
        generations, scores = ([future.result(timeout=200) for future in some] for some in futures)
    return generations, scores


@cache
def plain_run(config: ModelConfig) -> tuple[list[Any], list[Any]]:
    return run(config, Layouts(), "loop")


def likeliest(sample: Any) -> list[float]:
    return [logprob for step in sample.top_logprobs or () for _, logprob in step]


@pytest.mark.parametrize(
    ("mesh", "prefill", "decode", "attention"),
    [
        pytest.param("4*2x1x1", ("ws1d", "heads"), ("ws1d", "heads"), "paged", marks=pytest.mark.slow),
        ("2*4x1x1", ("wg-xyz", "batch"), ("ws2d", "batch"), "contiguous"),
    ],
)
def test_requests(mesh: str, prefill: Phase, decode: Phase, attention: str) -> None:
    config = model("llama", 4)
    generations, scores = run(config, Layouts.of(MeshShape.parse(mesh), prefill, decode), attention)
    plain_generations, plain_scores = plain_run(config)
    for samples, plain_samples in zip(generations, plain_generations, strict=True):
        for sample, plain in zip(samples, plain_samples, strict=True):
            assert (sample.token_ids, sample.finish_reason) == (plain.token_ids, plain.finish_reason)
            np.testing.assert_allclose(sample.logprobs, plain.logprobs, atol=1e-4, rtol=0)
            np.testing.assert_allclose(likeliest(sample), likeliest(plain), atol=1e-4, rtol=0)
    for score, plain in zip(scores, plain_scores, strict=True):
        assert score.is_greedy == plain.is_greedy
        np.testing.assert_allclose(score.logprobs, plain.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "layers", "mesh", "said"),
    [
        ("llama", 4, "3*2x1x1", r"layers=4 do not divide over 3 slices; .* is 4: 4\*2x1x1"),
        ("llama", 4, "8*1x1x1", r"layers=4 do not divide over 8 slices; .* is 4: 4\*1x1x1"),
        ("gemma2", 4, "4*2x1x1", r"windows of its 4 layers do not repeat every 1, over 4 slices; .* is 2: 2\*2x1x1"),
        ("llama", 4, "2*1x5x1", r"the mesh 2\*1x5x1 does not divide .* the nearest mesh that does is 2\*1x\dx1"),
        ("llama", 4, "4*4x1x1", r"4\*4x1x1 needs 16 chips and there are 8"),
    ],
)
def test_what_cannot_be_a_pipeline(name: str, layers: int, mesh: str, said: str) -> None:
    layout = ("ws2d", "heads")
    with pytest.raises(NoFeasiblePlan, match=said):
        Placement.on_devices(model(name, layers), Layouts.of(MeshShape.parse(mesh), layout, layout))
