"""Every layout gives what one chip gives: through prefill, hand-over, decode and scoring, for every kind of model.

On 8 CPU devices. Logits and log-probabilities within 1e-4 in float32, the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from engine.compilation.options import DecodeOptions
from engine.compilation.placement import Placement
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.planning.buckets import Parts
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from engine.steps.prefill import flatten
from tests.engine.tiny_models import MODELS, all_logits, padded, place, random_weights

MESHES = ("8x1x1", "2x4x1", "4x2x1", "2x2x2")
FFN = ("ws1d", "ws2d", "wg-x", "wg-xy", "wg-xyz")
ATTENTION = ("heads", "batch", "sequence")
LAYOUTS = tuple(product(FFN, ATTENTION))
TOLERANCE = 1e-4

TOKENS = np.random.default_rng(1).integers(0, 325, (8, 32)).astype(np.int32)


@cache
def weights(model: str) -> Any:
    return random_weights(MODELS[model])


def on_chips(model: str, layouts: Layouts) -> tuple[Any, Placement]:
    placement = Placement.on_devices(MODELS[model], layouts)
    return place(padded(weights(model), placement), placement), placement


@cache
def plain_logits(model: str) -> np.ndarray:
    return all_logits(*on_chips(model, Layouts()), TOKENS)


def spread() -> Iterator[Any]:
    """Each layout with two models, the meshes going round, so that every pair of choices meets somewhere. The second
    model of a layout is slow.

    All of them, 300, are run by `python -m bench.layout_sweep`.
    """
    for number, layout in enumerate(LAYOUTS):
        for turn, model in enumerate(list(MODELS)[(number + step) % len(MODELS)] for step in (0, 2)):
            case = (model, MESHES[(number + turn) % len(MESHES)], layout)
            yield pytest.param(*case, marks=pytest.mark.slow) if turn else case


@pytest.mark.parametrize(("model", "mesh", "layout"), list(spread()))
def test_logits(model: str, mesh: str, layout: tuple[Any, Any]) -> None:
    params, placement = on_chips(model, Layouts.of(MeshShape.parse(mesh), layout, layout))
    got = all_logits(params, placement, TOKENS)
    order = np.asarray(flatten(jnp.arange(TOKENS.size).reshape(TOKENS.shape), placement.prefill))
    np.testing.assert_allclose(got, plain_logits(model)[order], atol=TOLERANCE, rtol=0)


REQUESTS = 6
HAND_OVERS = [
    ("llama", "2x2x2", ("wg-xyz", "batch"), ("ws2d", "batch")),
    pytest.param("llama", "4x2x1", ("wg-x", "heads"), ("ws2d", "sequence"), marks=pytest.mark.slow),
    pytest.param("palm", "4x2x1", ("wg-xyz", "batch"), ("ws2d", "batch"), marks=pytest.mark.slow),
    pytest.param("gpt2", "2x2x2", ("wg-xy", "heads"), ("ws2d", "heads"), marks=pytest.mark.slow),
    pytest.param("gemma2", "2x4x1", ("wg-xyz", "sequence"), ("ws2d", "heads"), marks=pytest.mark.slow),
    pytest.param("mixtral", "2x2x2", ("wg-xyz", "batch"), ("ws2d", "batch"), marks=pytest.mark.slow),
]


def requests(vocab: int) -> tuple[list[GenerateRequest], list[ScoreRequest]]:
    rng = np.random.default_rng(3)
    prompts = [tuple(rng.integers(3, vocab, rng.integers(18, 30)).tolist()) for _ in range(REQUESTS)]
    generate = [
        GenerateRequest(
            prompt,
            Sampling(temperature=[0.0, 0.8][number % 2], max_tokens=4 + 5 * (number % 4), logprobs=2 * (number % 2)),
            seed=7,
            record=number,
            samples=1 + number % 3,
        )
        for number, prompt in enumerate(prompts)
    ]
    return generate, [ScoreRequest((*prompt, 5, 6, 7)) for prompt in prompts]


def run(model: str, layouts: Layouts) -> tuple[list[Any], list[Any]]:
    options = DecodeOptions(
        slots=8,
        max_length=64,
        pages=8 * 4 + 1,
        page_tokens=16,
        chunk_steps=8,
        prefill_tokens=64,
        **LOOP,
        parts=Parts.of(layouts),
    )
    params, placement = on_chips(model, layouts)
    generate, score = requests(MODELS[model].vocab)
    with Engine(params, placement, options, (2,)) as engine:
        futures = [engine.submit(request) for request in generate], [engine.submit(request) for request in score]
        generations, scores = ([future.result(timeout=200) for future in some] for some in futures)
    return generations, scores


LOOP: dict[str, Any] = {"attention": "loop"}


@cache
def plain_run(model: str) -> tuple[list[Any], list[Any]]:
    return run(model, Layouts())


@pytest.mark.parametrize(("model", "mesh", "prefill", "decode"), HAND_OVERS)
def test_prefill_in_one_layout_and_decode_in_another(
    model: str, mesh: str, prefill: tuple[Any, Any], decode: tuple[Any, Any]
) -> None:
    generations, scores = run(model, Layouts.of(MeshShape.parse(mesh), prefill, decode))
    plain_generations, plain_scores = plain_run(model)
    for samples, plain_samples in zip(generations, plain_generations, strict=True):
        for sample, plain in zip(samples, plain_samples, strict=True):
            assert sample.token_ids == plain.token_ids
            np.testing.assert_allclose(sample.logprobs, plain.logprobs, atol=TOLERANCE, rtol=0)
            top, plain_top = ([value for _, value in sum(one.top_logprobs or (), ())] for one in (sample, plain))
            np.testing.assert_allclose(top, plain_top, atol=TOLERANCE, rtol=0)
    for score, plain in zip(scores, plain_scores, strict=True):
        assert score.is_greedy == plain.is_greedy
        np.testing.assert_allclose(score.logprobs, plain.logprobs, atol=TOLERANCE, rtol=0)
