"""Two drawings of a plan, as an HTML page or a PNG: cost against time (the paper's figure 1), and the roofline.

The roofline is of one chip: the rate of products against how many operations a program does for each byte it reads. A
program lies under the roof by what it sends, starts late, or reaches of the peak.
"""

from __future__ import annotations

import html
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.planning.planner import PhasePlan
from pipeline.errors import JobError, OutputError

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 820, 440, 80, 60, 40, 200


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    group: str
    """Points of a group have a colour."""
    label: str
    is_chosen: bool = False


@dataclass(frozen=True)
class Drawing:
    """Points and lines over two logarithmic axes."""

    title: str
    x: str
    y: str
    points: Sequence[Point]
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]] = ()
    """(group, corners)"""

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys([point.group for point in self.points] + [group for group, _ in self.lines]))

    def colour(self, group: str) -> str:
        return _COLOURS[self.groups.index(group) % len(_COLOURS)]


def roofline(plans: Sequence[tuple[str, PhasePlan]]) -> Drawing:
    """Programs by name under the roofs of their chips."""
    points = []
    roofs: dict[str, Sequence[tuple[float, float]]] = {}
    for name, plan in plans:
        chip, cost = plan.on.chip, plan.cost
        read = max(1.0, cost.weight_bytes + cost.kv_bytes) * chip.devices
        flops = cost.flops / plan.on.chips
        points.append(Point(flops / read, flops / plan.seconds / 1e12, name, f"{name}: {plan.on}"))
        ridge = chip.bf16_flops_per_second / chip.hbm_bytes_per_second
        roofs[f"roof of {chip.name}"] = [
            (1.0, chip.hbm_bytes_per_second / 1e12),
            (ridge, chip.bf16_flops_per_second / 1e12),
            (max(1e5, 4 * ridge, *(point.x for point in points)), chip.bf16_flops_per_second / 1e12),
        ]
    return Drawing("Roofline of a chip", "operations for each byte read", "TFLOP/s a chip", points, list(roofs.items()))


def draw(path: str, title: str, drawings: Sequence[Drawing]) -> None:
    """Writes an .html page with the drawings in it, or a .png."""
    ending = Path(path).suffix.lower()
    if ending not in (".html", ".png"):
        raise JobError(f"--plot {path}: the file must end in .html or .png")
    if ending == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise JobError("--plot: a PNG needs matplotlib: pip install 'penstock[plot]', or ask for .html")
    try:
        if ending == ".png":
            _png(path, title, drawings)
        else:
            Path(path).write_text(_page(title, drawings), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--plot {path}: cannot be written: {error.strerror or error}") from error


# HTML.


def _page(title: str, drawings: Sequence[Drawing]) -> str:
    bodies = "\n".join(_svg(drawing) for drawing in drawings)
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:14px sans-serif;margin:2em}svg{margin:0 2em 2em 0}text{font:12px sans-serif}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{bodies}\n</body></html>\n"
    )


def _svg(drawing: Drawing) -> str:
    corners = [(point.x, point.y) for point in drawing.points] + [at for _, line in drawing.lines for at in line]
    x_scale, y_scale = (_Scale([corner[axis] for corner in corners]) for axis in range(2))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + width * x_scale.of(x), _TOP + height * (1 - y_scale.of(y))

    parts = [f'<text x="{_LEFT}" y="20" font-weight="bold">{html.escape(drawing.title)}</text>']
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in x_scale.ticks():
        at = place(value, y_scale.low)[0]
        parts.append(f'<path d="M{at:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    for value in y_scale.ticks():
        at = place(x_scale.low, value)[1]
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 16}" text-anchor="middle">{html.escape(drawing.x)}</text>'
    )
    middle = _TOP + height / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        f"{html.escape(drawing.y)}</text>"
    )
    for group, line in drawing.lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*at) for at in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{drawing.colour(group)}" stroke-width="1.5"/>')
    for point in drawing.points:
        x, y = place(point.x, point.y)
        ring = ' stroke="black" stroke-width="2"' if point.is_chosen else ""
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if point.is_chosen else 4}" fill="{drawing.colour(point.group)}"'
            f"{ring}><title>{html.escape(point.label)}</title></circle>"
        )
    for row, group in enumerate(drawing.groups):
        y = _TOP + 14 + 16 * row
        parts.append(f'<rect x="{right + 12}" y="{y - 9}" width="10" height="10" fill="{drawing.colour(group)}"/>')
        parts.append(f'<text x="{right + 28}" y="{y}">{html.escape(group)}</text>')
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(parts)}</svg>'


class _Scale:
    """A logarithmic axis over some values, with a little room at both ends."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values) / 1.2, max(values) * 1.2

    def of(self, value: float) -> float:
        """0 at the low end, 1 at the high."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(decades) <= 4 else (1,)
        found = [step * 10.0**decade for decade in decades for step in steps]
        return [value for value in found if self.low <= value <= self.high]


# PNG.


def _png(path: str, title: str, drawings: Sequence[Drawing]) -> None:
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("agg")
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(1, len(drawings), figsize=(7 * len(drawings), 5), squeeze=False)
    figure.suptitle(title)
    for axis, drawing in zip(axes[0], drawings, strict=True):
        axis.set(title=drawing.title, xlabel=drawing.x, ylabel=drawing.y, xscale="log", yscale="log")
        axis.grid(which="both", alpha=0.3)
        for group, line in drawing.lines:
            axis.plot(*zip(*line, strict=True), color=drawing.colour(group), label=group)
        for group in drawing.groups:
            if some := [point for point in drawing.points if point.group == group]:
                xs, ys = [point.x for point in some], [point.y for point in some]
                axis.scatter(xs, ys, color=drawing.colour(group), label=group)
        for point in drawing.points:
            if point.is_chosen:
                axis.scatter([point.x], [point.y], s=120, facecolors="none", edgecolors="black")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
