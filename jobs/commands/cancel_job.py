"""`penstock cancel`: stop a job, from its output alone."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_output
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "cancel"
SUMMARY = "stop a job, wherever it runs"
TEXT = """\
Stop a job, from its output alone: a mark in the output tells every process that computes it, on any machine, to stop
within 15 seconds or so, and a runner that it was submitted to is told to cancel as well. Finished shards stay; the next
penstock run or penstock submit goes on with the others.

example:
  penstock cancel gs://bucket/run-1
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)


def handle(options: argparse.Namespace) -> int:
    from jobs.submission.cancel import cancel

    print_lines(cancel(options.output))
    return DONE
