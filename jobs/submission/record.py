"""Who submitted what where, in the output, so that `penstock status` and `penstock cancel` need nothing else."""

from __future__ import annotations

import datetime
import getpass
import importlib.metadata
import platform
from collections.abc import Sequence

from jobs.spec import Job
from jobs.submission.beam_flags import beam_flags
from pipeline import storage
from pipeline.stored import read_stored
from schemas.submission import SUBMITTED_NAME, Submission

_LIMIT_BYTES = 2**20


def record(job: Job, job_id: str, flags: Sequence[str]) -> Submission:
    """Writes down that the job's runner has accepted it as `job_id`. Of the user's own flags only the names are kept:
    a value may be a secret."""
    from apache_beam.version import __version__ as beam

    dataflow, portable = job.runner.dataflow, job.runner.portable
    at_dataflow = dataflow if job.runner.name == "dataflow" else None
    endpoint = portable.job_endpoint if portable and job.runner.name == "portable" else None
    names = [flag.partition("=")[0] for flag in flags if flag.startswith("--")]
    ours = beam_flags(job)
    submission = Submission(
        runner=job.runner.name,
        job_id=job_id,
        job_name=next((flag.partition("=")[2] for flag in ours if flag.startswith("--job_name=")), job.name),
        endpoint=None if endpoint == "embed" else endpoint,
        project=at_dataflow.project if at_dataflow else None,
        region=at_dataflow.region if at_dataflow else None,
        options=(*ours, *(f"{name}=..." for name in names)),
        submitted_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        submitted_by=whoami(),
        penstock=importlib.metadata.version("penstock"),
        beam=beam,
    )
    storage.publish_over(storage.join(job.output.path, SUBMITTED_NAME), submission.to_json())
    return submission


def read_submission(output: str) -> Submission | None:
    """The last submission of an output, if it was ever submitted."""
    url = storage.join(output, SUBMITTED_NAME)
    return read_stored(Submission, url, limit_bytes=_LIMIT_BYTES, remedy="; delete it")


def where(submission: Submission) -> str:
    """A submission in words."""
    if submission.runner == "dataflow":
        return f"dataflow job {submission.job_id} in {submission.project}, {submission.region}"
    at = f" at {submission.endpoint}" if submission.endpoint else ""
    return f"{submission.runner} job {submission.job_id}{at}"


def whoami() -> str:
    """user@host, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = "unknown"
    return f"{user}@{platform.node() or 'unknown'}"
