"""The plan of a phase as a person reads it: what was chosen, why, what else there is, what binds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from engine.planning.planner import PhasePlan
from jobs.planning.phase_plan import PhaseAnswer
from jobs.planning.words import gib, layout_words, memory_lines, share_words, time_words, why_slower


def rendered(answer: PhaseAnswer) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    for label, text in _lines(answer):
        facts.add_row(label, text)
    parts: list[RenderableType] = [facts]
    if others := answer.runners_up():
        parts += ["", _others(answer, others)]
    front = answer.frontier()
    if len(front) > 1:
        parts += ["", _frontier(answer, front)]
    return Group(*parts, "", *(f"Note: {note}." for note in answer.notes()))


def _lines(answer: PhaseAnswer) -> Iterator[tuple[str, str]]:
    question, plan = answer.question, answer.chosen
    asked, cost = plan.asked, plan.cost
    what = {"prefill": "prompts", "score": "texts", "decode": "sequences, in a cache for each"}[asked.phase]
    yield "program", f"{asked.phase} of {question.model}, {asked.batch} {what} of {asked.context_tokens} tokens,"
    shared = f", {asked.shared_tokens} tokens of each shared" if asked.shared_tokens else ""
    yield "", f"weights {plan.program.weights}, cache {plan.program.kv}{shared}"
    yield "plan", f"{plan.on}, mesh {plan.layout.mesh}: {layout_words(plan)}"
    unit = "a round" if asked.speculation else "a step" if asked.phase == "decode" else "in all"
    yield "time", f"{time_words(plan.seconds)} {unit}, give or take {cost.error_fraction:.0%}"
    if asked.phase == "decode":
        yield "", f"{time_words(question.whole_seconds(plan))} for {question.tokens} tokens of each sequence"
    if asked.speculation and plan.draft:
        yield (
            "draft",
            f"{asked.speculation.guesses} guesses of {time_words(plan.draft.cost.seconds)} each, verified in "
            f"{time_words(plan.cost.seconds)}: {asked.speculation.tokens:.2f} tokens a round",
        )
    rate = plan.tokens / plan.seconds
    yield "rate", f"{rate:,.0f} tokens/s, {rate / plan.on.chips:,.0f} a chip; MFU {plan.mfu:.1%}"
    yield "cost", _cost_words(answer, plan)
    yield "binds", share_words(plan.bound_by)
    facts = plan.memory
    kv = facts.cache if asked.phase == "decode" else facts.results
    held = {"weights": facts.weights, "KV": kv, "activations": facts.peak - facts.weights - kv}
    if plan.draft:
        held["draft"] = plan.peak_bytes - facts.peak
    yield from zip(("memory", ""), memory_lines(held, plan.on.limit_bytes), strict=True)
    yield "sends", f"{cost.collective_bytes / 1e6:,.1f} MB a chip ({_by_axis(plan)}) in {_counted(plan)}"
    for other in answer.too_large():
        yield (
            "no room",
            f"{layout_words(other)} on {other.layout.mesh} would take {time_words(other.seconds)}, and needs "
            f"{gib(other.peak_bytes)}",
        )


def _counted(plan: PhasePlan) -> str:
    return "a step" if plan.asked.phase == "decode" else "all"


def _by_axis(plan: PhasePlan) -> str:
    sent = {axes: size for axes, size in plan.cost.collective_bytes_by_axis.items() if size}
    return ", ".join(f"{axes} {size / 1e6:,.1f}" for axes, size in sorted(sent.items())) or "nothing"


def _cost_words(answer: PhaseAnswer, plan: PhasePlan) -> str:
    price, prices = answer.question.price(plan), answer.question.prices
    hours = f"{plan.chip_seconds_per_token * 1e6 / 3600:,.3f} chip-hours a million tokens"
    if price is None or prices is None:
        return f"{hours} (no prices: --prices FILE)"
    return f"{price * 1e6:,.2f} {prices.currency} a million tokens (prices of {prices.date}); {hours}"


def _others(answer: PhaseAnswer, others: list[PhasePlan]) -> Table:
    table = Table("other layouts", "mesh", title="runners-up, on the same chips")
    table.add_column("time", justify="right")
    table.add_column("slower", justify="right")
    table.add_column("what it loses by")
    for plan in others:
        table.add_row(
            layout_words(plan),
            str(plan.layout.mesh),
            time_words(plan.seconds),
            f"{plan.seconds / answer.chosen.seconds:.2f} x",
            why_slower(plan, answer.chosen),
        )
    return table


def _frontier(answer: PhaseAnswer, plans: list[PhasePlan]) -> Table:
    priced = answer.question.prices is not None
    table = Table("chips", "mesh", "layout", title="none is both faster and cheaper than one of these")
    for column in ("batch", "time", "MFU", "price of 1M tokens" if priced else "chip-hours of 1M tokens"):
        table.add_column(column, justify="right")
    for plan in plans:
        price = answer.question.price(plan)
        cost = plan.chip_seconds_per_token * 1e6 / 3600 if price is None else price * 1e6
        table.add_row(
            str(plan.on),
            str(plan.layout.mesh),
            layout_words(plan),
            str(plan.asked.batch),
            time_words(plan.seconds),
            f"{plan.mfu:.1%}",
            f"{cost:,.3f}",
        )
    return table
