"""Many small parts become few large files somewhere else: the same rows, in the same order, nothing left out.

The output itself is never touched: it stays what a rerun of the job looks at. How rows are cut into files is decided
before the first is written (`_merged.json`), and each file is published once, whole or not at all; so a merge that
was killed goes on where it stopped, and two at once agree. Memory is that of one row group, in and out.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from jobs.results import Results, read_results
from jobs.wording import count_words, failed_words
from pipeline import storage
from pipeline.errors import OutputError
from pipeline.manifest import summarise
from schemas.documents import DocumentError
from schemas.manifest import SUCCESS_NAME, part_name
from schemas.merged import MERGED_KEY, MERGED_NAME, Merged, MergedFile

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

ROWS_PER_FILE = 1_000_000
_ROW_GROUP_BYTES = 64 * 2**20
_ROW_GROUP_ROWS = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """A merge that is complete, and how many of its files this run wrote."""

    merged: Merged
    parts: int
    to: str
    written: int
    failed: str

    def lines(self) -> Iterator[tuple[str, str]]:
        merged = self.merged
        partial = "" if merged.shards == merged.shards_total else f" (of {merged.shards_total:,} shards)"
        yield "job", f"{merged.name} ({merged.task})"
        yield "rows", f"{merged.rows:,} in input order, of {merged.ok + merged.failed:,} records, {self.failed}"
        already = merged.files - self.written
        yield (
            "files",
            f"{count_words(self.parts, 'part')}{partial} -> {count_words(merged.files, 'file')}"
            + (f", {already} of them there before" if already else ""),
        )
        yield "to", self.to


def merge(
    output: str,
    to: str,
    *,
    rows_per_file: int = ROWS_PER_FILE,
    partial: bool = False,
    seen: Callable[[int], None] = lambda rows: None,
) -> Outcome:
    """Merges what is at `output` into the directory `to`, or into one file where that ends in .parquet.

    `seen` is told how many more rows have passed.
    """
    _refuse_inside(output, to)
    results = read_results(output, partial=partial)
    is_file = to.endswith(".parquet")
    merged = _decide(results, results.rows if is_file else rows_per_file)
    if not is_file:
        _claim(to, merged)
    written = 0
    for index in range(merged.files):
        url = to if is_file else storage.join(to, part_name(index, merged.files))
        about = _about(results, merged, index)
        if storage.exists(url):
            seen(about.rows)
        else:
            written += _write(results, about, url, seen)
        _check_published(url, about)
    if not is_file:
        storage.publish_if_absent(storage.join(to, SUCCESS_NAME), b"")
    return Outcome(merged, len(results.entries), to, written, failed_words(summarise(results.plan, results.entries)))


def _refuse_inside(output: str, to: str) -> None:
    here, there = (_normal(place) for place in (output, to))
    if there == here or there.startswith(here + "/"):
        raise OutputError(
            f"--to {to} is in the output itself, where a rerun would take it for results; name another place"
        )
    if not to.endswith(".parquet") and here.startswith(there + "/"):
        raise OutputError(f"--to {to} holds the output {output}; name another place")


def _normal(place: str) -> str:
    import os

    return posixpath.normpath(place) if "://" in place else os.path.realpath(place)


def _decide(results: Results, rows_per_file: int) -> Merged:
    plan, summary = results.plan, summarise(results.plan, results.entries)
    shards = repr([(entry.shard, entry.rows) for entry in results.entries])
    rows_per_file = max(1, rows_per_file)
    return Merged(
        name=plan.name,
        task=plan.task,
        job_fingerprint=plan.job_fingerprint,
        model_fingerprint=plan.model_fingerprint,
        rows=summary.rows,
        ok=summary.ok,
        failed=summary.failed,
        shards=summary.shards,
        shards_total=len(plan.shards),
        shards_digest=hashlib.sha256(shards.encode()).hexdigest(),
        rows_per_file=rows_per_file,
        files=-(-summary.rows // rows_per_file),
    )


def _claim(to: str, merged: Merged) -> None:
    """Makes the directory this merge's own; one that holds anything else is refused."""
    storage.remove_abandoned(to)
    url = storage.join(to, MERGED_NAME)
    if storage.exists(url):
        _refuse_other_merge(to, url, merged)
    ours = {part_name(index, merged.files) for index in range(merged.files)} | {MERGED_NAME, SUCCESS_NAME}
    others = [name for name in storage.list_names(to) if name not in ours and not name.startswith(".")]
    if others or (storage.list_names(to) and not storage.exists(url)):
        held = ", ".join((others or storage.list_names(to))[:5])
        raise OutputError(f"{to} holds {held}, which is not of this merge; name a new or empty directory")
    if not storage.publish_if_absent(url, merged.to_json()):
        _refuse_other_merge(to, url, merged)


