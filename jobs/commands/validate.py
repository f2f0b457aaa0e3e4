"""`penstock validate`: a look at a job before it runs."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_job, row_count
from jobs.commands.exit_codes import DONE, TOO_MANY_FAILED
from jobs.commands.printing import print_lines

NAME = "validate"
SUMMARY = "look at a job before it runs"
TEXT = """\
Look at a job before it runs: render its first prompts, count their tokens, and name the rows that would fail; on a
processor that penstock profile has measured, say how long the job takes. Writes nothing and needs no accelerator. The
exit code is 1 when more of the rows looked at would fail than limits.max_failed_fraction allows.

example:
  penstock validate job.yaml --rows 5000
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_job(parser)
    parser.add_argument("--rows", type=row_count, default=1000, help="how many rows to look at (default: 1000)")
    parser.add_argument("--show", type=row_count, default=3, help="how many prompts to show (default: 3)")


def handle(options: argparse.Namespace) -> int:
    from jobs.job_file import load
    from jobs.settle import glance
    from jobs.validate import finding_lines, validate

    job = load(options.job, options.set)
    findings = validate(job, rows=options.rows, shown=options.show)
    print_lines([*finding_lines(findings), *(("note", note) for note in job.notes())])
    if findings.token_counts:
        print_lines(glance(findings.parts))
    return TOO_MANY_FAILED if findings.is_over_limit else DONE
