"""A contiguous cache gives what pages give; which slot a sample has, and what is beside it, changes no bit of it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest

from engine.compilation.placement import Placement
from engine.layout import Layouts
from engine.mesh import MeshShape
from engine.planning.buckets import Parts
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Generation, Sampling
from tests.engine.tiny import CONFIG, EOS, options, prompts, random_params, tiny_engine
from tests.engine.tiny_models import MODELS, padded, place, random_weights

MIXED = [
    GenerateRequest(
        prompt,
        Sampling(temperature=[0.0, 0.8][number % 2], max_tokens=3 + 4 * (number % 6)),
        seed=7,
        record=number,
        samples=1 + number % 4,
    )
    for number, prompt in enumerate(prompts(12, 30))
]


def run(engine: Engine, requests: list[GenerateRequest]) -> list[list[Generation]]:
    return [future.result(timeout=200) for future in [engine.submit(request) for request in requests]]


def assert_alike(some: list[list[Generation]], others: list[list[Generation]]) -> None:
    for one, other in zip(chain(*some), chain(*others), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4, rtol=0)


def test_it_gives_what_pages_give() -> None:
    """More samples than slots, so every slot's page is used again, and samples start while others of theirs run."""
    with tiny_engine() as paged, tiny_engine(attention="contiguous", pages=0) as contiguous:
        assert_alike(run(contiguous, MIXED), run(paged, MIXED))


def test_slots_and_company_do_not_matter() -> None:
    """Bit for bit, in int8, where a rounding apart would show in full."""
    with tiny_engine(attention="contiguous", pages=0, kv_dtype="int8") as engine:
        expected = run(engine, MIXED)
        order = np.random.default_rng(0).permutation(len(MIXED))
        shuffled = run(engine, [MIXED[at] for at in order])
        assert [shuffled[list(order).index(at)] for at in range(len(MIXED))] == expected
        assert [run(engine, [request])[0] for request in MIXED[:3]] == expected[:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "prefill", "decode"),
    [
        ("palm", "4x2x1", ("wg-xyz", "batch"), ("ws2d", "batch")),
        ("gemma2", "2x2x2", ("wg-x", "heads"), ("ws2d", "sequence")),
    ],
)
def test_on_chips(model: str, mesh: str, prefill: Any, decode: Any) -> None:
    layouts = Layouts.of(MeshShape.parse(mesh), prefill, decode)
    rng = np.random.default_rng(3)
    requests = [
        GenerateRequest(
            tuple(rng.integers(3, MODELS[model].vocab, rng.integers(14, 18)).tolist()),
            Sampling(max_tokens=4 + 5 * (number % 3)),
            samples=1 + number % 3,
        )
        for number in range(6)
    ]

    def answers(layouts: Layouts, attention: str) -> list[list[Generation]]:
        placement = Placement.on_devices(MODELS[model], layouts)
        params = place(padded(random_weights(MODELS[model]), placement), placement)
        shape = options(max_length=48, page_tokens=4, attention=attention, parts=Parts.of(layouts))
        with Engine(params, placement, shape, EOS) as engine:
            return run(engine, requests)

    assert_alike(answers(layouts, "contiguous"), answers(Layouts(), "loop"))


def test_a_slot_has_a_page_and_nobody_waits_for_one() -> None:
    with Engine(random_params(), CONFIG, options(attention="contiguous", pages=0), EOS) as engine:
        cache = engine._programs.new_cache()
        assert {pool.shape for pool in cache.keys} == {(8, CONFIG.kv_heads, 256, CONFIG.head_dim)}
