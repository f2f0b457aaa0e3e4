"""Only rows whose content was not scored before: what is left of an input, and where the results of the others are.

A row is known by the SHA-256 of its id and of the columns that bear on its result (those of the templates, and the
kept ones), under one model and one set of settings. What was scored is in `_rows/`, a Parquet file for each version,
about 60 bytes a row: the hash, where the row stands, and which output has its result if not this one. Rows that failed
before count as new.

Cost: every input row is read and hashed once while planning, and for each block of BLOCK_ROWS input rows the hashes
of all versions done so far are read once, 32 bytes for every row ever scored. Memory is that of one block, whatever the
size of either. The last steps of a version are planned under one lease for the whole schedule, so a row is new once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.compilation.preflight import preflight
from jobs.scheduling.partitions import Partition
from jobs.scheduling.versions import Version
from jobs.spec import Job
from pipeline import storage
from pipeline.generation import Generate
from pipeline.records import content_hash
from pipeline.scoring import Score
from pipeline.sources import Source, read_rows
from pipeline.sources.base import WorkItem
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import identify
from schemas.manifest import ERRORS_NAME, SUCCESS_NAME
from schemas.scheduling import ROW_COLUMNS, ROWS_IDENTITY_KEY, ROWS_NAME, ROWS_OUTPUT_KEY

if TYPE_CHECKING:
    from pipeline.storage import FileFacts

BLOCK_ROWS = 1 << 20
_BATCH_ROWS = 1 << 16
_HASH = np.dtype("S32")  # compares as 32 bytes: all are of one length


@dataclass(frozen=True)
class _Seen:
    """One row of the input, or of a file in `_rows`."""

    content_hash: bytes | None
    source_file: str
    source_row: int
    scored_in: str | None = None


class NewRows:
    """The rows of an input that no version has scored. A `Source`."""

    def __init__(self, root: str, partition: Partition, version: Version, job: Job, source: Source) -> None:
        self._root, self._version, self._job, self._source = root, version, job, source
        self._output = version.output[len(root.rstrip("/")) + 1 :]
        files = [[file.url, file.size_bytes, file.etag] for file in identify(source)]
        begin = partition.begin_utc.strftime("%Y%m%dT%H%M%SZ")
        self._name = f"{begin}-{version.number:04}-{content_hash({'files': files})[:12]}.parquet"

    def files(self) -> list[FileFacts]:
        return self._source.files()

    def columns(self) -> dict[str, pa.DataType] | None:
        return self._source.columns()

    def work_items(self, shard_rows: int) -> Iterator[WorkItem]:
        yield from self._new_items(shard_rows)

    @functools.cache  # noqa: B019 - it lives as long as one run
    def _new_items(self, shard_rows: int) -> Sequence[WorkItem]:
        """Decided once: what was decided in an earlier attempt is read back, since its plan may rest on it."""
        items = list(self._source.work_items(shard_rows))
        url = storage.join(self._root, ROWS_NAME, self._name)
        if not storage.exists(url):
            with storage.scratch(url) as path:
                metadata = {ROWS_OUTPUT_KEY: self._output.encode(), ROWS_IDENTITY_KEY: self._identity.encode()}
                with pq.ParquetWriter(path, ROW_COLUMNS.with_metadata(metadata), compression="zstd") as writer:
                    for block in _blocks(self._hashed(items)):
                        rows = [vars(row) for row in self._looked_up(block)]
                        writer.write_table(pa.Table.from_pylist(rows, schema=ROW_COLUMNS.with_metadata(metadata)))
                storage.publish_if_absent(url, path)
        new = []
        decided = _rows_of(url)
        for item in items:
            chosen = [next(decided).scored_in is None for _ in range(item.rows)]
            if all(chosen):
                new.append(replace(item, shard=len(new)))
            elif any(chosen):
                new.append(replace(item, shard=len(new)).selecting(chosen))
        return new

    def _hashed(self, items: Sequence[WorkItem]) -> Iterator[_Seen]:
        columns = self._columns
        for item in items:
            for row in read_rows(item, columns):
                digest = None
                if row.values is not None:
                    digest = bytes.fromhex(content_hash({name: row.values.get(name) for name in columns}))
                yield _Seen(digest, item.source_file, row.row)

    def _looked_up(self, block: Sequence[_Seen]) -> list[_Seen]:
        """The block with where each row was scored before."""
        hashes = np.array([row.content_hash or b"" for row in block], _HASH)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        scored_in: dict[int, str] = {}
        for output, known in self._known():
            first = np.searchsorted(ordered, known, side="left")
            last = np.searchsorted(ordered, known, side="right")
            for i in np.flatnonzero(last > first):
                for place in order[first[i] : last[i]]:
                    scored_in.setdefault(int(place), output)
        return [replace(row, scored_in=scored_in.get(i) if row.content_hash else None) for i, row in enumerate(block)]

    def _known(self) -> Iterator[tuple[str, np.ndarray]]:
        """The hashes that done versions have results for, in batches, with the output of each."""
        names = storage.list_names(storage.join(self._root, ROWS_NAME))
        for name in [name for name in names if not name.startswith(".")]:
            url = storage.join(self._root, ROWS_NAME, name)
            with storage.open_input(url) as stream:
                file = pq.ParquetFile(stream)
                metadata = file.schema_arrow.metadata
                output = metadata[ROWS_OUTPUT_KEY].decode()
                full = storage.join(self._root, output)
                if metadata[ROWS_IDENTITY_KEY].decode() != self._identity:
                    continue
                if name == self._name or not storage.exists(storage.join(full, SUCCESS_NAME)):
                    continue
                failed = _failed(full)
                for batch in file.iter_batches(_BATCH_ROWS):
                    scored = batch.filter(pc.field("scored_in").is_null() & pc.field("content_hash").is_valid())
                    hashes = np.array(scored["content_hash"].to_pylist(), _HASH)
                    if failed:
                        rows = zip(scored["source_file"].to_pylist(), scored["source_row"].to_pylist(), strict=True)
                        hashes = hashes[[row not in failed for row in rows]]
                    yield output, hashes

    @functools.cached_property
    def _columns(self) -> frozenset[str]:
        """What a result depends on, besides the model and the settings."""
        kind = Generate if self._job.task == "generate" else Score
        task = kind(self._job.settings(), Tokenizer.load(self._job.model.checkpoint))
        ids = [self._job.input.id_column] if self._job.input.id_column else []
        return task.columns.union(ids, self._job.output.keep_columns)

    @functools.cached_property
    def _identity(self) -> str:
        job = self._job
        model = preflight(job.model.checkpoint, storage.open_input, **job.engine.layouts()).fingerprint
        return content_hash({"model": model, "settings": job.settings(), "columns": sorted(self._columns)})


def _blocks(rows: Iterator[_Seen]) -> Iterator[list[_Seen]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield block
            block = []
    if block:
        yield block


def _rows_of(url: str) -> Iterator[_Seen]:
    with storage.open_input(url) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                yield _Seen(**row)


def _failed(output: str) -> set[tuple[str, int]]:
    """The input rows of an output that have no result."""
    failed = set()
    directory = storage.join(output, ERRORS_NAME)
    for name in storage.list_names(directory):
        with storage.open_input(storage.join(directory, name)) as lines:
            for line in lines:
                row = json.loads(line)
                failed.add((row["source_file"], row["source_row"]))
    return failed
