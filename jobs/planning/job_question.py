"""What is asked of a job: its rows, what it pins, where it may run, what it is to be cheapest, fastest or done by."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.compilation.model_named import read_model
from engine.planning.calibration import Calibration, calibration_of
from engine.planning.job_cost import STARTUP_ERROR, STARTUP_SECONDS, JobAsked, JobPlan
from engine.planning.job_planner import choose
from engine.planning.planner import Pinned
from engine.planning.program import Dtype
from engine.planning.slices import Slice
from jobs.launch import Parts, open_parts, refuse_missing_columns
from jobs.planning.asked import asked_of
from jobs.planning.goal import CHEAPEST, Goal
from jobs.planning.history import NOTHING_KNOWN, Correction, History, job_key, model_key
from jobs.planning.job_sample import JobSample, sample_of
from jobs.planning.phase_plan import ALL_CHIPS
from jobs.planning.places import CPU, kinds, named_places
from jobs.planning.prices import Prices
from jobs.spec import Job
from jobs.wording import count_words
from pipeline.errors import JobError
from pipeline.storage import open_input

CPU_STARTUP_SECONDS = 10.0
"""Of a job on this machine's processor: an assumption, until a run has told."""


@dataclass(frozen=True)
class JobQuestion:
    """What the command line asks of a job."""

    sample: JobSample
    asked: JobAsked
    slices: Sequence[Slice]
    goal: Goal = CHEAPEST
    prices: Prices | None = None
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """By the name of the chip, where earlier runs are known of."""
    startup_from: str = "assumed"
    history_note: str | None = None

    @classmethod
    def of(
        cls, job: Job, options: argparse.Namespace, prices: Prices | None, history: History = NOTHING_KNOWN
    ) -> JobQuestion:
        """What `penstock plan JOB.yaml` asks."""
        goal = Goal.of(options)
        goal.refuse_without_prices(prices is not None)
        parts = open_parts(job)
        refuse_missing_columns(parts)
        slices = named_places(options.chips or ALL_CHIPS, options.max_chips, held_in(parts, options.chips == CPU))
        engine = job.engine
        mesh = Pinned.named(engine.mesh, None, None).mesh if "mesh" in engine.model_fields_set else None
        if mesh:
            if mesh.slices > 1:  # a pipeline, over as many of each slice that is no pipeline itself
                slices = [on if on.count > 1 else replace(on, count=mesh.slices) for on in slices]
                slices = [on for on in slices if on.count == mesh.slices]
            devices = [on for on in slices if mesh.chips == on.chips * on.chip.devices]
            if not devices:
                raise JobError(
                    f"engine.mesh: {engine.mesh} is {mesh.chips} chips, and no slice in question has as many"
                )
            slices = devices
        if prices and not options.prices and {on.chip.name for on in slices} - prices.chip_hour.keys():
            prices = None  # the user's own table, which is not about these
        if prices and (missing := {on.chip.name for on in slices} - prices.chip_hour.keys()):
            names = ", ".join(sorted(missing))
            raise JobError(f"{prices.source} has no price of {names}; add it, or restrict --chips")
        known = history.completion_tokens(job_key(asked_of(parts)))
        looked = sample_of(parts, options.rows, options.output_tokens, earlier=known)
        question = cls.about(looked, slices, Pinned(mesh), options.max_chips, history, options.startup)
        return replace(question, goal=goal, prices=prices)

    @classmethod
    def about(
        cls,
        looked: JobSample,
        slices: Sequence[Slice],
        pinned: Pinned,
        most_chips: int,
        history: History,
        startup_seconds: float | None = None,
    ) -> JobQuestion:
        """Of what was looked at, on these slices; with earlier runs of the same model as a guide."""
        job, engine = looked.parts.job, looked.parts.job.engine
        model = model_key(asked_of(looked.parts))
        chips = kinds(slices)
        corrections = {chip: history.correction(model, chip, error_of(slices, chip)) for chip in chips}
        startup, startup_from = startup_seconds, "given (--startup)"
        runs = 0
        if startup is None and len(chips) == 1:
            runs, startup = history.startup(model, *chips)
            startup_from = f"the middle of {count_words(runs, 'earlier run')}"
        if startup is None:
            startup, startup_from = (CPU_STARTUP_SECONDS if chips == {CPU} else STARTUP_SECONDS), "assumed (--startup)"
        held = held_in(looked.parts, chips == {CPU})
        asked = JobAsked(
            read_model(job.model.checkpoint, open_input),
            looked.workload,
            "int8" if job.model.weights == "int8" else held,
            "int8" if job.model.kv == "int8" else held,
            pinned.mesh,
            Pinned.named(None, *engine.prefill.names()),
            Pinned.named(None, *engine.decode.names()),
            None if engine.slots == "auto" else engine.slots,
            None if engine.prefill_tokens == "auto" else engine.prefill_tokens,
            most_chips=most_chips,
            startup_seconds=startup,
            startup_error_fraction=0.0 if startup_seconds is not None else STARTUP_ERROR / math.sqrt(1 + runs),
        )
        corrected = [
            replace(on, calibration=calibration_on(on).times(known.factor, known.error_fraction)) if known.runs else on
            for on in slices
            for known in (corrections[on.chip.name],)
        ]
        return cls(
            looked, asked, corrected, corrections=corrections, startup_from=startup_from, history_note=history.note
        )

    @property
    def job(self) -> Job:
        return self.sample.parts.job

    def choose(self, plans: Sequence[JobPlan]) -> JobPlan:
        """By the goal; NoFeasiblePlan if no plan is within budget or deadline."""
        goal = self.goal
        return choose(plans, goal.name, self.cost_of, budget=goal.budget, deadline_seconds=goal.deadline_seconds)

    def price(self, plan: JobPlan) -> float | None:
        """Of the whole job."""
        return self.prices and self.prices.money(plan.on.chip.name, plan.chip_seconds)

    def cost_of(self, plan: JobPlan) -> float:
        """What is compared: money, or else chip-seconds."""
        price = self.price(plan)
        return plan.chip_seconds if price is None else price


def held_in(parts: Parts, on_processor: bool) -> Dtype:
    """What the weights are held in."""
    if parts.job.model.dtype != "auto":
        return parts.job.model.dtype
    return "bfloat16" if parts.model.dtype == "bfloat16" and not on_processor else "float32"


def calibration_on(on: Slice) -> Calibration:
    return on.calibration or calibration_of(on.chip.name)


def error_of(slices: Sequence[Slice], chip: str) -> float:
    return next(calibration_on(on).error_fraction for on in slices if on.chip.name == chip)
