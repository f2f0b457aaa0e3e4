"""Who is computing a shard: `_leases/00007.json`, there from when a worker begins until the shard is done.

A lease is advice: it spares two runs at the same time the same work. What is committed never rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .documents import Document

LEASE_VERSION = 1
LEASES_NAME = "_leases"


def lease_name(shard: int) -> str:
    return f"{shard:05}.json"


@dataclass(frozen=True, kw_only=True)
class Lease(Document):
    """`taken_at` is for reading; no clock is ever compared with another's."""

    LATEST: ClassVar[int] = LEASE_VERSION
    version: int = LEASE_VERSION
    shard: int
    run: str  # the same for all workers of a run
    worker: str  # host:pid
    process: str | None  # what tells a process of this machine from all others, where the system has such a thing
    nonce: str  # of this lease alone
    renewals: int  # the content changes with each, and that it changes is the sign of life
    taken_at: str
