"""The small model of the batcher against the batcher itself, with a device that only counts."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from random import Random

import pytest

from engine.compilation.options import DecodeOptions
from engine.planning.batching import CHUNK_STEPS, PAGE_TOKENS, Flow, Workload, play, scored
from engine.planning.buckets import Parts
from engine.runtime.batcher import Batcher, Group, Scoring
from engine.runtime.request import GenerateRequest, Generation, Sampling, ScoreRequest

DONE = Generation((1,), (0.0,), "length")


def options_of(workload: Workload, slots: int, prefill_tokens: int, parts: Parts = Parts()) -> DecodeOptions:
    return DecodeOptions(
        slots=slots,
        max_length=workload.max_length,
        pages=0,
        page_tokens=PAGE_TOKENS,
        chunk_steps=CHUNK_STEPS,
        prefill_tokens=prefill_tokens,
        attention="contiguous",
        parts=parts,
    )


def really(workload: Workload, options: DecodeOptions, requests: int) -> tuple[int, int, int, dict[int, int]]:
    """(decode steps, chunks, busy slot steps, prefills by bucket) of the engine's loop, one worker."""
    batcher = Batcher(options)
    shards = [
        range(at, min(at + workload.shard_requests, requests)) for at in range(0, requests, workload.shard_requests)
    ]
    left: dict[int, int] = {}
    shard_of: dict[Group, int] = {}
    steps_left: dict[int, int] = {}
    prefills: Counter[int] = Counter()
    steps = chunks = busy = at = 0
    while left or at < len(shards):
        while at < len(shards) and len(left) < workload.open_shards:
            left[at] = 0
            for index in shards[at]:
                prompt = workload.prompts[index % len(workload.prompts)]
                completion = workload.completions[index % len(workload.prompts)]
                request = GenerateRequest((1,) * prompt, Sampling(max_tokens=completion), samples=workload.samples)
                group = Group(request, completion, Future())
                shard_of[group] = at
                left[at] += workload.samples
                batcher.add(group)
            at += 1
        admission = batcher.admit()
        for bucket, _ in admission.prefills:
            prefills[bucket] += 1
        for sample in admission.samples:
            steps_left[sample.slot] = sample.group.max_tokens
        running = dict(batcher.running)
        enough = max(1, len(running) // 8) if batcher.samples_waiting else len(running)
        for _ in range(CHUNK_STEPS):
            live = [slot for slot in running if steps_left[slot]]
            if len(running) - len(live) >= enough:
                break
            steps += 1
            busy += len(live)
            for slot in live:
                steps_left[slot] -= 1
        chunks += 1
        for slot, sample in running.items():
            if not steps_left[slot]:
                batcher.finish(sample, DONE)
                shard = shard_of[sample.group]
                left[shard] -= 1
                if not left[shard]:
                    del left[shard]
    return steps, chunks, busy, dict(prefills)


def workload(seed: int, *, samples: int = 1, same: bool = False) -> Workload:
    rng = Random(seed)
    prompts = tuple(rng.randint(2, 700) for _ in range(50))
    completions = tuple(40 if same else rng.randint(1, 200) for _ in prompts)
    return Workload(prompts, completions, 10_000, 1024, samples, shard_requests=60, open_shards=2)


@pytest.mark.parametrize(
    ("asked", "slots", "requests"),
    [
        (workload(1), 16, 240),
        (workload(2), 64, 240),
        (workload(3, same=True), 32, 250),
        (workload(4, samples=3), 16, 150),
        (workload(5), 16, 7),
    ],
)
def test_it_counts_what_the_batcher_does(asked: Workload, slots: int, requests: int) -> None:
    options = options_of(asked, slots, 2048)
    steps, chunks, busy, prefills = really(asked, options, requests)
    flow = play(asked, slots, requests)
    assert (flow.decode_steps, flow.chunks, flow.slot_steps_busy) == (steps, chunks, busy)
    assert flow.prefills(2048, options.parts) == prefills
    assert 0 < flow.busy_fraction <= 1


def test_slots_in_parts() -> None:
    asked, parts = workload(6), Parts(chips=4, of_slots=4, prefill_rows=4)
    options = options_of(asked, 64, 2048, parts)
    steps, _, busy, prefills = really(asked, options, 300)
    flow = play(asked, 64, 300, parts=4)
    assert (flow.decode_steps, flow.slot_steps_busy) == (pytest.approx(steps, rel=0.01), busy)
    assert sum(flow.prefills(2048, parts).values()) == pytest.approx(sum(prefills.values()), rel=0.05)


def test_a_long_job_is_its_steady_state() -> None:
    asked = replace(workload(7), completions=tuple(Random(7).randint(1, 50) for _ in range(50)))
    whole, parts = really(asked, options_of(asked, 32, 2048), 700), Parts()
    flow = play(asked, 32, 700)
    assert flow.decode_steps == pytest.approx(whole[0], rel=0.05)
    assert flow.slot_steps_busy == pytest.approx(whole[2], rel=0.01)
    assert sum(flow.prefills(2048, parts).values()) == pytest.approx(sum(whole[3].values()), rel=0.05)


def test_few_open_requests_leave_slots_empty() -> None:
    asked = workload(8)
    assert play(asked, 512, 1000).slots == 120  # two shards of 60
    assert play(asked, 64, 1000).busy_fraction > play(asked, 120, 1000).busy_fraction


def test_scores_go_by_length() -> None:
    rng = Random(9)
    prompts = tuple(rng.randint(2, 1000) for _ in range(200))
    asked = Workload(prompts, (0,) * 200, 600, 1024, shard_requests=500)
    options = options_of(asked, 8, 8192)
    batcher, runs = Batcher(options), Counter()
    for index in range(600):
        batcher.add_score(Scoring(ScoreRequest((1,) * prompts[index % 200], 1), Future()))
    while batcher.scores_waiting:
        runs[batcher.next_scores()[0]] += 1
    foreseen = scored(asked, 600, 8192, options.parts)
    assert foreseen.keys() == runs.keys()
    assert sum(foreseen.values()) == pytest.approx(sum(runs.values()), rel=0.1)


def test_counts_of_the_whole_job() -> None:
    asked = workload(10, samples=2)
    assert asked.completion_tokens == pytest.approx(sum(asked.completions) / 50 * 20_000)
    assert asked.prompt_tokens == pytest.approx(sum(asked.prompts) / 50 * 10_000)
    flow = Flow(4, 1, 10.0, 1.0, 30.0, {(32, 5): 2.0})
    assert (flow.busy_fraction, flow.prefills(64, Parts())) == (0.75, {32: 6})
