"""The plan of a job as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table

from engine.planning.job_cost import JobPlan
from jobs.planning.job_plan import JobAnswer
from jobs.planning.places import place_words
from jobs.planning.words import memory_lines, share_words, time_words
from jobs.wording import duration, few_digits


def rendered(answer: JobAnswer) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    for label, text in _lines(answer):
        facts.add_row(label, text)
    parts: list[RenderableType] = [facts]
    if others := answer.runners_up():
        parts += ["", _table(answer, others, "runners-up")]
    if len(front := answer.shown_frontier()) > 1:
        parts += ["", _table(answer, front, "none is both faster and cheaper than one of these")]
    return Group(*parts, "", *(f"Note: {note}." for note in answer.notes()))


def _lines(answer: JobAnswer) -> Iterator[tuple[str, str]]:
    question, plan = answer.question, answer.chosen
    looked, workload = question.sample, question.sample.workload
    yield "job", f"{question.job.name} ({question.job.task}): {looked.rows:,} rows, {looked.looked_at:,} looked at"
    middle = sorted(workload.prompts)[len(workload.prompts) // 2]
    yield (
        "tokens",
        f"{workload.prompt_tokens:,.0f} of prompts ({middle:,} in the middle, {looked.longest_prompt:,} at most)",
    )
    if plan.flow:
        yield "", f"{workload.completion_tokens:,.0f} of completions"
    yield (
        "plan",
        f"{place_words(plan.on, plan.workers)}, mesh {plan.layouts.mesh}, "
        f"weights {plan.asked.weights}, cache {plan.asked.kv}",
    )
    prompt = "score" if plan.flow is None else "prefill"
    yield prompt, f"{_layout(plan.layouts.prefill)}, {plan.prefill_tokens:,} tokens at a time"
    if plan.flow:
        slots = f"{plan.slots:,} slots of {workload.max_length:,} tokens"
        yield "decode", f"{_layout(plan.layouts.decode)}, {slots}, {time_words(plan.decode.seconds)} a step"
    low, high = plan.seconds_range
    yield "time", f"{duration(plan.seconds)}, between {duration(low)} and {duration(high)}"
    shares = {"starting": plan.asked.startup_seconds, prompt: plan.prefill_seconds, "decode": plan.decode_seconds}
    yield "", ", ".join(f"{name} {spent / plan.seconds:.0%}" for name, spent in shares.items() if spent)
    yield "cost", _cost(answer, plan)
    yield "use", _use(plan)
    yield "binds", f"{prompt}: {share_words(plan.prefill(plan.main_bucket).cost.bound_by)}"
    if plan.flow:
        yield "", f"decode: {share_words(plan.decode.cost.bound_by)}"
    held = {"weights": plan.weight_bytes, "KV": plan.cache_bytes, "activations": plan.activation_bytes}
    yield from zip(("memory", ""), memory_lines(held, plan.on.limit_bytes), strict=True)
    yield from zip(("job file", *[""] * 9), _section(answer), strict=False)


def _section(answer: JobAnswer) -> list[str]:
    section = yaml.safe_dump(answer.engine_section, default_flow_style=None, sort_keys=False, width=200)
    return ["engine:", *(f"  {line}" for line in section.splitlines())]


def _layout(layout: Any) -> str:
    return f"{layout.ffn}, attention over {layout.attention}"


def _use(plan: JobPlan) -> str:
    slots = f"slots {plan.flow.busy_fraction:.0%} busy, " if plan.flow else ""
    return f"{slots}{plan.padding_fraction:.0%} of prefilled tokens are padding, MFU {plan.mfu:.1%} without the start"


def _cost(answer: JobAnswer, plan: JobPlan) -> str:
    price, prices = answer.question.price(plan), answer.question.prices
    hours = f"{few_digits(plan.chip_seconds / 3600)} chip-hours"
    if price is None or prices is None:
        return hours
    low, high = (price * seconds / plan.seconds for seconds in plan.seconds_range)
    return (
        f"{few_digits(price)} {prices.currency}, between {few_digits(low)} and {few_digits(high)} "
        f"(prices of {prices.date}); {hours}"
    )


def _table(answer: JobAnswer, plans: Sequence[JobPlan], title: str) -> Table:
    question, chosen = answer.question, answer.chosen
    table = Table("chips", "prefill", "decode", title=title)
    for column in ("slots", "time", "cost" if question.prices else "chip-hours", "compared"):
        table.add_column(column, justify="right")
    for plan in plans:
        cost = question.cost_of(plan)
        seconds, dearer = plan.seconds / chosen.seconds, cost / question.cost_of(chosen)
        table.add_row(
            place_words(plan.on, plan.workers),
            f"{plan.layouts.prefill.ffn}, {plan.layouts.prefill.attention}",
            f"{plan.layouts.decode.ffn}, {plan.layouts.decode.attention}" if plan.flow else "",
            str(plan.slots) if plan.flow else "",
            duration(plan.seconds),
            few_digits(cost if question.prices else cost / 3600),
            "the plan" if plan == chosen else f"{seconds:.2f} x time, {dearer:.2f} x cost",
        )
    return table
