"""`penstock submit`: hand a job to a runner elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.commands.arguments import add_goal_options, add_job, positive
from jobs.commands.exit_codes import DONE, INTERRUPTED, TOO_MANY_FAILED
from jobs.commands.printing import print_lines

if TYPE_CHECKING:
    from schemas.submission import Submission

NAME = "submit"
SUMMARY = "hand a job to Dataflow, Flink, Spark or another runner"
PASSES_FLAGS = True
TEXT = """\
Hand a job to a runner elsewhere. The work is planned here, then the runner computes what is missing; finished shards
are never computed again, by whichever runner. What each runner needs to know is in the job file's runner section:

  runner: {name: dataflow, dataflow: {project: P, region: us-central1, temp_location: gs://B/temp, image: IMAGE,
                                      accelerator: v5e, zone: us-central1-a, machines: 4}}

What the job leaves open is chosen for the workers' chips: on Dataflow how many chips each has (engine.mesh), layouts,
slots, the number of machines, with accelerator: auto the chips too; by --goal, or by a plan that was made before. What
it says stays. The choice and what it is expected to take are kept in the output: penstock status compares.

With --dry-run nothing is sent: it prints the work, what that takes and costs, who chose what of its shape, the workers
and Beam's flags, and for Dataflow writes the request.

Without --detach it waits until the job is finished; Ctrl-C then stops waiting and leaves the job to its runner (unless
its workers are in this process). penstock status OUT says how far it is, penstock cancel OUT stops it.

examples:
  penstock submit job.yaml --dry-run
  penstock submit job.yaml --detach
  penstock submit job.yaml --deadline 6h --prices prices.yaml --max-chips 64 --detach
  penstock plan job.yaml --chips v5e,v6e --max-chips 8 --out plan.json && penstock submit job.yaml --plan plan.json
  penstock submit job.yaml --runner portable --job-endpoint localhost:8099 --environment PROCESS
  penstock submit job.yaml --runner flink --flink-job-server-jar beam-runners-flink-1.19-job-server-2.77.0.jar
  penstock submit job.yaml --label team=search          (flags that are not listed here go to Beam)
"""

_FIELDS = {
    "runner": ("runner.name", "dataflow|flink|spark|portable|local", "which runner (default: the job's runner.name)"),
    "job_endpoint": ("runner.portable.job_endpoint", "HOST:PORT|embed", "where a portable runner takes jobs"),
    "environment": ("runner.{runner}.environment", "KIND", "LOOPBACK, PROCESS, DOCKER or EXTERNAL: where workers run"),
    "flink_job_server_jar": ("runner.flink.job_server_jar", "JAR", "Beam's job server for Flink"),
    "flink_master": ("runner.flink.master", "HOST:PORT", "the Flink cluster (default: one inside the job server)"),
    "spark_job_server_jar": ("runner.spark.job_server_jar", "JAR", "Beam's job server for Spark"),
    "spark_master": ("runner.spark.master", "URL", "the Spark cluster (default: local[4])"),
}
"""Option -> the field of the job file that it stands for, and its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    for option, (field, metavar, text) in _FIELDS.items():
        parser.add_argument(
            f"--{option.replace('_', '-')}", metavar=metavar, help=f"{text}; stands for --set {field}=..."
        )
    choice = parser.add_argument_group("how it is planned (docs/planning.md)")
    choice.add_argument("--plan", metavar="FILE", help="as planned: what penstock plan JOB.yaml --out FILE wrote")
    choice.add_argument("--prices", metavar="FILE", help="YAML or CSV with the price of a chip-hour")
    add_goal_options(choice)
    choice.add_argument(
        "--max-chips",
        type=positive,
        metavar="N",
        help="of all machines, where the job does not say how many (default: 256)",
    )
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--wait", action="store_true", help="return when the job is finished (the default)")
    waiting.add_argument("--detach", action="store_true", help="return when the runner has accepted the job")
    waiting.add_argument("--dry-run", action="store_true", help="send nothing; print what would be sent")
    parser.add_argument(
        "--json", metavar="FILE", help="with --dry-run: where Dataflow's request goes (default: NAME.dataflow.json)"
    )


def handle(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.job_file import load
    from jobs.launch import outcome_lines
    from jobs.planning.goal import Goal
    from jobs.settle import Planning
    from jobs.submission import dry_run, submit
    from jobs.submission.reachable import ends_with_this_process, notes
    from jobs.submission.record import where

    job = load(options.job, [*options.set, *_overrides(options)])
    planning = Planning.of(options.plan, options.prices, Goal.of(options), options.max_chips)
    if options.dry_run:
        print_lines(dry_run.dry_run(job, options.flags, options.json, planning))
        return DONE
    for note in (*job.notes(), *notes(job)):
        print(f"note: {note}", file=sys.stderr)

    screen = sys.stderr

    def tell(lines: Iterable[tuple[str, str]]) -> None:
        print_lines(lines, screen)

    def accepted(submission: Submission) -> None:
        print(f"submitted: {where(submission)}", file=screen, flush=True)

    console = Console(file=screen, force_terminal=False if options.verbose else None)
    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stderr(io.StringIO())
    output = job.output.path
    try:
        with quiet:
            outcome = submit.submit(
                job,
                options.flags,
                console,
                detach=options.detach,
                planning=planning,
                tell=tell,
                accepted=accepted,
            )
    except KeyboardInterrupt:
        if ends_with_this_process(job):
            print(f"interrupted; finished shards stay. To go on:\n  {options.line}", file=sys.stderr)
        else:
            print(f"no longer waiting; the job goes on. To stop it:\n  penstock cancel {output}", file=sys.stderr)
        return INTERRUPTED
    if isinstance(outcome, submit.Detached):
        print_lines(
            [
                ("job", f"{job.name} ({job.task}), {outcome.shards:,} shards submitted"),
                ("runner", where(outcome.submission)),
                ("output", output),
                ("follow", f"penstock status {output}"),
                ("stop", f"penstock cancel {output}"),
            ]
        )
        return DONE
    print_lines(outcome_lines(outcome))
    return TOO_MANY_FAILED if outcome.is_over_limit else DONE


def _overrides(options: argparse.Namespace) -> list[str]:
    """The options as overrides of the job file's fields."""
    from pipeline.errors import JobError

    if options.environment and not options.runner:
        raise JobError("--environment: say --runner too, since each runner has its own")
    given = {field: getattr(options, option) for option, (field, _, _) in _FIELDS.items()}
    return [
        f"{field.format(runner=options.runner)}={json.dumps(value)}"  # as text, whatever YAML would make of it
        for field, value in given.items()
        if value is not None
    ]
