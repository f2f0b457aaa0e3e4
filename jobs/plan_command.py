"""`penstock plan`: what to run on, in which layouts, how long it takes and what it costs, before a chip is touched.

Of a job, from a sample of its data; or of one phase of a model, without a job.
"""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from jobs.prices import Prices, read_prices
from pipeline.errors import JobError

_IN_A_JOB = {
    "phase": "task=generate",
    "batch": "engine.slots=256",
    "context": "engine.max_length=4096",
    "tokens": "sampling.max_tokens=64",
    "weights": "model.weights=int8",
    "kv": "model.kv=int8",
    "mesh": "engine.mesh=4x4",
    "ffn": "engine.decode.ffn=ws2d",
    "attention": "engine.decode.attention=batch",
}
PHASE_FLAGS = tuple(_IN_A_JOB)


def run(options: argparse.Namespace, console: Console) -> bool:
    """Prints the plan that the command line asks for; False if there is none that fits."""
    if (options.job is None) == (options.model is None):
        raise JobError("name one: a job (penstock plan JOB.yaml) or a model (penstock plan --model NAME ...)")
    prices = read_prices(options.prices) if options.prices else None
    return _phase(options, prices, console) if options.job is None else _job(options, prices, console)


def _job(options: argparse.Namespace, prices: Prices | None, console: Console) -> bool:
    from jobs.job_file import load
    from jobs.job_plan import JobAnswer, JobQuestion
    from jobs.job_report import rendered

    if given := [flag for flag in PHASE_FLAGS if getattr(options, flag) is not None]:
        raise JobError(f"--{given[0]} is for --model; a job says it itself: --set {_IN_A_JOB[given[0]]}")
    answer = JobAnswer.to(JobQuestion.of(load(options.job, options.set), options, prices))
    if options.json:
        print(json.dumps(answer.to_json(), indent=2))
    elif answer.problem is None:
        console.print(rendered(answer))
    if answer.problem:
        print(f"error: {answer.problem}", file=sys.stderr)
    return answer.problem is None


def _phase(options: argparse.Namespace, prices: Prices | None, console: Console) -> bool:
    from jobs.phase_plan import PhaseAnswer, PhaseQuestion
    from jobs.phase_report import rendered

    answer = PhaseAnswer.to(PhaseQuestion.of(options, prices))
    if options.json:
        print(json.dumps(answer.to_json(), indent=2))
    elif answer.problem is None:
        console.print(rendered(answer))
    if answer.problem:
        print(f"error: {answer.problem}", file=sys.stderr)
    return answer.problem is None
