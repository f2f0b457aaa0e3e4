"""Stops a job from its output alone: the mark that its workers look for, and the runner's own cancel where it is known.

The mark is enough; asking the runner as well frees its machines at once. Finished shards stay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from jobs.submission.endpoints import (
    ANSWER_SECONDS,
    RunnerUnreachable,
    credentials,
    job_service,
    require_dataflow_client,
    within,
)
from jobs.submission.record import read_submission, where, whoami
from pipeline import cancellation, storage
from pipeline.errors import JobError
from pipeline.workplan import read_plan
from schemas.manifest import SUCCESS_NAME
from schemas.submission import Submission

logger = logging.getLogger(__name__)


def cancel(output: str) -> Iterator[tuple[str, str]]:
    """Cancels the job at `output`, and says what was done: a label and its text."""
    plan = read_plan(output)
    if storage.exists(storage.join(output, SUCCESS_NAME)):
        raise JobError(f"{output} is finished: there is nothing to cancel")
    submission = read_submission(output)
    mark = cancellation.cancel(output, whoami())
    yield "job", f"{plan.name} ({plan.task}), cancelled at {mark.cancelled_at}"
    yield "workers", f"stop within {cancellation.POLL_SECONDS:.0f} seconds, wherever they are; finished shards stay"
    if submission is not None:
        yield "runner", _cancel_at_runner(submission)


def _cancel_at_runner(submission: Submission) -> str:
    place = where(submission)
    try:
        if submission.runner == "dataflow":
            within(ANSWER_SECONDS, lambda: _cancel_dataflow(submission))
        elif submission.endpoint:
            within(ANSWER_SECONDS, lambda: _cancel_portable(submission.endpoint or "", submission.job_id))
        else:
            return f"{place}: its job server was part of the submission; nobody to ask"
    except Exception as error:  # every client raises its own kinds, and the mark is there
        logger.info("the runner could not be asked", exc_info=True)
        return f"{place}: could not be asked ({_reason(error)}); the mark stops its workers all the same"
    return f"{place}: told to cancel"


def _cancel_dataflow(submission: Submission) -> None:
    require_dataflow_client()
    from google.cloud import dataflow

    client = dataflow.JobsV1Beta3Client(credentials=credentials())
    asked = dataflow.Job(requested_state=dataflow.JobState.JOB_STATE_CANCELLED)
    client.update_job(
        dataflow.UpdateJobRequest(
            project_id=submission.project, location=submission.region, job_id=submission.job_id, job=asked
        ),
        timeout=ANSWER_SECONDS,
    )


def _cancel_portable(endpoint: str, job_id: str) -> None:
    from apache_beam.portability.api import beam_job_api_pb2

    stub: Any = job_service(endpoint)
    stub.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job_id), timeout=ANSWER_SECONDS)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {ANSWER_SECONDS:.0f} seconds"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, RunnerUnreachable) else text[:200]
