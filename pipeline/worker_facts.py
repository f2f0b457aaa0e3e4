"""What is recorded of the process that computes: its devices, how long loading and compiling took, what it counted."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.documents import DocumentError
from schemas.worker import WORKERS_NAME, Worker

from . import storage
from .errors import JobError

WRITE_SECONDS = 60.0
"""Between two writes."""


def worker_name() -> str:
    """Of this process, in leases and records."""
    return f"{socket.gethostname()}:{os.getpid()}"


class WorkerRecord:
    """The record of this process for one engine at one output."""

    def __init__(self, output: str, run: str) -> None:
        self._run = run
        name = re.sub(r"[^A-Za-z0-9.-]", "-", worker_name())
        self._url = storage.join(output, WORKERS_NAME, f"{run[:8]}-{name}.json")
        self._started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._written = float("-inf")
        self._lock = threading.Lock()

    def write(self, facts: Mapping[str, Any], counters: Mapping[str, int | float], is_last: bool = False) -> None:
        """Writes it, unless that was done a moment ago; or, the last time, if it was done at all."""
        with self._lock:
            seconds = time.monotonic() - self._written
            if (seconds == float("inf")) if is_last else (seconds < WRITE_SECONDS):
                return
            self._written = time.monotonic()
        worker = Worker(
            run=self._run,
            worker=worker_name(),
            penstock=importlib.metadata.version("penstock"),
            started_at=self._started_at,
            engine={name: round(count, 6) for name, count in counters.items()},
            **facts,
        )
        storage.publish_over(self._url, worker.to_json())


def workers(output: str) -> Iterator[Worker]:
    """The records there are at an output; one that cannot be read is left out."""
    directory = storage.join(output, WORKERS_NAME)
    for name in storage.list_names(directory):
        try:
            yield Worker.from_json(storage.read_bytes(storage.join(directory, name)))
        except (DocumentError, FileNotFoundError):
            continue


def refuse_other_dtype(output: str, facts: Mapping[str, Any]) -> None:
    """`model.dtype: auto` means another dtype on another kind of machine, whose rows could not be told from these."""
    for worker in itertools.islice(workers(output), 1):  # all others agree with it
        if worker.dtype != facts["dtype"]:
            raise JobError(
                f"model.dtype: auto is {facts['dtype']} on this worker ({facts['platform']}, {facts['device_kind']}), "
                f"and {worker.worker} has computed shards of {output} in {worker.dtype} ({worker.platform}, "
                f"{worker.device_kind}). Go on with the same kind of machine, or set model.dtype and choose a new "
                "output.path"
            )
