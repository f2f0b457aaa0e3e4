"""`penstock cancel`: a file in the output that stops the runs that were there before it.

The file holds a token, a new one for each cancel. A run notes the token that it finds when it begins, and stops when
it sees another. So nothing rests on clocks, nothing has to be removed in time, and workers of an old run that are slow
to notice still do when a new one has begun.

Every process with an open shard looks every 15 seconds: one small read, whatever the number of shards.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from schemas.submission import CANCEL_NAME, Cancellation

from . import activity, storage
from .stored import read_stored

POLL_SECONDS = 15.0
_LIMIT_BYTES = 2**16

logger = logging.getLogger(__name__)


def read(output: str) -> Cancellation | None:
    """The last cancel of an output, if there was one."""
    url = storage.join(output, CANCEL_NAME)
    return read_stored(Cancellation, url, limit_bytes=_LIMIT_BYTES, remedy="; delete it")


def cancel(output: str, by: str) -> Cancellation:
    """Make every run of this output stop that has begun by now."""
    cancellation = Cancellation(token=uuid.uuid4().hex, cancelled_at=_now(), cancelled_by=by, resumed_at=None)
    storage.publish_over(storage.join(output, CANCEL_NAME), cancellation.to_json())
    return cancellation


def begin(output: str) -> str | None:
    """The token that a run which begins now is to ignore; who looks at the output sees that it goes on."""
    earlier = read(output)
    if earlier is None:
        return None
    if earlier.resumed_at is None:
        resumed = replace(earlier, resumed_at=_now())
        storage.publish_over(storage.join(output, CANCEL_NAME), resumed.to_json())
    return earlier.token


@contextlib.contextmanager
def watched(output: str, ignored: str | None) -> Iterator[None]:
    """While the block runs, `activity.stop_if_cancelled` raises when the output is cancelled; at once if it is."""
    run = (output, ignored)
    with _lock:
        watch = _watches.setdefault(run, _Watch(run))
        watch.blocks += 1
        if watch.blocks == 1:
            watch.start()
    try:
        watch.first_look.wait(POLL_SECONDS)
        activity.stop_if_cancelled(*run)
        yield
    finally:
        with _lock:
            watch.blocks -= 1
            if watch.blocks == 0:
                watch.ended.set()
                del _watches[run]


@dataclass
class _Watch:
    """The thread that looks for one run, for all of its shards in this process."""

    run: activity.Run
    blocks: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    first_look: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._look, name="watch for cancel", daemon=True).start()

    def _look(self) -> None:
        output, ignored = self.run
        while not self.ended.is_set():
            try:
                found = read(output)
                if found is not None and found.token != ignored:
                    activity.cancel(*self.run)
            except (
                Exception
            ) as error:  # a store that does not answer now is asked again; the shard's own calls report it
                logger.info("cannot see whether %s is cancelled: %s", output, error)
            self.first_look.set()
            self.ended.wait(POLL_SECONDS)


_watches: dict[activity.Run, _Watch] = {}
_lock = threading.Lock()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
