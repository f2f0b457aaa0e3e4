"""One run of the Beam pipeline, watched: progress on the screen, signals understood, errors without Beam's wrapping.

Beam runs in a thread of its own, so that signals reach the main thread whatever the runner does.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions

from engine.errors import EngineError
from jobs.progress import Counts, Progress
from jobs.silence import Silence, WorkersSilent
from jobs.worker_deaths import noticed
from pipeline import activity
from pipeline.errors import JobError, PenstockError, RunFailed
from pipeline.graph import build
from pipeline.inference import ShardJob
from pipeline.manifest import Manifest
from pipeline.sources.base import WorkItem

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long Ctrl-C and SIGTERM wait for open shards to let go; a second one does not wait."""

PROCESSES_SILENT_SECONDS = 1800.0
"""How long worker processes of this machine (--direct_running_mode=multi_processing) may show no sign of life."""
PROCESSES_REMEDY = "Finished shards stay; the same command goes on with the others"

_WORKER_DIED = "Channel closed prematurely"  # all that Beam says of it
_OURS = re.compile(r"(?:pipeline|engine)\.[\w.]+: (.+)")  # the last line of a traceback of ours
_WHILE_RUNNING = re.compile(r" \[while running '.*'\]")


def compute(
    manifest: Manifest,
    todo: Sequence[WorkItem],
    work: ShardJob,
    options: PipelineOptions,
    console: Console | None,
) -> None:
    """Runs the shards in `todo`; returns when the job is declared finished."""
    pipeline = new_pipeline(todo, work, options)
    are_elsewhere = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    silence = Silence(work.output, PROCESSES_SILENT_SECONDS, PROCESSES_REMEDY) if are_elsewhere else None
    with shown(manifest, todo, console):
        in_thread(lambda: pipeline.run().wait_until_finish(), silence=silence)


def new_pipeline(todo: Sequence[WorkItem], work: ShardJob, options: PipelineOptions) -> beam.Pipeline:
    """The pipeline of the shards in `todo`, ready to run."""
    activity.reset(work.output)
    activity.start_driving()
    try:
        pipeline = beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise JobError(f"--runner: {error}") from error
    build(pipeline, todo, work)
    return pipeline


def in_thread(
    run_to_the_end: Callable[[], object], *, stops_shards: bool = True, silence: Silence | None = None
) -> None:
    """Waits in the main thread, so that Ctrl-C is heard; what goes wrong is said in our own words.

    With `stops_shards` Ctrl-C stops the shards of this process; without, whoever has them goes on. Where the workers
    are other processes, `silence` gives up waiting for some that are gone.
    """
    finished: Future[None] = Future()

    def run() -> None:
        with contextlib.suppress(InvalidStateError):  # it was given up before
            try:
                run_to_the_end()
                finished.set_result(None)
            except BaseException as error:
                finished.set_exception(error)

    def give_up() -> None:
        with contextlib.suppress(InvalidStateError):  # it is over
            finished.set_exception(RuntimeError(_WORKER_DIED))

    threading.Thread(target=run, name="beam", daemon=True).start()
    try:
        with noticed(give_up):
            while silence and not wait([finished], timeout=silence.pause_seconds).done:
                silence.look()
            finished.result()
    except WorkersSilent:
        raise
    except KeyboardInterrupt:
        if not stops_shards:
            raise
        logger.warning("stopping; a second Ctrl-C, or signal, does not wait for open shards")
        activity.cancel()
        wait([finished], timeout=STOP_SECONDS)
        raise
    except Exception as error:
        raise RunFailed(f"{reason(error)}\nfinished shards stay; the same command goes on with the others") from error


def reason(error: BaseException) -> str:
    """What our own code said, out of the tracebacks in text that runners hand over."""
    text = _WHILE_RUNNING.sub("", str(error)).strip()
    if isinstance(error, PenstockError | EngineError):
        return text
    if callable(code := getattr(error, "code", None)) and callable(details := getattr(error, "details", None)):
        return f"the runner cannot be reached any more ({getattr(code(), 'name', code())}: {details()})"
    last = text.splitlines()[-1] if text else type(error).__name__
    if _WORKER_DIED in last:
        return (
            "a worker process ended without a word: it was killed, or its machine ran out of memory (the kernel's log "
            "says so: dmesg)"
        )
    ours = _OURS.match(last)
    return ours[1] if ours else f"a shard failed: {last}; -v shows where"


def shown(
    manifest: Manifest, todo: Sequence[WorkItem], console: Console | None
) -> contextlib.AbstractContextManager[object]:
    if console is None:
        return contextlib.nullcontext()
    total = manifest.plan.rows_total
    return Progress(manifest.plan.name, total, counter(manifest, total - sum(item.rows for item in todo)), console)


def counter(manifest: Manifest, done_before: int) -> Callable[[], Counts]:
    """Counts rows as they get ready in this process; if they do in others, shards as they get done."""
    failed_before = sum(entry.failed for entry in manifest.entries())

    def count() -> Counts:
        live = activity.live()
        if live["records_done"]:
            tokens = live["generated_tokens"] + live["scored_tokens"]
            return Counts(done_before + live["records_done"], failed_before + live["records_failed"], tokens)
        entries = manifest.entries()
        return Counts(
            done=sum(entry.ok + entry.failed for entry in entries),
            failed=sum(entry.failed for entry in entries),
            tokens=sum(entry.completion_tokens + entry.scored_tokens for entry in entries),
        )

    return count
