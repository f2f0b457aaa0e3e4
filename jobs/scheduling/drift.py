"""Drift: a partition whose figures differ from those of the partitions before it.

The figures are those of `_summary.json`: rows, the failed share, and tokens per row. One drifts when it is further from
the median of up to 28 partitions before than four times their spread (1.4826 times the median absolute deviation,
which is the standard deviation of normal noise) and than a tenth of the median (or, for shares, than 0.02). With fewer
than five partitions before there is nothing to differ from. A median does not follow a single bad day.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.manifest import Summary

LEAST_BEFORE = 5
MOST_BEFORE = 28
SPREADS = 4.0
LEAST_RELATIVE = 0.1
LEAST_SHARE = 0.02
NORMAL_SPREAD = 1.4826


@dataclass(frozen=True)
class Drift:
    """A figure that is not what it was."""

    figure: str
    value: float
    median: float

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.4g}, {self.median:.4g} before"


def figures(summaries: Sequence[Summary]) -> dict[str, float]:
    """What is compared, of a partition whose results are in one or several outputs. A share is named so."""
    rows = sum(summary.ok + summary.failed for summary in summaries)
    ok = max(1, sum(summary.ok for summary in summaries))
    return {
        "rows": float(rows),
        "failed share": sum(summary.failed for summary in summaries) / max(1, rows),
        "prompt tokens per row": sum(summary.prompt_tokens for summary in summaries) / ok,
        "generated tokens per row": sum(summary.completion_tokens for summary in summaries) / ok,
        "scored tokens per row": sum(summary.scored_tokens for summary in summaries) / ok,
    }


def drifts(now: Mapping[str, float], before: Sequence[Mapping[str, float]]) -> list[Drift]:
    """The figures that differ from those of the partitions before, oldest first."""
    before = before[-MOST_BEFORE:]
    if len(before) < LEAST_BEFORE:
        return []
    found = []
    for name, value in now.items():
        others = [figures[name] for figures in before if name in figures]
        if len(others) < LEAST_BEFORE:
            continue
        median = statistics.median(others)
        spread = NORMAL_SPREAD * statistics.median(abs(other - median) for other in others)
        least = LEAST_SHARE if name.endswith("share") else LEAST_RELATIVE * abs(median)
        if abs(value - median) > max(SPREADS * spread, least):
            found.append(Drift(name, value, median))
    return found
