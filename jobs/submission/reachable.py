"""Whether workers elsewhere can read and write what a job names.

A local path means another file on another machine. On Dataflow that is certain to be wrong, so it is refused; on a
cluster of one's own the path may be a shared disk, so it is said.
"""

from __future__ import annotations

from collections.abc import Iterator

from jobs.spec import Job
from jobs.submission.settings import Flink, Spark, Workers
from pipeline.errors import JobError

_STORES = ("gs://", "s3://")


def refuse_unreachable(job: Job) -> None:
    """Refuses what the workers of the job's runner can never reach."""
    runner = job.runner
    if runner.name == "local":
        return
    if job.engine.hosts:
        raise JobError(
            f"engine.hosts: several hosts hold one model together only under penstock run and penstock follow "
            f"(docs/multi-host.md); the workers of {runner.name} are each on their own"
        )
    in_memory = [field for field, path in _paths(job) if (path or "").startswith("memory://")]
    if in_memory and not is_here(job):
        raise JobError(f"{in_memory[0]}: memory:// is in this process, where no worker of {runner.name} can read it")
    if runner.name != "dataflow":
        return
    for field, path in _paths(job):
        if path is None or not path.startswith(_STORES):
            raise JobError(
                f"{field}: workers of Dataflow are other machines; copy it to gs:// (or s3://) and name it there, "
                f"not {path or 'on this machine, its default'}"
            )


def notes(job: Job) -> Iterator[str]:
    """What must be true elsewhere, and cannot be checked from here."""
    if job.runner.name in ("flink", "spark", "portable") and not is_here(job):
        local = [field for field, path in _paths(job) if path is None or "://" not in path]
        if local:
            yield f"{', '.join(local)}: local paths; every worker must find the same files under them"


def is_here(job: Job) -> bool:
    """Whether the workers are in this process, so that they end with it."""
    workers = workers_of(job)
    return job.runner.name == "local" or (workers is not None and workers.environment == "LOOPBACK")


def workers_of(job: Job) -> Workers | None:
    """Where the job's runner runs our code, if that is the job's to say."""
    runner = job.runner
    sections = {"portable": runner.portable, "flink": runner.flink or Flink(), "spark": runner.spark or Spark()}
    return sections.get(runner.name)


def ends_with_this_process(job: Job) -> str | None:
    """Why the job cannot be left alone, in words; None if it can."""
    runner = job.runner
    if is_here(job):
        return "its workers are in this process"
    if runner.name in ("flink", "spark") or (runner.portable and runner.portable.job_endpoint == "embed"):
        return "its job server is in this process, or started by it"
    return None


def _paths(job: Job) -> Iterator[tuple[str, str | None]]:
    yield "model.checkpoint", job.model.checkpoint
    yield ("input.path", job.input.path) if job.input.path else ("input.data_dir", job.input.data_dir)
    yield "output.path", job.output.path
