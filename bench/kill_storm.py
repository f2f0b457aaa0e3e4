"""Hundreds of SIGKILLs at random moments: does the output ever differ from that of an undisturbed run?

    python -m bench.kill_storm --kills 300

Each round starts a job of a few shards on a fresh output, in one process or in two at once, kills and restarts them at
random moments until one gets through, and compares all rows. Ends non-zero at the first difference.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests import fake_job
from tests.equivalence import processes
from tests.pipeline import tiny_tokenizers

ROWS, SHARD_ROWS = 600, 20
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")


def stage(output: Path) -> str:
    """Where a killed run had got to."""
    if not (output / "_plan.json").exists():
        return "before the plan"
    parts, entries = len(list(output.glob("part-*"))), len(list((output / "_manifest").glob("*.json")))
    if (output / "_SUCCESS").exists():
        return "after the end"
    if parts == ROWS // SHARD_ROWS:
        return "before the end"
    if parts > entries:
        return "between a file and its entry"
    return "in the middle of a file" if list(output.glob(".part-*")) else "between files"


def seconds_of_a_run(output: Path, job: dict[str, Any]) -> float:
    started = time.monotonic()
    processes.start(output=output, **job).join()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    directory = Path(tempfile.mkdtemp(prefix="penstock-storm-"))  # stays when the rows differ
    job: dict[str, Any] = {
        "source": fake_job.write_jsonl(directory / "in" / "a.jsonl", [*fake_job.questions(ROWS - 1), "not JSON"]),
        "checkpoint": tiny_tokenizers.save_byte_level(directory),
        "asked": fake_job.settings(id="id", keep_columns=["answer"], n=2, stop=["e"], shard_rows=SHARD_ROWS),
        "flags": (*fake_job.FN_API, *THREADS),
        "engine": "tests.fake_engine:slow",
        "slots": 4,
    }
    fake_job.run(output=directory / "expected", **job)
    expected = fake_job.results(directory / "expected")
    seconds = min(seconds_of_a_run(directory / f"timed-{i}", job) for i in range(2))
    started = time.monotonic()
    kills: Counter[str] = Counter()
    rounds = 0
    while kills.total() < arguments.kills:
        output = directory / f"round-{rounds}"
        at_once = moments.choice((1, 1, 2))
        got_through = False
        while not got_through:
            runs = [processes.start(output=output, **job) for _ in range(at_once)]
            for run in runs:
                if processes.kill_after(run, moments.uniform(0, 0.8 * seconds)):
                    kills[stage(output)] += 1
                else:
                    got_through = True
        fake_job.run(output=output, **job)
        if fake_job.results(output) != expected:
            raise SystemExit(f"round {rounds}: the rows differ; look at {output}")
        shutil.rmtree(output)
        rounds += 1
    print(f"{kills.total()} kills in {rounds} rounds, {time.monotonic() - started:.0f} s: always the same rows")
    for where, count in kills.most_common():
        print(f"{count:6} {where}")
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
