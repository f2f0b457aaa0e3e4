"""The engine as a user meets it: requests in from threads, answers out, the same whatever runs beside them."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine.errors import EngineClosed, RequestError
from engine.model.decoder import logits
from engine.model.partition import Partition
from engine.runtime.engine import Engine
from engine.runtime.request import GenerateRequest, Generation, Sampling, ScoreRequest
from engine.steps.prefill import prefill
from tests.engine.tiny import CONFIG, EOS, prompts, random_params, tiny_engine

PROMPTS = prompts(24, 60)
MIXED = [
    GenerateRequest(
        prompt,
        Sampling(
            temperature=[0.0, 1.0, 0.7][index % 3],
            top_k=[0, 20, 0, 5][index % 4],
            top_p=[1.0, 0.9][index % 2],
            max_tokens=5 + 3 * (index % 7),
        ),
        seed=7,
        record=index * 0x9E3779B97F4A7C15,
        samples=1 + index % 3,
    )
    for index, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def engine():
    with tiny_engine() as engine:
        yield engine


PLAIN = Partition.single(CONFIG)


@jax.jit
def plain_pass(params, tokens):
    return logits(params, PLAIN, prefill(params, PLAIN, tokens)[2])


def all_logits(params, tokens: tuple[int, ...]) -> np.ndarray:
    """[positions, vocab] by one plain pass, no cache, no batch."""
    padded = np.zeros((1, 128), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(plain_pass(params, jnp.asarray(padded)))[: len(tokens)]


def greedy(params, prompt: tuple[int, ...], max_tokens: int, banned_until: int = 0) -> tuple[list[int], list[float]]:
    """The textbook loop: a full pass for every token."""
    tokens, chosen, logprobs = list(prompt), [], []
    while len(chosen) < max_tokens:
        out = all_logits(params, tuple(tokens))[-1].astype(np.float64)
        ban = out.copy()
        if len(chosen) < banned_until:
            ban[list(EOS)] = -np.inf
        token = int(ban.argmax())
        chosen.append(token)
        logprobs.append(out[token] - np.logaddexp.reduce(out))
        tokens.append(token)
        if token in EOS:
            break
    return chosen, logprobs


def run(engine: Engine, requests: list[GenerateRequest]) -> list[list[Generation]]:
    return [future.result(timeout=120) for future in [engine.submit(request) for request in requests]]


def test_greedy_equals_a_full_pass_for_every_token(engine: Engine) -> None:
    params = random_params()
    for prompt, (generation,) in zip(
        PROMPTS[:6], run(engine, [GenerateRequest(p, Sampling(max_tokens=20)) for p in PROMPTS[:6]]), strict=True
    ):
        tokens, logprobs = greedy(params, prompt, 20)
        assert list(generation.token_ids) == tokens
        np.testing.assert_allclose(generation.logprobs, logprobs, atol=1e-4)
        assert generation.finish_reason == ("stop" if tokens[-1] in EOS else "length")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"slots": 1}, marks=pytest.mark.slow),
        {"slots": 3},
        pytest.param({"slots": 16, "chunk_steps": 3}, marks=pytest.mark.slow),
        pytest.param({"slots": 40, "prefill_tokens": 512, "pages": 40 * 16 + 2}, marks=pytest.mark.slow),
        {"pages": 20},
        pytest.param({"max_length": 128, "chunk_steps": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_slots_chunks_buckets_or_pages(engine: Engine, changes: dict) -> None:
    """Bit for bit, log-probabilities too."""
    expected = run(engine, MIXED)
    with tiny_engine(**changes) as other:
        assert run(other, MIXED) == expected


def test_an_answer_does_not_depend_on_order_or_company(engine: Engine) -> None:
    expected = run(engine, MIXED)
    order = np.random.default_rng(0).permutation(len(MIXED))
    shuffled = run(engine, [MIXED[index] for index in order])
    assert [shuffled[list(order).index(index)] for index in range(len(MIXED))] == expected
    assert [run(engine, [request])[0] for request in MIXED[:5]] == expected[:5]


def test_slots_walked_together_give_what_slots_walked_one_by_one_give(engine: Engine) -> None:
    with tiny_engine(attention="paged") as other:
        for one, two in zip(run(engine, MIXED), run(other, MIXED), strict=True):
            for a, b in zip(one, two, strict=True):
                assert a.token_ids == b.token_ids
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_samples_of_one_prompt_differ_and_the_first_is_the_same_as_alone(engine: Engine) -> None:
    request = GenerateRequest(PROMPTS[0], Sampling(temperature=1.0, max_tokens=30), seed=1, record=5, samples=11)
    many = run(engine, [request])[0]
    assert len({generation.token_ids for generation in many}) == 11
    assert run(engine, [replace(request, samples=1)])[0][0] == many[0]
    assert run(engine, [replace(request, seed=2)])[0][0] != many[0]
    assert run(engine, [replace(request, record=6)])[0][0] != many[0]


def stopping_prompt(engine: Engine, longest: int) -> tuple[tuple[int, ...], Generation]:
    """A prompt whose greedy answer has some length, with its answer."""
    for prompt in prompts(50, 40, seed=3):
        generation = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=longest, ignore_eos=True))])[0][0]
        if len(set(generation.token_ids[:6])) == 6:
            return prompt, generation
    raise AssertionError("no prompt gives a varied answer")


def test_stop_tokens_end_a_sample_and_are_part_of_it(engine: Engine) -> None:
    prompt, free = stopping_prompt(engine, 20)
    stop = free.token_ids[5]
    sampling = Sampling(max_tokens=20, ignore_eos=True, stop_token_ids=(7, stop))
    (generation,) = run(engine, [GenerateRequest(prompt, sampling)])[0]
    assert generation.token_ids == free.token_ids[:6]
    assert (generation.finish_reason, generation.stop_token) == ("stop", stop)
    assert free.finish_reason == "length"
    assert free.stop_token is None


def test_end_of_sequence_stops_unless_ignored_and_not_before_min_tokens() -> None:
    probe_prompt = PROMPTS[0]
    with tiny_engine() as engine:
        prompt, free = stopping_prompt(engine, 20)
    eos = free.token_ids[3]
    with tiny_engine(eos=(eos,)) as engine:
        (stopped,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=20))])[0]
        assert stopped.token_ids == free.token_ids[:4]
        assert (stopped.finish_reason, stopped.stop_token) == ("stop", None)
        (ignored,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=20, ignore_eos=True))])[0]
        assert ignored.token_ids == free.token_ids
        (later,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=20, min_tokens=10))])[0]
        assert eos not in later.token_ids[:10]
        assert len(later.token_ids) >= 10
        assert later.token_ids[:3] == free.token_ids[:3]
        assert run(engine, [GenerateRequest(probe_prompt, Sampling(max_tokens=1))])[0][0].finish_reason in (
            "length",
            "stop",
        )


def test_top_logprobs_are_the_most_likely_tokens(engine: Engine) -> None:
    prompt = PROMPTS[1]
    (generation,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=4, ignore_eos=True, logprobs=5))])[0]
    assert generation.top_logprobs is not None
    params = random_params()
    for index, alternatives in enumerate(generation.top_logprobs):
        out = all_logits(params, prompt + generation.token_ids[:index])[-1].astype(np.float64)
        expected = out - np.logaddexp.reduce(out)
        ids = np.argsort(-expected)[:5]
        assert [token for token, _ in alternatives] == ids.tolist()
        np.testing.assert_allclose([value for _, value in alternatives], expected[ids], atol=1e-4)
        assert alternatives[0] == (generation.token_ids[index], generation.logprobs[index])
    assert run(engine, [GenerateRequest(prompt, Sampling(max_tokens=4))])[0][0].top_logprobs is None


class StopAfter:
    """Keeps `count` tokens, however they arrive."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, []

    def feed(self, token_ids, /) -> int | None:
        self.seen += token_ids
        return self.count if len(self.seen) >= self.count else None


