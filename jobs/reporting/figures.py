"""Numbers on the page: short for axes, whole for people, and where an axis has its ticks."""

from __future__ import annotations

import math


def short(value: float) -> str:
    """At most three digits and a unit: 950, 12k, 1.5M; small ones with the digits they need."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{_three(value / limit)}{unit}"
    return _three(value)


def whole(value: float) -> str:
    """All digits up to a million, then four and a unit."""
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    return next(
        f"{value / limit:,.2f}{unit}" for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= limit
    )


def exact(value: float) -> str:
    """Three digits, or all those before the point."""
    return minus(f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}")


def minus(text: str) -> str:
    """A number with the sign that is as wide as a digit."""
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text


def percent(share: float) -> str:
    """With as many digits as a small share needs; what is not all is never said to be 100%."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.1%}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    step = 10.0 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 of each where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _three(value: float) -> str:
    size = abs(value)
    if 0 < size < 0.1:
        return minus(f"{value:.2g}")
    digits = 0 if size >= 100 or value == round(value) else 1 if size >= 10 else 2
    text = f"{value:.{digits}f}"
    return minus(text.rstrip("0").rstrip(".") if "." in text else text)
