"""Where experts are, and which way a mixture's tokens meet their experts: arithmetic on what is moved, no device.

At rest, experts are split over as many major axes of `layout.rest_ffn` as divide them (the expert axes), ffn over the
others, embed over `layout.rest_embed`. Weights are gathered over `layout.gathered` before use, as everywhere. Where
expert axes are left after that, tokens and experts must still be brought together, in one of three ways:

    everywhere   all tokens go to all chips over `layout.entry`, as in a dense feed-forward; each chip computes what
                 its own experts add to them, and the sum on the way out restores the result
    sent         tokens are gathered over the rest of `entry` alone; each is sent to the chips of its experts and what
                 they made of it comes back (all-to-all over the expert axes)
    gathered     experts are gathered over the expert axes too, and tokens stay where they are on them

All three give the same numbers. Which one moves least follows from the number of tokens in a program (`strategy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.layout import Axes, Layout
from engine.model.config import ModelConfig

Strategy = Literal["everywhere", "sent", "gathered"]
STRATEGIES: tuple[Strategy, ...] = ("everywhere", "sent", "gathered")

HOP_BYTES = 90_000
"""What a pair of links moves in the microsecond that a hop takes (v4, v5e: 9e10 bytes/s, both directions)."""


@dataclass(frozen=True)
class ExpertAxes:
    """The mesh axes of a mixture's weights, major first. What is gathered is always the minor end of a dimension."""

    rest_experts: Axes
    rest_ffn: Axes
    used_experts: Axes
    used_ffn: Axes

    @classmethod
    def of(cls, experts: int, layout: Layout) -> ExpertAxes:
        rest = layout.rest_ffn
        split = max(n for n in range(len(rest) + 1) if experts % layout.mesh.size(rest[:n]) == 0)

        def used(axes: Axes) -> Axes:
            return tuple(axis for axis in axes if axis not in layout.gathered)

        return cls(rest[:split], rest[split:], used(rest[:split]), used(rest[split:]))

    def entered(self, how: Strategy, layout: Layout) -> Axes:
        """Over these axes tokens are gathered at the entry, and summed and scattered at the end."""
        return layout.entry if how == "everywhere" else tuple(a for a in layout.entry if a not in self.used_experts)


def strategy(tokens: int, config: ModelConfig, layout: Layout, activation_bytes: int, weight_bytes: int) -> Strategy:
    """The way that keeps a chip's links busy for the shortest time; the first of STRATEGIES if several do.

    `tokens` are those of a whole program; `activation_bytes` and `weight_bytes` are those of one number. With no expert
    axes left in use the three are the same, and this says "everywhere".
    """
    return min(STRATEGIES, key=lambda how: link_bytes(how, tokens, config, layout, activation_bytes, weight_bytes))


def link_bytes(
    how: Strategy, tokens: int, config: ModelConfig, layout: Layout, activation_bytes: int, weight_bytes: int
) -> float:
    """What passes a chip's links in one layer, in bytes, with HOP_BYTES for every hop of a collective's longest way.

    On a ring of n chips with links both ways, a gather to D bytes (or its reverse) brings a chip D (n-1)/n over n/2
    hops. In an all-to-all a chip's rows travel n/4 hops on average, n/2 at most. The rows' ids and the sums inside the
    feed-forward (over `used_embed`, the same in all three) are left out.
    """
    assert config.experts is not None
    axes = ExpertAxes.of(config.experts.count, layout)
    mesh = layout.mesh
    enter = axes.entered(how, layout)
    hidden = activation_bytes * config.embed / mesh.size(layout.used_embed)  # of one token
    here = tokens / mesh.size(layout.tokens) * mesh.size(enter)  # tokens on a chip once they have entered

    def gather(whole: float, over: Axes) -> float:
        return whole * (1 - 1 / mesh.size(over))

    def hops(over: Axes) -> int:
        return sum(mesh.size((axis,)) // 2 for axis in over)

    total = 2 * gather(here * hidden, enter) + 2 * hops(enter) * HOP_BYTES
    if how == "sent" and axes.used_experts:
        distance = sum(mesh.size((axis,)) / 4 for axis in axes.used_experts)
        total += 2 * config.experts.per_token * here * hidden * distance
        total += 3 * hops(axes.used_experts) * HOP_BYTES  # how many rows there will be, there, and back
    if how == "gathered" and axes.used_experts:
        matrices = 3 if config.gated else 2
        of_one = config.embed * config.ffn / mesh.size(layout.used_embed) / mesh.size(axes.used_ffn)
        total += gather(matrices * config.experts.count * of_one * weight_bytes, axes.used_experts)
        total += matrices * hops(axes.used_experts) * HOP_BYTES
    return total
