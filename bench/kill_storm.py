"""Hundreds of kills at random moments: is any result file ever another than that of an undisturbed run?

    python -m bench.kill_storm --kills 200
    python -m bench.kill_storm --kills 40 --only worker,processes

Each round has a fresh output and one kind of disaster, again and again until the job gets through:

    run         the process that is driver and worker, on a local disk
    one of two  one of two such processes that do the same job at once
    worker      a worker in a process of its own, begun by a job server for `penstock submit`, which lives and waits
    processes   one of two workers that are processes of `penstock run`, which lives and waits
    store       the store itself, gs:// and s3://, begun again on its files a moment later; uploads under way are lost
    disk full   a disk (a tmpfs, as root; else a limit on the size of files) that is full at some point, then is not

After every disaster, what is committed must be a part of what an undisturbed run has, byte by byte, and must never
change again. Ends non-zero at the first difference.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.worker_kills import JobWithWorkers
from tests import fake_job
from tests.equivalence import processes
from tests.jobs import running
from tests.pipeline import tiny_tokenizers
from tests.stores.objects import Objects
from tests.stores.serving import BUCKET, Process

ROWS, SHARD_ROWS = 300, 20
PART_BYTES = 8_000  # of a result file, about
THREADS = ("--direct_running_mode=multi_threading", "--direct_num_workers=2")
STORE_KILLS = 6  # in a round
KINDS = ("run", "gs", "one of two", "disk full", "worker", "s3", "disk full", "processes")
NEVER_CHANGES = ("part-", "_manifest/", "_errors/", "_plan.json")

Files = dict[str, bytes]


@dataclass
class Round:
    """One output on its way. `look` gives its files as they are now."""

    job: dict[str, Any]
    look: Callable[[], Files]
    expected: Files
    begin: Callable[[], Any] | None = None
    """Begins an undisturbed run, where `job` is not what does."""
    committed: Files = field(default_factory=dict)

    def check(self) -> str:
        """Raises SystemExit where something is wrong; where the job has got to."""
        found = self.look()
        for name, data in found.items():
            if name.startswith("part-") and data != self.expected[name]:
                raise SystemExit(f"{self.job['output']}/{name} differs from that of an undisturbed run")
            if name.startswith(NEVER_CHANGES) and self.committed.setdefault(name, data) != data:
                raise SystemExit(f"{self.job['output']}/{name} has changed after it was committed")
        if gone := self.committed.keys() - found.keys():
            raise SystemExit(f"{self.job['output']}: {min(gone)} has disappeared")
        return stage(found)

    def finish(self) -> None:
        """An undisturbed run, after which all must be there."""
        if self.begin:
            code = ended(self.begin())
        else:
            run = processes.start(**self.job)
            run.join()
            code = run.exitcode
        self.check()
        parts = parts_of(self.look())
        if code or parts != self.expected or "_SUCCESS" not in self.look():
            raise SystemExit(f"{self.job['output']} was not finished: exit code {code}, {len(parts)} files")


def stage(found: Files) -> str:
    """Where a job has got to, by the files that are there."""
    parts, entries = (sum(name.startswith(prefix) for name in found) for prefix in ("part-", "_manifest/"))
    if "_plan.json" not in found:
        return "before the plan"
    if "_SUCCESS" in found:
        return "after the end"
    if parts > entries:
        return "between a file and its entry"
    return "before the end" if parts == -(-ROWS // SHARD_ROWS) else f"after {parts} files"


def local_files(output: Path) -> Files:
    """What readers see of a directory."""
    files = (path for path in output.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def stored_files(objects: Objects, prefix: str) -> Files:
    found = ((facts.key, objects.get(BUCKET, facts.key)) for facts in objects.list(BUCKET, prefix))
    return {key.removeprefix(prefix): stored[1] for key, stored in found if stored}


def parts_of(found: Files) -> Files:
    return {name: data for name, data in found.items() if name.startswith("part-")}


def ended(command: subprocess.Popen[str]) -> int:
    command.communicate()
    return command.returncode


def kill_runs(one: Round, at_once: int, moments: random.Random, seconds: float) -> Iterator[str]:
    got_through = False
    while not got_through:
        runs = [processes.start(**one.job) for _ in range(at_once)]
        for run in runs:
            if processes.kill_after(run, moments.uniform(0, 0.8 * seconds)):
                yield one.check()
            else:
                got_through = True


def kill_store(one: Round, store: Process, moments: random.Random) -> Iterator[str]:
    """A few times, and until a run ends well, however often the store went away meanwhile."""
    left = STORE_KILLS
    while True:
        run = processes.start(environment=store.environment, **one.job)
        while run.exitcode is None:
            run.join(timeout=moments.uniform(0.5, 3) if left else None)
            if run.exitcode is None:
                left -= 1
                store.kill()
                yield one.check()
                time.sleep(moments.uniform(0, 0.5))
                store.start()
        if run.exitcode == 0:
            return


def fill_disk(one: Round, moments: random.Random) -> Iterator[str]:
    """A disk with room for some of the files, then for all."""
    output = Path(one.job["output"])
    output.mkdir()
    is_mounted = False
    if os.geteuid() == 0:
        size = moments.randrange(4_096, PART_BYTES * ROWS // SHARD_ROWS, 4_096)
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(output)]
        is_mounted = subprocess.run(mounting, capture_output=True).returncode == 0
    try:
        limit = None if is_mounted else moments.randrange(PART_BYTES)
        run = processes.start(file_bytes=limit, **one.job)
        run.join()
        where = one.check()
        if run.exitcode == 0 and where != "after the end":
            raise SystemExit(f"{output}: the disk was full, and the run ended well")
        if run.exitcode:
            yield where
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(output)], check=True)
        one.finish()
    finally:
        if is_mounted:
            subprocess.run(["umount", str(output)], check=True)


@contextlib.contextmanager
def stores(directory: Path, seed: int) -> Iterator[dict[str, tuple[Process, Objects]]]:
    """Both doubles, one request in fifty failing besides."""
    kinds = {"gs": "gcs", "s3": "s3"}
    found = {
        scheme: (Process(kind, directory / kind, rate=0.02, seed=seed), Objects(directory / kind))
        for scheme, kind in kinds.items()
    }
    try:
        yield found
    finally:
        for store, _ in found.values():
            store.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of disaster, in turn (default: %(default)s)")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="penstock-storm-"))  # stays when something differs
    with (directory / "log").open("wb") as log:
        os.dup2(log.fileno(), 2)  # what the processes have to say, before they are killed
    try:
        storm(directory, arguments.kills, random.Random(arguments.seed), arguments.seed, arguments.only.split(","))
    except SystemExit as found:
        print(found)
        raise
    shutil.rmtree(directory)


def storm(directory: Path, wanted: int, moments: random.Random, seed: int, kinds: list[str]) -> None:
    job: dict[str, Any] = {
        "source": fake_job.write_jsonl(directory / "in" / "a.jsonl", [*fake_job.questions(ROWS - 1), "not JSON"]),
        "checkpoint": tiny_tokenizers.save_byte_level(directory),
        "asked": fake_job.settings(id="id", keep_columns=["answer"], n=2, stop=["e"], shard_rows=SHARD_ROWS),
        "flags": (*fake_job.FN_API, *THREADS),
        "engine": "tests.fake_engine:slow",
        "slots": 4,
    }
    fake_job.run(output=directory / "expected", **job)
    expected = parts_of(local_files(directory / "expected"))
    seconds = min(seconds_of_a_run(directory / f"timed-{i}", job) for i in range(2))
    print(f"{len(expected)} result files; a run takes {seconds:.1f} s", flush=True)
    kills: Counter[tuple[str, str]] = Counter()
    started = time.monotonic()
    with stores(directory, seed) as doubles, running.job_server(directory) as endpoint:
        workers = JobWithWorkers(directory / "workers", endpoint, ROWS, SHARD_ROWS)
        of_workers = undisturbed(workers, directory, kinds)
        for number, kind in enumerate(itertools.cycle(kinds)):
            if kills.total() >= wanted:
                break
            if kind in ("worker", "processes"):
                path = directory / f"round-{number}"
                begin = workers.submitted if kind == "worker" else workers.in_processes
                one = Round({"output": path}, lambda p=path: local_files(p), of_workers, lambda b=begin, p=path: b(p))
                disasters = (
                    workers.kill_submitted(path, moments)
                    if kind == "worker"
                    else workers.kill_one_of_two(path, moments)
                )
                for how in disasters:
                    kills[f"{kind}, {how}", one.check()] += 1
                one.finish()
                shutil.rmtree(path)
                print(
                    f"round {number}, {kind}: {kills.total()} disasters, {time.monotonic() - started:.0f} s", flush=True
                )
                continue
            if kind in doubles:
                store, objects = doubles[kind]
                output = f"{kind}://{BUCKET}/round-{number}"
                one = Round(
                    {**job, "output": output}, lambda o=objects, n=number: stored_files(o, f"round-{n}/"), expected
                )
                disasters = kill_store(one, store, moments)
            else:
                path = directory / f"round-{number}"
                one = Round({**job, "output": path}, lambda p=path: local_files(p), expected)
                disasters = (
                    fill_disk(one, moments)
                    if kind == "disk full"
                    else kill_runs(one, 2 if kind == "one of two" else 1, moments, seconds)
                )
            for where in disasters:
                kills[f"store {kind}://" if kind in doubles else kind, where] += 1
            if kind in doubles:
                one.job["environment"] = store.environment
            if kind != "disk full":
                one.finish()
            if kind not in doubles:
                shutil.rmtree(path)
            print(f"round {number}, {kind}: {kills.total()} disasters, {time.monotonic() - started:.0f} s", flush=True)
    by_kind: Counter[str] = Counter()
    for (kind, _), count in kills.items():
        by_kind[kind] += count
    print(f"{kills.total()} disasters in {number} rounds, {time.monotonic() - started:.0f} s: always the same bytes")
    for kind, count in by_kind.most_common():
        places = Counter({where: n for (other, where), n in kills.items() if other == kind})
        print(f"{count:6} {kind}: " + ", ".join(f"{n} {where}" for where, n in places.most_common(6)))


def undisturbed(workers: JobWithWorkers, directory: Path, kinds: list[str]) -> Files:
    """The result files of the job whose workers are processes."""
    if not {"worker", "processes"} & set(kinds):
        return {}
    if ended(workers.run(directory / "workers-expected")):
        raise SystemExit("the job whose workers are processes does not run")
    expected = parts_of(local_files(directory / "workers-expected"))
    if ended(workers.submitted(directory / "workers-timed")):
        raise SystemExit("the job whose workers are processes cannot be submitted")
    if parts_of(local_files(directory / "workers-timed")) != expected:
        raise SystemExit("submitted, a job has other results")
    return expected


def seconds_of_a_run(output: Path, job: dict[str, Any]) -> float:
    started = time.monotonic()
    processes.start(output=output, **job).join()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
