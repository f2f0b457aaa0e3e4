"""Jobs run shard after shard in this thread: Beam takes half a second for each partition, and is not what is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.spec import Job
from pipeline import activity
from pipeline.inference import ShardJob, _shared_worker, run_shard
from pipeline.manifest import Manifest
from pipeline.sources.base import WorkItem


def compute(
    job: Job, manifest: Manifest, todo: Sequence[WorkItem], flags: Any, console: Any, engine_factory: str | None
) -> None:
    """Stands in for `jobs.launch._compute`."""
    activity.reset(job.output.path)
    work = ShardJob.of(job.output.path, manifest.plan, job.model.checkpoint, engine_factory=engine_factory)
    worker = _shared_worker(work)
    for item in todo:
        run_shard(item, work, worker.engine, worker.tokenizer)
