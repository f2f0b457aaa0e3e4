"""A measure over partitions: a line through the medians, a band around it, and a ring where it drifted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs.reporting.figures import short, ticks
from jobs.reporting.svg import NARROW, Scale, along, figure, grid, path, tag

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 210, 56, 18, 18, 34
_LABELS = 5


@dataclass(frozen=True)
class Spot:
    """One partition: the middle, and the band from `low` to `high` where the measure is a distribution."""

    label: str
    middle: float | None
    low: float | None = None
    high: float | None = None
    is_drift: bool = False
    about: str = ""


def trend_chart(
    title: str, spots: Sequence[Spot], say: Callable[[float], str] = short, colour: str = "c1"
) -> Markup | None:
    """None when no partition has the measure."""
    known = [(i, spot) for i, spot in enumerate(spots) if spot.middle is not None]
    if not known:
        return None
    values = [value for _, spot in known for value in (spot.middle, spot.low, spot.high) if value is not None]
    low, high = min(values), max(values)
    if 0 <= low < 0.6 * high:
        low = 0.0
    if high == low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    y = Scale(low, high + 0.06 * (high - low), HEIGHT - BOTTOM, TOP)
    x = Scale(0, max(1, len(spots) - 1), LEFT + 10, NARROW - RIGHT - 10)
    marks = ticks(low, high, 4)
    parts = [grid(y, marks, [say(mark) for mark in marks], LEFT, NARROW - RIGHT)]
    banded = [(i, spot.low, spot.high) for i, spot in known if spot.low is not None and spot.high is not None]
    if len(banded) > 1:
        upper = [(x(i), y(top)) for i, _, top in banded]
        lower = [(x(i), y(bottom)) for i, bottom, _ in reversed(banded)]
        parts.append(path([*upper, *lower], f"area {colour}", close=True))
    points = [(x(i), y(spot.middle)) for i, spot in known if spot.middle is not None]
    parts.append(path(points, f"line {colour}"))
    for (i, spot), (_, at) in zip(known, points, strict=True):
        if spot.is_drift:
            parts.append(tag("circle", cx=x(i), cy=at, r=8, class_="ring"))
        parts.append(
            tag(
                "circle",
                cx=x(i),
                cy=at,
                r=3 if len(spots) < 60 else 2,
                class_=f"fill {'bad' if spot.is_drift else colour}",
            )
        )
        half = (NARROW - LEFT - RIGHT) / max(2, len(spots)) / 2
        title_of = tag(
            "title", f"{spot.label}: {say(spot.middle or 0.0)}{spot.about}{' (drift)' if spot.is_drift else ''}"
        )
        parts.append(
            tag("rect", title_of, x=x(i) - half, width=2 * half, y=TOP, height=HEIGHT - BOTTOM - TOP, class_="hover")
        )
    step = max(1, math.ceil(len(spots) / _LABELS))
    places = list(range(0, len(spots), step))
    parts.append(along(x, places, [_tail(spots[i].label) for i in places], HEIGHT - BOTTOM + 20))
    drifts = sum(spot.is_drift for spot in spots)
    return figure(f"{title} over {len(spots)} partitions, {drifts} flagged", NARROW, HEIGHT, parts)


def _tail(label: str) -> str:
    """The end of a partition's name, which tells it from its neighbours."""
    text = label.rsplit("=", 1)[-1]
    return text if len(text) <= 12 else "…" + text[-11:]
