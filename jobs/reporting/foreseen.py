"""What was foreseen of a job against what happened, and who did it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jobs.comparison import Comparison
from jobs.reporting.facts import Facts
from jobs.reporting.figures import exact, percent, whole
from jobs.reporting.workers import number
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
    """A row for each figure that both sides have; nothing without a prediction, or before anything is done."""
    plan, done = facts.status.prediction, facts.status.done
    if plan is None or not done.ok:
        return

    def row(
        name: str, foreseen: float | None, happened: float | None, say: Callable[[float], str]
    ) -> Iterator[Foreseen]:
        if foreseen is not None and happened is not None:
            yield Foreseen(name, say(foreseen), say(happened), happened / foreseen if foreseen else None)

    compared = Comparison(plan, done)
    low, high = compared.interval
    if compared.ratio is not None:
        yield from row("work, for these tokens", compared.foreseen_seconds, compared.seconds, duration)
        inside = "inside" if low <= compared.seconds <= high else "outside"
        yield Foreseen("its interval", f"{duration(low)} to {duration(high)}", inside, None)
    yield from row("rows", plan.rows, done.ok + done.failed, whole)
    yield from row("tokens of a prompt", plan.prompt_tokens / plan.rows, done.prompt_tokens / done.ok, exact)
    if not compared.is_scoring:
        generated = plan.completion_tokens / plan.rows, done.completion_tokens / done.ok
        yield from row("tokens generated a row", *generated, exact)
    yield from row("slots busy", plan.slots_busy_fraction, done.slots_busy_fraction, percent)
    yield from row("padding of prefill", plan.padding_fraction, done.padding_fraction, percent)
    yield from row("MFU", plan.mfu, compared.mfu, percent)
    yield from row("chip-hours", plan.chip_hours, compared.chip_hours, exact)


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