def _refuse_other_merge(to: str, url: str, merged: Merged) -> None:
    try:
        there = Merged.from_json(storage.read_bytes(url))
    except DocumentError as error:
        raise OutputError(f"{url} cannot be used: {error}; delete {to}, or name another directory") from error
    if there != merged:
        changed = [name for name in vars(merged) if getattr(merged, name) != getattr(there, name)]
        raise OutputError(
            f"{to} holds another merge (of other {', '.join(changed)}); name another directory, or delete it"
        )


def _about(results: Results, merged: Merged, index: int) -> MergedFile:
    first = index * merged.rows_per_file
    rows = min(merged.rows_per_file, merged.rows - first)
    ends = list(accumulate(entry.rows for entry in results.entries))
    held = [
        entry.shard
        for entry, end in zip(results.entries, ends, strict=True)
        if entry.rows and end > first and end - entry.rows < first + rows
    ]
    return MergedFile(
        file=index,
        files=merged.files,
        first_row=first,
        rows=rows,
        first_shard=held[0],
        last_shard=held[-1],
        name=merged.name,
        task=merged.task,
        job_fingerprint=merged.job_fingerprint,
        model_fingerprint=merged.model_fingerprint,
    )


def _write(results: Results, about: MergedFile, url: str, seen: Callable[[int], None]) -> bool:
    with storage.scratch(url) as path:
        try:
            _fill(path, results, about, seen)
        except OSError as error:
            raise OutputError(
                f"cannot write {url}: {error}; what is finished stays, and the same command goes on"
            ) from error
        return storage.publish_if_absent(url, path)


def _fill(path: Path, results: Results, about: MergedFile, seen: Callable[[int], None]) -> None:
    import pyarrow.parquet as pq

    schema, left = results.schema(), about.rows
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _row_groups(results, about, schema):
            writer.write_table(table, row_group_size=len(table))
            left -= len(table)
            seen(len(table))
        writer.add_key_value_metadata({MERGED_KEY: about.to_json()})
    if left:
        raise OutputError(f"{left} of {about.rows} rows did not come; the output changed while it was read")


def _row_groups(results: Results, about: MergedFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The file's rows as tables of bounded size."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    left, size_bytes, rows = about.rows, 0, 0
    for entry, batch in results.batches(start=about.first_row):
        if batch.schema != schema:
            raise OutputError(f"{entry.file} has other columns than the parts before it; move it away")
        batch = batch.slice(0, left)
        waiting.append(batch.replace_schema_metadata(schema.metadata))
        left, size_bytes, rows = left - batch.num_rows, size_bytes + batch.nbytes, rows + batch.num_rows
        if size_bytes >= _ROW_GROUP_BYTES or rows >= _ROW_GROUP_ROWS or not left:
            yield pa.Table.from_batches(waiting, schema)
            waiting, size_bytes, rows = [], 0, 0
        if not left:
            return


def _check_published(url: str, about: MergedFile) -> None:
    """The file that is there, ours or an earlier one, holds what it should."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(url) as file:
            metadata = pq.ParquetFile(file).metadata
        footer = (metadata.metadata or {}).get(MERGED_KEY)
        there = MergedFile.from_json(footer) if footer else None
    except (pa.ArrowException, OSError, DocumentError) as error:
        raise OutputError(f"{url} is there and is damaged: {error}; delete it, and run the command again") from error
    if there != about or metadata.num_rows != about.rows:
        raise OutputError(f"{url} is there and is not of this merge; name another place, or delete it")
