"""A device that runs out of memory: the engine goes on with less at a time, and every answer is as without it.

Failures are put where programs run, and take the cache with them if the program was to have it.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compilation.options import DecodeOptions
from engine.compilation.programs import Program
from engine.errors import OutOfMemory
from engine.planning.buckets import Parts
from engine.runtime.engine import Engine
from engine.runtime.executor import Executor
from engine.runtime.request import GenerateRequest, Sampling, ScoreRequest
from engine.runtime.smaller import smaller
from tests.engine import tiny

CONFIG = replace(tiny.CONFIG, layers=1)
OPTIONS = {"slots": 16, "max_length": 16, "pages": 17, "chunk_steps": 3, "prefill_tokens": 256}
SCORES = [ScoreRequest(tokens) for tokens in tiny.prompts(9, 16, seed=4) if len(tokens) > 1]
REQUESTS = [
    *(
        GenerateRequest(
            prompt,
            Sampling(temperature=[0.0, 1.0][number % 2], max_tokens=1 + 2 * (number % 4), ignore_eos=True),
            seed=7,
            record=number,
            samples=1 + number % 3,
        )
        for number, prompt in enumerate(tiny.prompts(20, 11, seed=2))
    ),
    *SCORES,
]
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4294967296 bytes."


def engine() -> Engine:
    return tiny.tiny_engine(CONFIG, **OPTIONS)


def answers(engine: Engine) -> list[Any]:
    futures = [engine.submit(request) for request in REQUESTS]
    return [future.result(timeout=120) for future in futures]


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Executors of the same options share their programs."""
    compiled: dict[DecodeOptions, dict[str, Any]] = {}
    plain = Executor._run

    def run(self: Executor, program: Program, *args: Any) -> Any:
        self._compiled = compiled.setdefault(self._programs.options, {})
        return plain(self, program, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Executor, "_run", run)
        yield


@pytest.fixture(scope="module")
def undisturbed(compiled_once: None) -> list[Any]:
    with engine() as plain:
        return answers(plain)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, int], bool]], list[str]]:
    """Has every run of a program fail for which the rule says so, by its name and how often such a one ran before."""

    def set_rule(rule: Callable[[str, int], bool]) -> list[str]:
        ran: dict[str, int] = {}
        failed: list[str] = []
        plain = Executor._run

        def run(self: Executor, program: Program, *args: Any) -> Any:
            kind = program.name.partition("[")[0]
            ran[kind] = ran.get(kind, 0) + 1
            if rule(program.name, ran[kind]):
                failed.append(program.name)
                for position in program.donated:
                    jax.tree.map(lambda array: array.delete(), args[position])
                raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
            return plain(self, program, *args)

        monkeypatch.setattr(Executor, "_run", run)
        return failed

    return set_rule


def rows(name: str) -> int:
    """Of "prefill[16x32]"."""
    return int(name.partition("[")[2].partition("x")[0] or 0)


@pytest.mark.parametrize(
    ("rule", "slots", "prefill_tokens"),
    [
        (lambda name, ran: name.startswith("decode") and rows(name) > 8, 8, 256),
        (lambda name, ran: name.startswith("decode") and ran == 4, 8, 256),  # in the middle of things
        (lambda name, ran: name == "prefill[16x16]", 16, 128),
        (lambda name, ran: name.startswith("insert") and ran == 3, 16, 128),
        (lambda name, ran: name == "score[16x16]", 16, 128),
        (lambda name, ran: name.startswith("copy") and ran == 1, 8, 256),
        (lambda name, ran: name == "cache" and ran == 1, 8, 256),
    ],
    ids=["decode", "late decode", "prefill", "insert", "score", "copy", "cache"],
)
def test_it_goes_on_with_less_and_the_answers_are_the_same(
    undisturbed, fails, caplog, rule: Callable[[str, int], bool], slots: int, prefill_tokens: int
) -> None:
    failed = fails(rule)
    with engine() as shrinking:
        assert answers(shrinking) == undisturbed
        assert (shrinking.options.slots, shrinking.options.prefill_tokens) == (slots, prefill_tokens)
        counters = shrinking.counters
    assert counters["out_of_memory_retries"] == len(failed) > 0
    assert counters["generated_tokens"] == sum(
        len(sample.token_ids) for answer in undisturbed[: -len(SCORES)] for sample in answer
    )
    assert counters["prompt_tokens"] == sum(len(request.prompt) for request in REQUESTS[: -len(SCORES)])
    assert counters["scored_tokens"] == sum(len(answer.logprobs) for answer in undisturbed[-len(SCORES) :])
    assert "out of memory in" in caplog.text
    assert ("slots 8 instead of 16" if slots < 16 else "prefill_tokens 128 instead of 256") in caplog.text


