"""A job in a process of its own that can be killed at any moment. Beam is imported once, not once a process."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

from tests import fake_job


def start(environment: Mapping[str, str] | None = None, file_bytes: int | None = None, **run: Any) -> BaseProcess:
    """Begin `fake_job.run(**run)` in a new process.

    `environment` is what it is set up with besides. No file that it writes can have more than `file_bytes`: what is
    beyond fails, as on a full disk.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fake_job", "tests.fake_engine", "pipeline.graph"])
    process = context.Process(target=_run, args=(environment or {}, file_bytes, run), daemon=True)
    process.start()
    return process


def _run(environment: Mapping[str, str], file_bytes: int | None, run: Mapping[str, Any]) -> None:
    os.environ.update(environment)
    if file_bytes is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # what is said may go to a file, and would fail as well
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    fake_job.run(**run)


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """SIGKILL the process unless it ends before; whether it was killed."""
    process.join(timeout=seconds)
    process.kill()
    process.join()
    return process.exitcode != 0
