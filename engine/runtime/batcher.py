"""Which request runs when: plain Python over requests, slots and pages. No jax, no arrays, no clock.

Requests wait in the order they came. When slots are free, the oldest goes first and takes along others of its length
bucket from the window behind it, so prefill batches are full. Which pages a sample gets is another's to say
(engine/runtime/slot_memory.py); it gets all it can ever need before it starts.

On a mesh slots may be in parts, each with pages of its own; a request's samples all stay in the part where it started.
On one chip there is one part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain

from engine.compilation.options import DecodeOptions
from engine.runtime.group import Group, Sample
from engine.runtime.request import Generation, Score, ScoreRequest
from engine.runtime.slot_memory import Start, slot_memory

WINDOW = 1024  # requests looked at when filling a prefill batch


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
    bucket: int = 0
    """That it is scored in; the batcher's."""


class Batcher:
    """Requests in, admissions and score batches out."""

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self._slot_parts = options.parts.of_slots
        self._memory = slot_memory(options)
        rows, slots = options.slot_rows // self._slot_parts, -(-options.slots // self._slot_parts)
        self._free_slots = [
            list(range(part * rows + slots - 1, part * rows - 1, -1)) for part in range(self._slot_parts)
        ]
        self._waiting: deque[Group] = deque()
        self._scores: deque[Scoring] = deque()
        self._being_scored: list[Scoring] = []
        self.running: dict[int, Sample] = {}
        """By slot."""

    def add(self, group: Group) -> None:
        group.bucket = self._options.bucket(max(group.prefilled, 1))
        self._waiting.append(group)

    def add_score(self, scoring: Scoring) -> None:
        scoring.bucket = self._options.bucket(len(scoring.request.tokens))
        self._scores.append(scoring)

    @property
    def samples_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def scores_waiting(self) -> bool:
        return bool(self._scores)

    def open_futures(self) -> list[Future]:
        """Of everything not finished, each once."""
        return [one.future for one in (*self._open_groups(), *self._open_scores())]

    def started_over(self, options: DecodeOptions) -> Batcher:
        """One of other options with all that is not finished; nothing of it runs yet."""
        other = Batcher(options)
        for group in self._open_groups():
            group.start_over()
            other.add(group)
        for scoring in self._open_scores():
            other.add_score(scoring)
        return other

    def _open_groups(self) -> list[Group]:
        running = (sample.group for sample in self.running.values())
        return list({id(group): group for group in (*running, *self._waiting)}.values())

    def _open_scores(self) -> list[Scoring]:
        return [*self._being_scored, *self._scores]

    def admit(self) -> Admission:
        """Starts as many samples as slots and pages allow."""
        rows: dict[int, list[list[PrefillRow]]] = {}
        copies: list[list[tuple[int, int]]] = [[] for _ in range(self._slot_parts * self._options.parts.of_sequence)]
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
            sample, start = self._start(group)
            samples.append(sample)
            if start.prefill_pages:
                row = PrefillRow(group.request.prompt[:-1], start.prefill_pages)
                rows.setdefault(group.bucket, [[] for _ in range(self._slot_parts)])[part].append(row)
            for cache_part, source, target in start.copies:
                copies[cache_part].append((source, target))
            if group.all_started:
                complete.append(order.popleft())
        for group in complete:  # not before: a page freed now could be prefilled for another before it is copied
            self._memory.complete(group)
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
        free = [
            part for part in parts if part not in taken and self._free_slots[part] and self._memory.fits(group, part)
        ]
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
        self._memory.complete(group)
        group.future.set_exception(error)
        return dropped

    def next_scores(self) -> tuple[int, list[Scoring]]:
        """The oldest scoring request and others of its bucket from the window, as many as the program has rows."""
        window = [self._scores.popleft() for _ in range(min(WINDOW, len(self._scores)))]
        bucket = window[0].bucket
        room = self._options.rows(bucket)
        chosen: list[Scoring] = []
        rest: list[Scoring] = []
        for scoring in window:
            (chosen if scoring.bucket == bucket and len(chosen) < room else rest).append(scoring)
        self._scores.extendleft(reversed(rest))
        self._being_scored = chosen
        return bucket, chosen

    def finish_scores(self, scores: Sequence[Score]) -> None:
        """Resolves the futures of what `next_scores` gave last."""
        scored, self._being_scored = self._being_scored, []
        for scoring, score in zip(scored, scores, strict=True):
            scoring.future.set_result(score)

    def _take_window(self) -> deque[Group]:
        """Takes the window off the queue, buckets together, in the order in which each bucket first appears.

        Before them come those that have started: if another started in their part first, both would hold pages of
        prompts, and neither might get the rest of what it needs.
        """
        started: list[Group] = []
        by_bucket: dict[int, list[Group]] = {}
        for _ in range(min(WINDOW, len(self._waiting))):
            group = self._waiting.popleft()
            (started if group.started else by_bucket.setdefault(group.bucket, [])).append(group)
        return deque(chain(started, *by_bucket.values()))

    def _start(self, group: Group) -> tuple[Sample, Start]:
        """Gives the group's next sample a slot and pages."""
        slot = self._free_slots[group.part].pop()
        start = self._memory.start(group, slot)
        watch = group.request.watch
        sample = Sample(group, group.to_generate[group.started], slot, start.pages, watch() if watch else None)
        group.started += 1
        self.running[sample.slot] = sample
        return sample, start

    def _free(self, sample: Sample) -> None:
        del self.running[sample.slot]
        self._free_slots[sample.group.part].append(sample.slot)
        self._memory.finish(sample)
