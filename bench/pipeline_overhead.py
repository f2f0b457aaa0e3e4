"""What the whole pipeline costs without a model: a job over JSONL rows through Beam with a fake engine.

    python -m bench.pipeline_overhead --rows 1000000

Everything but the model is real: template, tokenizer, the window of open requests, Beam, Parquet, the commit. Memory
is looked at all the time, and its peak printed for each tenth of the rows: it must not grow. The fake engine's own
share of the time is measured and printed too.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.plan_and_commit import write_input
from engine import GenerateRequest, Sampling
from pipeline import activity
from pipeline.manifest import Manifest
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import read_plan
from tests import fake_job
from tests.fake_engine import FakeEngine
from tests.pipeline import tiny_tokenizers


def resident_bytes() -> int:
    """Of this process now (Linux), or its peak (elsewhere)."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class MemoryWatch:
    """The most memory seen during each tenth of the rows."""

    def __init__(self, rows: int) -> None:
        self.peaks_bytes = [0] * 10
        self._rows = rows
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            tenth = min(9, 10 * activity.live()["records_done"] // self._rows)
            self.peaks_bytes[tenth] = max(self.peaks_bytes[tenth], resident_bytes())


def engine_seconds(checkpoint: Path, asked: dict, requests: int = 2000) -> float:
    """What the fake engine takes for one request."""
    ids = tuple(Tokenizer.load(str(checkpoint)).encode("Q: what is one plus two?\nA:", add_special_tokens=True))
    engine, sampling = FakeEngine(), Sampling(temperature=1.0, max_tokens=asked["sampling"]["max_tokens"])
    started = time.perf_counter()
    for record in range(requests):
        engine.submit(GenerateRequest(prompt=ids, sampling=sampling, record=record)).result()
    return (time.perf_counter() - started) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=16)
    arguments = parser.parse_args()
    rows = arguments.rows
    asked = fake_job.settings(
        id="id", keep_columns=["answer"], shard_rows=arguments.shard_rows, max_tokens=arguments.max_tokens
    )
    directory = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        source, output = directory / "in" / "input.jsonl", directory / "out"
        source.parent.mkdir()
        write_input(source, rows)
        tiny_tokenizers.save_byte_level(directory)
        started = time.perf_counter()
        plan = fake_job.make_plan(source, output, asked)
        planned = time.perf_counter()
        flags = ("--direct_running_mode=multi_threading", f"--direct_num_workers={arguments.workers}")
        with MemoryWatch(rows) as memory:
            fake_job.run(source, output, directory, asked, flags=(*fake_job.FN_API, *flags))
        seconds = time.perf_counter() - planned
        summary = Manifest(str(output), read_plan(str(output))).finalise()
        assert summary.ok == rows
        per_request = engine_seconds(directory, asked)
        tenths = " ".join(f"{peak / 2**20:.0f}" for peak in memory.peaks_bytes)
        print(f"{rows:,} rows in {len(plan.shards):,} shards, {arguments.workers} workers")
        print(f"plan                {planned - started:8.1f} s  {rows / (planned - started):10,.0f} rows/s")
        print(f"run                 {seconds:8.1f} s  {rows / seconds:10,.0f} rows/s")
        print(f"  of it fake engine {rows * per_request:8.1f} s  {1e6 * per_request:10,.1f} µs a row")
        print(f"memory in each tenth of the rows: {tenths} MiB")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
