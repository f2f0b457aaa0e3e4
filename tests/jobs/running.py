"""What tests of runs need: the command in a process of its own, Beam's job server, and rows to compare."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.inference import ShardJob

ROOT = Path(__file__).parents[2]


def command(engine: str, *arguments: str) -> subprocess.Popen[str]:
    """`penstock` with a fake engine, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "tests.jobs.fake_command", engine, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told_to_workers(monkeypatch: pytest.MonkeyPatch) -> list[ShardJob]:
    """What the workers of every run from now on are told, run by run."""
    seen: list[ShardJob] = []
    of = ShardJob.of.__func__

    def told(cls: type[ShardJob], *args: object, **kwargs: object) -> ShardJob:
        seen.append(of(cls, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(ShardJob, "of", classmethod(told))
    return seen


def rows(output: Path) -> list[dict]:
    """What does not depend on where the input lies."""
    names = ["record_id", "sample_index", "status", "error", "prompt", "text", "logprobs", "answer"]
    return sorted(pq.read_table(output, columns=names).to_pylist(), key=lambda row: row["record_id"])


@contextmanager
def job_server(directory: Path) -> Iterator[str]:
    """Beam's own job server, in a process of its own, with its files in `directory`; where it listens."""
    port_file = directory / "port"
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.process_job_server", "--port_file", str(port_file)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 120
            while not port_file.exists():
                assert time.monotonic() < deadline
                assert server.poll() is None, (directory / "log").read_text()
                time.sleep(0.05)
            yield f"localhost:{port_file.read_text()}"
        finally:
            server.terminate()
            server.wait(timeout=60)
