"""A distribution as bars, with its median and its 95th percentile, and its figures as words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from jobs.reporting.figures import exact, log_ticks, percent, short, ticks
from jobs.reporting.svg import NARROW, Scale, along, figure, grid, path, tag

BARS = 36
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 230, 52, 14, 24, 40
_SPREAD_FOR_LOG = 20
"""A distribution whose largest value is so many medians is drawn over a logarithmic axis."""


@dataclass(frozen=True)
class Histogram:
    title: str
    chart: Markup
    figures: list[tuple[str, str]]


def histogram(
    title: str, values: np.ndarray, unit: str, *, whole: bool = False, colour: str = "c1"
) -> Histogram | None:
    """None when there is nothing to count. `whole`: values are integers, and bars hold the same number of them."""
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    median, late = (float(q) for q in np.quantile(values, [0.5, 0.95]))
    is_log = low > 0 and high > _SPREAD_FOR_LOG * median
    edges = _edges(low, high, whole, is_log)
    counts, _ = np.histogram(values, edges)
    shares = counts / values.size
    x = Scale(edges[0], edges[-1], LEFT, NARROW - RIGHT, is_log)
    top = float(shares.max())
    y = Scale(0.0, top * 1.05, HEIGHT - BOTTOM, TOP)
    marks = ticks(0.0, top, 4)
    parts = [grid(y, marks, [percent(mark).replace(".0%", "%") for mark in marks], LEFT, NARROW - RIGHT)]
    for share, count, a, b in zip(shares, counts, edges[:-1], edges[1:], strict=True):
        if count:
            said = f"{_range(a, b, whole)} {unit}: {count:,} ({percent(share)})"
            gap = 1 if x(b) - x(a) > 3 else 0
            parts.append(
                tag("rect", tag("title", said), x=x(a), width=max(0.8, x(b) - x(a) - gap), y=y(share),
                    height=y(0.0) - y(share), class_=f"fill {colour}")
            )  # fmt: skip
    parts += _marker("median", median, x, y, before=x(late) - x(median) < 110 and x(median) > LEFT + 90)
    if x(late) - x(median) > (110 if x(median) <= LEFT + 90 else 12):
        parts += _marker("95%", late, x, y, before=x(late) > NARROW - 110)
    labels = log_ticks(edges[0], edges[-1]) if is_log else ticks(edges[0], edges[-1], 6)
    parts.append(along(x, labels, [short(v) for v in labels], HEIGHT - BOTTOM + 18))
    parts.append(
        tag(
            "text",
            unit + (" (log scale)" if is_log else ""),
            x=(LEFT + NARROW - RIGHT) / 2,
            y=HEIGHT - 4,
            class_="axis mid",
        )
    )
    figures = [(name, exact(value)) for name, value in _figures(values)]
    words = ", ".join(f"{name} {value}" for name, value in figures)
    return Histogram(title, figure(f"{title}: {words}", NARROW, HEIGHT, parts), figures)


def _marker(name: str, value: float, x: Scale, y: Scale, *, before: bool) -> list[Markup]:
    """A line at a value, with its name on one side."""
    at = min(max(x(value), LEFT), NARROW - RIGHT)
    side = "end" if before or at > NARROW - 110 else "start"
    said = tag("text", f"{name} {short(value)}", x=at + (-5 if side == "end" else 5), y=TOP - 8, class_=f"note {side}")
    return [path([(at, TOP - 6), (at, y(0.0))], "mark"), said]


def _figures(values: np.ndarray) -> list[tuple[str, float]]:
    quantiles = np.quantile(values, [0.05, 0.5, 0.95, 0.99])
    names = ("5%", "median", "95%", "99%")
    return [
        ("mean", float(values.mean())),
        *zip(names, map(float, quantiles), strict=True),
        ("largest", float(values.max())),
    ]


def _edges(low: float, high: float, whole: bool, is_log: bool) -> np.ndarray:
    if is_log:
        return np.geomspace(low, high * 1.0001, BARS + 1)
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / BARS)))
        bars = int(np.ceil((high - low + 1) / width))
        return low - 0.5 + width * np.arange(bars + 1)
    if high == low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, BARS + 1)


def _range(a: float, b: float, whole: bool) -> str:
    if not whole:
        return f"{exact(a)} to {exact(b)}"
    first, last = int(np.ceil(a)), int(np.ceil(b)) - 1
    return f"{first:,}" if first >= last else f"{first:,} to {last:,}"
