"""Worker processes of this machine that end before the run does (`--direct_running_mode=multi_processing`).

Beam starts each of them from a thread, in which it raises when the process has failed, and nobody listens. It notices
by itself if data was still to come from the worker. Where none was, as in the last step, which declares a job finished,
it waits for the answer for ever.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 10.0
"""In which Beam may say more of it, or the run may be over."""

_STARTER = "run_worker"
"""Beam's name for such a thread (apache_beam/runners/portability/fn_api_runner/worker_handlers.py)."""


@contextlib.contextmanager
def noticed(give_up: Callable[[], None]) -> Iterator[None]:
    """While the block runs: `give_up` is called from a thread, a while after a worker process has failed."""
    before = threading.excepthook

    def hear(failed: threading.ExceptHookArgs) -> None:
        if failed.thread is None or failed.thread.name != _STARTER:
            before(failed)
            return
        logger.info("a worker process has failed: %s", failed.exc_value)
        later = threading.Timer(NOTICE_SECONDS, give_up)
        later.daemon = True
        later.start()

    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before
