"""What a layer moves in the closed formulas of Pope et al. (2022, section 3.2 and appendix A.2).

In elements per chip, E and F for embed and ffn, n = XYZ chips. An all-gather counts what it puts out, a reduce-scatter
what it takes in, and (K - 1) / K is taken as one. For a feed-forward of two matrices:

    1D weight-stationary    2 tokens E
    2D weight-stationary    2 tokens (E / X + F / YZ)
    weight-gathered X       2 E F / YZ + 2 tokens E / X
    weight-gathered XY      2 E F / Z  + 2 tokens E / XY
    weight-gathered XYZ     2 E F

Every matrix has E on one side, so F only ever stands for the sum of the other sides: 2F in a plain feed-forward, 3F
with a gate, and 2 H Q more for query and output projection. That sum is `width` here. Norms, keys and values and the
all-to-all around attention are not in the formulas; engine/planning/volumes.py has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from engine.layout import HeldSizes, Layout
from engine.model.config import ModelConfig


@dataclass(frozen=True)
class PaperVolume:
    """Elements that a chip sends in one layer, linear in the number of tokens."""

    weights: Fraction
    per_token: Fraction

    def elements(self, tokens: int) -> Fraction:
        return self.weights + self.per_token * tokens

    def bytes(self, tokens: int, activation_bytes: int = 2, weight_bytes: int = 2) -> Fraction:
        """int8 weights are gathered as int8."""
        return self.weights * weight_bytes + self.per_token * tokens * activation_bytes


def width(config: ModelConfig, held: HeldSizes) -> int:
    """Of a layer's matrices beside embed, those of keys and values left out: 3F + 2HQ with a gate."""
    return (3 if config.gated else 2) * config.ffn + 2 * held.heads * config.head_dim


def paper_volume(layout: Layout, embed: int, width: int) -> PaperVolume:
    """Of a block that is entered and left once: a feed-forward alone, or attention and feed-forward in parallel."""
    size = layout.mesh.size
    used_ffn, used_embed = size(layout.used_ffn), size(layout.used_embed)
    enter_and_leave = Fraction(2 * embed, used_embed) if layout.entry else Fraction(0)
    inside = Fraction(width, used_ffn) if layout.used_embed else Fraction(0)
    return PaperVolume(
        weights=Fraction(embed * width, used_ffn * used_embed) if layout.gathered else Fraction(0),
        per_token=(enter_and_leave + inside) / size(layout.gathered),
    )


def switch_tokens(
    few: PaperVolume, many: PaperVolume, activation_bytes: int = 2, weight_bytes: int = 2
) -> Fraction | None:
    """From how many tokens on `many` moves less than `few`; None if never."""
    gain = (few.per_token - many.per_token) * activation_bytes
    cost = (many.weights - few.weights) * weight_bytes
    return max(cost / gain, Fraction(0)) if gain > 0 else None
