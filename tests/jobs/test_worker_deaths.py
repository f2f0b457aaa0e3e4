"""A worker process of this machine that is killed while another computes the only shard."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.commands import exit_codes
from pipeline.leases import holders
from tests.jobs import running


def children(process: int) -> list[int]:
    """Of all its threads."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def workers(driver: int) -> list[int]:
    """Each behind a shell."""
    return [worker for shell in children(driver) for worker in children(shell)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists a process's children")
def test_the_run_ends_and_the_same_command_goes_on(write_job: Callable[..., str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    command = ("crawling", "run", write_job(), "--set", f"output.path={output}", "--set", "engine.slots=4", *processes)
    driver = running.command(*command)
    while not (held := holders(str(output))):
        assert driver.poll() is None
        time.sleep(0.05)
    ((_, busy),) = (lease.worker.rsplit(":", 1) for lease in held)
    (idle,) = (worker for worker in workers(driver.pid) if worker != int(busy))
    os.kill(idle, signal.SIGKILL)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == exit_codes.REFUSED
    assert "a worker process ended without a word" in said

    again = running.command(*command)
    said, logged = again.communicate(timeout=120)
    assert again.returncode == exit_codes.DONE, logged
    assert len(running.rows(output)) == 100
