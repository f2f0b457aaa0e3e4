"""The demo job through a real job endpoint: a job server and a worker in processes of their own, the rows compared.

    python -m bench.submit_demo [--rows 200]

Beam's own job server has no PROCESS environments; tests/jobs/process_job_server.py adds them, started as Flink starts
its workers. The worker is `penstock-worker`, with the real engine. The same job is run by `penstock run` beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from jobs import launch
from jobs.job_file import load
from jobs.submission.submit import submit
from tests.jobs.running import job_server

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "jobs" / "examples" / "arithmetic"
COLUMNS = ["record_id", "sample_index", "prompt", "token_ids", "logprobs", "text", "finish_reason"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200, help="questions of the demo (default: 200)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory)
        pq.write_table(pq.read_table(DEMO / "data" / "questions.parquet").slice(0, options.rows), there / "in.parquet")
        worker = there / "penstock-worker"
        worker.write_text(
            f'#!/bin/sh\necho $$ >> {there}/workers\nexec {sys.executable} -m jobs.submission.worker "$@"\n'
        )
        worker.chmod(0o755)
        with job_server(there) as endpoint:
            portable = f'{{job_endpoint: "{endpoint}", environment: PROCESS, process_command: {worker}}}'
            common = [f"input.path={there}/in.parquet", "output.shard_rows=50"]
            runner = ["runner.name=portable", f"runner.portable={portable}", f"output.path={there}/submitted"]
            submitted = submit(load(str(DEMO / "generate.yaml"), [*common, *runner]))
        local = launch.run(load(str(DEMO / "generate.yaml"), [*common, f"output.path={there}/local"]))
        assert isinstance(submitted, launch.Outcome)
        processes = len((there / "workers").read_text().split())
        same = _rows(there / "submitted") == _rows(there / "local")
        print(f"submitted   {submitted.seconds:.1f} s, {submitted.summary.ok} ok, {processes} worker process(es)")
        print(f"local       {local.seconds:.1f} s, {local.summary.ok} ok")
        print(f"rows equal  {same}")
        sys.exit(not same)


def _rows(output: Path) -> list[dict]:
    rows = pq.read_table(output, columns=COLUMNS).to_pylist()
    return sorted(rows, key=lambda row: (row["record_id"], row["sample_index"]))


if __name__ == "__main__":
    main()
