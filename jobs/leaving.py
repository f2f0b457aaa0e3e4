"""A command that has said its last word ends, whoever else is still in its process.

Python waits at exit for every thread that is no daemon, and Beam leaves some that wait for a worker which may have been
killed, for ever.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

GRACE_SECONDS = 30.0
"""What is done at exit, such as taking leave of other processes of a mesh, has so long."""


def leave(code: int, grace_seconds: float = GRACE_SECONDS) -> NoReturn:
    """Ends the process with this exit code, at the latest after `grace_seconds`. Called by the main thread."""
    threading.Thread(target=_at_the_latest, args=(code, grace_seconds), name="penstock-leaving", daemon=True).start()
    sys.exit(code)


def _at_the_latest(code: int, grace_seconds: float) -> None:
    threading.main_thread().join()
    time.sleep(grace_seconds)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(code)
