"""What the batcher makes of a job, in counts: decode steps, prefills, how many slots are busy. No clock, no chip.

A small model of engine/runtime/batcher.py and of the loop around it: requests wait in shards of which a few are open at
a time; free slots take the oldest waiting requests, with others of their length bucket from the window behind them; a
chunk of decode ends when an eighth of the running slots have finished, or after CHUNK_STEPS. What it leaves out is
pages: every slot has room for the longest request; and that where slots are in parts, a request whose part is full does
not hold up those behind it.

A large job is not played to its end. It is played for so many requests and for twice as many; the difference is the
steady state, which goes on, and what is left over is the start and the tail. And many slots are played in small: with
half the slots, requests, window and shards there are as many steps, and half as much in each.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from engine.planning.buckets import CHUNK_STEPS, PAGE_TOKENS, Parts, bucket_rows, length_buckets

WINDOW = 1024
_PLAYED_ROUNDS = 4
"""Requests of so many times the slots show the steady state."""

_FEW_REQUESTS = 1024
"""Are played to their end."""
_MANY_SLOTS = 256
_MANY_PARTS = 32
"""Twice as many are played in small."""


@dataclass(frozen=True)
class Workload:
    """A job as the engine sees it: a sample of its requests, and how many there are."""

    prompts: tuple[int, ...]
    """Tokens of each sampled request, as they come in the input; of what is scored all tokens."""
    completions: tuple[int, ...]
    """Tokens generated for each; all 0 if the job scores."""
    requests: int
    """Of the whole job."""
    max_length: int
    """Of a prompt and its completion."""
    samples: int = 1
    """Completions of each request."""
    shard_requests: int = 1000
    open_shards: int = 2

    @property
    def is_scoring(self) -> bool:
        return not any(self.completions)

    @property
    def prompt_tokens(self) -> float:
        """Of the whole job."""
        return sum(self.prompts) / len(self.prompts) * self.requests

    @property
    def completion_tokens(self) -> float:
        """Of the whole job."""
        return sum(self.completions) / len(self.completions) * self.requests * self.samples

    @property
    def mean_length(self) -> int:
        """Of a sequence that is being generated, over its steps."""
        completions = sum(self.completions)
        seen = sum(c * (p + c / 2) for p, c in zip(self.prompts, self.completions, strict=True))
        return max(1, round(seen / completions)) if completions else 1

    @property
    def sequences(self) -> int:
        """Of the whole job: requests times their completions."""
        return self.requests * self.samples

    @property
    def open_sequences(self) -> int:
        """That can be in slots at the same time."""
        return min(self.sequences, self.shard_requests * self.open_shards * self.samples)


@dataclass(frozen=True)
class Flow:
    """What runs, in counts; of one worker."""

    slots: int
    parts: int
    """Of the slots: each has a prefill program's rows of its own."""
    decode_steps: float
    chunks: float
    """Calls of the decode program."""
    slot_steps_busy: float
    admitted: Mapping[tuple[int, int], float]
    """(length bucket, prompts of one part that are prefilled together, at most) -> how often."""

    @property
    def busy_fraction(self) -> float:
        """Of the slots, over all steps."""
        return self.slot_steps_busy / max(1.0, self.decode_steps * self.slots)

    def prefills(self, prefill_tokens: int, parts: Parts) -> dict[int, float]:
        """How often the program of each bucket runs, if it holds about so many tokens."""
        runs: dict[int, float] = {}
        for (bucket, most), times in self.admitted.items():
            programs = -(-most // (bucket_rows(bucket, prefill_tokens, parts) // self.parts))
            runs[bucket] = runs.get(bucket, 0.0) + times * programs
        return runs


@lru_cache(maxsize=4096)
def play(workload: Workload, slots: int, requests: int, parts: int = 1) -> Flow:
    """One worker's share of a job: so many requests. Slots are in `parts` where attention is split over the batch."""
    slots = min(slots, workload.open_sequences)
    scale = 1
    while slots >= 2 * _MANY_SLOTS * scale and workload.shard_requests >= 2 * scale:
        if parts > 1 and parts % (2 * scale * _MANY_PARTS):
            break  # which part gets most is a matter of how many there are
        scale *= 2
    if scale > 1:
        return _scaled(workload, slots, requests, parts, scale)
    return _counted(workload, slots, requests, parts, WINDOW)


def _scaled(workload: Workload, slots: int, requests: int, parts: int, scale: int) -> Flow:
    """From a world that is so many times smaller, with as many slots in each of its parts."""
    small = replace(
        workload,
        requests=-(-workload.requests // scale),
        shard_requests=workload.shard_requests // scale,
    )
    found = _counted(small, slots // scale, -(-requests // scale), max(1, parts // scale), WINDOW // scale)
    larger = scale if parts == 1 else 1
    admitted = {(bucket, most * larger): times for (bucket, most), times in found.admitted.items()}
    busy = found.slot_steps_busy * requests / -(-requests // scale)
    return Flow(slots, parts, found.decode_steps, found.chunks, busy, admitted)


def _counted(workload: Workload, slots: int, requests: int, parts: int, window: int) -> Flow:
    open_requests = workload.shard_requests * workload.open_shards
    shards_matter = _PLAYED_ROUNDS * slots > open_requests * workload.samples
    few = max(_PLAYED_ROUNDS * slots // workload.samples, 2 * (open_requests if shards_matter else window))
    if requests <= max(few, _FEW_REQUESTS):
        return _played(workload, slots, parts, window, requests)
    start, more = (_played(workload, slots, parts, window, count) for count in (few, 2 * few))
    rounds = (requests - few) / few

    def on(first: float, second: float) -> float:
        return first + (second - first) * rounds

    keys = start.admitted.keys() | more.admitted.keys()
    return Flow(
        slots,
        parts,
        on(start.decode_steps, more.decode_steps),
        on(start.chunks, more.chunks),
        on(start.slot_steps_busy, more.slot_steps_busy),
        {key: max(0.0, on(start.admitted.get(key, 0.0), more.admitted.get(key, 0.0))) for key in keys},
    )


@lru_cache(maxsize=512)
def _played(workload: Workload, slots: int, parts: int, window: int, requests: int) -> Flow:
    return _Player(workload, slots, parts, window).play(requests)


def scored(workload: Workload, requests: int, prefill_tokens: int, parts: Parts) -> dict[int, float]:
    """How often the score program of each bucket runs: it takes what is of its length among the requests that wait."""
    lengths = Counter(request.bucket for request in _requests(workload, len(workload.prompts)))
    window = min(WINDOW, workload.shard_requests * workload.open_shards, requests)
    runs: dict[int, float] = {}
    for bucket, count in lengths.items():
        share = count / len(workload.prompts)
        rows = min(bucket_rows(bucket, prefill_tokens, parts), max(1.0, share * window))
        runs[bucket] = requests * share / rows
    return runs


@lru_cache(maxsize=64)
def buckets_of(workload: Workload) -> tuple[int, ...]:
    return length_buckets(workload.max_length, PAGE_TOKENS)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request, or what is left of it."""

    shard: int
    bucket: int
    steps: int
    samples: int
    part: int = -1
    """Of the slots, once it has started."""
    until: int = 0
    """Step at which the last sample that runs finishes: later ones copy its prompt."""


def _requests(workload: Workload, requests: int) -> Iterator[_Waiting]:
    """The sample, over and over."""
    buckets, of_length = buckets_of(workload), dict[int, int]()
    for tokens in workload.prompts:
        prefilled = max(1, tokens - (not workload.is_scoring))  # the last token of a prompt is decode's
        of_length[tokens] = next((one for one in buckets if one >= prefilled), buckets[-1])
    each = [(of_length[tokens], steps) for tokens, steps in zip(workload.prompts, workload.completions, strict=True)]
    for index, (bucket, steps) in zip(range(requests), itertools.cycle(each), strict=False):
        yield _Waiting(index // workload.shard_requests, bucket, steps, workload.samples)


class _Player:
    """The loop of the engine, with steps for a clock."""

    def __init__(self, workload: Workload, slots: int, parts: int, window: int = WINDOW) -> None:
        self._workload = workload
        self._most_in_window = window
        self._slots = slots
        each = -(-slots // parts)
        self._free = [each] * parts
        self._freest = [(-each, part) for part in range(parts)]
        """A heap of what was free in each part when it last changed; only what still holds counts."""
        self._behind: deque[_Waiting] = deque()
        self._window: dict[int, deque[_Waiting]] = {}
        """The first that wait, by bucket, in the order in which each bucket first appears."""
        self._in_window = 0
        self._running: list[tuple[int, int, int]] = []
        """(step at which it finishes, shard, part)"""
        self._admitted: Counter[tuple[int, int]] = Counter()
        self._busy = 0

    def play(self, requests: int) -> Flow:
        workload, arriving = self._workload, _requests(self._workload, requests)
        left: Counter[int] = Counter()  # unfinished sequences of each open shard
        running = self._running
        step = chunks = 0
        coming = next(arriving, None)
        while coming or self._in_window or self._behind or running:
            while coming and (coming.shard in left or len(left) < workload.open_shards):
                left[coming.shard] += coming.samples
                self._behind.append(coming)
                coming = next(arriving, None)
            self._admit(step)
            waits = self._in_window or self._behind
            enough = max(1, len(running) // 8) if waits else len(running)
            last, end, finished = step + CHUNK_STEPS, step, 0
            while running and running[0][0] <= last and (finished < enough or running[0][0] == end):
                end, shard, part = heapq.heappop(running)
                self._change(part, 1)
                finished += 1
                left[shard] -= 1
                if not left[shard]:
                    del left[shard]
            step = end if finished >= enough else last
            chunks += 1
        return self._flow(step, chunks)

    def _flow(self, step: int, chunks: int) -> Flow:
        times = {key: float(count) for key, count in self._admitted.items()}
        return Flow(self._slots, len(self._free), float(step), float(chunks), float(self._busy), times)

    def _admit(self, step: int) -> None:
        """Gives free slots to those that wait: the oldest, and others of its bucket."""
        while self._in_window < self._most_in_window and self._behind:
            request = self._behind.popleft()
            waiting = self._window.get(request.bucket)
            if waiting is None:
                self._window[request.bucket] = waiting = deque()
            waiting.append(request)
            self._in_window += 1
        for bucket in list(self._window):
            prompts: dict[int, int] = {}
            requests = self._window[bucket]
            while requests and self._start(requests[0], step, prompts):
                requests.popleft()
                self._in_window -= 1
            if prompts:
                self._admitted[bucket, max(prompts.values())] += 1
            if requests:
                return
            del self._window[bucket]

    def _start(self, request: _Waiting, step: int, prompts: dict[int, int]) -> bool:
        """Starts as many of a request's samples as there are slots in its part; whether that is all of them."""
        part = request.part
        if part < 0:
            part = self._freest_part()
            if not self._free[part]:
                return False
            request.part = part
        started = min(self._free[part], request.samples)
        if not started:
            return False
        if request.until <= step:  # no sample of it runs, or none any more
            prompts[part] = prompts.get(part, 0) + 1
        request.until = step + request.steps
        for _ in range(started):
            heapq.heappush(self._running, (request.until, request.shard, part))
        self._busy += started * request.steps
        self._change(part, -started)
        request.samples -= started
        return not request.samples

    def _freest_part(self) -> int:
        if len(self._free) == 1:
            return 0
        while -self._freest[0][0] != self._free[self._freest[0][1]]:
            heapq.heappop(self._freest)
        return self._freest[0][1]

    def _change(self, part: int, by: int) -> None:
        self._free[part] += by
        if len(self._free) > 1:
            heapq.heappush(self._freest, (-self._free[part], part))
