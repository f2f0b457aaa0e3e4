"""In what shape a job runs, settled once for its output, and what that is expected to take.

What the job file says stays. What it leaves open is chosen before the first row is computed, and kept: layouts on a
mesh, which bear on results to the last bit, are part of the work plan (`_plan.json`); slots and tokens of a prefill are
in `_prediction.json`. A resumed job has the same, whatever is known by then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobs.comparison import Comparison
from jobs.foreseen import prediction_lines
from jobs.job_file import with_engine
from jobs.planning.goal import CHEAPEST, Goal
from jobs.planning.plan_file import is_open, planned, read_plan_file, refuse_other_job
from jobs.spec import Job
from pipeline.errors import JobError, PlanMismatch
from pipeline.prediction import keep_prediction, read_prediction
from pipeline.storage import exists, join, list_names
from pipeline.workplan import read_plan
from schemas.manifest import PLAN_NAME, SUCCESS_NAME, Plan, Summary
from schemas.prediction import PREDICTION_NAME, Prediction

if TYPE_CHECKING:
    from jobs.launch import Parts
    from jobs.planning.known import Known

_HERE = ("FnApiRunner", "BundleBasedDirectRunner")
"""Beam's runners that compute in this process, unless told to use others (--direct_running_mode=multi_processing)."""


@dataclass(frozen=True)
class Planning:
    """What `penstock run` and `penstock submit` were told about it."""

    plan: Prediction | None = None
    plan_path: str = ""
    prices_path: str | None = None
    goal: Goal = CHEAPEST
    """By which the workers of `penstock submit` are chosen; what is here is used as well as it can be."""
    most_chips: int | None = None
    """Of all workers together, where their number is to be chosen."""

    @classmethod
    def of(
        cls,
        plan_path: str | None,
        prices_path: str | None = None,
        goal: Goal = CHEAPEST,
        most_chips: int | None = None,
    ) -> Planning:
        if plan_path and (said := goal.said or ("--max-chips" if most_chips else "")):
            raise JobError(f"{said} is for choosing, and --plan {plan_path} has chosen; leave one of them out")
        plan = read_plan_file(plan_path) if plan_path else None
        return cls(plan, plan_path or "", prices_path, goal, most_chips)

    def applied(self, job: Job) -> Job:
        return planned(job, self.plan, self.plan_path) if self.plan else job


NOTHING_SAID = Planning()


@dataclass(frozen=True)
class Settled:
    """The job with nothing left open that is not the engine's own to choose."""

    parts: Parts
    prediction: Prediction | None = None
    is_kept: bool = False
    """The prediction is that of the output."""
    notes: tuple[str, ...] = ()
    """What a user should know: why nothing is predicted, what could not be read."""


Chooser = Callable[["Parts", Planning, Sequence[str]], Settled]
"""Settles a job that nothing is kept of; the last are flags for Beam."""


def settle(parts: Parts, planning: Planning, flags: Sequence[str] = (), choose: Chooser | None = None) -> Settled:
    """Reads what the output has kept, or else chooses, by what is here unless `choose` does it; nothing is written."""
    output = parts.job.output.path
    if planning.plan:
        refuse_other_job(planning.plan, parts, planning.plan_path)
    if exists(join(output, PLAN_NAME)):
        kept = read_prediction(output)
        if kept and planning.plan:
            _refuse_other_plan(planning, kept, output)
        parts = with_job(parts, resumed(parts.job, read_plan(output), kept))
        if kept or exists(join(output, SUCCESS_NAME)) or _has_rows(output):
            return Settled(parts, kept, is_kept=kept is not None)
    return (choose or choose_here)(parts, planning, flags)


