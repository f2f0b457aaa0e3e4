"""Before a job runs: in what shape, and what that takes.

What the job leaves open (slots, tokens of a prefill, layouts on a mesh) is chosen once, for the devices that are here
or for those of workers elsewhere, whose mesh is chosen as well. It is kept in the output, and a resumed job has the
same, whatever is known by then. `engine.max_length` is left to the engine, because a shorter one fails rows; only a
plan that was made beforehand (`--plan`) says that.

This is advice. Where nothing can be foreseen the job runs as it would have without, and one line says why.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import EngineError
from engine.planning.job_planner import PREFILL_TOKENS, fitting_plans, job_plans
from engine.planning.planner import Pinned
from engine.planning.slices import Slice
from jobs.launch import Parts
from jobs.planning.asked import asked_of
from jobs.planning.goal import Goal
from jobs.planning.history import job_key
from jobs.planning.job_plan import JobAnswer
from jobs.planning.job_question import JobQuestion, held_in
from jobs.planning.job_sample import sample_of
from jobs.planning.known import Known
from jobs.planning.places import Here, NothingForeseen, slice_of
from jobs.planning.plan_file import is_open
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


@contextlib.contextmanager
def as_advice() -> Iterator[None]:
    """Whatever goes wrong inside is NothingForeseen."""
    try:
        yield
    except NothingForeseen:
        raise
    except (PenstockError, EngineError) as error:
        raise NothingForeseen(f"nothing is predicted: {error}") from error
    except Exception as error:  # a fault here is no reason for a job not to run
        logger.warning("nothing is predicted, through a fault of Penstock's own", exc_info=True)
        raise NothingForeseen(f"nothing is predicted, through a fault of Penstock's own: {error!r}") from error


def foresee(parts: Parts, known: Known, here: Here, chips: str | None = None) -> Prediction:
    """What the job takes on what is here, in the shape that is the fastest; NothingForeseen says why it cannot.

    `chips`: the slice, where it is known which.
    """
    with as_advice():
        mesh = Pinned.named(parts.job.engine.mesh, None, None)
        assert mesh.mesh
        weights = held_in(parts, here.chip is None)
        on = Slice.parse(chips) if chips and here.chip else slice_of(here, mesh.mesh.chips, weights)
        question = _question(parts, known, [on], mesh, on.chips)
        question = replace(question, goal=Goal("fastest"), prices=known.prices)
        answer = JobAnswer.to(question) if here.chip is None else _on_accelerators(question)
        if answer.problem:
            raise NothingForeseen(f"by the plan {answer.problem}; it is tried as the job says")
        return prediction_of(answer, *shape_of(answer, parts.job))


def foresee_on(
    parts: Parts,
    known: Known,
    slices: Sequence[Slice],
    goal: Goal,
    *,
    workers: int | None,
    most_chips: int,
    chooses_mesh: bool,
) -> Prediction:
    """The same on workers elsewhere that have one of these slices each, by what is asked for; as many as are given, or
    as many as suit."""
    with as_advice():
        mesh = Pinned() if chooses_mesh else Pinned.named(parts.job.engine.mesh, None, None)
        question = _question(parts, known, slices, mesh, most_chips)
        asked = replace(question.asked, workers=workers)
        answer = _on_accelerators(replace(question, asked=asked, goal=goal, prices=known.prices))
        return prediction_of(answer, *shape_of(answer, parts.job, chooses_mesh=chooses_mesh))


def _question(parts: Parts, known: Known, slices: Sequence[Slice], mesh: Pinned, most_chips: int) -> JobQuestion:
    earlier = known.history.completion_tokens(job_key(asked_of(parts)))
    looked = sample_of(parts, ROWS, earlier=earlier, most_seconds=SECONDS)
    return JobQuestion.about(looked, slices, mesh, most_chips, known.history)


def _on_accelerators(question: JobQuestion) -> JobAnswer:
    """The best of those whose programs need no more than is left beside a cache that fills the memory."""
    asked, slices = question.asked, question.slices
    pinned = asked.prefill_tokens
    sizes = (pinned,) if pinned else PREFILL_TOKENS
    plans = [plan for tokens in sizes for plan in fitting_plans(replace(asked, prefill_tokens=tokens), slices)]
    if not plans:
        plans = job_plans(replace(asked, prefill_tokens=sizes[0]), slices)  # which says why there is none
    safe = [plan for plan in plans if plan.activation_bytes <= _BESIDE_THE_CACHE * plan.on.limit_bytes]
    if not safe and not pinned:
        raise NothingForeseen("nothing is predicted: every plan needs more memory beside the cache than the engine has")
    return JobAnswer(question, question.choose(safe or plans), plans)


def shape_of(answer: JobAnswer, job: Job, *, chooses_mesh: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The engine section of what was chosen; which of its fields the job leaves open."""
    section = answer.engine_section
    if job.engine.max_length == "auto":
        section["max_length"] = "auto"
    fields = ["slots", "prefill_tokens"]
    if answer.chosen.layouts.mesh.chips > 1:
        fields += ["prefill", "decode"]
    else:  # one chip has no layouts
        section |= {phase: {"ffn": "auto", "attention": "auto"} for phase in ("prefill", "decode")}
    chosen = [name for name in fields if is_open(job.engine, name)]
    return section, ["mesh", *chosen] if chooses_mesh else chosen
