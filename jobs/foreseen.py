"""What is foreseen of a job, in words, before its first row is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.wording import duration, few_digits
from schemas.prediction import Prediction

if TYPE_CHECKING:
    from jobs.settle import Settled


def foreseen_lines(settled: Settled, rows: int, rows_left: int) -> Iterator[tuple[str, str]]:
    """A label and its text. Of a job that is resumed, what is left of it."""
    if not rows_left:
        yield "left", "nothing: every shard is there"
    elif settled.prediction:
        yield from prediction_lines(settled.prediction, rows_left / max(1, rows))
    yield from (("note", note) for note in settled.notes)


def prediction_lines(plan: Prediction, share: float = 1.0) -> Iterator[tuple[str, str]]:
    """`share`: of the work, that is still to be done."""
    from jobs.planning.words import memory_lines

    yield "plan", f"{_place(plan)}: {_shape(plan)}"
    work, start = plan.work_seconds * share, plan.startup_seconds
    seconds, error = start + work, math.hypot(work * plan.error_fraction, start * plan.startup_error_fraction)
    low, high = max(0.0, seconds - error), seconds + error
    of_rest = "" if share == 1 else f" for the {share:.0%} that are left"
    yield (
        "time",
        f"about {duration(seconds)}{of_rest}, between {duration(low)} and {duration(high)}: {_phases(plan, share)}",
    )
    if plan.completion_tokens:
        yield (
            "tokens",
            f"{plan.prompt_tokens:,.0f} of prompts, {plan.completion_tokens:,.0f} generated: {plan.completions_from}",
        )
    else:
        yield "tokens", f"{plan.prompt_tokens:,.0f} to be read"
    hours = plan.chip_count * seconds / 3600
    if plan.price is None:
        least, most = (few_digits(plan.chip_count * one / 3600) for one in (low, high))
        between = f"{few_digits(hours)} chip-hours, between {least} and {most}"
        yield "cost", f"{between}; no price of them is known (--prices FILE)"
    else:
        hour = plan.price / plan.chip_hours
        money, least, most = (few_digits(plan.chip_count * one / 3600 * hour) for one in (seconds, low, high))
        dated = f"(prices of {plan.prices_date}); {few_digits(hours)} chip-hours"
        yield "cost", f"{money} {plan.currency}, between {least} and {most} {dated}"
    held = {"weights": plan.weight_bytes, "KV": plan.kv_bytes, "activations": plan.activation_bytes}
    yield from zip(("memory", ""), memory_lines(held, plan.limit_bytes), strict=True)
    if plan.correction_runs:
        runs = "1 earlier run" if plan.correction_runs == 1 else f"{plan.correction_runs} earlier runs"
        yield "learnt", f"times are corrected by {plan.correction:.2f} from {runs} of this model here"


def _place(plan: Prediction) -> str:
    if plan.chips.startswith("cpu:"):
        return "this machine's processor"
    return plan.chips if plan.workers == 1 else f"{plan.workers} x {plan.chips}"


def _shape(plan: Prediction) -> str:
    engine = plan.engine
    words = []
    if plan.slots_busy_fraction is not None:
        words.append(f"{engine.slots:,} slots, {plan.slots_busy_fraction:.0%} busy")
    words.append(f"{engine.prefill_tokens:,} tokens of prompts at a time, {plan.padding_fraction:.0%} of them padding")
    if plan.chip_count > 1:
        words.append(f"mesh {engine.mesh}, {engine.prefill.ffn} and {engine.decode.ffn}")
    return ", ".join(words)


def _phases(plan: Prediction, share: float) -> str:
    prompts = "scoring" if plan.slots_busy_fraction is None else "prompts"
    spent = {
        "starting": plan.startup_seconds,
        prompts: plan.prefill_seconds * share,
        "generating": plan.decode_seconds * share,
    }
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in spent.items() if seconds)
