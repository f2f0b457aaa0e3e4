"""How a process ends that has lost another of its mesh, or whose device does not answer.

Not in the usual way. At exit jax waits for the lost process, and then aborts, or for the device. And a thread inside a
program on the device, waiting for numbers from there, may wait for ever. So such a process leaves at once when Python
is done with it, with the exit code of a run that broke off; and if whoever uses the engine cannot be told, it says
itself what was lost, and leaves.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading

EXIT_CODE = 2
GRACE_SECONDS = 10.0


class Departure:
    """`begin` when a process is lost; `announce` once whoever uses the engine is told that the run has failed.

    To be made after jax was imported, whose own work at exit must come later.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._begun = False
        self._exit_code = EXIT_CODE
        self._announced = threading.Event()
        atexit.register(self._leave)

    def begin(self, lost: Exception) -> None:
        self._begun = True
        threading.Thread(target=self._wait, args=(lost,), name="penstock-departure", daemon=True).start()

    def announce(self, exit_code: int = EXIT_CODE) -> None:
        self._exit_code = exit_code
        self._begun = True
        self._announced.set()

    def _wait(self, lost: Exception) -> None:
        if not self._announced.wait(self._grace_seconds):
            os.write(2, f"error: {lost}\n".encode())  # sys.stderr may have been redirected
            os._exit(EXIT_CODE)

    def _leave(self) -> None:
        if not self._begun:
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(self._exit_code)
