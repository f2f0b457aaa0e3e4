"""Before a job runs: in what shape, and what that takes.

What the job leaves open (slots, tokens of a prefill, layouts on a mesh) is chosen for the devices that are here, once:
it is kept in the output, and a resumed job has the same, whatever is known by then. `engine.max_length` is left to the
engine, because a shorter one fails rows; only a plan that was made beforehand (`penstock run --plan`) says that.

This is advice. Where nothing can be foreseen the job runs as it would have without, and one line says why.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from engine.errors import EngineError
from engine.planning.job_cost import JobPlan
from engine.planning.job_planner import PREFILL_TOKENS, job_plans
from engine.planning.planner import Pinned
from engine.planning.slices import Slice
from jobs.launch import Parts
from jobs.planning.asked import asked_of
from jobs.planning.history import job_key
from jobs.planning.job_plan import JobAnswer
from jobs.planning.job_question import JobQuestion, held_in
from jobs.planning.job_sample import sample_of
from jobs.planning.known import Known
from jobs.planning.places import Here, NothingForeseen, slice_of
from jobs.planning.prediction import prediction_of
from jobs.spec import Job
from pipeline.errors import PenstockError
from schemas.prediction import Prediction

logger = logging.getLogger(__name__)

ROWS = 1000
SECONDS = 1.5
"""Most rows that are looked at, and for how long."""
_BESIDE_THE_CACHE = 0.13
"""Of a chip's memory: what the engine leaves for everything but weights and cache (engine/runtime/engine.py), less a
little. Where it fills the rest with cache, programs must do with that."""


def foresee(parts: Parts, known: Known, here: Here, chips: str | None = None) -> Prediction:
    """What the job takes on what is here, in the shape that is the fastest; NothingForeseen says why it cannot.

    `chips`: the slice, where it is known which.
    """
    try:
        return _foresee(parts, known, here, chips)
    except NothingForeseen:
        raise
    except (PenstockError, EngineError) as error:
        raise NothingForeseen(f"nothing is predicted: {error}") from error
    except Exception as error:  # a fault here is no reason for a job not to run
        logger.warning("nothing is predicted, through a fault of Penstock's own", exc_info=True)
        raise NothingForeseen(f"nothing is predicted, through a fault of Penstock's own: {error!r}") from error


def _foresee(parts: Parts, known: Known, here: Here, chips: str | None) -> Prediction:
    job = parts.job
    mesh = Pinned.named(job.engine.mesh, None, None)
    assert mesh.mesh
    weights = held_in(parts, here.chip is None)
    on = Slice.parse(chips) if chips and here.chip else slice_of(here, mesh.mesh.chips, weights)
    earlier = known.history.completion_tokens(job_key(asked_of(parts)))
    looked = sample_of(parts, ROWS, earlier=earlier, most_seconds=SECONDS)
    question = JobQuestion.about(looked, [on], mesh, on.chips, known.history)
    question = replace(question, goal="fastest", prices=known.prices)
    answer = JobAnswer.to(question) if here.chip is None else _on_accelerators(question)
    if answer.problem:
        raise NothingForeseen(f"by the plan {answer.problem}; it is tried as the job says")
    engine, chosen = shape_of(answer, job)
    return prediction_of(answer, engine, chosen)


def _on_accelerators(question: JobQuestion) -> JobAnswer:
    """The fastest of those whose programs need no more than is left beside a cache that fills the memory."""
    pinned = question.asked.prefill_tokens
    plans: list[JobPlan] = []
    for tokens in (pinned,) if pinned else PREFILL_TOKENS:
        plans += job_plans(replace(question.asked, prefill_tokens=tokens), question.slices)
    safe = [plan for plan in plans if plan.activation_bytes <= _BESIDE_THE_CACHE * plan.on.limit_bytes]
    if not safe and not pinned:
        raise NothingForeseen("nothing is predicted: every plan needs more memory beside the cache than the engine has")
    return JobAnswer(question, min(safe or plans, key=lambda plan: plan.seconds), plans)


def shape_of(answer: JobAnswer, job: Job) -> tuple[dict[str, Any], list[str]]:
    """The engine section of what was chosen; which of its fields the job leaves open."""
    section = answer.engine_section
    if job.engine.max_length == "auto":
        section["max_length"] = "auto"
    if not job.engine.layouts():  # one chip has no layouts
        section |= {phase: {"ffn": "auto", "attention": "auto"} for phase in ("prefill", "decode")}
    open_fields = [name for name in ("slots", "prefill_tokens") if getattr(job.engine, name) == "auto"]
    if job.engine.layouts():
        open_fields += [phase for phase in ("prefill", "decode") if None in getattr(job.engine, phase).names()]
    return section, open_fields
