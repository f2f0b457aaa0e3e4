"""What the page says, as values: the template only lays it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from jobs.reporting.drift import PSI_THRESHOLD, Z_THRESHOLD
from jobs.reporting.facts import Facts
from jobs.reporting.figures import percent, short, whole
from jobs.reporting.foreseen import Foreseen, foreseen_against_fact, worker_rows
from jobs.reporting.histogram import Histogram, histogram
from jobs.reporting.run_chart import run_chart
from jobs.reporting.sampling import Example, Sample
from jobs.reporting.timeline import Timeline
from jobs.reporting.trend import FAILURES, MEASURES, WINDOW, Partition
from jobs.reporting.trend_chart import Spot, trend_chart
from jobs.wording import count_words, duration


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str = ""
    is_bad: bool = False
    share: float | None = None

    @property
    def is_long(self) -> bool:
        return len(self.value) > 8


@dataclass(frozen=True)
class Bar:
    """One of several names with a count."""

    name: str
    count: int
    share: float
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class Bars:
    title: str
    bars: Sequence[Bar]
    colour: str = "c1"


@dataclass(frozen=True)
class JobSection:
    facts: Facts
    tiles: Sequence[Tile]
    time: Timeline | None
    run: Markup | None
    lengths: Sequence[Histogram]
    scores: Sequence[Histogram]
    counts: Sequence[Bars]
    failures: Sequence[Bar]
    slowest: Sequence[Mapping[str, object]]
    foreseen: Sequence[Foreseen]
    workers: Sequence[Mapping[str, str]]
    provenance: Sequence[tuple[str, str]]
    sample_words: str


@dataclass(frozen=True)
class Row:
    """A partition in the table."""

    partition: Partition
    moved: Sequence[str]


@dataclass(frozen=True)
class TrendSection:
    rows: Sequence[Row]
    charts: Sequence[tuple[str, Markup]]
    left_out: int
    flagged: int = 0
    rules: Sequence[str] = field(default_factory=tuple)


def outputs_section(facts: Facts) -> JobSection:
    sample, time = facts.sample, facts.timeline
    lengths = [
        histogram("Prompt length", sample.prompt_tokens, "tokens", whole=True, colour="c2"),
        histogram("Completion length", sample.completion_tokens, "tokens", whole=True),
    ]
    scores = [
        histogram("Log-probability per token", sample.logprob_per_token, "nats per token", colour="c3"),
        histogram("Lead of the best choice over the second", sample.margin, "nats", colour="c4"),
        histogram("Perplexity", sample.perplexity, "perplexity", colour="c3"),
    ]
    counts = [
        Bars("Finish reasons", _bars(sample.finish_reasons)),
        Bars("Chosen continuation (best_index)", _bars(sample.best_index), "c4"),
    ]
    return JobSection(
        facts=facts,
        tiles=list(_tiles(facts, time)),
        time=time,
        run=run_chart(time) if time else None,
        lengths=[chart for chart in lengths if chart],
        scores=[chart for chart in scores if chart],
        counts=[bars for bars in counts if bars.bars],
        failures=_failures(facts),
        slowest=_slowest(time),
        foreseen=list(foreseen_against_fact(facts)),
        workers=worker_rows(facts),
        provenance=list(_provenance(facts)),
        sample_words=_sample_words(sample),
    )


def _tiles(facts: Facts, time: Timeline | None) -> Iterator[Tile]:
    status, done = facts.status, facts.status.done
    total = status.plan.rows_total
    yield Tile("Rows", whole(status.records_done), f"of {total:,}", share=status.records_done / max(1, total))
    yield Tile("Failed", whole(done.failed), f"{percent(done.failed_fraction)} of rows done", done.failed > 0)
    tokens, kind = (done.scored_tokens, "scored") if facts.is_score else (done.completion_tokens, "generated")
    yield Tile(f"Tokens {kind}", whole(tokens), f"and {whole(done.prompt_tokens)} of prompts")
    if status.busy_seconds:
        rows = f"{status.records_done / status.busy_seconds:,.1f} rows per second"
        yield Tile("Tokens per second", whole(tokens / status.busy_seconds), rows)
        pauses = f", {count_words(len(time.pauses), 'pause')} left out" if time and time.pauses else ""
        yield Tile("Time computing", duration(status.busy_seconds), f"{count_words(done.shards, 'shard')}{pauses}")
    busy = facts.share("slot_steps_busy", "slot_steps_total")
    useful = facts.share("prefill_tokens", "prefill_tokens_padded")
    if busy is not None:
        note = f"{percent(useful)} of prefill no padding" if useful is not None else "of the decode batch"
        yield Tile("Slots busy", percent(busy), note, share=busy)
    elif useful is not None:
        yield Tile("No padding", percent(useful), "of what the device computed", share=useful)


def _bars(counts: Mapping[str, int]) -> list[Bar]:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Bar(name, count, count / total) for name, count in ordered]


def _failures(facts: Facts) -> list[Bar]:
    done = facts.status.done
    return [
        Bar(reason, count, count / max(1, done.failed), facts.examples.get(reason, ()))
        for reason, count in done.failed_reasons.items()
    ]


def _slowest(time: Timeline | None) -> list[Mapping[str, object]]:
    """The shards that took longest: where to look first."""
    spans = sorted(time.spans, key=lambda span: -span.seconds)[:10] if time else ()
    return [
        {
            "shard": span.entry.shard,
            "rows": span.entry.ok + span.entry.failed,
            "failed": span.entry.failed,
            "tokens": span.entry.completion_tokens + span.entry.scored_tokens,
            "seconds": span.seconds,
        }
        for span in spans
    ]


def _provenance(facts: Facts) -> Iterator[tuple[str, str]]:
    plan, settings = facts.status.plan, facts.settings
    yield "output", facts.status.output
    files = f"{count_words(len(plan.inputs), 'file')}, {_bytes(sum(file.size_bytes for file in plan.inputs))}"
    shown = ", ".join(file.url for file in plan.inputs[:3]) + (" …" if len(plan.inputs) > 3 else "")
    yield "input", f"{files}: {shown}"
    yield "model", plan.model_fingerprint
    yield "tokenizer", plan.tokenizer_fingerprint
    yield "job", plan.job_fingerprint
    yield "shards", f"{len(plan.shards):,} of up to {plan.shard_rows:,} rows"
    for name in ("dtype", "weights", "kv", "max_length", "layouts"):
        if settings.get(name) is not None:
            yield name, _words(settings[name])
    for name in ("sampling", "score", "prompt"):
        if settings.get(name):
            yield name, _words(settings[name])


def _words(value: object) -> str:
    """A setting as text of bounded length."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_words(inner)}" for key, inner in value.items() if inner not in (None, [], {}))
    else:
        text = repr(value) if isinstance(value, str) and value != value.strip() else str(value)
    return text if len(text) <= 2000 else text[:2000] + "…"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _sample_words(sample: Sample) -> str:
    if sample.is_whole or not sample.of_rows:
        return "of all rows"
    return f"of a sample of {sample.rows:,} of {sample.of_rows:,} rows, evenly spread over the output"


