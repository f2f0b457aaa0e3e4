"""SIGTERM ends a command as Ctrl-C does: it is what a scheduler sends, or a machine that is about to be taken away.

Nothing is finished by half. Open shards let go within a second or so, finished ones stay, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raises Terminated in the main thread while the block runs; does nothing in others, which get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(*_: Any) -> None:
    raise Terminated("it was ended by SIGTERM")