def test_a_watcher_cuts_its_sample_and_frees_the_slot(engine: Engine) -> None:
    sampling = Sampling(max_tokens=150, ignore_eos=True)
    whole = run(engine, [GenerateRequest(PROMPTS[2], sampling)])[0][0]
    steps = engine.counters["decode_steps"]
    request = GenerateRequest(PROMPTS[2], sampling, samples=2, watch=lambda: StopAfter(5))
    one, two = run(engine, [request])[0]
    assert one.token_ids == two.token_ids == whole.token_ids[:5]
    assert one.finish_reason == "stop"
    assert one.watcher is not two.watcher
    assert engine.counters["decode_steps"] - steps <= 16


def test_a_failing_watcher_fails_its_own_request_alone(engine: Engine) -> None:
    class Broken:
        def feed(self, token_ids, /):
            raise ZeroDivisionError("watcher")

    doomed = engine.submit(GenerateRequest(PROMPTS[3], Sampling(max_tokens=40), samples=3, watch=Broken))
    fine = engine.submit(GenerateRequest(PROMPTS[4], Sampling(max_tokens=40)))
    with pytest.raises(ZeroDivisionError):
        doomed.result(timeout=60)
    assert fine.result(timeout=60)


def test_a_failed_request_leaves_no_sample_running_on_pages_of_others() -> None:
    """One broken watcher of three: the other samples' slots must stop as well, for their pages are given away."""
    made = []

    class BreaksOnce:
        def __init__(self) -> None:
            made.append(self)
            self.breaks = len(made) == 1

        def feed(self, token_ids, /) -> None:
            if self.breaks:
                raise ZeroDivisionError("watcher")

    with tiny_engine() as engine:
        sampling = Sampling(max_tokens=200, temperature=1.0, ignore_eos=True)
        doomed = engine.submit(GenerateRequest(PROMPTS[3], sampling, samples=3, watch=BreaksOnce))
        with pytest.raises(ZeroDivisionError):
            doomed.result(timeout=60)
        before = engine.counters
        run(engine, [GenerateRequest(PROMPTS[4], Sampling(max_tokens=20, ignore_eos=True))])
        assert engine.counters["slot_steps_busy"] - before["slot_steps_busy"] == 20
        assert not engine._batcher.running
        assert (engine._slots.state.finish != 0).all()


