"""`penstock schema`: what a job or schedule file may hold, for editors and for people."""

from __future__ import annotations

import argparse
import json

from jobs.commands.exit_codes import DONE

NAME = "schema"
SUMMARY = "JSON schema of a job or schedule file, for editors"
TEXT = """\
Print the JSON schema of a job file. Editors complete and check a job that names it in its first line. With --schedule
it is that of a schedule file.

examples:
  penstock schema > job.schema.json
  # yaml-language-server: $schema=./job.schema.json
  penstock schema --schedule > schedule.schema.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="the reference page instead")
    parser.add_argument("--schedule", action="store_true", help="of a schedule file")


def handle(options: argparse.Namespace) -> int:
    if options.schedule:
        from jobs.scheduling.reference import schedule_reference as reference
        from jobs.scheduling.reference import schedule_schema as schema
    else:
        from jobs.reference import job_reference as reference
        from jobs.reference import job_schema as schema

    print(reference() if options.markdown else json.dumps(schema(), indent=2) + "\n", end="")
    return DONE
