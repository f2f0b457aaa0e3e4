"""What is done: one entry per finished shard, always the one in the footer of the shard's result file.

The result file is the truth, and its footer holds the entry. The entries beside it (`_manifest/`) and the
copies of failed rows (`_errors/`) are derived from the file that is there, whoever wrote it, so every writer
derives the same and a lost one is derived again. A shard is done when its result file exists.

To its entry the writer of a file adds when and how long it computed. The first entry stands: one that was
derived by somebody else, because the writer was killed in between, says nothing of time for ever.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq

from schemas.documents import DocumentError, NewerVersion
from schemas.manifest import (
    ERRORS_NAME,
    FOOTER_KEY,
    MANIFEST_NAME,
    SUCCESS_NAME,
    SUMMARY_NAME,
    Plan,
    ShardEntry,
    Summary,
    entry_name,
    errors_name,
    part_name,
)
from schemas.prediction import Prediction

from . import leases, storage
from .errors import OutputError
from .prediction import known_prediction
from .records import json_line
from .sources.base import WorkItem
from .sources.parquet import UNREADABLE
from .workplan import PlanFacts, work_items


@dataclass(frozen=True)
class Computed:
    """How a shard came about: what the writer of its result file knows, and nobody else."""

    started_at: str | None = None
    seconds: float | None = None
    engine: dict[str, int | float] = field(default_factory=dict)
    worker: str | None = None


class Manifest:
    """The state of a planned output. Entries are read once: a finished shard never changes."""

    def __init__(self, output: str, plan: Plan) -> None:
        self.output = output
        self.plan = plan
        self._facts = PlanFacts.of(plan)
        self._entries: dict[int, ShardEntry] = {}

    def done(self) -> set[int]:
        """The finished shards; those that lost their writer before it made the entry get it now."""
        finished = self._finished()
        for shard in sorted(finished - self._recorded()):
            self._entries[shard] = record_shard(self.output, self._facts, shard)
        return finished

    def todo(self) -> list[WorkItem]:
        """The shards that are still to be computed, in order."""
        done = self.done()
        return [item for item in work_items(self.plan) if item.shard not in done]

    def missing(self) -> list[WorkItem]:
        """The same, and nothing is written."""
        done = self._finished()
        return [item for item in work_items(self.plan) if item.shard not in done]

    def entries(self) -> list[ShardEntry]:
        """The entries of the finished shards that have one, in order; nothing is written."""
        shards = self._finished() & self._recorded()
        with ThreadPoolExecutor(16) as pool:
            new = pool.map(self._read_entry, sorted(shards - self._entries.keys()))
            self._entries.update((entry.shard, entry) for entry in new)
        return [self._entries[shard] for shard in sorted(shards)]

    def finalise(self) -> Summary:
        """Declare the job finished: every shard there, no row lost. Repeated, it changes no byte."""
        missing = len(self.plan.shards) - len(self.done())
        if missing:
            raise OutputError(f"{missing} of {len(self.plan.shards)} shards are not there yet; run the job again")
        entries = self.entries()
        for entry, item in zip(entries, work_items(self.plan), strict=True):
            _check(entry, self._facts, item.shard, storage.join(self.output, MANIFEST_NAME, entry_name(item.shard)))
            if entry.ok + entry.failed != item.rows:
                raise OutputError(f"{entry.file} has {entry.ok + entry.failed} of {item.rows} records")
        summary = summarise(self.plan, entries, known_prediction(self.output))
        if summary.ok + summary.failed != self.plan.rows_total:
            raise OutputError(f"{summary.ok + summary.failed} of {self.plan.rows_total} records are there")
        leases.clear(self.output)
        storage.publish_over(storage.join(self.output, SUMMARY_NAME), summary.to_json())
        storage.publish_if_absent(storage.join(self.output, SUCCESS_NAME), b"")
        return summary

    def _finished(self) -> set[int]:
        """The shards whose result file is there; result files of another plan are refused."""
        shards = {part_name(shard, self._facts.shards): shard for shard in range(self._facts.shards)}
        found = [name for name in storage.list_names(self.output) if not name.startswith((".", "_"))]
        strange = [name for name in found if name.endswith(".parquet") and name not in shards]
        if strange:
            raise OutputError(
                f"{self.output} holds {strange[0]}, which is not of this job, and which readers would take for "
                "results; move it away"
            )
        return {shards[name] for name in found if name in shards}

    def _recorded(self) -> set[int]:
        names = set(storage.list_names(storage.join(self.output, MANIFEST_NAME)))
        return {shard for shard in range(self._facts.shards) if entry_name(shard) in names}

    def _read_entry(self, shard: int) -> ShardEntry:
        return read_entry(storage.join(self.output, MANIFEST_NAME, entry_name(shard)))


def is_recorded(output: str, facts: PlanFacts, shard: int) -> bool:
    """Whether nothing is left to do for a shard: its result file and its entry are there."""
    names = storage.join(MANIFEST_NAME, entry_name(shard)), part_name(shard, facts.shards)
    return all(storage.exists(storage.join(output, name)) for name in names)


def committed(output: str, facts: PlanFacts, shard: int) -> ShardEntry | None:
    """The entry of a shard whose result file is there already (made complete if need be), else None."""
    if storage.exists(storage.join(output, part_name(shard, facts.shards))):
        return record_shard(output, facts, shard)
    return None


def record_shard(output: str, facts: PlanFacts, shard: int, computed: Computed = Computed()) -> ShardEntry:
    """Write what is derived from the result file of a shard: first the copies of failed rows, then the entry.

    `computed` is for the writer of the file alone. The entry that is there in the end is returned.
    """
    footer = read_shard(output, facts, shard, copies_failed=True)
    entry = replace(footer, **vars(computed))
    url = storage.join(output, MANIFEST_NAME, entry_name(shard))
    if not storage.publish_if_absent(url, entry.to_json()):
        there = read_entry(url)
        if replace(there, **vars(Computed())) == footer:
            return there
        storage.publish_over(url, entry.to_json())  # it was of a result file that somebody deleted
    return entry


def read_shard(output: str, facts: PlanFacts, shard: int, copies_failed: bool = False) -> ShardEntry:
    """The entry in the footer of the result file that is there, which must be of this job."""
    url = storage.join(output, part_name(shard, facts.shards))
    with storage.open_input(url) as f:
        try:
            parquet = pq.ParquetFile(f)
            footer = (parquet.metadata.metadata or {}).get(FOOTER_KEY)
            if footer is None:
                raise OutputError(f"{url} was not written by Penstock; move it away")
            entry = ShardEntry.from_json(footer)
            _check(entry, facts, shard, url)
            if entry.rows != parquet.metadata.num_rows:
                raise OutputError(f"{url} has {parquet.metadata.num_rows} rows, but was written with {entry.rows}")
            if entry.failed and copies_failed:
                failed = _failed_rows(parquet).encode()
                storage.publish_over(storage.join(output, ERRORS_NAME, errors_name(shard)), failed)
        except NewerVersion as e:
            raise OutputError(f"{url} cannot be used: {e}") from e
        except (*UNREADABLE, DocumentError) as e:
            raise OutputError(f"{url} is damaged: {e}; delete it and run the job again") from e
    return entry


def read_entry(url: str) -> ShardEntry:
    """One entry of `_manifest`."""
    try:
        return ShardEntry.from_json(storage.read_bytes(url))
    except DocumentError as e:
        raise OutputError(f"{url} cannot be used: {e}; delete it, and it is made again") from e


def summarise(plan: Plan, entries: Iterable[ShardEntry], prediction: Prediction | None = None) -> Summary:
    """The sum of entries: of all for a finished job, of those there are for one that runs."""
    entries = list(entries)
    reasons: Counter[str] = sum((Counter(entry.failed_reasons) for entry in entries), Counter())
    spans = [span for entry in entries if (span := span_of(entry))]
    used = _share(entries, "prefill_tokens", "prefill_tokens_padded")
    return Summary(
        name=plan.name,
        task=plan.task,
        job_fingerprint=plan.job_fingerprint,
        model_fingerprint=plan.model_fingerprint,
        shards=len(entries),
        rows=sum(entry.rows for entry in entries),
        ok=sum(entry.ok for entry in entries),
        failed=sum(entry.failed for entry in entries),
        failed_reasons=dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
        prompt_tokens=sum(entry.prompt_tokens for entry in entries),
        completion_tokens=sum(entry.completion_tokens for entry in entries),
        scored_tokens=sum(entry.scored_tokens for entry in entries),
        started_at=min(start for start, _ in spans).isoformat(timespec="milliseconds") if spans else None,
        finished_at=max(end for _, end in spans).isoformat(timespec="milliseconds") if spans else None,
        shard_seconds=round(sum(entry.seconds or 0.0 for entry in entries), 3),
        busy_seconds=round(busy_seconds(entries), 3),
        compile_seconds=round(max((float(e.engine.get("compile_seconds", 0)) for e in entries), default=0.0), 3),
        slots_busy_fraction=_share(entries, "slot_steps_busy", "slot_steps_total"),
        padding_fraction=None if used is None else round(1 - used, 6),
        predicted=prediction.in_brief() if prediction else {},
    )


def busy_seconds(entries: Iterable[ShardEntry]) -> float:
    """The length of the union of the times at which shards were being computed, as far as known; they overlap."""
    spans = sorted((start.timestamp(), end.timestamp()) for start, end in filter(None, map(span_of, entries)))
    total, busy_until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, busy_until))
        busy_until = max(busy_until, end)
    return total


def span_of(entry: ShardEntry) -> tuple[datetime.datetime, datetime.datetime] | None:
    """From when to when a shard was computed, by its writer's clock; None where that is not known."""
    if entry.started_at is None or entry.seconds is None:
        return None
    start = datetime.datetime.fromisoformat(entry.started_at)
    return start, start + datetime.timedelta(seconds=entry.seconds)


def _share(entries: Sequence[ShardEntry], part: str, whole: str) -> float | None:
    """Of two counts of the engine. Shards that are open at a time each count the same steps: only the ratio counts."""
    total = sum(entry.engine.get(whole, 0) for entry in entries)
    return round(sum(entry.engine.get(part, 0) for entry in entries) / total, 6) if total else None


def _check(entry: ShardEntry, facts: PlanFacts, shard: int, url: str) -> None:
    if (entry.shard, entry.job_fingerprint) != (shard, facts.job_fingerprint):
        raise OutputError(f"{url} is of another job or shard; choose a new output.path, or move it away")


def _failed_rows(parquet: pq.ParquetFile) -> str:
    """The failed rows as JSON lines, without what is null."""
    import pyarrow.compute as pc  # not above: it takes a tenth of a second, and few commands look at failed rows

    return "".join(
        json_line({name: value for name, value in row.items() if value is not None})
        for batch in parquet.iter_batches(batch_size=1024)
        for row in batch.filter(pc.field("status") == "failed").to_pylist()
    )
