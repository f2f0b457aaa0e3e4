"""`penstock schedule`: how a schedule stands, who is to call it, and a loop that calls it."""

from __future__ import annotations

import argparse

from jobs.commands.arguments import seconds, span
from jobs.commands.exit_codes import DONE
from jobs.commands.printing import console, print_lines

NAME = "schedule"
SUMMARY = "how a schedule stands; let cron, systemd, Kubernetes, Airflow call it"
TEXT = """\
A schedule runs a job for every partition of an input that grows with time; docs/scheduling.md is about it. What runs is
penstock run-due. This is what surrounds it.

examples:
  penstock schedule status scores.yaml                     every partition: done, due, late, failed, its versions
  penstock schedule files scores.yaml                      the Parquet files that hold the results now
  penstock schedule export scores.yaml --to systemd        the few lines by which systemd calls run-due
  penstock schedule serve scores.yaml                      a loop that calls it, on a laptop or a small machine
"""
_TO = ("cron", "systemd", "kubernetes", "airflow", "cloud-scheduler")


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    add_status(actions.add_parser("status", help="its partitions as a table, from the output alone"))
    add_files(actions.add_parser("files", help="the files that hold the results now, one a line"))
    add_export(actions.add_parser("export", help="what another scheduler needs to call run-due"))
    add_serve(actions.add_parser("serve", help="call run-due in a loop, until stopped"))


def add_status(parser: argparse.ArgumentParser) -> None:
    _add_schedule(parser)
    _add_window(parser)
    parser.set_defaults(act=status)


def add_files(parser: argparse.ArgumentParser) -> None:
    _add_schedule(parser)
    _add_window(parser)
    parser.set_defaults(act=files)


def add_export(parser: argparse.ArgumentParser) -> None:
    _add_schedule(parser)
    parser.add_argument("--to", required=True, choices=_TO, help="who is to call run-due")
    parser.add_argument("--every", type=span, metavar="SPAN", help="call at even intervals instead: 10min, 30min, 1h")
    parser.add_argument("--image", help="the container image with penstock (kubernetes, cloud-scheduler)")
    parser.add_argument("--command", dest="program", metavar="PATH", help="how penstock is started (default: as here)")
    parser.add_argument("--out", metavar="DIR", help="write the files there (default: print them)")
    parser.set_defaults(act=export)


def add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schedule", metavar="SCHEDULE.yaml", nargs="+", help="schedule files")
    parser.add_argument(
        "--look-every",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="look for late input at least so often (default: 300)",
    )
    parser.set_defaults(act=serve)


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("schedule", metavar="SCHEDULE.yaml", help="the schedule file; docs/scheduling.md describes it")


def _add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="first", metavar="TIME", help="partitions from here (default: as far as catch_up)"
    )
    parser.add_argument("--to", dest="stop", metavar="TIME", help="and before this time")
    parser.add_argument("--now", metavar="TIME", help="what time it is taken to be (default: it is)")


def handle(options: argparse.Namespace) -> int:
    return options.act(options)


def status(options: argparse.Namespace) -> int:
    from jobs.scheduling.run_due import window
    from jobs.scheduling.schedule_file import load
    from jobs.scheduling.state import standings, summary_lines, table
    from jobs.scheduling.times import moment, now_or

    scheduled = load(options.schedule)
    now = now_or(options.now, scheduled)
    looked_at = window(scheduled, now, moment(options.first, scheduled), moment(options.stop, scheduled))
    found = standings(scheduled, now, looked_at)
    console().print(table(found))
    print_lines(summary_lines(scheduled, found, now))
    return DONE


def files(options: argparse.Namespace) -> int:
    from jobs.scheduling.run_due import window
    from jobs.scheduling.schedule_file import load
    from jobs.scheduling.state import current_files
    from jobs.scheduling.times import moment, now_or

    scheduled = load(options.schedule)
    now = now_or(options.now, scheduled)
    first = moment(options.first, scheduled) or scheduled.partitions.begin
    for file in current_files(scheduled, window(scheduled, now, first, moment(options.stop, scheduled))):
        print(file)
    return DONE


def export(options: argparse.Namespace) -> int:
    import os
    import sys

    from jobs.scheduling.export import TARGETS, Calling
    from jobs.scheduling.schedule_file import load
    from pipeline.storage import join, publish_over

    here = os.path.join(os.path.dirname(sys.executable), "penstock")
    program = options.program or (here if os.path.exists(here) else "penstock")
    found = TARGETS[options.to](Calling(load(options.schedule), program, options.every, options.image))
    for name, text in found.items():
        if options.out:
            publish_over(join(options.out, name), text.encode())
            print(join(options.out, name))
        else:
            print(text if len(found) == 1 else f"# --- {name}\n{text}", end="" if len(found) == 1 else "\n")
    return DONE


def serve(options: argparse.Namespace) -> int:
    import contextlib
    import datetime
    import io

    from jobs.scheduling.serve import serve as run

    def say(text: str) -> None:
        print(f"{datetime.datetime.now().isoformat(sep=' ', timespec='seconds')} {text}", flush=True)

    quiet = contextlib.nullcontext() if options.verbose else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            run(options.schedule, say, look_seconds=options.look_every)
    except KeyboardInterrupt:
        say("stopped; finished shards stay")
    return DONE
