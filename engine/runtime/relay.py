"""A way to a port of another host that seems to stay open when that host is gone.

jax aborts a process as soon as its connection to the coordination service closes: with a stack trace, before anybody
can say that the leader was lost and what to do. There is no setting for it. So followers reach the service through
this relay in their own process. It passes everything on; and when the service is gone it leaves the near end open, so
that jax only misses heartbeats, for a hundred seconds, in which we say it in our words and end.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Relay:
    """Listens at `address`, on this host alone, and passes on to `to`, until the process ends."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host.strip("[]"), int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        _start(self._accept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._to, timeout=10.0)
            except OSError:
                near.close()  # whoever connects tries again
                continue
            far.settimeout(None)
            _start(_outward, near, far)
            _start(_homeward, far, near)


def _outward(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        while data := _received(near):
            with contextlib.suppress(OSError):  # far is gone: nobody needs to know yet
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)  # to close alone does nothing while the other thread reads


def _homeward(far: socket.socket, near: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := _received(far):
            near.sendall(data)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""


def _start(run: Callable[..., None], *args: socket.socket) -> None:
    threading.Thread(target=run, args=args, name="penstock-relay", daemon=True).start()