def test_what_ran_before_is_not_kept_while_less_is_tried(fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old cache must be gone when the new one is made: for both there is no room."""
    caches: list[weakref.ref] = []
    alive_at_start: list[int] = []
    plain = Executor.new_cache

    def new_cache(self: Executor) -> Any:
        gc.collect()
        alive_at_start.append(sum(cache() is not None for cache in caches))
        cache = plain(self)
        caches.extend(weakref.ref(array) for array in jax.tree.leaves(cache))
        return cache

    monkeypatch.setattr(Executor, "new_cache", new_cache)
    fails(lambda name, ran: name.startswith("score") and ran == 1)
    with engine() as shrinking:
        answers(shrinking)
    assert alive_at_start == [0, 0]


def test_it_gives_up_where_nothing_is_left_to_halve(fails) -> None:
    failed = fails(lambda name, ran: name.startswith("decode"))
    with tiny.tiny_engine(CONFIG, **OPTIONS | {"slots": 4, "pages": 5, "prefill_tokens": 32}) as shrinking:
        with pytest.raises(OutOfMemory) as caught:
            answers(shrinking)
        assert len(failed) == 3
        assert (shrinking.options.slots, shrinking.options.pages, shrinking.options.prefill_tokens) == (2, 2, 16)
    said = str(caught.value)
    for part in (
        "ran out of memory in decode, with the smallest batch there can be",
        "Weights take 0.00 GiB and the cache 0.00 GiB, for 2 slots of 16 tokens; 16 tokens of prompts",
        "Lower engine.max_length",
        "4294967296 bytes",
    ):
        assert part in said


def test_other_failures_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(self: Executor, *_: Any) -> None:
        calls.append(threading.current_thread().name)
        raise jax.errors.JaxRuntimeError("INTERNAL: the chip is on fire")

    monkeypatch.setattr(Executor, "decode", broken)
    with engine() as failing, pytest.raises(Exception, match="the chip is on fire"):
        failing.submit(REQUESTS[0]).result(timeout=60)
    assert len(calls) == 1


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        DecodeOptions,
        slots=st.integers(1, 600),
        max_length=st.integers(2, 4096),
        pages=st.integers(40, 5000),
        page_tokens=st.sampled_from([64, 128]),
        chunk_steps=st.just(8),
        prefill_tokens=st.integers(1, 100_000),
        attention=st.sampled_from(["loop", "paged", "contiguous"]),
        parts=st.sampled_from([Parts(), Parts(4, 4, 1, 4, 1), Parts(4, 1, 4, 1, 1), Parts(2, 2, 1, 2, 1, stages=2)]),
    ),
    st.sampled_from(["cache", "prefill", "decode", "score"]),
)
def test_halving_ends_and_holds_the_longest_request_all_the_way(options: DecodeOptions, during: str) -> None:
    steps = 0
    while (less := smaller(options, during)) is not None:
        assert (less.slots, less.prefill_tokens, less.pages) != (options.slots, options.prefill_tokens, options.pages)
        assert less.max_length == options.max_length
        assert less.pages > less.pages_of(less.max_length)
        assert all(x <= y for x, y in ((less.slot_rows, options.slot_rows), (less.pages, options.pages)))
        options, steps = less, steps + 1
    assert steps < 40
