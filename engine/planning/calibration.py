"""What programs reach of a chip's stated rates: the constants of the timing model, each with its source or its fit.

Fitted by `python -m bench.cost_model` on the points of Pope et al. 2022 in bench/data/pope2022_points.csv and on the
paper's tables 2 and 3 (TPU v4, PaLM 62B and 540B), which a test repeats. On other chips they are assumed to be the
same: the share of a rate, and not the rate, is what is carried over.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Calibration:
    """Constants of engine/planning/cost.py; all are positive, and fractions at most 1."""

    matmul_fraction: float
    """Of the chip's peak, in large products."""
    vector_passes: float
    """How often what products take and give, and the logits of attention, pass memory besides: norms, activations,
    rotations, softmax, changes of layout. It is why narrow models use less of a chip."""
    memory_fraction: float
    """Of the memory's bandwidth."""
    link_fraction: float
    """Of one link, one way, along an axis that is no ring."""
    ring_gain: float
    """How many times faster an axis is that is a ring: 2 if both ways around were used to the full."""
    hop_seconds: float
    """From a chip to the next, starting the collective included."""
    exposed_fraction: float
    """Of the shorter of weights and collectives: what is not hidden under the longer."""
    layer_seconds: float = 0.0
    """What each layer takes besides, whatever it computes."""
    error_fraction: float = 0.0
    """Relative, one standard deviation."""


PAPER = Calibration(
    matmul_fraction=0.883,
    vector_passes=5.1,
    memory_fraction=0.9,  # a copy on one H200 reaches 4.3e12 of 4.8e12 bytes/s (measured); not fitted
    link_fraction=0.566,
    ring_gain=1.47,
    hop_seconds=2.56e-6,
    exposed_fraction=0.66,
    error_fraction=0.08,
)