def test_scores_are_teacher_forced_logprobs(engine: Engine) -> None:
    params = random_params()
    texts = [tokens for tokens in prompts(20, 120, seed=9) if len(tokens) > 3]
    futures = [engine.submit(ScoreRequest(tokens, start=1 + index % 3)) for index, tokens in enumerate(texts)]
    for index, (tokens, future) in enumerate(zip(texts, futures, strict=True)):
        score, start = future.result(timeout=60), 1 + index % 3
        out = all_logits(params, tokens).astype(np.float64)
        expected = out - np.logaddexp.reduce(out, axis=-1, keepdims=True)
        targets = np.array(tokens[start:])
        np.testing.assert_allclose(score.logprobs, expected[np.arange(start - 1, len(tokens) - 1), targets], atol=1e-4)
        assert score.is_greedy == tuple((out[start - 1 : -1].argmax(-1) == targets).tolist())


def test_scoring_a_greedy_answer_gives_back_its_logprobs(engine: Engine) -> None:
    prompt = PROMPTS[5]
    (generation,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=12, ignore_eos=True))])[0]
    score = engine.submit(ScoreRequest(prompt + generation.token_ids, start=len(prompt))).result(timeout=60)
    np.testing.assert_allclose(score.logprobs, generation.logprobs, atol=1e-4)
    assert all(score.is_greedy)


def test_requests_from_many_threads_all_come_back(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: engine.submit(request).result(timeout=120), MIXED * 3))
    assert answers == run(engine, MIXED) * 3


def test_programs_are_few_and_fixed(engine: Engine) -> None:
    run(engine, MIXED)
    before = engine.programs
    run(engine, [GenerateRequest(prompt, Sampling(max_tokens=3)) for prompt in prompts(40, 60, seed=11)])
    assert engine.programs == before
    assert len([name for name in before if name.startswith("decode")]) == 1


