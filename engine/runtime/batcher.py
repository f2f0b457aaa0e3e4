"""Which request runs when: plain Python over requests, slots and pages. No jax, no arrays, no clock.

Requests wait in the order they came. When slots are free, the oldest goes first and takes along others of its length
bucket from the window behind it, so prefill batches are full. A sample takes all the pages it can ever need before it
starts, so nothing that has started is ever stopped for lack of memory and computed twice. Samples of one prompt share
the pages that the prompt fills, and copy the one it fills in part.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain

from engine.cache.page_table import PagePool
from engine.compilation.options import DecodeOptions
from engine.runtime.request import GenerateRequest, Generation, Score, ScoreRequest, Watcher

WINDOW = 1024  # requests looked at when filling a prefill batch


@dataclass(eq=False)
class Group:
    """A GenerateRequest in flight: all samples of one prompt."""

    request: GenerateRequest
    max_tokens: int
    """The request's own, or what the longest length leaves after its prompt."""
    future: Future[list[Generation]]
    started: int = 0
    finished: dict[int, Generation] = field(default_factory=dict)
    prompt_pages: list[int] = field(default_factory=list)
    """Held from the first sample's start to the last one's."""

    @property
    def prefilled(self) -> int:
        """Positions that prefill fills; the last prompt token is decode's first input."""
        return len(self.request.prompt) - 1


@dataclass(eq=False)
class Sample:
    """One sample in a slot."""

    group: Group
    index: int
    slot: int
    pages: list[int]
    watcher: Watcher | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)


@dataclass(frozen=True)
class PrefillRow:
    token_ids: tuple[int, ...]
    pages: list[int]


@dataclass(frozen=True)
class Admission:
    """What the device must do before the next decode chunk: first prefills, then copies; `samples` then run."""

    prefills: list[tuple[int, list[PrefillRow]]]
    """(bucket, rows), no more rows than the bucket's program has."""
    copies: list[tuple[int, int]]
    """(source page, target page)."""
    samples: list[Sample]


@dataclass(eq=False)
class Scoring:
    """A ScoreRequest in flight."""

    request: ScoreRequest
    future: Future[Score]


