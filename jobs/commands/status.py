"""`penstock status`: how far a job is."""

from __future__ import annotations

import argparse
import json
import sys

from jobs.commands.arguments import add_output, seconds
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "status"
SUMMARY = "how far a job is"
TEXT = """\
Say what is done and what is left of a job, from its output alone. With --watch, again and again until it is finished.

examples:
  penstock status ./out
  penstock status ./out --watch
  penstock status gs://bucket/out --json | jq .records.done
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one a line)")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=seconds,
        const=5.0,
        metavar="SECONDS",
        help="look again until it is finished (every 5 s)",
    )


def handle(options: argparse.Namespace) -> int:
    from jobs.status import read_status, status_json, status_lines
    from jobs.watch import watch

    if options.watch is not None:
        as_json = (lambda status: [json.dumps(status_json(status))]) if options.json else None
        watch(options.output, options.watch, sys.stdout, as_json)
        return DONE
    status = read_status(options.output)
    if options.json:
        print(json.dumps(status_json(status), indent=2))
    else:
        print_lines(status_lines(status))
    return DONE
