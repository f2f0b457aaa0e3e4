"""The documents beside the result files, and the names of all files of an output.

    _plan.json                    what was asked, and the shard list; created once
    part-00007-of-00400.parquet   the results of one shard; its footer holds the shard's entry
    _manifest/00007.json          the entry again, for listing without opening Parquet files, and how it was computed
    _errors/00007.jsonl           copies of the shard's failed rows, for reading
    _leases/00007.json            who is computing a shard just now: see lease.py
    _workers/*.json               who computed shards, on what: see worker.py
    _summary.json  _SUCCESS       when every shard is there
    _prediction.json              what was foreseen, where anything was (schemas/prediction.py)

Parquet readers skip names that start with `_`, so the directory as a whole reads as one table.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from .documents import Document, DocumentError

PLAN_VERSION = 1
ENTRY_VERSION = 1
SUMMARY_VERSION = 2

PLAN_NAME = "_plan.json"
MANIFEST_NAME = "_manifest"
ERRORS_NAME = "_errors"
SUMMARY_NAME = "_summary.json"
SUCCESS_NAME = "_SUCCESS"
FOOTER_KEY = b"penstock.shard"  # in a part's key-value metadata: its ShardEntry as JSON


def part_name(shard: int, shards: int) -> str:
    """The result file of a shard; names sort as shards do."""
    width = max(5, len(str(shards)))
    return f"part-{shard:0{width}}-of-{shards:0{width}}.parquet"


def entry_name(shard: int) -> str:
    return f"{shard:05}.json"


def errors_name(shard: int) -> str:
    return f"{shard:05}.jsonl"


@dataclass(frozen=True)
class InputFile:
    """One input file; `etag` changes whenever the content does."""

    url: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class Plan(Document):
    """What a job computes, decided once: everything that bears on its results, and its shards."""

    LATEST: ClassVar[int] = PLAN_VERSION
    version: int = PLAN_VERSION
    name: str
    task: str
    table_version: int  # of the result table's schema
    job_fingerprint: str
    model_fingerprint: str
    tokenizer_fingerprint: str
    settings: dict[str, Any]
    columns: str  # the kept input columns: see `encode_fields`
    shard_rows: int
    rows_total: int
    inputs: tuple[InputFile, ...]
    shards: tuple[dict[str, Any], ...]  # work items


@dataclass(frozen=True, kw_only=True)
class ShardEntry(Document):
    """What one finished shard holds. `rows` are written rows; `ok` and `failed` count input records.

    The last four fields are of the run that computed it. They are only in `_manifest`, so that a result file
    is the same to the byte whoever writes it, and are not known (None, empty) of a shard whose writer was
    killed right after the file was published.
    """

    LATEST: ClassVar[int] = ENTRY_VERSION
    version: int = ENTRY_VERSION
    shard: int
    file: str
    rows: int
    ok: int
    failed: int
    failed_reasons: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    scored_tokens: int
    job_fingerprint: str
    started_at: str | None = None
    seconds: float | None = None
    engine: dict[str, int | float] = field(default_factory=dict)
    worker: str | None = None  # host:pid; _workers says more of it


@dataclass(frozen=True, kw_only=True)
class Summary(Document):
    """The sum of all entries and of nothing else, so a finished job has one summary, to the byte."""

    LATEST: ClassVar[int] = SUMMARY_VERSION
    version: int = SUMMARY_VERSION
    name: str
    task: str
    job_fingerprint: str
    model_fingerprint: str
    shards: int
    rows: int
    ok: int
    failed: int
    failed_reasons: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    scored_tokens: int
    started_at: str | None  # of the first shard, as far as it is known
    finished_at: str | None  # of the last shard
    shard_seconds: float  # summed over shards, which overlap in time
    busy_seconds: float  # in which at least one shard was being computed
    compile_seconds: float  # of these, at most: in one process, which compiles once
    slots_busy_fraction: float | None  # over all decode steps
    padding_fraction: float | None  # of the tokens that prefill and score programs computed
    predicted: dict[str, Any]  # Prediction.in_brief; empty where nothing was

    @property
    def failed_fraction(self) -> float:
        return self.failed / max(1, self.ok + self.failed)


def encode_fields(fields: Sequence[pa.Field]) -> str:
    """Arrow fields as text: the serialised schema in base64."""
    return base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode("ascii")


def decode_fields(text: str) -> list[pa.Field]:
    """The inverse of `encode_fields`; DocumentError when `text` does not come from there."""
    try:
        return list(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True))))
    except (ValueError, OSError, pa.ArrowException) as e:
        raise DocumentError(f"'columns' is damaged: {e}") from e
