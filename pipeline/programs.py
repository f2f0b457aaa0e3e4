"""Compiled programs, kept from run to run: in the user's cache, or for all workers together in an object store.

jax reads and writes a directory of this process alone. What is kept is copied there before the first program
is compiled, and what is new is published after every shard, each program whole, once, and with its hash. So
neither a killed process, a full disk, two processes at once nor a damaged file can do more than cost the time
to compile: the cache is a convenience, and never fails a job.

Programs are machine code. Whoever can write to the place can run code where its programs are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import storage
from .errors import PenstockError

AUTO, OFF = "auto", "off"
KEPT_DAYS = 30
"""A program in a local cache that nobody used for so long is removed."""

_NAME = re.compile(r"[\w.-]{1,250}-cache")
_LARGEST_BYTES = 2**30
_ZSTD = b"\x28\xb5\x2f\xfd"
_DIGEST_BYTES = hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


def default_place() -> str:
    """In the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(root, "penstock", "programs")


class Programs:
    """`place` is a directory or a URL; `machine` tells apart machines that cannot use each other's programs."""

    def __init__(self, place: str, machine: str) -> None:
        self._place: str | None = storage.join(place, machine)
        self._shared: set[str] = set()
        self._damaged: set[str] = set()
        self.directory = Path(tempfile.mkdtemp(prefix="penstock-programs-"))
        """For jax."""
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self._attempt(self._fetch)

    def share(self) -> None:
        """Publish what was compiled since the last time."""
        self._attempt(self._publish)

    def _fetch(self, place: str) -> None:
        if "://" not in place:
            os.makedirs(place, mode=0o700, exist_ok=True)
            storage.remove_abandoned(place)
            _remove_unused(Path(place))
        names = [name for name in storage.list_names(place) if _NAME.fullmatch(name)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: self._fetch_one(place, name), names))

    def _fetch_one(self, place: str, name: str) -> None:
        try:
            kept = storage.read_bytes(storage.join(place, name), _LARGEST_BYTES)
        except FileNotFoundError:  # removed by another process
            return
        digest, program = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if hashlib.sha256(program).digest() != digest:
            self._damaged.add(name)
            return
        (self.directory / name).write_bytes(program)
        self._shared.add(name)
        if "://" not in place:
            with contextlib.suppress(OSError):
                os.utime(os.path.join(place, name))

    def _publish(self, place: str) -> None:
        for name in sorted(os.listdir(self.directory)):
            if name in self._shared or not _NAME.fullmatch(name):
                continue
            program = (self.directory / name).read_bytes()
            if not _is_whole(program):  # it is being written
                continue
            kept = hashlib.sha256(program).digest() + program
            if name in self._damaged:
                storage.publish_over(storage.join(place, name), kept)
            else:
                storage.publish_if_absent(storage.join(place, name), kept)
            self._shared.add(name)

    def _attempt(self, use: Callable[[str], None]) -> None:
        """The first failure is said, and is the last: the run goes on without what is kept."""
        if self._place is None:
            return
        try:
            use(self._place)
        except (PenstockError, OSError) as error:
            _log.warning("compiled programs are not kept (engine.compile_cache): %s", storage.redacted(str(error)))
            self._place = None


def _remove_unused(place: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for file in place.iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()


def _is_whole(entry: bytes) -> bool:
    """Whether a file of the cache was written to its end: jax compresses, and the stream says where it ends."""
    try:
        if entry.startswith(_ZSTD):
            import zstandard  # pyright: ignore[reportMissingImports]

            return bool(zstandard.ZstdDecompressor().decompress(entry))
        stream = zlib.decompressobj()
        return bool(stream.decompress(entry)) and stream.eof
    except Exception:  # cut off, of another format, or compressed by what is not here
        return False
