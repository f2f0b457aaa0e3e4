"""A job whose worker is a process of its own, killed while whoever submitted the job lives and waits.

In one form `penstock submit` hands the job to a job server in a process of its own, which starts `penstock-worker`
(environment PROCESS); in the other `penstock run` has two processes of Beam's compute (`multi_processing`). What waits
must end soon, with exit code 2 and a sentence that says what happened.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import fake_job
from tests.engine.tiny_checkpoint import write_tiny_checkpoint
from tests.jobs import running
from tests.pipeline.tiny_tokenizers import save_byte_level

SILENCE_SECONDS = 30.0
"""Longer than a worker takes to come, on a busy machine."""
START_SECONDS, SHARD_SECONDS = 8.0, 1.0
"""About what a worker takes to start, and a shard."""
WAITS_SECONDS = SILENCE_SECONDS + 60
"""After a kill: whoever still waits then, hangs."""
SAYS = ("a worker process ended without a word", "no worker has shown a sign of life")
JOB = """\
name: storm
task: generate
model: {{checkpoint: {checkpoint}}}
input: {{path: {source}, id: id}}
prompt: {{template: "Q: {{{{ question }}}}\\nA:"}}
sampling: {{max_tokens: 24, seed: 7, temperature: 1, n: 2, stop: [e]}}
output: {{path: set on the command line, keep_columns: [answer], shard_rows: {shard_rows}}}
engine: {{slots: 4}}
"""
"""So a shard takes a fifth of a second or so, and kills find it open."""


class JobWithWorkers:
    """The job on disk, a job server for it, and the ways to begin it."""

    def __init__(self, directory: Path, endpoint: str, rows: int, shard_rows: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_tiny_checkpoint(directory / "model", vocab_size=512, max_position_embeddings=256)
        checkpoint = save_byte_level(directory / "model")
        source = fake_job.write_jsonl(
            directory / "in.jsonl", [*fake_job.questions(rows - 1), '{"id": "last", "question": 3}']
        )
        self._file = directory / "job.yaml"
        self._file.write_text(JOB.format(checkpoint=checkpoint, source=source, shard_rows=shard_rows))
        self._pids = directory / "pids"
        self._program = directory / "penstock-worker"
        self._program.write_text(
            f'#!/bin/sh\necho $$ >> {self._pids}\nexec {sys.executable} -m jobs.submission.worker "$@"\n'
        )
        self._program.chmod(0o755)
        self._endpoint = endpoint
        self._shards = -(-rows // shard_rows)

    def run(self, output: Path) -> subprocess.Popen[str]:
        """In one process, undisturbed."""
        return running.command("crawling", "run", str(self._file), "--set", f"output.path={output}")

    def submitted(self, output: Path) -> subprocess.Popen[str]:
        self._pids.unlink(missing_ok=True)
        settings = [f"output.path={output}", f"runner.portable.process_command={self._program}"]
        settings += [f"runner.portable.silence_minutes={SILENCE_SECONDS / 60}"]
        flags = ["--runner", "portable", "--job-endpoint", self._endpoint, "--environment", "PROCESS"]
        return running.command(
            "crawling", "submit", str(self._file), *flags, *(word for one in settings for word in ("--set", one))
        )

    def in_processes(self, output: Path) -> subprocess.Popen[str]:
        flags = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
        return running.command("crawling", "run", str(self._file), "--set", f"output.path={output}", *flags)

    def kill_submitted(self, output: Path, moments: random.Random) -> Iterator[str]:
        """Kills until the job gets through, a third of the times while the worker starts; yields after each."""

        def worker(_: int) -> int | None:
            said = self._pids.read_text().split() if self._pids.exists() else []
            return int(said[0]) if said else None

        return _kills(lambda: self.submitted(output), worker, output, self._shards, moments, in_start=1 / 3)

    def kill_one_of_two(self, output: Path, moments: random.Random) -> Iterator[str]:
        """The same for one of two processes, once they compute: the limit of silence before that is half an hour."""

        def worker(driver: int) -> int | None:
            found = [grandchild for child in _children(driver) for grandchild in _children(child)]
            return moments.choice(found) if found and any(output.glob("_leases/*")) else None

        return _kills(lambda: self.in_processes(output), worker, output, self._shards, moments, in_start=0)


def _kills(
    begin: Callable[[], subprocess.Popen[str]],
    worker: Callable[[int], int | None],
    output: Path,
    shards: int,
    moments: random.Random,
    in_start: float,
) -> Iterator[str]:
    while True:
        driver = begin()
        while (pid := worker(driver.pid)) is None and driver.poll() is None:
            time.sleep(0.02)
        if moments.random() < in_start:
            seconds = moments.uniform(0, START_SECONDS)
        else:
            wanted = moments.randint(min(shards, _parts(output) + 1), shards)
            while _parts(output) < wanted and driver.poll() is None:
                time.sleep(0.02)
            seconds = moments.uniform(0, SHARD_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=seconds)
        is_killed = driver.poll() is None and pid is not None and _kill(pid)
        try:
            _, said = driver.communicate(timeout=WAITS_SECONDS)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGABRT)
            _, said = driver.communicate()
            raise SystemExit(f"{WAITS_SECONDS:.0f} s after its worker was killed, the driver waits: {said}") from None
        if driver.returncode == 0:
            return  # the kill, if any, came when all was done
        if driver.returncode != 2 or not any(sentence in said for sentence in SAYS) or not is_killed:
            raise SystemExit(f"the driver ended with {driver.returncode} and says: {said[-2000:]}")
        yield "heard of" if SAYS[0] in said else "not heard of by the runner"


def _parts(output: Path) -> int:
    return len(list(output.glob("part-*")))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ends
            found += map(int, children.read_text().split())
    return found
