"""`penstock` in a process of its own, with a fake engine: `python -m tests.jobs.fake_command ENGINE run ...`."""

from __future__ import annotations

import functools
import signal
import sys

from jobs import cli, launch
from jobs.leaving import leave
from jobs.submission import submit

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background turns Ctrl-C off
    factory = f"tests.fake_engine:{sys.argv[1]}"
    launch.run = functools.partial(launch.run, engine_factory=factory)
    submit.submit = functools.partial(submit.submit, engine_factory=factory)
    code = cli.main(sys.argv[2:])
    print("imported:", *({"apache_beam", "jax"} & sys.modules.keys()), file=sys.stderr)
    leave(code)
