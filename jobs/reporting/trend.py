"""Partitions one after the other, each held against those before it.

The baseline of a partition is the pooled sample of up to `window` partitions before it. Partitions that were flagged
stay in it: a lasting change is flagged while it is new, and is the new normal after a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.reporting import drift
from jobs.reporting.drift import Shift
from jobs.reporting.facts import Facts

WINDOW = 7

MEASURES = {
    "prompt_tokens": "prompt length",
    "completion_tokens": "completion length",
    "finish_reasons": "finish reasons",
    "logprob_per_token": "log-probability per token",
    "margin": "lead of the best choice",
    "best_index": "chosen continuation",
    "perplexity": "perplexity",
}
"""Fields of a Sample, and what a reader calls them."""

FAILURES = "failure rate"


@dataclass(frozen=True)
class Partition:
    facts: Facts
    shifts: dict[str, Shift]
    """By the reader's name of what has moved; empty for the first."""

    @property
    def drifted(self) -> list[str]:
        return [name for name, shift in self.shifts.items() if shift.is_drift]

    @property
    def failed_fraction(self) -> float:
        return self.facts.status.done.failed_fraction

    @property
    def score(self) -> float | None:
        values = self.facts.sample.logprob_per_token
        return float(np.mean(values)) if values.size else None


def trend(outputs: Sequence[Facts], window: int = WINDOW) -> list[Partition]:
    """The partitions in the order given. One with no row yet has nothing to compare, and is in no baseline."""
    partitions = []
    for index, facts in enumerate(outputs):
        earlier = [other for other in outputs[:index] if other.status.records_done][-window:]
        shifts = dict(_shifts(facts, earlier)) if earlier and facts.status.records_done else {}
        partitions.append(Partition(facts, shifts))
    return partitions


def _shifts(facts: Facts, earlier: Sequence[Facts]) -> Iterator[tuple[str, Shift]]:
    found = {FAILURES: _failures(facts, earlier)}
    for field, name in MEASURES.items():
        now, before = getattr(facts.sample, field), [getattr(other.sample, field) for other in earlier]
        if isinstance(now, Counter):
            found[name] = drift.of_categories(now, sum(before, Counter()))
        else:
            found[name] = drift.of_values(now, np.concatenate(before))
    yield from ((name, shift) for name, shift in found.items() if shift is not None)


def _failures(facts: Facts, earlier: Sequence[Facts]) -> Shift | None:
    failed, rows = sum(other.status.done.failed for other in earlier), sum(e.status.records_done for e in earlier)
    return drift.of_rates(facts.status.done.failed, facts.status.records_done, failed, rows)
