"""A host that lends its chips to a job: it holds a part of the model and computes with it; the job runs elsewhere."""

from __future__ import annotations

from jobs.spec import Job
from pipeline import storage
from pipeline.errors import JobError
from schemas.manifest import SUCCESS_NAME


def follow(job: Job, process: int) -> str:
    """Returns when the job ends, with what became of it."""
    hosts = job.engine.hosts
    if hosts is None:
        raise JobError(
            "engine.hosts: is missing, so this job runs on one host; for a second one write, for example, "
            'engine: {hosts: {count: 2, coordinator: "10.0.0.1:8476"}}, with the address of the host of `penstock run`'
        )
    if not 1 <= process < hosts.count:
        raise JobError(
            f"--process {process}: engine.hosts.count is {hosts.count}, so the other hosts are 1 to {hosts.count - 1}; "
            "process 0 is `penstock run`"
        )
    if storage.exists(storage.join(job.output.path, SUCCESS_NAME)):
        return "nothing to do: the job is finished"
    from pipeline.inference import follow  # imports Beam, which takes seconds

    follow(job.model.checkpoint, job.settings(), hosts.model_dump(), process, job.engine.chip)
    return "the leader has ended the run"
