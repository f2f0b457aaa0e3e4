"""`penstock status`: how far a job is."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_output
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "status"
SUMMARY = "how far a job is"
TEXT = """\
Say what is done and what is left of a job, from its output alone.

example:
  penstock status ./out
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)


def handle(options: argparse.Namespace) -> int:
    from jobs.status import read_status, status_lines

    print_lines(status_lines(read_status(options.output)))
    return DONE
