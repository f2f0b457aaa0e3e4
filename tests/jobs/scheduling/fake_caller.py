"""Another process that calls run-due, without Beam: reads times from its standard input, and answers each call with
the shards that it computed for every partition."""

from __future__ import annotations

import datetime
import functools
import json
import sys

from jobs import launch
from jobs.scheduling.partition_run import How
from jobs.scheduling.run_due import Call, window
from jobs.scheduling.schedule_file import load
from tests.jobs.scheduling import without_beam

if __name__ == "__main__":
    launch.run = functools.partial(launch.run, engine_factory=f"tests.fake_engine:{sys.argv[2]}")
    launch._compute = without_beam.compute
    print("ready", flush=True)
    for line in sys.stdin:
        scheduled = load(sys.argv[1])
        now = datetime.datetime.fromisoformat(line.strip())
        how = How(scheduled, lambda now=now: now, lease_seconds=3.0)
        results = Call(how, lambda result: print(result.state, file=sys.stderr)).run(window(scheduled, now))
        print(json.dumps({result.partition.key: result.shards_computed for result in results}), flush=True)
