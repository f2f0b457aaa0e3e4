"""Which request runs when: plain Python over requests, slots and pages. No jax, no arrays, no clock.

Requests wait in the order they came. When slots are free, the oldest goes first and takes along others of its length
bucket from the window behind it, so prefill batches are full. A sample takes all the pages it can ever need before it
starts, so nothing that has started is ever stopped for lack of memory and computed twice. Samples of one prompt share
the pages that the prompt fills, and copy the one it fills in part.

On a mesh the cache is in parts, each with pages of its own. Either a part has slots of its own, and a request's samples
all stay in the part where it started; or every slot's pages go round the parts. On one chip there is one part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    part: int = 0
    """Of the slots; where the first sample started."""
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

    prefills: list[tuple[int, list[list[PrefillRow]]]]
    """(bucket, rows by part of the slots), no more rows than the bucket's program has for each part."""
    copies: list[list[tuple[int, int]]]
    """(source page, target page) by part of the cache."""
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
        self._slot_parts, self._page_parts = options.parts.of_slots, options.parts.of_sequence
        self._pools = [PagePool(options.pages) for _ in range(self._slot_parts * self._page_parts)]
        rows, slots = options.slot_rows // self._slot_parts, -(-options.slots // self._slot_parts)
        self._free_slots = [
            list(range(part * rows + slots - 1, part * rows - 1, -1)) for part in range(self._slot_parts)
        ]
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
        rows: dict[int, list[list[PrefillRow]]] = {}
        copies: list[list[tuple[int, int]]] = [[] for _ in self._pools]
        samples: list[Sample] = []
        complete: list[Group] = []
        order = self._take_window() if any(self._free_slots) else deque()
        waiting: list[Group] = []  # for a slot or pages of their part, which nobody behind them may take
        while order:
            group = order[0]
            part = self._part_for(group, {behind.part for behind in waiting})
            if part is None:
                if not group.started:
                    break
                waiting.append(order.popleft())
                continue
            group.part = part
            sample = self._start(group, copies)
            samples.append(sample)
            if sample.index == 0 and group.prefilled:
                prompt_pages = sample.pages[: self._blocks(group.prefilled)]
                row = PrefillRow(group.request.prompt[:-1], prompt_pages)
                rows.setdefault(self._bucket(group), [[] for _ in range(self._slot_parts)])[part].append(row)
            if group.started == group.request.samples:
                complete.append(order.popleft())
        for group in complete:  # not before: a page freed now could be prefilled for another before it is copied
            self._release_prompt(group)
        # Groups that have started some of their samples are the first, so they stay ahead of everyone.
        self._waiting.extendleft(reversed([*waiting, *order]))
        return Admission(
            [(bucket, some) for bucket, by_part in rows.items() for some in self._batches(bucket, by_part)],
            copies,
            samples,
        )

    def _batches(self, bucket: int, by_part: list[list[PrefillRow]]) -> Iterator[list[list[PrefillRow]]]:
        """As many rows of each part as the bucket's program has for it."""
        room = self._options.rows(bucket) // self._slot_parts
        for at in range(0, max(map(len, by_part)), room):
            yield [some[at : at + room] for some in by_part]

    def _part_for(self, group: Group, taken: set[int]) -> int | None:
        """Where the group's next sample can start: in its part, or, if it is the first, where most slots are free."""
        parts = [group.part] if group.started else range(self._slot_parts)
        free = [part for part in parts if part not in taken and self._free_slots[part] and self._fits(group, part)]
        return max(free, key=lambda part: len(self._free_slots[part]), default=None)

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
        self._release_prompt(group)
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

    def _own_blocks(self, group: Group) -> range:
        """The blocks for which the next sample needs pages of its own."""
        return range(len(self._shared_pages(group)), self._blocks(group.prefilled + group.max_tokens))

    def _pool(self, part: int, block: int) -> PagePool:
        """Where the pages for this block of a sequence come from."""
        return self._pools[self._pool_index(part, block)]

    def _pool_index(self, part: int, block: int) -> int:
        return part if self._page_parts == 1 else block % self._page_parts

    def _fits(self, group: Group, part: int) -> bool:
        blocks, parts = self._own_blocks(group), self._page_parts
        return all(
            len(range(first, blocks.stop, parts)) <= self._pool(part, first).free
            for first in range(blocks.start, min(blocks.start + parts, blocks.stop))
        )

    def _start(self, group: Group, copies: list[list[tuple[int, int]]]) -> Sample:
        """Gives the group's next sample a slot and pages; notes a copy if the prompt's last page is only part full."""
        shared = self._shared_pages(group)
        own = [self._pool(group.part, block).allocate(1)[0] for block in self._own_blocks(group)]
        self._each(group.part, shared, PagePool.retain)
        if group.started == 0:
            group.prompt_pages = own[: self._blocks(group.prefilled)]
            self._each(group.part, group.prompt_pages, PagePool.retain)
        elif len(group.prompt_pages) > len(shared):
            copies[self._pool_index(group.part, len(shared))].append((group.prompt_pages[-1], own[0]))
        watch = group.request.watch
        slot = self._free_slots[group.part].pop()
        sample = Sample(group, group.started, slot, shared + own, watch() if watch else None)
        group.started += 1
        self.running[sample.slot] = sample
        return sample

    def _free(self, sample: Sample) -> None:
        del self.running[sample.slot]
        self._free_slots[sample.group.part].append(sample.slot)
        self._each(sample.group.part, sample.pages, PagePool.release)

    def _release_prompt(self, group: Group) -> None:
        self._each(group.part, group.prompt_pages, PagePool.release)
        group.prompt_pages = []

    def _each(self, part: int, pages: Sequence[int], do: Callable[[PagePool, Sequence[int]], None]) -> None:
        """Retains or releases the pages of a sequence's blocks, from the first on."""
        for first in range(min(self._page_parts, len(pages))):
            do(self._pool(part, first), pages[first :: self._page_parts])