# Several outputs.


def partitions_section(partitions: Sequence[Partition], left_out: int) -> TrendSection:
    rules = (
        f"Each partition is compared with the up to {WINDOW} before it, pooled.",
        f"Distributions: population stability index above {PSI_THRESHOLD}, and above what chance reaches once in a "
        "thousand times with so many rows.",
        f"Failure rate: a difference of at least one percentage point with |z| above {Z_THRESHOLD} "
        "(two-proportion z test).",
    )
    return TrendSection(
        rows=[Row(partition, list(_moved(partition))) for partition in partitions],
        charts=list(_charts(partitions)),
        left_out=left_out,
        flagged=sum(bool(partition.drifted) for partition in partitions),
        rules=rules,
    )


def _moved(partition: Partition) -> Iterator[str]:
    for name in partition.drifted:
        value = partition.shifts[name].value
        yield f"{name} (z {value:.1f})" if name == FAILURES else f"{name} (PSI {value:.2f})"


def _charts(partitions: Sequence[Partition]) -> Iterator[tuple[str, Markup]]:
    def plain(
        title: str, of: Callable[[Partition], float | None], say: Callable[[float], str], drift: str, colour: str
    ):
        spots = [Spot(p.facts.label, of(p), is_drift=drift in p.drifted) for p in partitions]
        return title, trend_chart(title, spots, say, colour)

    def spread(title: str, name: str, colour: str, say: Callable[[float], str] = short):
        spots = []
        for partition in partitions:
            values = getattr(partition.facts.sample, name)
            low, middle, high = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9])) if values.size else (None,) * 3
            about = f" (10%: {say(low)}, 90%: {say(high)})" if low is not None and high is not None else ""
            drifted = MEASURES[name] in partition.drifted
            spots.append(Spot(partition.facts.label, middle, low, high, drifted, about))
        return title, trend_chart(title, spots, say, colour)

    def rate(partition: Partition) -> float | None:
        status, done = partition.facts.status, partition.facts.status.done
        tokens = done.completion_tokens + done.scored_tokens
        return tokens / status.busy_seconds if status.busy_seconds else None

    some = [
        plain("Rows", lambda p: p.facts.status.records_done, short, "", "c2"),
        plain("Failed rows", lambda p: p.failed_fraction, lambda v: f"{v:.1%}", FAILURES, "c4"),
        spread("Prompt length, tokens", "prompt_tokens", "c2"),
        spread("Completion length, tokens", "completion_tokens", "c1"),
        spread("Log-probability per token", "logprob_per_token", "c3"),
        spread("Lead of the best choice, nats", "margin", "c4"),
        spread("Perplexity", "perplexity", "c3"),
        plain("Tokens per second", rate, short, "", "c1"),
    ]
    yield from ((title, chart) for title, chart in some if chart is not None)
