"""Plans in words, the same for a phase and for a whole job: times, shares, a bar of memory, why not another."""

from __future__ import annotations

from collections.abc import Mapping

from engine.planning.planner import PhasePlan

BAR_WIDTH = 48
_LETTERS = {"weights": "W", "KV": "K", "activations": "a", "draft": "D", "free": "."}
_WORTH_SAYING = 0.02

RESOURCES = {
    "compute": "products",
    "weights": "reading weights",
    "kv": "reading keys and values",
    "collectives": "sending between chips",
    "latency": "starting layers",
    "draft": "the draft model",
}
"""What a share of the time is spent on."""


def time_words(seconds: float) -> str:
    """Three digits, in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.{2 if seconds / size < 100 else 1}f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def size_words(count: float) -> str:
    """In GiB, or what is small in MiB."""
    return gib(count) if count >= 2**30 / 10 or not count else f"{count / 2**20:.1f} MiB"


def share_words(shares: Mapping[str, float]) -> str:
    """The largest first; what does not matter is left out."""
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{RESOURCES.get(name, name)} {share:.0%}" for name, share in ordered if share > _WORTH_SAYING)


def layout_words(plan: PhasePlan) -> str:
    return f"{plan.layout.ffn}, attention over {plan.layout.attention}"


def memory_lines(held: Mapping[str, float], limit: float) -> list[str]:
    """A bar of one device's memory, and what its letters mean. `held`: weights, KV and activations, in bytes."""
    sizes = {**held, "free": max(0.0, limit - sum(held.values()))}
    whole = max(limit, sum(held.values()))
    bar, done, filled = "", 0.0, 0
    for name, size in sizes.items():
        done += size
        upto = round(done / whole * BAR_WIDTH)
        bar += _LETTERS[name] * (upto - filled)
        filled = upto
    legend = ", ".join(f"{_LETTERS[name]} {name} {size_words(size)}" for name, size in sizes.items())
    return [f"[{bar}] {size_words(sum(held.values()))} of {gib(limit)}", legend]


def why_slower(plan: PhasePlan, chosen: PhasePlan) -> str:
    """What the other spends its time on: the resource whose share of the step grew the most."""
    names = {*plan.bound_by, *chosen.bound_by}
    spent = {
        name: (one.bound_by.get(name, 0.0) * one.seconds, two.bound_by.get(name, 0.0) * two.seconds)
        for one, two in ((plan, chosen),)
        for name in names
    }
    worst = max(spent, key=lambda name: spent[name][0] - spent[name][1])
    theirs, ours = spent[worst]
    if theirs - ours <= 0:
        return "equal within what is foreseen"
    return f"{RESOURCES.get(worst, worst)}: {time_words(theirs)}, here {time_words(ours)}"
