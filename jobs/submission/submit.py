"""A job from its file to a runner elsewhere: check, ask whether the runner is there, plan, hand over, write down where.

The work is planned here, as `penstock run` does it, so whoever submits must be able to read input and checkpoint and
to write the output. The runner gets the shards that are missing and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs import launch
from jobs.foreseen import foreseen_lines
from jobs.job_file import store
from jobs.settle import NOTHING_SAID, Planning, kept, learn
from jobs.silence import Silence
from jobs.spec import Job
from jobs.submission import endpoints, placement
from jobs.submission.beam_flags import beam_options, refuse_flags
from jobs.submission.dataflow_machines import with_chip
from jobs.submission.reachable import ends_with_this_process, is_here, refuse_unreachable, workers_of
from jobs.submission.record import record
from pipeline import cancellation
from pipeline.errors import JobError, PenstockError
from schemas.prediction import Prediction
from schemas.submission import Submission

if TYPE_CHECKING:
    from rich.console import Console

ACCEPT_SECONDS = 600.0
"""How long a runner may take from the first upload to accepting a job."""


@dataclass(frozen=True)
class Detached:
    """A job that a runner has accepted, and is left alone."""

    job: Job
    submission: Submission
    shards: int


def submit(
    job: Job,
    flags: Sequence[str] = (),
    console: Console | None = None,
    *,
    detach: bool = False,
    planning: Planning = NOTHING_SAID,
    tell: Callable[[Iterable[tuple[str, str]]], None] = lambda lines: None,
    engine_factory: str | None = None,
    accepted: Callable[[Submission], None] = lambda submission: None,
) -> launch.Outcome | Detached:
    """Submits what is missing of a job; when it is finished, or, detached, as soon as the runner has accepted it.

    `tell` gets labelled lines of what is foreseen, and `accepted` is told of the submission before the wait. Ctrl-C
    while waiting leaves the job to its runner, unless its workers are in this process.
    """
    started = time.monotonic()
    if detach and (reason := ends_with_this_process(job)):
        raise JobError(f"--detach: the job would end with this command, because {reason}")
    if job.runner.name == "local":
        placement.applied(job, planning)  # refuses a goal
        return launch.run(job, flags, console, planning=planning, tell=tell, engine_factory=engine_factory)
    refuse_unreachable(job)
    refuse_flags(flags)
    asked = placement.applied(job, planning)
    if job.runner.name != "dataflow":
        beam_options(asked, flags)
    endpoints.require(job)
    settled, manifest = launch.prepare(
        asked, planning, flags, placement.choose, lambda settled: beam_options(placement.placed(settled), flags)
    )
    todo = manifest.todo()
    if not todo:
        return launch.finish(job, manifest, todo, started)
    store(asked, job.output.path)
    settled = kept(settled)
    job = placement.placed(settled)
    tell(foreseen_lines(settled, manifest.plan.rows_total, sum(item.rows for item in todo)))
    tell(("note", remark) for remark in placement.remarks(job, settled, planning, len(todo)))
    options = beam_options(job, flags)
    work = launch.shard_job(with_chip(job), manifest.plan, engine_factory, cancellation.begin(job.output.path))

    from jobs import beam_run

    pipeline = beam_run.new_pipeline(todo, work, options)
    result = _accepted(pipeline, job)
    submission = record(job, _job_id(result), flags)
    accepted(submission)
    if detach:
        return Detached(job, submission, len(todo))
    with beam_run.shown(manifest, todo, console):
        beam_run.in_thread(result.wait_until_finish, stops_shards=is_here(job), silence=silence(job))
    outcome = replace(launch.finish(job, manifest, todo, started), prediction=settled.prediction)
    _learn(job, settled.prediction, outcome)
    return outcome


def _learn(job: Job, prediction: Prediction | None, outcome: launch.Outcome) -> None:
    """A start elsewhere is mostly waiting for machines, of which nothing is learnt; and nothing at all is, where the
    runner alone knows how many workers there were."""
    if prediction and (is_here(job) or job.runner.name == "dataflow"):
        learn(prediction, outcome.this_run, outcome.seconds if is_here(job) else None)


def silence(job: Job) -> Silence | None:
    """For the workers of runners that may not notice when these are gone; Dataflow does."""
    workers = workers_of(job)
    if workers is None or is_here(job):
        return None
    output = job.output.path
    remedy = (
        f"Finished shards stay; penstock cancel {output} frees the runner, and the same command goes on with the "
        f"others. Where workers take longer to come: runner.{job.runner.name}.silence_minutes"
    )
    return Silence(output, 60 * workers.silence_minutes, remedy)


def _accepted(pipeline: Any, job: Job) -> Any:
    """Beam's result, as soon as the runner has the job. Beam hands over with no limit of time of its own."""
    from jobs import beam_run

    try:
        if job.runner.name in ("flink", "spark"):  # Beam starts their job server, and takes a signal to stop it
            return _started(pipeline, job)
        return endpoints.within(ACCEPT_SECONDS, pipeline.run)
    except PenstockError:
        raise
    except TimeoutError as error:
        raise endpoints.RunnerUnreachable(f"the runner did not take the job in {ACCEPT_SECONDS:.0f} seconds") from error
    except Exception as error:
        said = beam_run.reason(error).removeprefix("a shard failed: ")
        raise endpoints.RunnerUnreachable(f"the runner did not take the job: {said}") from error


def _started(pipeline: Any, job: Job) -> Any:
    try:
        return pipeline.run()
    except RuntimeError as error:
        if "failed to start up" not in str(error):
            raise
        section = job.runner.flink if job.runner.name == "flink" else job.runner.spark
        jar = section.job_server_jar if section else None
        raise endpoints.RunnerUnreachable(
            f"runner.{job.runner.name}.job_server_jar: {jar} did not start as a job server; java -jar {jar} --help "
            "shows why"
        ) from error


def _job_id(result: Any) -> str:
    """Each of Beam's results has it somewhere else."""
    found = getattr(result, "job_id", None) or getattr(result, "_job_id", None)
    return str(found() if callable(found) else found)
