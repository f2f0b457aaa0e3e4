"""Arguments that several commands take, and what a number may be."""

from __future__ import annotations

import argparse
import re


def add_job(parser: argparse.ArgumentParser) -> None:
    """The job file, and fields of it from the command line."""
    parser.add_argument("job", metavar="JOB.yaml", help="the job file; docs/job-reference.md describes it")
    add_set_option(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """The output of a job."""
    parser.add_argument("output", metavar="OUT", help="the job's output.path")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Where the metrics of a run are to be had."""
    group = parser.add_argument_group("metrics for Prometheus (penstock[metrics]; docs/reports.md)")
    group.add_argument(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="serve them while the job runs (host: 127.0.0.1, this machine alone)",
    )
    group.add_argument("--metrics-file", metavar="FILE.prom", help="keep them in a file, for node_exporter")


def add_set_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a field: a dotted key and a YAML value; may be repeated",
    )


def add_goal_options(parser: argparse._ActionsContainer) -> None:
    """The options that jobs/planning/goal.py reads."""
    parser.add_argument("--goal", choices=("cheapest", "fastest", "deadline"), help="(default: cheapest)")
    parser.add_argument(
        "--budget", metavar="MONEY", help="with the goal fastest: spend no more, in the prices' currency"
    )
    parser.add_argument("--deadline", metavar="TIME", help="with the goal deadline: 90min, 6h, 2d")


def row_count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def seconds(text: str) -> float:
    number = _number(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def span(text: str) -> str:
    """A length of time as schedules write it."""
    if not re.fullmatch(r"\d{1,6}(s|min|h|d)", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write it as 90s, 30min, 2h or 7d")
    return text


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, 0 to 1")
    return number


def _number(text: str) -> float:
    """Not a number, which is within no bounds, where `text` is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
