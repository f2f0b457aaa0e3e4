"""`penstock plan`: what to run on, in which layouts, how long it takes and what it costs, before a chip is touched.

Of a job, from a sample of its data; or of one phase of a model, without a job.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from jobs.planning.prices import Prices, prices_known
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
_OF_A_PHASE = ("shared_prefix", "draft", "draft_tokens", "acceptance")
"""Questions that no job can ask: the engine cannot do it."""


def run(options: argparse.Namespace, console: Console) -> bool:
    """Prints the plan that the command line asks for; False if there is none that fits."""
    if (options.job is None) == (options.model is None):
        raise JobError("name one: a job (penstock plan JOB.yaml) or a model (penstock plan --model NAME ...)")
    prices = prices_known(options.prices)
    answer, model, report = (_phase if options.job is None else _job)(options, prices)
    said = answer.to_json() if options.json else {}
    if answer.problem is not None:
        if options.json:
            print(json.dumps(said, indent=2))
        print(f"error: {answer.problem}", file=sys.stderr)
        return False
    if options.plot:
        from jobs.planning.plot import draw

        draw(options.plot, answer.title, answer.drawings())
    found = []
    if options.compile:
        from jobs.planning.compiled_plan import checked_table, compiled  # jax, and the compiler

        found = compiled(model, answer.programs)
    if options.json:
        print(json.dumps(said | ({"compiled": found} if options.compile else {}), indent=2))
    else:
        console.print(report(answer))
        if found:
            console.print(checked_table(found))
            console.print(f"Note: {found[0]['estimates']}.")
    return all(one["fits"] for one in found)


def _job(options: argparse.Namespace, prices: Prices | None) -> tuple[Any, str, Callable[[Any], Any]]:
    """The answer, where its model is, and how it is shown."""
    from jobs.job_file import load
    from jobs.planning.history import read_history
    from jobs.planning.job_plan import JobAnswer
    from jobs.planning.job_question import JobQuestion
    from jobs.planning.job_report import rendered
    from jobs.planning.learnt import of_output
    from jobs.planning.plan_file import write_plan
    from jobs.planning.prediction import plan_of

    if given := [flag for flag in _OF_A_PHASE if getattr(options, flag) is not None]:
        raise JobError(f"--{given[0].replace('_', '-')} is for --model: it is planned only, and no job can ask for it")
    if given := [flag for flag in _IN_A_JOB if getattr(options, flag) is not None]:
        raise JobError(f"--{given[0]} is for --model; a job says it itself: --set {_IN_A_JOB[given[0]]}")
    job = load(options.job, options.set)
    history = read_history().with_runs(of_output(output) for output in options.learn_from)
    answer = JobAnswer.to(JobQuestion.of(job, options, prices, history))
    if options.out and answer.problem is None:
        write_plan(options.out, plan_of(answer))
    return answer, job.model.checkpoint, rendered


def _phase(options: argparse.Namespace, prices: Prices | None) -> tuple[Any, str, Callable[[Any], Any]]:
    from jobs.planning.phase_plan import PhaseAnswer, PhaseQuestion
    from jobs.planning.phase_report import rendered

    for flag in ("out", "learn_from"):
        if getattr(options, flag):
            raise JobError(f"--{flag.replace('_', '-')} is for a whole job: penstock plan JOB.yaml")

    return PhaseAnswer.to(PhaseQuestion.of(options, prices)), options.model, rendered
