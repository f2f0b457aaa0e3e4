"""What `penstock submit` would send, without sending it: nothing is written to the output, and no runner is asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from jobs import launch
from jobs.foreseen import foreseen_lines
from jobs.settle import NOTHING_SAID, Planning, settle
from jobs.spec import Job
from jobs.submission import placement
from jobs.submission.beam_flags import beam_flags, beam_options, refuse_flags
from jobs.submission.choices import choices
from jobs.submission.dataflow_job import dataflow_request
from jobs.submission.dataflow_machines import TPU_HOSTS, tpu_host, with_chip
from jobs.submission.reachable import notes, refuse_unreachable
from jobs.wording import count_words
from pipeline import storage
from pipeline.errors import JobError
from pipeline.manifest import Manifest
from pipeline.workplan import make_plan, plan_job
from schemas.manifest import PLAN_NAME


def dry_run(
    job: Job, flags: Sequence[str], json_path: str | None, planning: Planning = NOTHING_SAID
) -> Iterator[tuple[str, str]]:
    """A label and its text, line by line; for Dataflow the request goes to the file `json_path`."""
    refuse_unreachable(job)
    if job.runner.name == "local":
        raise JobError("--dry-run: the local runner is sent nothing; penstock run --dry-run says what the job takes")
    refuse_flags(flags)
    asked = placement.applied(job, planning)
    if job.runner.name != "dataflow":
        beam_options(asked, flags)
    parts = launch.open_parts(asked)
    output = job.output.path
    is_new = not storage.exists(storage.join(output, PLAN_NAME))
    if is_new:
        launch.refuse_missing_columns(parts)
    settled = settle(parts, planning, flags, placement.choose)
    placed = placement.placed(settled)
    options = beam_options(placed, flags)
    find_plan = make_plan if is_new else partial(plan_job, output)
    plan = find_plan(parts.source, **launch.asked(settled.parts))
    todo = Manifest(output, plan).todo()
    rows = sum(item.rows for item in todo)
    yield "job", f"{job.name} ({job.task}), to {job.runner.name}; nothing is sent"
    yield "work", f"{count_words(len(todo), 'shard')} to do, {count_words(rows, 'row')}, of {len(plan.shards):,}"
    yield "output", output
    yield from foreseen_lines(settled, plan.rows_total, rows)
    yield from choices(job, placed, settled, planning)
    yield from _workers(placed)
    yield from (("flag", shlex.quote(flag)) for flag in [*beam_flags(placed), *flags])
    yield from (("note", note) for note in (*notes(job), *placement.remarks(placed, settled, planning, len(todo))))
    if job.runner.name == "dataflow":
        from pipeline.graph import build

        work = launch.shard_job(with_chip(placed), plan, engine_factory=None)
        request = dataflow_request(options, lambda pipeline: build(pipeline, todo, work))
        path = Path(json_path or f"{job.name}.dataflow.json")
        try:
            path.write_text(json.dumps(request.job, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise JobError(f"--json: cannot write {path}: {error.strerror or error}") from error
        yield from (("upload", f"{url}, {size:,} bytes") for url, size in request.uploads.items())
        yield "request", f"{path}: the job as Dataflow's API takes it (projects.locations.jobs.create)"


def _workers(job: Job) -> Iterator[tuple[str, str]]:
    settings = job.runner.dataflow
    if job.runner.name != "dataflow" or settings is None:
        return
    yield "image", settings.image
    if settings.accelerator in TPU_HOSTS:
        host = tpu_host(settings.accelerator, settings.topology, job.engine.mesh)
        chips = count_words(settings.machines * host.chips, "chip")
        yield (
            "workers",
            f"{settings.machines} x {host.machine_type}: {host.chip} {host.topology}; {chips} in all, billed by "
            "the chip-hour",
        )
        yield (
            "build",
            f"docker build -f container/Dockerfile --build-arg TARGET=tpu --build-arg TPU_TYPE={host.accelerator_type} "
            f"--build-arg TPU_BOUNDS={host.bounds} -t {settings.image} .",
        )
    else:
        target = "cpu" if settings.accelerator == "cpu" else "cuda"
        yield "workers", f"{settings.machines} x {settings.machine_type}, {settings.accelerator}"
        yield (
            "build",
            f"docker build -f container/Dockerfile --build-arg TARGET={target} -t {settings.image} .",
        )
