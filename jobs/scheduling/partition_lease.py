"""The lease of a partition: of several calls of run-due, one runs it. See `pipeline.leases`, whose rules these are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pipeline import storage
from pipeline.leases import Leases, holders
from schemas.lease import Lease
from schemas.scheduling import ALL_PARTITIONS, ATTEMPTS_NAME

_SHARD = 0  # a lease is for a shard of an output; here the output is the partition's attempts, and there is one


class PartitionLease:
    """What a call knows of the lease of one partition, or of all together (`key` None)."""

    def __init__(self, root: str, key: str | None, run: str, seconds: float) -> None:
        self._directory = storage.join(root, ATTEMPTS_NAME, key or ALL_PARTITIONS)
        self._leases = Leases(self._directory, run, seconds)
        self._poll_seconds = min(1.0, seconds / 10)
        self._seen: Lease | None = None

    @property
    def holder(self) -> str:
        return self._leases.holder(_SHARD)

    @contextlib.contextmanager
    def taken(self, stopping: threading.Event) -> Iterator[bool]:
        """Holds it while the block runs; False if somebody else does. The first time that is said at once; then it is
        waited for until the other shows life, which is False, lets go, or is silent for too long."""
        is_first = self._seen is None
        while True:
            with self._leases.taken(_SHARD) as is_ours:
                if is_ours:
                    yield True
                    return
            now = next(iter(holders(self._directory)), None)
            if stopping.is_set() or (now is not None and (is_first or now != self._seen)):
                self._seen = now
                yield False
                return
            stopping.wait(self._poll_seconds)


def is_held(root: str, key: str | None) -> bool:
    """Whether somebody holds it, or held it and died."""
    return bool(holders(storage.join(root, ATTEMPTS_NAME, key or ALL_PARTITIONS)))
