"""The demo from and to gs:// and s3://, with requests that fail: the same rows as on local disk?

    python -m bench.faulty_store --rate 0.1

For each store and for local disk, the generate job (questions in Parquet) and the score job (a TensorFlow dataset) of
jobs/examples/arithmetic run with their checkpoint, input and output there. The stores are the doubles of tests/stores,
spoken to by the real gcsfs and s3fs over HTTP; of their requests the given share goes wrong: errors, errors after the
request took effect, dropped connections, lost replies, cut and shortened bodies, late answers. Every result file is
compared with that of the local run, row by row and column by column. Only the column job_fingerprint differs: it knows
the input by what its store says of it. Ends non-zero at the first difference.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.stores.faults import KINDS
from tests.stores.objects import Objects
from tests.stores.serving import BUCKET, ROOT, Process

EXAMPLE = ROOT / "jobs" / "examples" / "arithmetic"
JOBS = ("generate", "score")
SCHEMES = {"gcs": "gs", "s3": "s3"}


def upload(objects: Objects) -> None:
    """The checkpoint and the data of the example."""
    for folder in ("checkpoint", "data"):
        for file in (EXAMPLE / folder).rglob("*"):
            if file.is_file():
                objects.put(BUCKET, str(file.relative_to(EXAMPLE)), file.read_bytes(), if_absent=False)


def run(job: str, base: str, output: str, environment: dict[str, str]) -> str:
    """What the command said at the end."""
    source = f"input.path={base}/data/questions.parquet" if job == "generate" else f"input.data_dir={base}/data/tfds"
    changes = [f"model.checkpoint={base}/checkpoint", source, f"output.path={output}"]
    command = [sys.executable, "-m", "jobs.cli", "run", str(EXAMPLE / f"{job}.yaml")]
    command += [word for change in changes for word in ("--set", change)]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} to {output} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def rows(part: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(part)).drop(["job_fingerprint"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.1, help="share of requests that go wrong (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="penstock-faulty-"))  # stays when something differs
    expected: dict[str, pa.Table] = {}
    for job in JOBS:
        started = time.monotonic()
        run(job, str(EXAMPLE), str(directory / job), {})
        parts = {f"{job}/{file.name}": rows(file.read_bytes()) for file in (directory / job).glob("part-*")}
        expected |= parts
        print(f"local {job:9} {len(parts)} files, {time.monotonic() - started:.0f} s", flush=True)
    for kind, scheme in SCHEMES.items():
        store = Process(kind, directory / kind, rate=options.rate, seed=options.seed)
        objects = Objects(directory / kind)
        upload(objects)
        for job in JOBS:
            started = time.monotonic()
            said = run(job, f"{scheme}://{BUCKET}", f"{scheme}://{BUCKET}/{job}", store.environment)
            keys = [facts.key for facts in objects.list(BUCKET, f"{job}/part-")]
            found = {key: rows(stored[1]) for key in keys if (stored := objects.get(BUCKET, key))}
            wanted = {name: table for name, table in expected.items() if name.startswith(f"{job}/")}
            if found.keys() != wanted.keys() or not all(found[name].equals(wanted[name]) for name in wanted):
                raise SystemExit(f"{kind}: the result files of {job} differ; look at {directory}")
            again = said.count("trying again")
            seconds = time.monotonic() - started
            print(f"{kind:5} {job:9} the same {len(wanted)} files, {seconds:.0f} s, {again} lines about trying again")
        store.kill()
        counts = store.counts()
        shares = ", ".join(f"{counts[fault]} {fault}" for fault in KINDS if counts.get(fault))
        print(f"{kind:5} {counts['requests']} requests, of them failed: {shares}", flush=True)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
