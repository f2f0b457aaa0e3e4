"""Where a pipeline runs: the job's runner as Beam options, with the user's own Beam flags on top.

`local` is Beam's FnApiRunner, in this process, with threads: one for every shard that is open. It is named in full,
because Beam's DirectRunner first tries to download another runner.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.refused_runners import refused_runner
from jobs.spec import Runner
from pipeline.errors import JobError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

OWN_FLAGS = ("--set", "--plan", "--prices", "--dry-run", "--verbose")
"""Flags of `penstock run` itself; everything else is Beam's."""

_ELSEWHERE = {"dataflow": "dataflow", "flink": "flink", "spark": "spark", "portable": "portable"}
"""In the name of a Beam runner that works elsewhere -> what `penstock submit` calls it."""

_LOCAL = (
    "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "--direct_running_mode=multi_threading",
)


def pipeline_options(runner: Runner, flags: Sequence[str]) -> PipelineOptions:
    """What Beam is told by `penstock run`: where the job and `flags` differ, the flags win."""
    options = known_options([*_LOCAL, f"--direct_num_workers={runner.workers}"], flags)
    name = options.view_as(standard_options()).runner or ""
    if reason := refused_runner(name):
        raise JobError(f"--runner: {reason}")
    for part, ours in _ELSEWHERE.items():
        if part in name.lower():
            raise JobError(f"--runner: {name} works elsewhere; use penstock submit --runner {ours}")
    return options


def refuse_elsewhere(runner: Runner) -> None:
    """`penstock run` computes here, and does not silently do so for a job that names another runner."""
    if runner.name != "local":
        raise JobError(
            f"runner.name: {runner.name}, and penstock run computes in this process; use penstock submit, or "
            "--set runner.name=local"
        )


def standard_options() -> type[StandardOptions]:
    """Beam's class of the options that every pipeline has; importing it takes seconds."""
    from apache_beam.options.pipeline_options import StandardOptions

    return StandardOptions


def known_options(ours: Sequence[str], flags: Sequence[str]) -> PipelineOptions:
    """Beam's options of our own flags and the user's; one that Beam does not know is an error."""
    from apache_beam.options.pipeline_options import PipelineOptions

    refuse_unknown(flags)
    return PipelineOptions([*ours, *flags])


def refuse_unknown(flags: Sequence[str]) -> None:
    """Beam by itself discards what it does not know."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[argparse.ArgumentParser] = []
    known = PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)  # hands out its parser
    parsers[0].exit_on_error = False
    try:
        unknown = parsers[0].parse_known_args(list(flags))[1]
    except argparse.ArgumentError as error:
        raise JobError(f"Beam refuses {shlex.join(flags)}: {error}") from error
    if unknown:
        close = difflib.get_close_matches(
            unknown[0].partition("=")[0], [*OWN_FLAGS, *(f"--{name}" for name in known)], n=1
        )
        hint = f"; did you mean {close[0]}?" if close else ""
        raise JobError(f"{unknown[0]} is known neither to penstock nor to Beam{hint}")
