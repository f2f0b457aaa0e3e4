"""The `penstock` command: parses the command line, sets up logging, and says what went wrong in one sentence.

What it can do is in jobs/commands/, a module for each command.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from engine.errors import EngineError
from jobs import logs
from jobs.commands import COMMANDS
from jobs.commands.exit_codes import DONE, EXIT_CODES, INTERRUPTED, REFUSED, TERMINATED
from jobs.leaving import leave
from jobs.termination import Terminated, sigterm_raises
from pipeline.errors import PenstockError

_ABOUT = """\
Batch offline inference for large language models: a dataset in, generations or scores out, as Parquet.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    if flags and not options.passes_flags:
        parser.error(f"unknown: {' '.join(flags)}; see penstock {options.command} --help")
    options.flags, options.line = flags, shlex.join(["penstock", *arguments])
    with logs.logging_to_stderr(options.log_format, verbose=options.verbose):
        return _handle(options)


def _handle(options: argparse.Namespace) -> int:
    try:
        with sigterm_raises():
            return options.handle(options)
    except (PenstockError, EngineError) as error:
        logging.getLogger(__name__).info("where it went wrong", exc_info=True)
        logs.say_error(error, options.log_format, sys.stderr)
        return REFUSED
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _parser() -> argparse.ArgumentParser:
    shared = {
        "epilog": EXIT_CODES,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = argparse.ArgumentParser(prog="penstock", description=_ABOUT, **shared)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("penstock"))
    parsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        added = parsers.add_parser(command.NAME, help=command.SUMMARY, description=command.TEXT, **shared)
        added.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
        added.add_argument(
            "--log-format", choices=logs.FORMATS, default="text", help="json: one object a line (default: text)"
        )
        added.set_defaults(handle=command.handle, passes_flags=getattr(command, "PASSES_FLAGS", False))
        command.add_options(added)
    return parser


def console() -> NoReturn:
    """`main` as the whole of a process."""
    leave(main())


if __name__ == "__main__":
    console()
