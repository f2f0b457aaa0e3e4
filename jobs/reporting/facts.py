"""Everything a report says of one output, read once; nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reporting.outputs import Output
from jobs.reporting.sampling import SAMPLED_ROWS, Example, Sample, failure_examples, take_sample
from jobs.reporting.timeline import Timeline, timeline
from jobs.reporting.workers import read_workers
from jobs.status import Status
from pipeline.manifest import Manifest
from pipeline.storage import exists, join
from pipeline.workplan import read_plan
from schemas.manifest import SUCCESS_NAME, ShardEntry


@dataclass(frozen=True)
class Facts:
    label: str
    status: Status
    entries: Sequence[ShardEntry]
    sample: Sample
    examples: Mapping[str, Sequence[Example]]
    workers: Sequence[Mapping[str, Any]] = ()
    """The documents in `_workers/`."""

    @property
    def timeline(self) -> Timeline | None:
        return timeline(self.entries)

    @property
    def is_score(self) -> bool:
        return self.status.plan.task == "score"

    @property
    def engine(self) -> dict[str, float]:
        """What the engines counted, over all shards. Shards overlap, so these are good for shares, not for sums."""
        totals: dict[str, float] = {}
        for entry in self.entries:
            for name, count in entry.engine.items():
                totals[name] = totals.get(name, 0) + count
        return totals

    def share(self, part: str, whole: str) -> float | None:
        """One count of the engine by another; None where the second is nothing."""
        totals = self.engine
        return totals.get(part, 0) / totals[whole] if totals.get(whole) else None

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.status.plan.settings


def read_facts(output: Output, sampled_rows: int = SAMPLED_ROWS) -> Facts:
    """Reads the plan, the entries, and about `sampled_rows` rows of the results."""
    plan = read_plan(output.url)
    entries = Manifest(output.url, plan).entries()
    return Facts(
        label=output.label,
        status=Status.of(output.url, plan, entries, exists(join(output.url, SUCCESS_NAME))),
        entries=entries,
        sample=take_sample(output.url, entries, sampled_rows),
        examples=failure_examples(output.url, entries),
        workers=read_workers(output.url),
    )