def test_the_context_ends_a_sample_by_length(engine: Engine) -> None:
    prompt = tuple(range(3, 3 + 250))
    (generation,) = run(engine, [GenerateRequest(prompt, Sampling(max_tokens=60, ignore_eos=True))])[0]
    assert len(generation.token_ids) == 256 - 250
    assert generation.finish_reason == "length"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GenerateRequest(()), "prompt is empty"),
        (lambda: GenerateRequest((1,), samples=0), "samples"),
        (lambda: GenerateRequest((1, 320)), "token id 320"),
        (lambda: GenerateRequest((1, -1)), "token id -1"),
        (lambda: GenerateRequest(tuple([1] * 256)), "256 tokens"),
        (lambda: GenerateRequest((1,), Sampling(stop_token_ids=(400,))), "stop_token_ids"),
        (lambda: ScoreRequest((1,)), "nothing to score"),
        (lambda: ScoreRequest((1, 2), start=0), "nothing to score"),
        (lambda: ScoreRequest(tuple([1] * 257)), "257 tokens"),
        (lambda: Sampling(temperature=-1.0), "temperature"),
        (lambda: Sampling(temperature=float("nan")), "temperature"),
        (lambda: Sampling(top_p=0.0), "top_p"),
        (lambda: Sampling(min_p=2.0), "min_p"),
        (lambda: Sampling(max_tokens=0), "max_tokens"),
        (lambda: Sampling(max_tokens=3, min_tokens=4), "min_tokens"),
        (lambda: Sampling(stop_token_ids=tuple(range(9))), "stop_token_ids"),
        (lambda: Sampling(logprobs=21), "logprobs"),
    ],
)
def test_impossible_requests_are_refused_at_once(engine: Engine, make, says: str) -> None:
    def ask() -> Future:
        made = make()
        return engine.submit(GenerateRequest((1,), made) if isinstance(made, Sampling) else made)

    with pytest.raises(RequestError, match=says):
        ask()


def test_closing_fails_what_is_open_and_refuses_what_comes_later() -> None:
    engine = tiny_engine()
    futures = [engine.submit(GenerateRequest(p, Sampling(max_tokens=150, ignore_eos=True))) for p in PROMPTS]
    engine.close()
    engine.close()
    for future in futures:
        assert future.done()
        assert future.exception() is None or isinstance(future.exception(), EngineClosed)
    assert any(future.exception() for future in futures)
    with pytest.raises(EngineClosed):
        engine.submit(GenerateRequest((1,)))
    assert not any(thread.name == "penstock-device" and thread is engine._thread for thread in threading.enumerate())


def test_a_broken_device_program_fails_everything_with_its_reason(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    engine = tiny_engine()
    run(engine, [GenerateRequest((5, 6), Sampling(max_tokens=2))])

    def broken(*_: object) -> None:
        raise RuntimeError("INTERNAL: the chip is gone")

    monkeypatch.setattr(engine._programs, "decode", broken)
    futures = [engine.submit(GenerateRequest(prompt)) for prompt in PROMPTS[:3]]
    for future in futures:
        with pytest.raises(Exception, match="the chip is gone"):
            future.result(timeout=60)
    with pytest.raises(Exception, match="the chip is gone"):
        engine.submit(GenerateRequest((1,)))


def test_cancelled_requests_are_dropped(engine: Engine) -> None:
    busy = [engine.submit(GenerateRequest(p, Sampling(max_tokens=60, ignore_eos=True))) for p in PROMPTS]
    doomed = engine.submit(GenerateRequest(PROMPTS[0]))
    cancelled = doomed.cancel()
    for future in busy:
        future.result(timeout=60)
    assert doomed.cancelled() or not cancelled


def test_counters_count(engine: Engine) -> None:
    before = engine.counters
    sampling = Sampling(max_tokens=9, ignore_eos=True)
    run(engine, [GenerateRequest(prompt, sampling, samples=2) for prompt in PROMPTS[:4]])
    engine.submit(ScoreRequest((1, 2, 3, 4), start=2)).result(timeout=60)
    grown = {name: engine.counters[name] - before[name] for name in before}
    assert grown["generated_tokens"] == 4 * 2 * 9
    assert grown["prompt_tokens"] == sum(len(prompt) for prompt in PROMPTS[:4])
    assert grown["scored_tokens"] == 2
    assert grown["slot_steps_busy"] == 4 * 2 * 9
    assert grown["slot_steps_total"] >= grown["slot_steps_busy"]
    assert grown["prefill_tokens_padded"] >= grown["prefill_tokens"] > 0
    assert grown["device_seconds"] > 0
    assert grown["out_of_memory_retries"] == 0
    assert engine.counters["compile_seconds"] > 0


def test_it_says_what_runs_it(engine: Engine) -> None:
    facts = engine.facts
    assert (facts["platform"], facts["device_kind"], facts["devices"]) == ("cpu", "cpu", 1)
    assert (facts["dtype"], facts["slots"], facts["prefill_tokens"]) == ("float32", 8, 64)
    assert facts["memory_bytes"] is facts["peak_memory_bytes"] is None, "a CPU does not tell"
