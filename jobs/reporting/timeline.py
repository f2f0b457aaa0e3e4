"""When which shard was open, how many tokens a second, how full the slots: from the entries of the shards alone.

The engine counts for all open shards together, so what an entry has of it is what happened while the shard was open. A
rate over time spreads the tokens of every shard evenly over its time, and adds up what is open at a moment. Times in
which no shard was open (between two runs) are cut out, and marked.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.manifest import span_of
from schemas.manifest import ShardEntry

BINS = 120
LEAST_PAUSE_SECONDS = 2.0
_LEAST_SECONDS = 1e-3  # to which entries are rounded; a shard takes some time


@dataclass(frozen=True)
class Span:
    """A shard on the time axis. Seconds since the start of the first shard, pauses left out."""

    entry: ShardEntry
    lane: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Pause:
    at: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    spans: Sequence[Span]
    lanes: Sequence[str]
    pauses: Sequence[Pause]
    started_at: datetime.datetime
    seconds: float
    edges: np.ndarray
    """Of the bins, in seconds: [bins + 1]."""
    generated: np.ndarray
    """Tokens generated or scored, per second: [bins]."""
    prompts: np.ndarray
    """Tokens of prompts, per second."""
    slots_busy: np.ndarray | None
    """Share of the decode batch that did something, NaN where nothing was decoded."""
    useful_prefill: np.ndarray | None
    """Share of what prefill and score programs computed that was no padding."""


def timeline(entries: Sequence[ShardEntry]) -> Timeline | None:
    """None before a shard is done, or when of none is known when it was computed."""
    known = [entry for entry in entries if span_of(entry)]
    if not known:
        return None
    timed = sorted(known, key=lambda entry: (_start(entry), entry.shard))
    origin = min(_start(entry) for entry in timed)
    clock, pauses = _clock([(_start(entry) - origin, _seconds(entry)) for entry in timed])
    starts = [clock(_start(entry) - origin) for entry in timed]
    lanes, names = _lanes(timed, starts)
    spans = [
        Span(entry, lane, start, start + _seconds(entry))
        for entry, lane, start in zip(timed, lanes, starts, strict=True)
    ]
    seconds = max(span.end for span in spans)
    edges = np.linspace(0.0, seconds, BINS + 1)

    def spread(amounts: Sequence[float]) -> np.ndarray:
        return _spread(spans, np.asarray(amounts, dtype=np.float64), edges)

    def share(part: str, whole: str) -> np.ndarray | None:
        parts, wholes = ([entry.engine.get(name, 0) for entry in timed] for name in (part, whole))
        if not sum(wholes):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return spread(parts) / spread(wholes)

    width = seconds / BINS
    return Timeline(
        spans=spans,
        lanes=names,
        pauses=pauses,
        started_at=datetime.datetime.fromtimestamp(origin, datetime.UTC),
        seconds=seconds,
        edges=edges,
        generated=spread([entry.completion_tokens + entry.scored_tokens for entry in timed]) / width,
        prompts=spread([entry.prompt_tokens for entry in timed]) / width,
        slots_busy=share("slot_steps_busy", "slot_steps_total"),
        useful_prefill=share("prefill_tokens", "prefill_tokens_padded"),
    )


def _start(entry: ShardEntry) -> float:
    assert entry.started_at is not None
    return datetime.datetime.fromisoformat(entry.started_at).timestamp()


def _seconds(entry: ShardEntry) -> float:
    return max(entry.seconds or 0.0, _LEAST_SECONDS)


class _Clock:
    """Seconds on the wall to seconds on the axis: pauses before them are subtracted."""

    def __init__(self, ends: Sequence[float], lengths: Sequence[float]) -> None:
        self._ends = np.asarray(ends)
        self._before = np.concatenate([[0.0], np.cumsum(lengths)])

    def __call__(self, seconds: float) -> float:
        return seconds - float(self._before[np.searchsorted(self._ends, seconds, side="right")])


def _clock(times: Sequence[tuple[float, float]]) -> tuple[_Clock, list[Pause]]:
    """`times` are (start, seconds), in order of their starts."""
    ends, lengths, pauses = [], [], []
    open_until = times[0][0]
    for start, seconds in times:
        if start - open_until > LEAST_PAUSE_SECONDS:
            pauses.append(Pause(open_until - sum(lengths), start - open_until))
            ends.append(start)
            lengths.append(start - open_until)
        open_until = max(open_until, start + seconds)
    return _Clock(ends, lengths), pauses


def _lanes(entries: Sequence[ShardEntry], starts: Sequence[float]) -> tuple[list[int], list[str]]:
    """A lane for each shard, so that no two overlap in one: the lanes of a worker stand together."""
    free_at: dict[str, list[float]] = {}
    placed: list[tuple[str, int]] = []
    for entry, start in zip(entries, starts, strict=True):
        worker = entry.worker or ""
        ends = free_at.setdefault(worker, [])
        lane = next((i for i, end in enumerate(ends) if end <= start + _LEAST_SECONDS), len(ends))
        ends[lane:] = [start + _seconds(entry), *ends[lane + 1 :]]
        placed.append((worker, lane))
    first, names = {}, []
    for worker, ends in sorted(free_at.items()):
        first[worker] = len(names)
        names += [worker if lane == 0 else "" for lane in range(len(ends))]
    return [first[worker] + lane for worker, lane in placed], names


def _spread(spans: Sequence[Span], amounts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Each amount spread evenly over its span, as sums by bin: differences of the cumulative amount at the edges."""
    times, rates = [], []
    for span, amount in zip(spans, amounts.tolist(), strict=True):
        times += [span.start, span.end]
        rates += [amount / span.seconds, -amount / span.seconds]
    order = np.argsort(times, kind="stable")
    at, rate = np.asarray(times)[order], np.cumsum(np.asarray(rates)[order])
    total = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(at))])
    return np.maximum(0.0, np.diff(np.interp(edges, at, total)))
