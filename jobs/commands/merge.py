"""`penstock merge`: many small parts into few large files."""

from __future__ import annotations

import argparse
import sys

from jobs.commands.arguments import add_output, positive
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "merge"
SUMMARY = "many small result files into few large ones, somewhere else"
TEXT = """\
Copy the results of an output into fewer, larger Parquet files in another place, with the rows in input order. The
output itself stays as it is. Stopped or killed, the same command goes on where it stopped; run again, it changes
nothing.

examples:
  penstock merge ./out --to ./merged
  penstock merge ./out --to results.parquet                      (one file)
  penstock merge gs://bucket/out --to gs://bucket/merged --rows-per-file 250000
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument(
        "--to", required=True, metavar="DIR|FILE", help="a new directory, or one file whose name ends in .parquet"
    )
    parser.add_argument(
        "--rows-per-file", type=positive, default=1_000_000, metavar="N", help="of a directory (default: 1000000)"
    )
    parser.add_argument("--partial", action="store_true", help="take what an unfinished job has so far")


def handle(options: argparse.Namespace) -> int:
    from jobs.merge import merge
    from jobs.passing import rows_passing

    with rows_passing("merge", sys.stderr) as seen:
        outcome = merge(
            options.output, options.to, rows_per_file=options.rows_per_file, partial=options.partial, seen=seen
        )
    print_lines(outcome.lines())
    return DONE
