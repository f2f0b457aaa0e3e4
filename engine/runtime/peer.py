"""The process at the other end of a connection: frames out, frames in, and both ways a sign of life every few seconds.

A process that dies closes its connections, which is noticed at once. A host that is cut off, or stands still, falls
silent; after `silence_seconds` it counts as lost. Everything is noticed by threads of the connection's own, since
whoever uses it may be inside a program on the device, waiting for the very process that is gone.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.errors import HostLost
from engine.runtime.channel import BadFrame, Closed, Frame, read_frame, write_frame

SILENCE_SECONDS = 60.0
SIGNS_OF_LIFE = 20
"""As many are sent in the time after which silence is a loss."""

_ALIVE, _FAILED, _ENDED = "alive", "failed", "ended"
"""Signs of life are not handed on; the others are the last word of an end."""


class Loss:
    """Whether somebody was lost, and who is to know. Of several losses the first counts; the others follow from it."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._lost: str | None = None
        self._watchers: list[Callable[[HostLost], None]] = []

    def notice(self, lost: HostLost) -> None:
        with self._change:
            if self._lost is not None:
                return
            self._lost = str(lost)
            self._change.notify_all()
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(lost)

    def watch(self, watcher: Callable[[HostLost], None]) -> None:
        """Has this called by whoever notices a loss; now, if there is one already."""
        with self._change:
            self._watchers.append(watcher)
        if lost := self.within(0.0):
            watcher(lost)

    def within(self, seconds: float) -> HostLost | None:
        """The loss, if there is one or it comes within this time; a new exception, to be raised by one thread."""
        with self._change:
            self._change.wait_for(lambda: self._lost is not None, seconds)
            return None if self._lost is None else HostLost(self._lost)


class Peer:
    """`name` is how messages call it; `remedy` ends the sentence of a loss. Used by one thread at a time.

    Once it is lost, sending and receiving raise HostLost.
    """

    def __init__(
        self, connection: socket.socket, name: str, remedy: str = "", *, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self.name = name
        self.loss = Loss()
        self._remedy = remedy
        self._connection = connection
        self._silence_seconds = silence_seconds
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._received: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(silence_seconds)
        for run in (self._listen, self._show_life):
            threading.Thread(target=run, name="penstock-peer", daemon=True).start()

    @property
    def lost(self) -> HostLost | None:
        return self.loss.within(0.0)

    def send(self, name: str, facts: Mapping[str, Any] | None = None, arrays: Sequence[np.ndarray] = ()) -> None:
        if lost := self.lost:
            raise lost
        try:
            with self._sending:
                write_frame(self._connection, Frame(name, facts or {}, arrays))
        except OSError as error:
            self._lose(_why(error, self._silence_seconds))
            raise self.lost or error from error

    def receive(self) -> Frame:
        """The next frame; waits for it as long as the other end shows signs of life."""
        frame = self._received.get()
        if frame is None:
            self._received.put(None)  # for whoever asks again
            raise self.lost or HostLost(f"the connection to {self.name} is closed")
        return frame

    def close(self, failure: str | None = None) -> None:
        """Says that this is the end, which is no loss on either side; a `failure` is one there, in its words."""
        last = Frame(_ENDED) if failure is None else Frame(_FAILED, {"why": failure})
        self._closing.set()
        with self._sending, contextlib.suppress(OSError):  # the other end may be gone
            write_frame(self._connection, last)
            self._connection.shutdown(socket.SHUT_WR)  # what it sends is still read, so that this arrives
        self._received.put(None)

    def _listen(self) -> None:
        with self._connection:
            while True:
                try:
                    frame = read_frame(self._connection)
                except (Closed, OSError, BadFrame) as error:
                    return self._lose(_why(error, self._silence_seconds))
                if frame.name == _FAILED:
                    return self._lose(f"it failed: {frame.facts.get('why')}")
                if frame.name == _ENDED:
                    self._closing.set()
                if frame.name != _ALIVE:
                    self._received.put(frame)

    def _show_life(self) -> None:
        while not self._closing.wait(self._silence_seconds / SIGNS_OF_LIFE):
            try:
                self.send(_ALIVE)
            except (HostLost, OSError):
                return

    def _lose(self, why: str) -> None:
        if not self._closing.is_set():
            self.loss.notice(HostLost(f"lost {self.name}: {why}{'. ' if self._remedy else ''}{self._remedy}"))
        self._received.put(None)


def _why(error: Exception, silence_seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing was heard of it for {silence_seconds:g} seconds"
    if isinstance(error, BadFrame):
        return str(error)
    return "its process has ended"
