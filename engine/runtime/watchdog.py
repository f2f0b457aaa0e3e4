"""Notices a device that no longer answers.

Every call on the device is timed. One that takes far longer than any of its kind before is taken for hung: where its
thread is gets logged, and whoever waits for the engine is told. Compiling is work of the host and does not count.

Time is counted in ticks of this thread, and no tick counts more than it should have taken: a process that was stopped,
or a machine that slept, has not been waiting for its device.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from engine.errors import DeviceHung

logger = logging.getLogger(__name__)

FIRST_SECONDS = 3600.0
"""Before any call of a kind has come back, nobody knows how long it takes."""
LEAST_SECONDS = 600.0
TIMES_THE_LONGEST = 30.0
TICK_SECONDS = 1.0


class Watchdog:
    """Used by the thread that owns the device; `on_hang` is called once, by the thread that `start` starts."""

    def __init__(self, on_hang: Callable[[DeviceHung], None], bound_seconds: float | None = None) -> None:
        """`bound_seconds` of one call; by default it follows from those before it."""
        self._on_hang = on_hang
        self._bound_seconds = bound_seconds
        self._tick_seconds = min(TICK_SECONDS, (bound_seconds or LEAST_SECONDS) / 10)
        self._longest: dict[str, float] = {}
        self._lock = threading.Lock()
        self._call: str | None = None
        self._waited_seconds = 0.0
        self._pauses = 0
        self._ended = threading.Event()
        self._owner: int | None = None
        self.hung: DeviceHung | None = None

    def start(self) -> None:
        threading.Thread(target=self._watch, name="penstock-watchdog", daemon=True).start()

    @contextlib.contextmanager
    def call(self, kind: str) -> Iterator[None]:
        """A call on the device. Raises DeviceHung if it does come back, but was given up."""
        with self._lock:
            self._call, self._waited_seconds, self._owner = kind, 0.0, threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._call = None
                self._longest[kind] = max(self._longest.get(kind, 0.0), self._waited_seconds)
        if self.hung:
            raise self.hung

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What does not wait for the device."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1

    def close(self) -> None:
        self._ended.set()

    def bound_seconds(self, kind: str) -> float:
        """How long a call of this kind may take."""
        if self._bound_seconds is not None:
            return self._bound_seconds
        if kind not in self._longest:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, TIMES_THE_LONGEST * self._longest[kind])

    def _watch(self) -> None:
        before = time.monotonic()
        while not (self.hung or self._ended.wait(self._tick_seconds)):
            now = time.monotonic()
            self.tick(now - before)
            before = now

    def tick(self, seconds: float) -> None:
        """So much time has passed since the last."""
        with self._lock:
            if self._call is None or self._pauses:
                return
            self._waited_seconds += min(seconds, 2 * self._tick_seconds)
            call, bound_seconds = self._call, self.bound_seconds(self._call)
            if self._waited_seconds <= bound_seconds:
                return
            self.hung = DeviceHung(
                f"the device does not answer: {call} has taken {self._waited_seconds:.0f} s, and may take "
                f"{bound_seconds:.0f} s (engine.watchdog_seconds). Start the job again, on another machine if this "
                "one's device stays hung"
            )
        logger.error("%s. Its thread is at\n%s", self.hung, _stack(self._owner))
        self._on_hang(self.hung)


def _stack(thread: int | None) -> str:
    """Where a thread is, in Python."""
    frame = sys._current_frames().get(thread or 0)
    return "".join(traceback.format_stack(frame)) if frame else "its thread has ended"
