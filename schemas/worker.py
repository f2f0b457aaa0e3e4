"""Who computed shards, and on what: `_workers/RUN-HOST-PID.json`, one for each process that has an engine.

Written after its first shard, now and then after later ones, and at the end of a process that ends in peace; of one
that was killed it may be a minute behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .documents import Document

WORKER_VERSION = 1
WORKERS_NAME = "_workers"


@dataclass(frozen=True, kw_only=True)
class Worker(Document):
    """`engine` are the engine's counters since it was loaded; see engine/runtime/engine.py for their meaning."""

    LATEST: ClassVar[int] = WORKER_VERSION
    version: int = WORKER_VERSION
    run: str
    worker: str  # host:pid, as in a lease
    penstock: str  # its version
    platform: str  # cpu, gpu or tpu
    device_kind: str  # as jax calls it
    devices: int
    memory_bytes: int | None  # of each device, if it tells
    peak_memory_bytes: int | None
    dtype: str  # what the model is computed in
    slots: int
    prefill_tokens: int
    load_seconds: float
    started_at: str
    engine: dict[str, int | float]
