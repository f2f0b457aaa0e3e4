"""`penstock run-due`: the partitions of a schedule that are due and not done."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys

from jobs.commands.arguments import span
from jobs.commands.exit_codes import DONE, INTERRUPTED, REFUSED, TERMINATED, TOO_MANY_FAILED
from jobs.termination import Terminated

NAME = "run-due"
SUMMARY = "run what a schedule has due and not done"
PASSES_FLAGS = True
TEXT = """\
Run the partitions of a schedule that are due and not done, oldest first, and end. Call it as often as you like, from
cron or by hand, on one machine or several: what is done is left alone, and what another call is at is left to it. No
daemon is needed. Without --from and --to it looks back as far as the schedule's catch_up.

A partition that fails does not stop the others. It is tried again as the schedule's retries say, which are counted in
the output, and the call waits for that. Late or changed input of a done partition makes a new version of it. One whose
input is not there yet is late, which is no failure.

examples:
  penstock run-due scores.yaml
  penstock run-due scores.yaml --dry-run                        what is due, and why; nothing is written
  penstock run-due scores.yaml --from 2025-12-01 --to 2026-01-01   a backfill: partitions that begin in December

exit codes of this command: 1 also when input shrank or changed and was left alone, 2 when a partition failed for good.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schedule", metavar="SCHEDULE.yaml", nargs="+", help="schedule files; see docs/scheduling.md")
    parser.add_argument("--from", dest="first", metavar="TIME", help="partitions that begin at this time or later")
    parser.add_argument("--to", dest="stop", metavar="TIME", help="partitions that begin before this time")
    parser.add_argument(
        "--wait", type=span, metavar="SPAN", help="wait for partitions whose delay is over within it: 30min, 2h"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what is due and why; write nothing")
    parser.add_argument("--now", metavar="TIME", help="what time it is taken to be (default: it is)")


def handle(options: argparse.Namespace) -> int:
    from jobs.scheduling.calling import exit_code, result_line, run_call
    from jobs.scheduling.due import DONE as IS_DONE
    from jobs.scheduling.run_due import decisions, window
    from jobs.scheduling.schedule_file import load_all
    from jobs.scheduling.times import moment, now_or

    schedules = load_all(options.schedule)
    code = DONE
    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stderr(io.StringIO())
    try:
        for scheduled in schedules:
            now = now_or(options.now, scheduled)
            first, stop = (moment(text, scheduled) for text in (options.first, options.stop))
            looked_at = window(scheduled, now, first, stop)
            if options.dry_run:
                found = decisions(scheduled, now, looked_at)
                for decision in found:
                    if decision.state != IS_DONE:
                        print(f"{decision.state:<8} {decision.partition.key}  {decision.reason}")
                done = sum(decision.state == IS_DONE for decision in found)
                print(f"{scheduled.schedule.name}: {len(found)} partitions looked at, {done} done")
                continue
            with quiet:  # Beam's workers print the traceback of every failure, besides raising it
                results = run_call(scheduled, now, looked_at, options.flags, result_line, options.wait)
            code = max(code, exit_code(results), key=(DONE, TOO_MANY_FAILED, REFUSED).index)
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        how = "ended by SIGTERM" if is_terminated else "interrupted"
        print(f"{how}; finished shards stay. To go on:\n  {options.line}", file=sys.stderr)
        return TERMINATED if is_terminated else INTERRUPTED
    return code
