"""What stands beside and in the files of `penstock merge`: which results they are, and which rows of them.

_merged.json                  what was merged, decided once
part-00000-of-00003.parquet   rows in input order; the footer holds the file's MergedFile
_SUCCESS                      when every file is there
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .documents import Document

MERGED_VERSION = 1
MERGED_NAME = "_merged.json"
MERGED_KEY = b"penstock.merged"  # in a file's key-value metadata: its MergedFile as JSON


@dataclass(frozen=True, kw_only=True)
class Merged(Document):
    """A merge: the same results, in fewer files."""

    LATEST: ClassVar[int] = MERGED_VERSION
    version: int = MERGED_VERSION
    name: str
    task: str
    job_fingerprint: str
    model_fingerprint: str
    rows: int
    ok: int  # of the records
    failed: int
    shards: int  # that were there
    shards_total: int
    shards_digest: str  # of the numbers and rows of those shards
    rows_per_file: int
    files: int


@dataclass(frozen=True, kw_only=True)
class MergedFile(Document):
    """One file of a merge: `rows` rows from `first_row` on, of the rows of the whole output."""

    LATEST: ClassVar[int] = MERGED_VERSION
    version: int = MERGED_VERSION
    file: int
    files: int
    first_row: int
    rows: int
    first_shard: int
    last_shard: int
    name: str
    task: str
    job_fingerprint: str
    model_fingerprint: str
