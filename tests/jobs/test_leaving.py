"""A command ends though a thread of its process never does."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, threading
from jobs.leaving import leave
{}
print("said", flush=False)
leave(3, grace_seconds=0.2)
"""
FOR_EVER = 'threading.Thread(target=threading.Event().wait, name="not a daemon").start()'


def ended(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(program)], capture_output=True, text=True, timeout=60, check=False
    )


def test_it_leaves_threads_that_wait_for_ever() -> None:
    found = ended(FOR_EVER)
    assert (found.returncode, found.stdout, found.stderr) == (3, "said\n", "")


def test_what_is_registered_for_the_exit_is_done() -> None:
    found = ended('atexit.register(print, "done")')
    assert (found.returncode, found.stdout, found.stderr) == (3, "said\ndone\n", "")
