"""`penstock show`: results as a table."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import add_output, row_count
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import console

NAME = "show"
SUMMARY = "results as a table"
TEXT = """\
Show results as a table.

examples:
  penstock show ./out
  penstock show ./out --failed --limit 50
  penstock show ./out --columns record_id,text,cumulative_logprob
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--limit", type=row_count, default=10, help="how many rows (default: 10)")
    parser.add_argument("--columns", metavar="A,B", help="which columns (default: the ones to read first)")
    parser.add_argument("--failed", action="store_true", help="only rows that failed")


def handle(options: argparse.Namespace) -> int:
    from jobs.show import show

    columns = options.columns.split(",") if options.columns else ()
    table = show(options.output, limit=options.limit, columns=columns, failed=options.failed)
    console().print(table)
    return DONE