class Batcher:
    """Requests in, admissions and score batches out."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._pool = PagePool(options.pages)
        self._free_slots = list(range(options.slots - 1, -1, -1))
        self._waiting: deque[Group] = deque()
        self._scores: deque[Scoring] = deque()
        self.running: dict[int, Sample] = {}
        """By slot."""

    def add(self, group: Group) -> None:
        self._waiting.append(group)

    def add_score(self, scoring: Scoring) -> None:
        self._scores.append(scoring)

    @property
    def samples_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def scores_waiting(self) -> bool:
        return bool(self._scores)

    def open_futures(self) -> list[Future]:
        """Of everything not finished, each once."""
        groups = {id(group): group for group in self._waiting}
        groups |= {id(sample.group): sample.group for sample in self.running.values()}
        return [group.future for group in groups.values()] + [scoring.future for scoring in self._scores]

    def admit(self) -> Admission:
        """Starts as many samples as slots and pages allow."""
        rows: dict[int, list[PrefillRow]] = {}
        copies: list[tuple[int, int]] = []
        samples: list[Sample] = []
        complete: list[Group] = []
        order = self._take_window() if self._free_slots else deque()
        while order and self._free_slots and self._fits(order[0]):
            group = order[0]
            sample = self._start(group, copies)
            samples.append(sample)
            if sample.index == 0 and group.prefilled:
                prompt_pages = sample.pages[: self._blocks(group.prefilled)]
                row = PrefillRow(group.request.prompt[:-1], prompt_pages)
                rows.setdefault(self._bucket(group), []).append(row)
            if group.started == group.request.samples:
                complete.append(order.popleft())
        for group in complete:  # not before: a page freed now could be prefilled for another before it is copied
            self._pool.release(group.prompt_pages)
            group.prompt_pages = []
        # A group that has started some of its samples is the first of `order`, so it stays ahead of everyone.
        self._waiting.extendleft(reversed(order))
        prefills = [
            (bucket, some[at : at + self._options.rows(bucket)])
            for bucket, some in rows.items()
            for at in range(0, len(some), self._options.rows(bucket))
        ]
        return Admission(prefills, copies, samples)

    def finish(self, sample: Sample, generation: Generation) -> None:
        """Frees the sample's slot and pages; resolves the request's future after its last sample."""
        self._free(sample)
        group = sample.group
        group.finished[sample.index] = generation
        if len(group.finished) == group.request.samples:
            group.future.set_result([group.finished[index] for index in range(group.request.samples)])

    def fail(self, group: Group, error: BaseException) -> list[Sample]:
        """Drops everything of one request and fails its future; returns the samples whose slots must stop."""
        dropped = [sample for sample in self.running.values() if sample.group is group]
        for sample in dropped:
            self._free(sample)
        if group in self._waiting:
            self._waiting.remove(group)
        self._pool.release(group.prompt_pages)
        group.prompt_pages = []
        group.future.set_exception(error)
        return dropped

    def next_scores(self) -> tuple[int, list[Scoring]]:
        """The oldest scoring request and others of its bucket from the window, as many as the program has rows."""
        window = [self._scores.popleft() for _ in range(min(WINDOW, len(self._scores)))]
        bucket = self._options.bucket(len(window[0].request.tokens))
        chosen: list[Scoring] = []
        rest: list[Scoring] = []
        for scoring in window:
            fits = self._options.bucket(len(scoring.request.tokens)) == bucket
            (chosen if fits and len(chosen) < self._options.rows(bucket) else rest).append(scoring)
        self._scores.extendleft(reversed(rest))
        return bucket, chosen

    def _take_window(self) -> deque[Group]:
        """Takes the window off the queue, buckets together, in the order in which each bucket first appears."""
        by_bucket: dict[int, list[Group]] = {}
        for _ in range(min(WINDOW, len(self._waiting))):
            group = self._waiting.popleft()
            by_bucket.setdefault(self._bucket(group), []).append(group)
        return deque(chain.from_iterable(by_bucket.values()))

    def _bucket(self, group: Group) -> int:
        return self._options.bucket(max(group.prefilled, 1))

    def _blocks(self, positions: int) -> int:
        return -(-positions // self._options.page_tokens)

    def _shared_pages(self, group: Group) -> list[int]:
        """The pages the next sample can use as they are: those the prompt fills to the end."""
        return group.prompt_pages[: group.prefilled // self._options.page_tokens] if group.started else []

    def _own_pages(self, group: Group) -> int:
        """How many pages the next sample needs for itself."""
        return self._blocks(group.prefilled + group.max_tokens) - len(self._shared_pages(group))

    def _fits(self, group: Group) -> bool:
        return self._own_pages(group) <= self._pool.free

    def _start(self, group: Group, copies: list[tuple[int, int]]) -> Sample:
        """Gives the group's next sample a slot and pages; notes a copy if the prompt's last page is only part full."""
        shared = self._shared_pages(group)
        own = self._pool.allocate(self._own_pages(group))
        self._pool.retain(shared)
        if group.started == 0:
            group.prompt_pages = own[: self._blocks(group.prefilled)]
            self._pool.retain(group.prompt_pages)
        elif len(group.prompt_pages) > len(shared):
            copies.append((group.prompt_pages[-1], own[0]))
        watch = group.request.watch
        sample = Sample(group, group.started, self._free_slots.pop(), shared + own, watch() if watch else None)
        group.started += 1
        self.running[sample.slot] = sample
        return sample

    def _free(self, sample: Sample) -> None:
        del self.running[sample.slot]
        self._free_slots.append(sample.slot)
        self._pool.release(sample.pages)
