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
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

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

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Kept: what is played is looked up by it thousands of times, and a sample is long."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @cached_property
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
    lengths = Counter(_sample(workload)[0])
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


@lru_cache(maxsize=64)
def _sample(workload: Workload) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The length bucket of each sampled request, and its steps. The last token of a prompt is decode's."""
    buckets, of_length = buckets_of(workload), dict[int, int]()
    for tokens in set(workload.prompts):
        prefilled = max(1, tokens - (not workload.is_scoring))
        of_length[tokens] = next((one for one in buckets if one >= prefilled), buckets[-1])
    return tuple(of_length[tokens] for tokens in workload.prompts), workload.completions


class _Player:
    """The loop of the engine, with steps for a clock. Requests are numbers: the sample, over and over."""

    def __init__(self, workload: Workload, slots: int, parts: int, window: int = WINDOW) -> None:
        self._workload = workload
        self._bucket_of, self._steps_of = _sample(workload)
        self._most_in_window = window
        self._slots = slots
        self._free = [-(-slots // parts)] * parts
        self._opened = self._entered = self._started = 0
        """Requests of open shards, those that have come into the window, those with all samples in slots."""
        self._left: dict[int, int] = {}
        """Unfinished sequences of each open shard."""
        self._window: dict[int, deque[int]] = {}
        """The first that wait, by bucket, in the order in which each bucket first appears."""
        self._begun: tuple[int, int, int] | None = None
        """Of the first that waits: samples that are left of it, the part that has the others, the step at which the
        last of these finishes: later ones copy its prompt."""
        self._ends: list[int] = []
        """A heap of the steps at which sequences finish."""
        self._finishing: dict[int, dict[tuple[int, int], int]] = {}
        """At each: (shard, part) -> how many."""
        self._running = 0
        self._admitted: Counter[tuple[int, int]] = Counter()
        self._busy = 0

    def play(self, requests: int) -> Flow:
        step = chunks = 0
        while self._started < requests or self._running:
            self._open_shards(requests)
            self._fill_window()
            if self._window:
                self._admit(step)
            enough = max(1, self._running // 8) if self._started < self._opened else self._running
            last, end, finished = step + CHUNK_STEPS, step, 0
            while self._ends and self._ends[0] <= last and finished < enough:
                end = heapq.heappop(self._ends)
                finished += self._finish(self._finishing.pop(end))
            step = end if finished >= enough else last
            chunks += 1
        return self._flow(step, chunks)

    def _flow(self, step: int, chunks: int) -> Flow:
        times = {key: float(count) for key, count in self._admitted.items()}
        return Flow(self._slots, len(self._free), float(step), float(chunks), float(self._busy), times)

    def _open_shards(self, requests: int) -> None:
        workload, size = self._workload, self._workload.shard_requests
        while self._opened < requests and len(self._left) < workload.open_shards:
            shard, opened = self._opened // size, min(size, requests - self._opened)
            self._left[shard] = opened * workload.samples
            self._opened += opened

    def _fill_window(self) -> None:
        buckets = self._bucket_of
        upto = min(self._opened, self._started + self._most_in_window)
        for request in range(self._entered, upto):
            bucket = buckets[request % len(buckets)]
            waiting = self._window.get(bucket)
            if waiting is None:
                self._window[bucket] = waiting = deque()
            waiting.append(request)
        self._entered = max(self._entered, upto)

    def _admit(self, step: int) -> None:
        """Gives free slots to those that wait: the oldest, and others of its bucket. A request goes where most is
        free."""
        steps_of, free, finishing = self._steps_of, self._free, self._finishing
        size, samples = self._workload.shard_requests, self._workload.samples
        freest: list[tuple[int, int]] | None = None
        for bucket in list(self._window):
            prompts: dict[int, int] = {}
            waiting = self._window[bucket]
            while waiting:
                if self._begun:
                    left, part, until = self._begun
                    if not free[part]:
                        break
                else:
                    freest = self._freest() if freest is None else freest
                    if not freest:
                        break
                    left, part, until = samples, freest[0][1], 0
                request, started = waiting[0], min(free[part], left)
                if until <= step:  # no sample of it runs, or none any more
                    prompts[part] = prompts.get(part, 0) + 1
                steps = steps_of[request % len(steps_of)]
                group = finishing.get(step + steps)
                if group is None:
                    finishing[step + steps] = group = {}
                    heapq.heappush(self._ends, step + steps)
                key = (request // size, part)
                group[key] = group.get(key, 0) + started
                self._running += started
                self._busy += started * steps
                free[part] -= started
                if freest is None:
                    pass  # the first that waits goes on in its part, and no other was looked for
                elif free[part]:
                    heapq.heapreplace(freest, (-free[part], part))
                else:
                    heapq.heappop(freest)
                if started < left:
                    self._begun = (left - started, part, step + steps)
                    break
                self._begun = None
                waiting.popleft()
                self._started += 1
            if prompts:
                self._admitted[bucket, max(prompts.values())] += 1
            if waiting:
                return
            del self._window[bucket]

    def _freest(self) -> list[tuple[int, int]]:
        """A heap of the parts that have free slots."""
        heap = [(-slots, part) for part, slots in enumerate(self._free) if slots]
        heapq.heapify(heap)
        return heap

    def _finish(self, group: dict[tuple[int, int], int]) -> int:
        """How many sequences those are that finish together."""
        finished = 0
        for (shard, part), count in group.items():
            self._free[part] += count
            self._left[shard] -= count
            if not self._left[shard]:
                del self._left[shard]
            finished += count
        self._running -= finished
        return finished
