"""Speculative decoding as an estimate: a small model guesses some tokens, the large one verifies them all in one pass.

If each guess is accepted with probability a, independently, a round with g guesses gives

    E = (1 - a^(g + 1)) / (1 - a)        tokens on average (Leviathan et al. 2023, equation 1; a = 1 gives g + 1)

since the pass that verifies gives one token of its own. It takes g steps of the draft model and one pass of the large
one over g + 1 tokens of every sequence. The paper's improvement in walltime, E / (g c + 1) with c the draft's step in
steps of the large model (theorem 3.8), takes that pass to be as long as a step; here its time is modelled.

This is planned only: the engine does not speculate.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import NoFeasiblePlan
from engine.model.config import ModelConfig


@dataclass(frozen=True)
class Speculation:
    """A draft model, and how good its guesses are."""

    draft: ModelConfig
    guesses: int
    """In a round."""
    acceptance: float
    """Probability that a guess is accepted."""

    def __post_init__(self) -> None:
        if not 1 <= self.guesses <= 64:
            raise NoFeasiblePlan(f"{self.guesses} tokens cannot be guessed in a round; take 1 to 64")
        if not 0 <= self.acceptance <= 1:
            raise NoFeasiblePlan(f"an acceptance of {self.acceptance:g} is no probability; take 0 to 1")

    @property
    def tokens(self) -> float:
        """That a round gives to each sequence on average."""
        if self.acceptance == 1:
            return float(self.guesses + 1)
        return (1 - self.acceptance ** (self.guesses + 1)) / (1 - self.acceptance)
