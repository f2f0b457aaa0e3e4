"""`penstock run`: a job, or what is missing of it."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable

from jobs.commands.arguments import add_job, add_metrics
from jobs.commands.exit_codes import DONE, INTERRUPTED, TERMINATED, TOO_MANY_FAILED
from jobs.commands.printing import print_lines
from jobs.termination import Terminated
from pipeline.errors import RunFailed

NAME = "run"
SUMMARY = "run a job, or what is missing of it"
PASSES_FLAGS = True
TEXT = """\
Run a job: every row of the input goes through the model, and the results into Parquet files. Run again, it does only
what is missing; when nothing is, it changes no file.

What the job leaves open, the number of slots above all, is chosen for the devices that are here, or by a plan that was
made before. What that takes is said before it begins, and kept in the output: penstock status compares.

examples:
  penstock run job.yaml
  penstock run job.yaml --dry-run --prices prices.yaml
  penstock plan job.yaml --chips v5e:2x4 --out plan.json && penstock run job.yaml --plan plan.json
  penstock run job.yaml --set sampling.max_tokens=32 --set output.path=./short
  penstock run job.yaml --metrics-port 9464                   (http://127.0.0.1:9464/metrics while it runs)
  penstock run job.yaml --runner BundleBasedDirectRunner      (flags that are not listed here go to Beam)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--plan", metavar="FILE", help="run as planned: what penstock plan JOB.yaml --out FILE wrote")
    parser.add_argument(
        "--prices", metavar="FILE", help="YAML or CSV with the price of a chip-hour, to foresee the cost"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and what it takes; write nothing"
    )
    add_metrics(parser)


def handle(options: argparse.Namespace) -> int:
    from rich.console import Console

    from jobs.job_file import load
    from jobs.launch import dry_run, outcome_lines, run
    from jobs.metrics import Exposed
    from jobs.settle import Planning

    job = load(options.job, options.set)
    planning = Planning.of(options.plan, options.prices)
    for note in job.notes():
        print(f"note: {note}", file=sys.stderr)
    if options.dry_run:
        print_lines(dry_run(job, options.flags, planning))
        return DONE
    stderr = sys.stderr

    def tell(lines: Iterable[tuple[str, str]]) -> None:
        print_lines(lines, stderr)

    console = Console(file=sys.stderr, force_terminal=False if options.verbose else None)
    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stderr(io.StringIO())
    metrics = Exposed(options.metrics_port, options.metrics_file)
    try:
        with (
            metrics.while_running(job.name, job.task, job.output.path),
            quiet,
        ):  # Beam's workers print the traceback of every failure, besides raising it
            outcome = run(job, options.flags, console, planning=planning, tell=tell)
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        how = "ended by SIGTERM" if is_terminated else "interrupted"
        print(f"{how}; finished shards stay. To go on:\n  {options.line}", file=sys.stderr)
        return TERMINATED if is_terminated else INTERRUPTED
    except RunFailed as failure:
        raise RunFailed(f"{failure}:\n  {options.line}") from failure
    print_lines(outcome_lines(outcome))
    return TOO_MANY_FAILED if outcome.is_over_limit else DONE
