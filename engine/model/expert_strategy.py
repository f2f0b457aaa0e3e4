"""Where experts are, and which way a mixture's tokens meet their experts: arithmetic on what is moved, no device.

At rest, experts are split over as many major axes of `layout.rest_ffn` as divide them, ffn over the others, embed over
`layout.rest_embed`; so what is gathered is always the minor end of a dimension. Weights are gathered over
`layout.gathered` before use, as everywhere. Where experts are still split after that, over the expert axes, tokens and
experts are brought together in one of three ways:

    everywhere   all tokens go to all chips over `layout.entry`, as in a dense feed-forward; each chip computes what
                 its own experts add to them, and the sum on the way out restores the result
    sent         tokens are gathered over the rest of `entry` alone; each is sent to the chips of its experts and what
                 they made of it comes back (all-to-all over the expert axes)
    gathered     experts are gathered over the expert axes too, and tokens stay where they are on them

All three give the same numbers. Which one moves least follows from the number of tokens in a program (`strategy`), so a
program takes one way for good; programs that take different ways share the weights at rest.
"""

from __future__ import annotations

from typing import Literal

from engine.layout import Axes, Layout
from engine.model.config import ModelConfig

Strategy = Literal["everywhere", "sent", "gathered"]
STRATEGIES: tuple[Strategy, ...] = ("everywhere", "sent", "gathered")

HOP_BYTES = 90_000
"""What a pair of links moves in the microsecond that a hop takes (v4, v5e: 9e10 bytes/s, both directions)."""

EXCHANGE_BYTES = 2_000_000
"""The same for what sending costs a chip besides: offsets, sorting, folding (20 to 25 us on v5e and v5p, estimated)."""

MOST_BLOCK_ROWS = 1024
"""That go through one expert at a time (engine/model/mixture.py)."""


def expert_axes(experts: int, layout: Layout) -> Axes:
    """Over which the experts of weights in use are split, if they are not gathered as well."""
    return tuple(axis for axis in layout.experts_split(experts) if axis not in layout.gathered)


def entered_over(how: Strategy, experts: int, layout: Layout) -> Axes:
    """Over these axes tokens are gathered at the entry, and summed and scattered at the end."""
    if how == "everywhere":
        return layout.entry
    return tuple(axis for axis in layout.entry if axis not in expert_axes(experts, layout))


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
    mesh, count = layout.mesh, config.experts.count
    over, enter = expert_axes(count, layout), entered_over(how, count, layout)
    hidden = activation_bytes * config.embed / mesh.size(layout.used_embed)  # of one token
    here = tokens / mesh.size(layout.tokens) * mesh.size(enter)  # tokens on a chip once they have entered

    def gather(whole: float, over: Axes) -> float:
        return whole * (1 - 1 / mesh.size(over))

    def hops(over: Axes) -> int:
        return sum(mesh.size((axis,)) // 2 for axis in over)

    total = 2 * gather(here * hidden, enter) + 2 * hops(enter) * HOP_BYTES
    if how == "sent" and over:
        total += 2 * config.experts.per_token * here * hidden * sum(mesh.size((axis,)) / 4 for axis in over)
        total += 3 * hops(over) * HOP_BYTES + EXCHANGE_BYTES  # how many rows there will be, there, and back
    if how == "gathered" and over:
        matrices = 3 if config.gated else 2
        of_all = count * config.embed * config.ffn * weight_bytes
        in_use = mesh.size((*layout.used_ffn, *layout.used_embed)) / mesh.size(over)
        total += gather(matrices * of_all / in_use, over) + matrices * hops(over) * HOP_BYTES
    return total
