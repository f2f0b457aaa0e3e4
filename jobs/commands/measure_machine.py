"""`penstock profile`: what this machine reaches."""

from __future__ import annotations

import argparse

from jobs.commands.exit_codes import DONE
from jobs.commands.printing import console

NAME = "profile"
SUMMARY = "measure this machine"
TEXT = """\
Measure what this machine's processor reaches with the engine's programs: products, memory, the cost of a call. Takes
one to three minutes and should have the machine to itself. The cost model predicts this machine from the profile.

example:
  penstock profile --out machine.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="where the profile goes (default: the user's cache)")


def handle(options: argparse.Namespace) -> int:
    from jobs.planning.kept_machine import run

    run(options, console())
    return DONE
