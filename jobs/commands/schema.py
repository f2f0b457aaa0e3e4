"""`penstock schema`: what a job file may hold, for editors and for people."""

from __future__ import annotations

import argparse
import json

from jobs.commands.exit_codes import DONE

NAME = "schema"
SUMMARY = "JSON schema of a job file, for editors"
TEXT = """\
Print the JSON schema of a job file. Editors complete and check a job that names it in its first line.

example:
  penstock schema > job.schema.json
  # yaml-language-server: $schema=./job.schema.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="the reference page instead")


def handle(options: argparse.Namespace) -> int:
    from jobs.reference import job_reference, job_schema

    print(job_reference() if options.markdown else json.dumps(job_schema(), indent=2) + "\n", end="")
    return DONE
