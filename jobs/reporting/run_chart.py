"""A run over time, in one drawing: which shard was open where, tokens per second, how full slots and prefill were."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from jobs.reporting.figures import short, ticks, whole
from jobs.reporting.svg import WIDE, Scale, along, figure, grid, path, tag
from jobs.reporting.timeline import Span, Timeline
from jobs.wording import count_words, duration

LEFT, RIGHT, PANEL, GAP = 64, 16, 120, 46
MOST_LANES = 120
"""With more, the number of open shards is drawn instead of each of them."""
_LANES_HIGH = 260
_THINNEST = 1.5

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def run_chart(time: Timeline) -> Markup:
    """The panels one above the other, with one time axis."""
    x = Scale(0.0, time.seconds, LEFT, WIDE - RIGHT)
    parts: list[Markup] = []
    y = 24.0
    for title, draw, height in _panels(time):
        parts.append(tag("text", title, x=LEFT, y=y - 9, class_="panel"))
        parts += draw(time, x, y, height)
        y += height + GAP
    bottom = y - GAP
    for pause in time.pauses:
        at = x(pause.at)
        said = tag("title", f"no shard was open for {duration(pause.seconds)}; that time is cut out")
        line = tag("line", said, x1=at, x2=at, y1=14, y2=bottom, class_="pause")
        parts += [line, tag("text", f"pause {duration(pause.seconds)}", x=at + 4, y=12, class_="note start")]
    marks = _time_ticks(time.seconds)
    parts.append(along(x, marks, [_clock(mark, time) for mark in marks], bottom + 20))
    parts.append(tag("text", _axis(time), x=(LEFT + WIDE - RIGHT) / 2, y=bottom + 38, class_="axis mid"))
    label = f"The run over time: {count_words(len(time.spans), 'shard')} in {duration(time.seconds)}"
    return figure(label, WIDE, bottom + 44, parts)


def _panels(time: Timeline):
    if len(time.lanes) <= MOST_LANES:
        lane = min(22.0, max(3.0, _LANES_HIGH / len(time.lanes)))
        yield "Shards", _gantt, lane * len(time.lanes)
    else:
        yield "Shards open", _open_shards, PANEL
    yield "Tokens per second", _rates, PANEL
    if time.slots_busy is not None:
        yield "Slots busy", _slots, PANEL * 0.7
    if time.useful_prefill is not None:
        yield "Prefill that is no padding", _prefill, PANEL * 0.7


def _gantt(time: Timeline, x: Scale, top: float, height: float) -> list[Markup]:
    lane_height = height / len(time.lanes)
    parts = []
    for lane, name in enumerate(time.lanes):
        y = top + lane * lane_height
        parts.append(tag("rect", x=LEFT, width=WIDE - LEFT - RIGHT, y=y, height=lane_height * 0.84, class_="rail"))
        if name and lane_height >= 10:
            shown = name if len(name) <= 10 else "…" + name[-9:]
            parts.append(
                tag("text", tag("title", name), shown, x=LEFT - 8, y=y + lane_height * 0.42 + 4, class_="tick end")
            )
    for spans in _drawable(time.spans, x):
        y, bar = top + spans[0].lane * lane_height, lane_height * 0.84
        left, right = x(spans[0].start), x(spans[-1].end)
        width = max(0.6, right - left - (1 if right - left > 4 else 0))
        said = tag("title", _about(spans))
        parts.append(tag("rect", said, x=left, width=width, y=y, height=bar, rx=min(3.0, bar / 4), class_="fill c1"))
        failed, records = (sum(getattr(s.entry, n) for s in spans) for n in ("failed", "ok"))
        if failed:
            part = max(2.0, bar * failed / (failed + records))
            parts.append(
                tag(
                    "rect",
                    tag("title", _about(spans)),
                    x=left,
                    width=width,
                    y=y + bar - part,
                    height=part,
                    class_="fill bad",
                )
            )
    return parts


def _drawable(spans: Sequence[Span], x: Scale) -> Iterator[list[Span]]:
    """Spans to draw as one bar: neighbours in a lane that would be too thin to tell apart."""
    by_lane: dict[int, list[Span]] = {}
    for span in spans:
        waiting = by_lane.get(span.lane)
        if waiting and x(span.end) - x(waiting[0].start) < _THINNEST:
            waiting.append(span)
            continue
        if waiting:
            yield waiting
        by_lane[span.lane] = [span]
    yield from by_lane.values()


def _about(spans: Sequence[Span]) -> str:
    entries = [span.entry for span in spans]
    rows, failed = sum(e.ok + e.failed for e in entries), sum(e.failed for e in entries)
    tokens = sum(e.completion_tokens + e.scored_tokens for e in entries)
    seconds = spans[-1].end - spans[0].start
    name = f"shard {entries[0].shard}" if len(spans) == 1 else f"{len(spans)} shards"
    bad = f", {failed:,} failed" if failed else ""
    return (
        f"{name}: {rows:,} rows{bad}; {tokens:,} tokens in {duration(seconds)} ({tokens / max(seconds, 1e-3):,.0f}/s)"
    )


def _open_shards(time: Timeline, x: Scale, top: float, height: float) -> list[Markup]:
    starts = np.sort([span.start for span in time.spans])
    ends = np.sort([span.end for span in time.spans])
    middle = (time.edges[:-1] + time.edges[1:]) / 2
    count = np.searchsorted(starts, middle, side="right") - np.searchsorted(ends, middle, side="right")
    return _area(time, x, top, height, [("shards open", count.astype(float), "c1")], lambda v: f"{v:,.0f}")


def _rates(time: Timeline, x: Scale, top: float, height: float) -> list[Markup]:
    scored = any(span.entry.scored_tokens for span in time.spans)
    series = [("scored" if scored else "generated", time.generated, "c1"), ("of prompts", time.prompts, "c2")]
    return _area(time, x, top, height, [s for s in series if s[1].any()], lambda v: f"{whole(v)} tokens/s")


def _slots(time: Timeline, x: Scale, top: float, height: float) -> list[Markup]:
    assert time.slots_busy is not None
    return _area(time, x, top, height, [("busy", time.slots_busy, "c3")], lambda v: f"{v:.0%}", share=True)


def _prefill(time: Timeline, x: Scale, top: float, height: float) -> list[Markup]:
    assert time.useful_prefill is not None
    return _area(time, x, top, height, [("useful", time.useful_prefill, "c4")], lambda v: f"{v:.0%}", share=True)


def _area(time: Timeline, x: Scale, top: float, height: float, series, say, share: bool = False) -> list[Markup]:
    """Stepped lines over the bins, filled below when there is one."""
    most = 1.0 if share else max([float(np.nanmax(values)) for _, values, _ in series] or [0.0]) or 1.0
    y = Scale(0.0, most, top + height, top)
    marks = [0.0, 0.5, 1.0] if share else ticks(0.0, most, 4)
    parts = [grid(y, marks, [f"{m:.0%}" if share else short(m) for m in marks], LEFT, WIDE - RIGHT)]
    for _, values, colour in series:
        for run in _unbroken(values):
            steps = [(x(time.edges[i + side]), y(float(values[i]))) for i in run for side in (0, 1)]
            if len(series) == 1 or colour == "c1":
                base = [(steps[-1][0], y(0.0)), (steps[0][0], y(0.0))]
                parts.append(path([*steps, *base], f"area {colour}", close=True))
            parts.append(path(steps, f"line {colour}"))
    if len(series) > 1:
        for i, (name, _, colour) in enumerate(reversed(series)):
            at = WIDE - RIGHT - 120 * i
            parts.append(tag("text", name, x=at, y=top - 9, class_="note end"))
            parts.append(
                tag("rect", x=at - 16 - 7 * len(name), width=10, height=10, y=top - 18, rx=2, class_=f"fill {colour}")
            )
    for i in range(len(time.edges) - 1):
        said = [f"{name} {say(float(values[i]))}" for name, values, _ in series if not np.isnan(values[i])]
        if said:
            left, right = x(time.edges[i]), x(time.edges[i + 1])
            title = tag("title", f"{_clock(time.edges[i], time)}: {', '.join(said)}")
            parts.append(tag("rect", title, x=left, width=right - left, y=top, height=height, class_="hover"))
    return parts


def _unbroken(values: np.ndarray) -> list[list[int]]:
    """Stretches of bins without NaN."""
    runs: list[list[int]] = [[]]
    for i, value in enumerate(values):
        if np.isnan(value):
            runs.append([])
        else:
            runs[-1].append(i)
    return [run for run in runs if run]


def _time_ticks(seconds: float) -> list[float]:
    step = next((step for step in _STEPS if seconds / step <= 9), 86400.0 * np.ceil(seconds / 86400 / 9))
    return [float(i * step) for i in range(int(seconds / step) + 1)]


def _clock(at: float, time: Timeline) -> str:
    """A moment on the axis: of the day where nothing is cut out, else since the start."""
    if time.pauses:
        return duration(at) if at else "0"
    moment = time.started_at + datetime.timedelta(seconds=at)
    if time.seconds > 86400:
        return f"{moment:%d %b %H:%M}"
    return f"{moment:%H:%M:%S}" if time.seconds > 20 else f"{moment:%H:%M:%S}.{moment.microsecond // 100000}"


def _axis(time: Timeline) -> str:
    day = f"{time.started_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"time since {day}, pauses left out" if time.pauses else f"time of day (UTC), from {day}"
