"""What was foreseen of a job against what happened, and who did it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jobs.reporting.beside import number
from jobs.reporting.facts import Facts
from jobs.reporting.figures import exact, percent, whole
from jobs.wording import duration

NEAR = 0.25
"""A ratio within this of 1 is as foreseen."""


@dataclass(frozen=True)
class Foreseen:
    name: str
    foreseen: str
    happened: str
    ratio: float | None
    """Happened by foreseen."""

    @property
    def is_off(self) -> bool:
        return self.ratio is not None and abs(self.ratio - 1) > NEAR


def foreseen_against_fact(facts: Facts) -> Iterator[Foreseen]:
    """A row for each figure that both sides have; nothing without a prediction."""
    plan, status, done = facts.prediction, facts.status, facts.status.done
    if plan is None:
        return

    def row(
        name: str, foreseen: float | None, happened: float | None, say: Callable[[float], str]
    ) -> Iterator[Foreseen]:
        if foreseen is not None and happened is not None:
            yield Foreseen(name, say(foreseen), say(happened), happened / foreseen if foreseen else None)

    rows = max(1, status.records_done)
    rows_foreseen = number(plan, "rows") or 0.0
    seconds = number(plan, "seconds")
    yield from row("time", seconds, status.busy_seconds or None, duration)
    low, high = number(plan, "seconds_low"), number(plan, "seconds_high")
    if seconds is not None and low is not None and high is not None:
        inside = "inside" if low <= status.busy_seconds <= high else "outside"
        yield Foreseen("its interval", f"{duration(low)} to {duration(high)}", inside, None)
    yield from row("rows", rows_foreseen or None, status.records_done, whole)
    for name, key, count in (
        ("tokens of a prompt", "prompt_tokens", done.prompt_tokens),
        ("tokens generated a row", "completion_tokens", done.completion_tokens),
    ):
        tokens = number(plan, key)
        if tokens and rows_foreseen:
            yield from row(name, tokens / rows_foreseen, count / rows, exact)
    busy = facts.share("slot_steps_busy", "slot_steps_total")
    yield from row("slots busy", number(plan, "slots_busy_fraction"), busy, percent)
    useful = facts.share("prefill_tokens", "prefill_tokens_padded")
    yield from row(
        "padding of prefill", number(plan, "padding_fraction"), None if useful is None else 1 - useful, percent
    )
    chips = number(plan, "chip_count")
    hours = None if chips is None else chips * status.busy_seconds / 3600
    yield from row("chip-hours", number(plan, "chip_hours"), hours, exact)


_WORKER = {
    "worker": "worker",
    "device": "device_kind",
    "devices": "devices",
    "computed in": "dtype",
    "slots": "slots",
    "loaded in": "load_seconds",
    "memory used": "peak_memory_bytes",
    "since": "started_at",
}
"""Column titles, and the keys of the document."""


def worker_rows(facts: Facts) -> list[Mapping[str, str]]:
    return [{title: _cell(worker, key) for title, key in _WORKER.items()} for worker in facts.workers]


def _cell(worker: Mapping[str, object], key: str) -> str:
    value = worker.get(key)
    if value is None:
        return "\N{EN DASH}"
    if key.endswith("_bytes") and (size := number(worker, key)) is not None:
        return f"{size / 2**30:,.1f} GiB"
    if key.endswith("_seconds") and (seconds := number(worker, key)) is not None:
        return duration(seconds)
    return str(value)[:120]
