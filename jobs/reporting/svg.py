"""Drawing in SVG, as text: elements, axes, and a figure that screen readers can name.

Colours are classes (page.css), so that a chart follows the page into dark mode and onto paper. A `<title>` in a mark
is what the browser shows when it is pointed at, without any script. Everything that comes from data is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE, NARROW = 960, 520
"""Widths of a chart, in its own units."""


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """An element. `inside` is escaped unless it is Markup; `class_` and `stroke_width` are class and stroke-width."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value) if _is_number(value) else value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, Markup("").join(map(escape, inside)), Markup(name))


def figure(label: str, width: float, height: float, parts: Iterable[Markup]) -> Markup:
    """A chart with a name."""
    kind = "chart wide" if width == WIDE else "chart"
    box = f"0 0 {_number(width)} {_number(height)}"
    return tag("svg", Markup("").join(parts), class_=kind, viewBox=box, role="img", aria_label=label)


@dataclass(frozen=True)
class Scale:
    """Values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        part = (value - low) / (high - low) if high > low else 0.5
        return self.start + part * (self.end - self.start)


def grid(y: Scale, values: Sequence[float], labels: Sequence[str], left: float, right: float) -> Markup:
    """Horizontal lines with their values at the left."""
    lines = [
        tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="base" if value == y.low else "grid")
        for value in values
    ]
    texts = [
        tag("text", label, x=left - 8, y=y(value) + 4, class_="tick end")
        for value, label in zip(values, labels, strict=True)
    ]
    return Markup("").join([*lines, *texts])


def along(x: Scale, values: Sequence[float], labels: Sequence[str], at: float) -> Markup:
    """Labels below an axis; every other one is left out on a narrow screen."""
    return Markup("").join(
        tag("text", label, x=x(value), y=at, class_="tick mid" + (" odd" if i % 2 else ""))
        for i, (value, label) in enumerate(zip(values, labels, strict=True))
    )


def path(points: Iterable[tuple[float, float]], class_: str, close: bool = False) -> Markup:
    text = "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return tag("path", d=f"M{text}{'Z' if close else ''}", class_=class_)


def meter(share: float, class_: str = "c1") -> Markup:
    """A bar as wide as its place allows, filled so far. What it says is written beside it."""
    bar = tag("rect", width=100 * min(1.0, max(0.0, share)), height=8, class_=f"fill {class_}")
    rail = tag("rect", width=100, height=8, class_="rail")
    return tag("svg", rail, bar, class_="meter", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
