"""Leases keep two runs at the same time from computing the same shard.

A lease is a file that a worker creates, if it is absent, before it computes a shard, rewrites while it does, and
removes when it is done. Another run leaves that shard for later. If the holder dies, the file stays and no longer
changes: who has seen it unchanged for `LEASE_SECONDS`, by its own clock alone, takes it over. So clocks may differ by
hours.

Nothing that is committed rests on a lease: results are published if absent, whoever computed them. At worst, as when
two take over at the same moment, a shard is computed twice and one result is dropped. A lease of a process of this very
machine that has ended is taken over at once, and so is one of the same run, whose runner repeats a bundle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from schemas.documents import DocumentError
from schemas.lease import LEASES_NAME, Lease, lease_name

from . import storage
from .errors import PenstockError
from .worker_facts import worker_name

logger = logging.getLogger(__name__)

LEASE_SECONDS = 120.0
"""How long a holder may show no sign of life. It gives three in that time, each a read and a write of a small file."""


class Leases:
    """The leases that this process holds at one output, for one run, and what it knows of those of others."""

    def __init__(self, output: str, run: str, seconds: float = LEASE_SECONDS) -> None:
        self._directory = storage.join(output, LEASES_NAME)
        self._run = run
        self._seconds = seconds
        self._held: dict[str, tuple[Lease, float]] = {}  # nonce -> what was written last, and when
        self._seen: dict[int, tuple[bytes, float]] = {}  # what another's lease was, and since when
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._renewing = False

    @contextlib.contextmanager
    def taken(self, shard: int) -> Iterator[bool]:
        """Holds the shard while the block runs; False if another run holds it."""
        lease = self._take(shard)
        try:
            yield lease is not None
        finally:
            if lease:
                self._release(lease)

    def holder(self, shard: int) -> str:
        """Who was seen to hold it last, in words."""
        content, _ = self._seen.get(shard, (b"", 0.0))
        lease = _parsed(content)
        return f"{lease.worker}, since {lease.taken_at}" if lease else "another run"

    def _take(self, shard: int) -> Lease | None:
        lease = Lease(
            shard=shard,
            run=self._run,
            worker=worker_name(),
            process=_process(os.getpid()),
            nonce=uuid.uuid4().hex,
            renewals=0,
            taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        url = self._url(shard)
        if not storage.publish_if_absent(url, lease.to_json()):
            there = _content(url)
            if there is not None and not self._may_take_over(shard, there):
                return None
            if there is not None and _content(url) == there:
                storage.remove(url)
            if not storage.publish_if_absent(url, lease.to_json()):
                return None  # somebody else took it over
        with self._changed:
            self._held[lease.nonce] = lease, time.monotonic()
            if not self._renewing:
                self._renewing = True
                threading.Thread(target=self._renew, name="penstock-leases", daemon=True).start()
        return lease

    def _may_take_over(self, shard: int, there: bytes) -> bool:
        lease = _parsed(there)
        if lease and (lease.run == self._run or _has_ended(lease.process)):
            return True
        now = time.monotonic()
        with self._lock:
            content, since = self._seen.get(shard, (None, now))
            if content != there:
                self._seen[shard] = there, now
                return False
        if now - since < self._seconds:
            return False
        logger.warning(
            "shard %d: %s has shown no sign of life for %.0f s; taking over", shard, self.holder(shard), now - since
        )
        return True

    def _release(self, lease: Lease) -> None:
        with self._changed:
            held = self._held.pop(lease.nonce, None)
            self._changed.notify()
        if held is None:
            return  # lost to another run
        try:
            if self._is_surely_ours(held[1]) or self._is_ours(lease):
                storage.remove(self._url(lease.shard))
        except (PenstockError, OSError) as error:
            logger.info("the lease of shard %d stays until it expires: %s", lease.shard, error)

    def _renew(self) -> None:
        """The thread that shows signs of life, as long as anything is held."""
        while True:
            with self._changed:
                if not self._held:
                    self._renewing = False
                    return
                until = time.monotonic() + self._seconds / 3
                while self._held and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                held = list(self._held.values())
            for lease, written in held:
                try:
                    self._renew_one(lease, written)
                except (PenstockError, OSError) as error:
                    logger.info("the lease of shard %d could not be renewed: %s", lease.shard, error)

    def _renew_one(self, lease: Lease, written: float) -> None:
        if not (self._is_surely_ours(written) or self._is_ours(lease)):
            logger.info("the lease of shard %d was taken over; it is computed all the same", lease.shard)
            with self._lock:
                self._held.pop(lease.nonce, None)
            return
        renewed = dataclasses.replace(lease, renewals=lease.renewals + 1)
        started = time.monotonic()
        with self._lock:
            if lease.nonce not in self._held:
                return
        storage.publish_over(self._url(lease.shard), renewed.to_json())
        with self._lock:
            if lease.nonce in self._held:
                self._held[lease.nonce] = renewed, started
                return
        storage.remove(self._url(lease.shard))  # it was released meanwhile

    def _is_surely_ours(self, written: float) -> bool:
        """Nobody can have taken over what was renewed a moment ago."""
        return time.monotonic() - written < self._seconds

    def _is_ours(self, lease: Lease) -> bool:
        there = _parsed(_content(self._url(lease.shard)) or b"")
        return there is not None and there.nonce == lease.nonce

    def _url(self, shard: int) -> str:
        return storage.join(self._directory, lease_name(shard))


def holders(output: str) -> list[Lease]:
    """The leases there are at an output, in order of their shards."""
    directory = storage.join(output, LEASES_NAME)
    contents = [_content(storage.join(directory, name)) for name in storage.list_names(directory)]
    found = (_parsed(content) for content in contents if content is not None)
    return sorted((lease for lease in found if lease), key=lambda lease: lease.shard)


def clear(output: str) -> None:
    """Remove what holders that died have left, when all shards are done."""
    directory = storage.join(output, LEASES_NAME)
    for name in storage.list_names(directory):
        storage.remove(storage.join(directory, name))


def _content(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def _parsed(content: bytes) -> Lease | None:
    """None for what is damaged, or of another version: it still changes or does not."""
    try:
        return Lease.from_json(content)
    except DocumentError:
        return None


def _process(pid: int) -> str | None:
    """Boot, process namespace, process and its start: no two processes have the same. None where there is no /proc."""
    try:
        state, started = _state_and_start(pid)
    except OSError:
        return None
    machine = _machine()
    return None if machine is None or state in "ZX" else f"{machine}/{pid}/{started}"


@functools.cache
def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _has_ended(process: str | None) -> bool:
    """Whether it ran on this machine, and runs no more."""
    machine, _, rest = (process or "").rpartition("/")[0].rpartition("/")
    if not (process and machine and machine == _machine() and rest.isdecimal()):
        return False
    return _process(int(rest)) != process


def _state_and_start(pid: int) -> tuple[str, str]:
    """Of a process, as Linux has them; the name before them may hold anything."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return after_name[0], after_name[19]
