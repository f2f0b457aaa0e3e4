"""The results of an output as one stream, in input order: what `penstock merge` and `penstock export` read.

Files are read batch by batch and held against their entries: a part of another job, one that is damaged, or one that
has other rows than were committed stops the reading with its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import JobError, OutputError
from pipeline.manifest import Manifest
from pipeline.storage import exists, join, open_input
from pipeline.workplan import read_plan
from schemas.documents import DocumentError
from schemas.manifest import FOOTER_KEY, SUCCESS_NAME, Plan, ShardEntry

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Results:
    output: str
    plan: Plan
    entries: Sequence[ShardEntry]
    """Of the shards that are there, in order."""

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.entries)

    @property
    def records(self) -> int:
        return sum(entry.ok + entry.failed for entry in self.entries)

    def schema(self) -> pa.Schema:
        """Of every part, without the footer of one."""
        with _opened(self, self.entries[0]) as parquet:
            schema: pa.Schema = parquet.schema_arrow
            return schema.with_metadata({key: v for key, v in (schema.metadata or {}).items() if key != FOOTER_KEY})

    def batches(
        self, *, start: int = 0, columns: Sequence[str] | None = None, rows: int = 1024
    ) -> Iterator[tuple[ShardEntry, pa.RecordBatch]]:
        """The rows from number `start` on, in batches of at most `rows`, each with the entry of its shard."""
        first = 0
        for entry in self.entries:
            if first + entry.rows > start:
                yield from ((entry, batch) for batch in self._part(entry, max(0, start - first), columns, rows))
            first += entry.rows

    def _part(
        self, entry: ShardEntry, start: int, columns: Sequence[str] | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        with _opened(self, entry) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
            begins = [0, *itertools.accumulate(sizes)]
            groups = [group for group, end in enumerate(begins[1:]) if end > start]
            skipped = start - (begins[groups[0]] if groups else 0)
            for batch in parquet.iter_batches(rows, row_groups=groups, columns=list(columns) if columns else None):
                kept, skipped = batch.slice(min(skipped, batch.num_rows)), max(0, skipped - batch.num_rows)
                if kept.num_rows:
                    yield kept


def read_results(output: str, *, partial: bool = False) -> Results:
    """The results at `output`. One that is not finished is refused, unless a part of it is wanted."""
    plan = read_plan(output)
    entries = Manifest(output, plan).entries()
    if not partial and not exists(join(output, SUCCESS_NAME)):
        raise OutputError(
            f"{output} is not finished: {len(entries)} of {len(plan.shards)} shards are there; run the job again, or "
            "take what there is with --partial"
        )
    if not entries:
        raise OutputError(f"{output} holds no results yet: none of {len(plan.shards)} shards is done")
    return Results(output, plan, entries)


def chosen_columns(results: Results, asked: Sequence[str]) -> list[str]:
    """The columns asked for, or all; a name that is none is refused."""
    names = results.schema().names
    if missing := [name for name in asked if name not in names]:
        raise JobError(f"--columns: there is no column {', '.join(missing)}; the output has {', '.join(names)}")
    return list(asked) or names


class _opened:
    """A part, open and found to be what its entry says; whatever goes wrong with it inside the block is named."""

    def __init__(self, results: Results, entry: ShardEntry) -> None:
        self._entry, self._url = entry, join(results.output, entry.file)
        self._job_fingerprint = results.plan.job_fingerprint

    def __enter__(self) -> pq.ParquetFile:
        import pyarrow.parquet as pq

        self._file = open_input(self._url)
        try:
            parquet = pq.ParquetFile(self._file)
            self._check(parquet)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return parquet

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        import pyarrow as pa

        self._file.close()
        if isinstance(error, pa.ArrowException | OSError | DocumentError | UnicodeDecodeError):
            raise OutputError(f"{self._url} is damaged: {error}; delete it, and the job computes it again") from error

    def _check(self, parquet: pq.ParquetFile) -> None:
        footer = (parquet.metadata.metadata or {}).get(FOOTER_KEY)
        if footer is None:
            raise OutputError(f"{self._url} was not written by Penstock; move it away")
        entry = ShardEntry.from_json(footer)
        if (entry.shard, entry.job_fingerprint) != (self._entry.shard, self._job_fingerprint):
            raise OutputError(f"{self._url} is of another job or shard; move it away, and run the job again")
        if not entry.rows == self._entry.rows == parquet.metadata.num_rows:
            raise OutputError(
                f"{self._url} has {parquet.metadata.num_rows} rows, its entry says {self._entry.rows}; delete it, and "
                "the job computes it again"
            )
