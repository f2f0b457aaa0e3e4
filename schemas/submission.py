"""What is known of a job that was handed to a runner, and of its cancellation: two small files of an output.

_submitted.json   which runner has the job, under which id; of the last submission
_cancel           whoever runs this output is to stop, unless it began later
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .documents import Document

SUBMISSION_VERSION = 1
CANCELLATION_VERSION = 1

SUBMITTED_NAME = "_submitted.json"
CANCEL_NAME = "_cancel"


@dataclass(frozen=True, kw_only=True)
class Submission(Document):
    """Where a job went. It holds no credentials: options are our own flags, and the names alone of the user's."""

    LATEST: ClassVar[int] = SUBMISSION_VERSION
    version: int = SUBMISSION_VERSION
    runner: str  # dataflow, flink, spark, portable
    job_id: str
    job_name: str
    endpoint: str | None  # HOST:PORT of a job server that outlives the submission
    project: str | None
    region: str | None
    options: tuple[str, ...]
    submitted_at: str
    submitted_by: str
    penstock: str
    beam: str


@dataclass(frozen=True, kw_only=True)
class Cancellation(Document):
    """A run stops when it sees a token other than the one that was there when it began."""

    LATEST: ClassVar[int] = CANCELLATION_VERSION
    version: int = CANCELLATION_VERSION
    token: str
    cancelled_at: str
    cancelled_by: str
    resumed_at: str | None  # when a later run began
