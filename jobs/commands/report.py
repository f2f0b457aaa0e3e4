"""`penstock report`: one page about an output, or about all partitions of a schedule."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import positive
from jobs.commands.exit_codes import DONE, TOO_MANY_FAILED
from jobs.commands.printing import print_lines

NAME = "report"
SUMMARY = "one HTML page about an output, or about partitions and their drift"
TEXT = """\
Write one HTML page about an output, finished or not: when which shard ran, tokens per second, slots busy, lengths, why
rows failed, scores, and where the results come from. The page needs no network and runs no script but its own.

Of several outputs, or of a root with partitions below it (out/dt=2026-02-01/), the page shows the trend as well, and
flags the partitions whose lengths, scores, choices or failures differ from those of the seven before; the last one is
shown in detail. docs/reports.md says how that is decided.

examples:
  penstock report ./out
  penstock report gs://bucket/out --out gs://bucket/out/_report.html
  penstock report ./scored --last 30 --fail-on-drift       (./scored/dt=2026-02-01, ./scored/dt=2026-02-02 ...)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("outputs", nargs="+", metavar="OUT", help="an output, several, a pattern, or their root")
    parser.add_argument(
        "--out", default="report.html", metavar="FILE", help="where the page goes (default: report.html)"
    )
    parser.add_argument(
        "--last", type=positive, default=100, metavar="N", help="the last N partitions, by name (default: 100)"
    )
    parser.add_argument(
        "--sample", type=positive, metavar="ROWS", help="rows of an output to read for distributions (default: 200000)"
    )
    parser.add_argument("--fail-on-drift", action="store_true", help="exit with 1 when the last partition is flagged")


def handle(options: argparse.Namespace) -> int:
    from jobs.reporting.report import write_report

    report = write_report(options.outputs, options.out, last=options.last, sampled_rows=options.sample)
    print_lines(report.lines())
    return TOO_MANY_FAILED if options.fail_on_drift and report.drifted else DONE
