"""Whether anybody still computes, seen from the output: a runner may not notice that its workers are gone.

Beam's own job server waits for ever for a worker that was killed before it had called back. So whoever waits for other
processes looks for signs of life: a worker that is new, a lease that changes (every 40 seconds while a shard is
computed), a shard that is done. When there were none for too long, waiting is given up with what to do. Only contents
are compared, and time is that of the clock of the one who waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from jobs.wording import duration
from pipeline import storage
from pipeline.errors import PenstockError, RunFailed
from pipeline.leases import holders
from schemas.manifest import MANIFEST_NAME
from schemas.worker import WORKERS_NAME

logger = logging.getLogger(__name__)

LOOKS = 20
"""In the time that is waited at most; a look lists two directories and reads the leases that are held."""
LONGEST_PAUSE_SECONDS = 30.0


class WorkersSilent(RunFailed):
    """Nothing has happened at the output for so long that nobody can be computing."""


class Silence:
    """How long nothing has happened at an output; `remedy` is what the user is told to do about it."""

    def __init__(
        self, output: str, limit_seconds: float, remedy: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.pause_seconds = min(LONGEST_PAUSE_SECONDS, limit_seconds / LOOKS)
        """Between two looks."""
        self._output, self._limit_seconds, self._remedy = output, limit_seconds, remedy
        self._clock = clock
        self._since = clock()
        self._seen: Any = None

    def look(self) -> None:
        """Looks for a sign of life; WorkersSilent when there was none for too long."""
        try:
            found = _signs(self._output)
        except (PenstockError, OSError) as error:  # a store that does not answer says nothing about workers
            logger.info("cannot see whether workers of %s are alive: %s", self._output, error)
            return
        now = self._clock()
        if found != self._seen:
            self._seen, self._since = found, now
        elif now - self._since >= self._limit_seconds:
            raise WorkersSilent(
                f"no worker has shown a sign of life at {self._output} for {duration(now - self._since)}: none has "
                "started, or it was killed and the runner has not noticed; the runner's log may say why. "
                f"{self._remedy}"
            )


def _signs(output: str) -> tuple[object, ...]:
    """What changes as long as somebody computes."""
    done, workers = (storage.list_names(storage.join(output, name)) for name in (MANIFEST_NAME, WORKERS_NAME))
    return len(done), sorted(workers), [(lease.nonce, lease.renewals) for lease in holders(output)]
