"""What scheduled scoring writes beside the results: the layout of a schedule's output, and its documents.

    OUT/                                  the root of a schedule: what its output template spells out
      dt=2026-01-31/                      a partition: version 1, an ordinary output of a job
        part-*.parquet  _plan.json  _manifest/  _summary.json  _SUCCESS
        late-0002/                        version 2, an addition: the files that came late, an output of their own
      _versions/dt=2026-01-31/v0003/      version 3, a replacement: the whole partition again, after files changed
        part-*.parquet ...
        late-0004/                        version 4, an addition to version 3
      _attempts/dt=2026-01-31/0001.json   every attempt at a version of the partition (`Attempt`), oldest first
        _leases/00000.json                who works on it now (`schemas.lease`)
      _alerts/dt=2026-01-31/late-....json what was said about it, so that it is said once
      _rows/20260131T000000Z-0001-....parquet   with only_new_rows: the rows that a version was planned over, a hash of
                                          each, and where it has its result (`ROW_COLUMNS`)
      _schedule.json                      whose output this is (`Claim`)

A version is done when it has _SUCCESS. The results of a partition are its last replacement that is done, or else its
first version, together with the additions to that one that are done. Readers skip names that begin with `_`, so a
reader of OUT, or of OUT/dt=2026-01-31, sees every row once at any time: the first version and what was added to it.
Replacements are read by asking for them (`penstock schedule files`): no object store can swap two sets of files in one
step, and a reader in the middle of a swap would see rows twice or not at all, which nobody would notice.

A version never changes once it is done. Numbers count versions of a partition, whatever their kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from .columns import column
from .documents import Document

CLAIM_NAME = "_schedule.json"
VERSIONS_NAME = "_versions"
ATTEMPTS_NAME = "_attempts"
ALL_PARTITIONS = "_all"  # in the place of a partition: the lease of a schedule with only_new_rows
ALERTS_NAME = "_alerts"
ROWS_NAME = "_rows"

CLAIM_VERSION = 1
ATTEMPT_VERSION = 1

RUNNING, DONE, FAILED, STOPPED, REFUSED = "running", "done", "failed", "stopped", "refused"
"""States of an attempt. `stopped` was asked for (Ctrl-C, SIGTERM) and does not count as a failure; one that is still
`running` and has no lease broke off, which does. `refused` found that its input is not to be scored."""


ROW_COLUMNS = pa.schema(
    [
        column("content_hash", pa.binary(32), "SHA-256 of the id and of the columns that bear on the result."),
        column("source_file", pa.string(), "The input file, as in the results.", required=True),
        column("source_row", pa.int64(), "The row in source_file, from 0.", required=True),
        column("scored_in", pa.string(), "The output below the root that has its result; null: the version itself."),
    ]
)
"""The rows of a version with `only_new_rows`. A row that cannot be read has no hash, and is always scored again."""

ROWS_OUTPUT_KEY = b"penstock.output"  # in the file's metadata: the version's output below the root
ROWS_IDENTITY_KEY = b"penstock.identity"  # and a hash of model and settings: rows of others are no help


def addition_name(number: int) -> str:
    return f"late-{number:04}"


def replacement_name(number: int) -> str:
    return f"v{number:04}"


def attempt_name(number: int) -> str:
    return f"{number:04}.json"


def numbered(prefix: str, name: str) -> int | None:
    """The number in `late-0002`, `v0003` or `0001.json`; None for any other name."""
    found = re.fullmatch(rf"{prefix}(\d{{4,9}})(\.json)?", name, re.ASCII)
    return int(found[1]) if found else None


@dataclass(frozen=True, kw_only=True)
class Claim(Document):
    """Which schedule an output belongs to."""

    LATEST: ClassVar[int] = CLAIM_VERSION
    version: int = CLAIM_VERSION
    name: str
    output: str  # the template


@dataclass(frozen=True, kw_only=True)
class Attempt(Document):
    """One try at a version of a partition. `asked` is a hash of the job and its input files: what was tried."""

    LATEST: ClassVar[int] = ATTEMPT_VERSION
    version: int = ATTEMPT_VERSION
    begin: str  # of the partition, in UTC: two partitions with one output are found by it
    of_version: int
    asked: str
    holder: str
    state: str
    started_at: str
    ended_at: str | None
    shards_computed: int
    error: str | None
