"""`penstock export`: results as JSON lines, CSV, or OpenAI batch files."""

from __future__ import annotations

import argparse
import sys

from jobs.commands.arguments import add_output
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import print_lines

NAME = "export"
SUMMARY = "results as JSON lines, CSV, or the files of OpenAI's Batch API"
TEXT = """\
Write the results of an output in another form, in input order.

  jsonl         a line for each row, with all columns; NaN and infinity are null
  csv           the same with a header; lists are JSON text in a cell, null is an empty cell
  openai-batch  a line for each record, as OpenAI's Batch API returns it: custom_id is the record id, choices are the
                samples. Failed rows go to a second file (--errors), or among the others on the standard output

A name that ends in .gz is compressed. A file that is there is never replaced.

examples:
  penstock export ./out --to jsonl | jq .text
  penstock export ./out --to csv --columns record_id,text --out answers.csv
  penstock export gs://bucket/out --to openai-batch --out gs://bucket/answers.jsonl.gz   (and answers.errors.jsonl.gz)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--to", required=True, choices=("jsonl", "csv", "openai-batch"), help="the form")
    parser.add_argument("--out", default="-", metavar="FILE", help="where to; - is the standard output (default: -)")
    parser.add_argument(
        "--errors", metavar="FILE", help="openai-batch: where failed rows go (default: FILE.errors beside --out)"
    )
    parser.add_argument("--columns", metavar="A,B", help="jsonl and csv: which columns (default: all)")
    parser.add_argument("--partial", action="store_true", help="take what an unfinished job has so far")


def handle(options: argparse.Namespace) -> int:
    from jobs.export import STDOUT, export
    from jobs.passing import rows_passing

    with rows_passing("export", sys.stderr) as seen:
        outcome = export(
            options.output,
            options.to,
            options.out,
            errors=options.errors,
            columns=options.columns.split(",") if options.columns else (),
            partial=options.partial,
            seen=seen,
        )
    if options.out != STDOUT:
        print_lines(outcome.words())
    return DONE