def _refuse_other_plan(planning: Planning, kept: Prediction, output: str) -> None:
    assert planning.plan
    old, new = kept.engine.section(), planning.plan.engine.section()
    if found := [f"engine.{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]:
        raise PlanMismatch(
            f"{output} was begun in another shape than --plan {planning.plan_path} has: {'; '.join(found)}; "
            "resume it without --plan, or choose a new output.path"
        )


def resumed(job: Job, plan: Plan, kept: Prediction | None) -> Job:
    """The job with what was chosen for it when its output was begun, where it still leaves that open."""
    values: dict[str, Any] = {}
    layouts = plan.settings.get("layouts")
    if is_open(job.engine, "mesh"):
        mesh = layouts.get("mesh", job.engine.mesh) if isinstance(layouts, dict) else job.engine.mesh
        job = with_engine(job, {"mesh": mesh}, f"{job.output.path}/{PLAN_NAME}")
    if job.engine.layouts() and isinstance(layouts, dict) and layouts.get("mesh") == job.engine.mesh:
        values = {name: _phase(layouts[name]) for name in ("prefill", "decode") if is_open(job.engine, name)}
    if kept:
        section = kept.engine.section()
        values = {name: section[name] for name in kept.chosen if name in section} | values
    values = {name: value for name, value in values.items() if is_open(job.engine, name)}
    return with_engine(job, values, f"{job.output.path}/{PREDICTION_NAME}") if values else job


def _phase(names: Sequence[str | None]) -> dict[str, str]:
    """A phase's layout as a job file says it, from what the work plan has."""
    return dict(zip(("ffn", "attention"), (name or "auto" for name in names), strict=True))


def with_job(parts: Parts, job: Job) -> Parts:
    """The parts are the same: a shape of the engine changes no prompt."""
    return replace(parts, job=job)


def _has_rows(output: str) -> bool:
    return any(name.startswith("part-") for name in list_names(output))


def choose_here(parts: Parts, planning: Planning, flags: Sequence[str]) -> Settled:
    """By what is here, for which a plan that was given must be."""
    from jobs.planning.places import Here, NothingForeseen

    def foreseen(known: Known) -> Prediction:
        if _is_elsewhere(parts.job, flags):
            raise NothingForeseen("nothing is predicted of chips that are not in this process; see penstock plan")
        here, plan = Here.found(), planning.plan
        if plan:
            here.refuse_plan_of_others(plan.chips, plan.workers, planning.plan_path)
        here.check_known()
        from jobs.planning.foresight import foresee  # imports jax

        return foresee(parts, known, here, plan.chips if plan else None)

    return by_foresight(parts, planning, foreseen)


def by_foresight(parts: Parts, planning: Planning, foreseen: Callable[[Known], Prediction]) -> Settled:
    """The job in the shape that is foreseen, or that of a plan; as it is, if nothing can be said."""
    from jobs.planning.known import Known
    from jobs.planning.places import NothingForeseen

    plan, known = planning.plan, Known.read(planning.prices_path)
    try:
        prediction = foreseen(known)
    except NothingForeseen as nothing:
        return Settled(parts, plan, notes=(*known.notes, *(() if plan else (str(nothing),))))
    if plan:
        kept = replace(prediction, engine=plan.engine, chosen=plan.chosen)
        return Settled(parts, kept, notes=known.notes)
    values = {name: prediction.engine.section()[name] for name in prediction.chosen}
    return Settled(with_job(parts, with_engine(parts.job, values, "what was chosen")), prediction, notes=known.notes)


def _is_elsewhere(job: Job, flags: Sequence[str]) -> bool:
    """Whether this process is not, or not alone, what computes; then it must not take hold of devices."""
    said = " ".join(flags)
    runner = re.search(r"--runner[= ](\S+)", said)
    return job.engine.hosts is not None or "multi_processing" in said or bool(runner and not runner[1].endswith(_HERE))


def glance(parts: Parts) -> Iterator[tuple[str, str]]:
    """What can be said of a job without touching a device: on a processor that was measured, how long it takes."""
    from jobs.planning.known import Known
    from jobs.planning.places import Here, NothingForeseen

    if here := Here.processor():
        try:
            from jobs.planning.foresight import foresee

            yield from prediction_lines(foresee(parts, Known.read(None), here))
            return
        except NothingForeseen as nothing:
            yield "note", str(nothing)
    yield "note", "penstock plan says what to run it on, how long that takes and what it costs"


def kept(settled: Settled) -> Settled:
    """Keeps the prediction in the output. Another run may have been first; then its choice is what counts."""
    if settled.prediction is None or settled.is_kept:
        return settled
    job = settled.parts.job
    there = keep_prediction(job.output.path, settled.prediction)
    section = there.engine.section()
    values = {name: section[name] for name in there.chosen if name in ("slots", "prefill_tokens")}
    parts = with_job(settled.parts, with_engine(job, values, PREDICTION_NAME)) if values else settled.parts
    return replace(settled, parts=parts, prediction=there, is_kept=True)


def learn(prediction: Prediction, done: Summary, seconds: float | None) -> None:
    """Remembers how a run went that took so many seconds, if that is known, for later plans of the same model."""
    from jobs.planning.history import earlier_of, remember

    if run := earlier_of(Comparison(prediction, done), seconds):
        remember(run)
