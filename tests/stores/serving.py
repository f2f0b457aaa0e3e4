"""A store behind HTTP: in a thread of the test, or in a process that is killed and started again on the same files.

python -m tests.stores.serving --kind gcs --directory DIR --port 8123 --rate 0.1 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from tests.stores import faults as fault
from tests.stores.faults import Faults
from tests.stores.objects import Objects

BUCKET = "bucket"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Percent-encoded, as it came."""
    query: dict[str, str]
    headers: Any
    body: bytes
    base: str
    """http://host:port"""

    def byte_range(self, size_bytes: int) -> tuple[int, int] | None:
        """Start and stop of the Range header; None where there is none. May be empty."""
        text = self.headers.get("Range", "")
        if not text.startswith("bytes="):
            return None
        start, _, last = text.removeprefix("bytes=").partition("-")
        if not start:
            return max(0, size_bytes - int(last)), size_bytes
        return int(start), min(size_bytes, int(last) + 1 if last else size_bytes)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    """What Content-Length says of a HEAD."""


class Store:
    """What answers requests. A subclass speaks the language of one store."""

    url_variables: dict[str, str]
    """What the environment must say besides the address."""
    address_variable: str
    scheme: str

    def __init__(self, objects: Objects, faults: Faults) -> None:
        self.objects = objects
        self.faults = faults
        self.denied: dict[str, int] = {}
        """Method -> the status with which it is refused."""
        self.log: list[tuple[str, str]] = []
        """Method and URL of every request."""

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    def error(self, status: int) -> Answer:
        """An error of the store's own, in its language."""
        raise NotImplementedError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def handle_any(self) -> None:
        try:
            body = self._body()
        except (ConnectionError, ValueError):
            self.close_connection = True
            return
        store = self.store
        store.log.append((self.command, self.path))
        kind = store.faults.draw(self.command, self.path)
        if kind == fault.DROPPED:
            self._hang_up()
            return
        if kind == fault.SLOW:
            time.sleep(store.faults.slow_seconds)
        if kind == fault.ERROR:
            self._send(store.error(store.faults.status(self.command, self.path)))
            return
        if self.command in store.denied:
            answer = store.error(store.denied[self.command])
        else:
            path, _, query = self.path.partition("?")
            values = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            host, port = self.server.server_address[:2]
            answer = store.answer(Request(self.command, path, values, self.headers, body, f"http://{host}:{port}"))
        if kind == fault.LOST:
            self._hang_up()
        elif kind == fault.ERROR_AFTER:
            self._send(store.error(503))
        elif kind == fault.CUT and answer.body:
            self._send(answer, sent_bytes=len(answer.body) // 2)
            self._hang_up()
        else:
            if kind == fault.SHORT and answer.body:
                answer.body = answer.body[: len(answer.body) // 2]
            self._send(answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
        else:
            size = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(size)
            if len(data) < size:
                raise ConnectionError("the client hung up")
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            data = _of_chunks(data)
        return data

    def _send(self, answer: Answer, sent_bytes: int | None = None) -> None:
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status not in (204, 304):
                size_bytes = len(answer.body) if answer.size_bytes is None else answer.size_bytes
                self.send_header("Content-Length", str(size_bytes))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[:sent_bytes])
        except ConnectionError:
            self.close_connection = True

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _of_chunks(data: bytes) -> bytes:
    """The payload of aws-chunked content, whose chunks are framed as HTTP's and may be signed."""
    payload, at = b"", 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if not size:
            return payload
        payload += data[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def store_class(kind: str) -> type[Store]:
    from tests.stores.gcs import Gcs
    from tests.stores.s3 import S3

    return {"gcs": Gcs, "s3": S3}[kind]


def environment(kind: str, port: int) -> dict[str, str]:
    """What a client process is set up with to reach a double."""
    found = store_class(kind)
    return {found.address_variable: f"http://127.0.0.1:{port}", **found.url_variables}


def serve(store: Store, port: int = 0) -> ThreadingHTTPServer:
    """Begins to serve in a thread; `shutdown` and `server_close` end it."""
    handler = type("Handler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@contextlib.contextmanager
def served(kind: str, directory: Path, faults: Faults | None = None) -> Iterator[tuple[Store, dict[str, str]]]:
    """A store with an empty bucket, served by a thread of this process, and the environment that leads to it."""
    store = store_class(kind)(Objects(directory), faults or Faults())
    store.objects.make_bucket(BUCKET)
    server = serve(store)
    try:
        yield store, environment(kind, server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def reached(kind: str, directory: Path, faults: Faults | None = None) -> Iterator[Store]:
    """The same, and this process is set up to reach it; waiting between tries takes no time to speak of."""
    from pipeline.storage import drivers, retrying

    async def soon(seconds: float, result: Any = None) -> Any:
        return await real_sleep(min(seconds, 0.01), result)

    real_sleep = asyncio.sleep
    with (
        served(kind, directory, faults) as (store, variables),
        mock.patch.dict(os.environ, variables),
        mock.patch.object(asyncio, "sleep", soon),
        mock.patch.object(retrying, "FIRST_SECONDS", 0.01),
    ):
        drivers.forget_stores()
        try:
            yield store
        finally:
            drivers.forget_stores()


class Process:
    """A store in a process of its own."""

    def __init__(self, kind: str, directory: Path, port: int | None = None, rate: float = 0.0, seed: int = 0) -> None:
        Objects(directory).make_bucket(BUCKET)
        self.port = port or _free_port()
        self._arguments = ["--kind", kind, "--directory", str(directory), "--port", str(self.port)]
        self._counts = directory / ".counts.json"
        self._arguments += ["--rate", str(rate), "--seed", str(seed), "--counts", str(self._counts)]
        self.environment = environment(kind, self.port)
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "tests.stores.serving", *self._arguments], cwd=ROOT)
        while self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"the store ended with {self._process.returncode}")

    def kill(self) -> None:
        """SIGKILL; the objects stay, uploads under way are lost."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def counts(self) -> dict[str, int]:
        """How often each kind of fault happened, and `requests` in all, as of the last start."""
        return json.loads(self._counts.read_text())


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("gcs", "s3"), required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counts", type=Path, help="where to write, again and again, what went wrong how often")
    options = parser.parse_args()
    store = store_class(options.kind)(Objects(options.directory), Faults(options.rate, options.seed))
    serve(store, options.port)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with whoever started it
        time.sleep(0.2)
        if options.counts:
            options.counts.write_text(json.dumps(store.faults.seen))


if __name__ == "__main__":
    main()
