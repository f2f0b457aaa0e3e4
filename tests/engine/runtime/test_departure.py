"""A process that lost another ends by itself: with exit code 2, past whatever waits at exit, and with a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROGRAM = """\
import atexit, sys, time
from engine.errors import HostLost
from engine.runtime.departure import Departure
atexit.register(lambda: (print("at exit", flush=True), time.sleep({wait})))  # as jax waits for a process that is gone
departure = Departure(grace_seconds={grace})
print("before")
{act}
"""
LOSE = 'departure.begin(HostLost("lost process 1: it is gone"))\n'


def end(act: str, *, grace: float = 60.0, wait: float = 60.0) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that does this."""
    command = [sys.executable, "-c", PROGRAM.format(grace=grace, wait=wait, act=act)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_loss_that_was_announced_ends_the_process_when_it_is_done() -> None:
    assert end(LOSE + "departure.announce()\nprint('done')") == (2, "before\ndone\n", "")


def test_a_process_that_is_done_leaves_though_nobody_announced_the_loss() -> None:
    assert end(LOSE) == (2, "before\n", "")


def test_a_process_that_is_stuck_says_what_was_lost_and_leaves() -> None:
    code, _, said = end(LOSE + "time.sleep(60)", grace=0.2)
    assert (code, said) == (2, "error: lost process 1: it is gone\n")


def test_another_exit_code_may_be_asked_for() -> None:
    assert end("departure.announce(130)")[0] == 130


def test_without_a_loss_a_process_ends_as_ever() -> None:
    assert end("sys.exit(5)", wait=0.0) == (5, "before\nat exit\n", "")
