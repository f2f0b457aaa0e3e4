"""A plan as the document that is kept: what is foreseen of a job, and the shape in which it is to run."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.planning.job_cost import JobPlan
from jobs.planning.asked import asked_of
from jobs.planning.job_plan import JobAnswer
from jobs.planning.job_question import calibration_on
from jobs.planning.plan_file import is_open
from pipeline.records import content_hash
from schemas.documents import decode
from schemas.prediction import EngineShape, Prediction


def prediction_of(answer: JobAnswer, engine: dict[str, Any], chosen: Sequence[str]) -> Prediction:
    """Of the plan that was chosen. `engine`: as in the job file; `chosen`: what of it the job does not say itself."""
    question, plan = answer.question, answer.chosen
    looked, workload, prices = question.sample, question.sample.workload, question.prices
    low, high = plan.seconds_range
    price = question.price(plan)
    known = question.corrections.get(plan.on.chip.name)
    factor, runs = (known.factor, known.runs) if known else (1.0, 0)
    return Prediction(
        made_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        job=question.job.name,
        asked=asked_of(looked.parts),
        chips=str(plan.on),
        workers=plan.workers,
        chip_count=plan.chips,
        engine=decode(EngineShape, engine),
        chosen=tuple(chosen),
        rows=looked.rows,
        prompt_tokens=float(workload.prompt_tokens),
        completion_tokens=float(workload.completion_tokens),
        completions_from=looked.completions_from,
        seconds=float(plan.seconds),
        seconds_low=float(max(0.0, low)),
        seconds_high=float(high),
        startup_seconds=float(plan.asked.startup_seconds),
        prefill_seconds=float(plan.prefill_seconds),
        decode_seconds=float(plan.decode_seconds),
        startup_error_fraction=float(plan.asked.startup_error_fraction),
        error_fraction=float(plan.error_fraction),
        slots_busy_fraction=float(plan.flow.busy_fraction) if plan.flow else None,
        padding_fraction=float(max(0.0, plan.padding_fraction)),
        mfu=float(plan.mfu),
        flops_per_token=_flops_per_token(plan),
        peak_flops=plan.chips * plan.on.chip.bf16_flops_per_second,
        chip_hours=plan.chip_seconds / 3600,
        price=None if price is None else float(price),
        currency=prices.currency if prices and price is not None else None,
        prices_date=prices.date if prices and price is not None else None,
        weight_bytes=int(plan.weight_bytes),
        kv_bytes=int(plan.cache_bytes),
        activation_bytes=int(plan.activation_bytes),
        limit_bytes=int(plan.on.limit_bytes),
        calibration=_constants(plan, factor),
        correction=float(factor),
        correction_runs=runs,
    )


def plan_of(answer: JobAnswer) -> Prediction:
    """The plan to be run later: everything of the engine is said."""
    job = answer.question.job
    section = answer.engine_section
    return prediction_of(answer, section, [name for name in section if is_open(job.engine, name)])


def _flops_per_token(plan: JobPlan) -> float:
    """2 N, out of how the plan's MFU is defined."""
    tokens = plan.asked.workload.prompt_tokens + plan.asked.workload.completion_tokens
    return plan.mfu * plan.chips * plan.on.chip.bf16_flops_per_second * _work_seconds(plan) / tokens


def _work_seconds(plan: JobPlan) -> float:
    return plan.prefill_seconds + plan.decode_seconds


def _constants(plan: JobPlan, factor: float) -> str:
    """A name for the constants that times were made with, as they were before they were corrected."""
    constants = asdict(calibration_on(plan.on).times(1 / factor, 0.0))
    return content_hash({name: f"{value:.6g}" for name, value in constants.items()})[:12]
