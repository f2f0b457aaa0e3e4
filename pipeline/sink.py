"""One work item -> one Parquet file, published once.

Rows are written as they come, in row groups, to a hidden file that becomes visible whole or not at all.
Whoever publishes first wins; what a shard is reported as is read back from the file that won, so a writer
that lost a race never reports its own counts, nor its own time.

Nothing in the file is of the run: whoever computes a shard writes the same bytes.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.manifest import FOOTER_KEY, ShardEntry, part_name

from . import storage
from .errors import OutputError
from .manifest import Computed, read_shard, record_shard
from .sources.base import WorkItem
from .worker_facts import worker_name
from .workplan import PlanFacts

_BATCH_ROWS = 256
_ROW_GROUP_BYTES = 64 * 2**20
_REASONS_KEPT = 20  # kinds of failure in an entry; the rest is counted as "other"


def write_shard(
    output: str,
    facts: PlanFacts,
    item: WorkItem,
    rows: Iterable[Mapping[str, Any]],
    engine: Callable[[], Mapping[str, int | float]] = dict,
) -> ShardEntry:
    """Publish the results of `item` and return the entry of the file that is there, ours or an earlier one.

    `rows` come in input order, the samples of a record together and numbered from 0; a key that is missing
    is null. They may be computed while they are taken: `engine`, the counters of this shard, is asked after
    the last one.
    """
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    started = time.monotonic()
    schema = facts.schema
    tally = _Tally(item)
    url = storage.join(output, part_name(item.shard, facts.shards))
    with storage.scratch(url) as path:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for table in _row_groups(tally.count(rows), schema):
                writer.write_table(table, row_group_size=len(table))
            entry = ShardEntry(
                shard=item.shard,
                file=part_name(item.shard, facts.shards),
                **tally.totals(),
                job_fingerprint=facts.job_fingerprint,
            )
            writer.add_key_value_metadata({FOOTER_KEY: entry.to_json()})
        computed = Computed(started_at, round(time.monotonic() - started, 3), dict(engine()), worker_name())
        is_ours = storage.publish_if_absent(url, path)
    return record_shard(output, facts, item.shard, computed) if is_ours else read_shard(output, facts, item.shard)


def _row_groups(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows as tables of bounded size; a key that is no column is refused."""
    names = set(schema.names)
    batches: list[pa.RecordBatch] = []
    size_bytes = 0
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, _BATCH_ROWS)):
        if unknown := set().union(*chunk) - names:
            raise OutputError(f"result rows have keys that are no columns: {', '.join(sorted(unknown))}")
        batches.append(pa.RecordBatch.from_pylist(chunk, schema=schema))
        size_bytes += batches[-1].nbytes
        if size_bytes >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(batches)
            batches, size_bytes = [], 0
    if batches:
        yield pa.Table.from_batches(batches)


class _Tally:
    """Counts the rows of a shard as they pass, and holds that every record of the item passes once, in order."""

    def __init__(self, item: WorkItem) -> None:
        self._item = item
        self._records = 0
        self._rows = 0
        self._failed = 0
        self._reasons: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def count(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        sample, failed = 0, False  # of the current record
        numbers, row_number = self._item.row_numbers(), None
        for row in rows:
            if row["sample_index"] == 0:
                self._records, sample, failed = self._records + 1, 0, False
                row_number = next(numbers, None)
                self._tokens["prompt"] += row.get("prompt_token_count") or 0
            else:
                sample += 1
            expected = (self._item.source_file, row_number, sample)
            found = (row["source_file"], row["source_row"], row["sample_index"])
            if row_number is None:
                raise OutputError(
                    f"shard {self._item.shard}: result row {found} came after the last of {self._item.rows} records"
                )
            if found != expected:
                raise OutputError(f"shard {self._item.shard}: result row {found} came where {expected} was due")
            if row["status"] == "failed" and not failed:
                failed = True
                self._failed += 1
                self._reasons[str(row["error"]).split(":", 1)[0]] += 1
            self._rows += 1
            self._tokens["completion"] += row.get("completion_token_count") or 0
            self._tokens["scored"] += sum(row.get("token_count") or ())
            yield row
        if self._records != self._item.rows:
            raise OutputError(f"shard {self._item.shard}: {self._records} of {self._item.rows} records came")

    def totals(self) -> dict[str, Any]:
        reasons = dict(self._reasons.most_common(_REASONS_KEPT))
        if len(reasons) < len(self._reasons):
            reasons["other"] = self._failed - sum(reasons.values())
        return {
            "rows": self._rows,
            "ok": self._records - self._failed,
            "failed": self._failed,
            "failed_reasons": reasons,
            "prompt_tokens": self._tokens["prompt"],
            "completion_tokens": self._tokens["completion"],
            "scored_tokens": self._tokens["scored"],
        }
