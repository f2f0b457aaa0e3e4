"""A job in a process of its own that can be killed at any moment. Beam is imported once, not once a process."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from typing import Any

from tests import fake_job


def start(**run: Any) -> BaseProcess:
    """Begin `fake_job.run(**run)` in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fake_job", "tests.fake_engine", "pipeline.graph"])
    process = context.Process(target=fake_job.run, kwargs=run, daemon=True)
    process.start()
    return process


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """SIGKILL the process unless it ends before; whether it was killed."""
    process.join(timeout=seconds)
    process.kill()
    process.join()
    return process.exitcode != 0
