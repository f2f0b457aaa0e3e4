"""What programs reach of a chip's stated rates: the constants of the timing model, each with its source or its fit.

Fitted by `python -m bench.cost_model` on the points of Pope et al. 2022 in bench/data/pope2022_points.csv and on the
paper's tables 2 and 3 (TPU v4, PaLM 62B and 540B), which a test repeats. What is carried over to other chips is the
share of a rate that is reached, and that is an assumption: nothing of this project was measured on them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from engine.layout import Layout


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
    network_hop_seconds: float = 5e-5
    """From a slice, or a switched domain, to the next. Assumed; nothing of it was measured."""
    unhidden_fraction: float = 0.0
    """Of collectives of activations, what shows where products take longer: they stand between products. Gathers of
    weights can go before."""
    cache_fraction: float = 0.9
    """Of the memory's bandwidth, in reading keys and values; the same as for weights unless it was measured."""
    serial_fraction: float = 0.0
    """Of the shorter of compute and movement, what is not hidden under the longer."""
    pass_seconds: float = 0.0
    """What a program takes besides, whatever it computes; what each layer does; what each row does in each layer of a
    step of decode, and for each position it sees there; what a row does for each token of the vocabulary."""
    layer_seconds: float = 0.0
    row_seconds: float = 0.0
    position_seconds: float = 0.0
    logit_seconds: float = 0.0
    error_fraction: float = 0.0
    """Relative, one standard deviation."""

    def times(self, factor: float, error_fraction: float) -> Calibration:
        """With every time so many times as long, and another error: as earlier runs have shown. Fractions of rates may
        then be above 1."""
        rates = ("matmul_fraction", "memory_fraction", "cache_fraction", "link_fraction")
        spent = [field.name for field in fields(self) if field.name.endswith("_seconds")]
        return replace(
            self,
            error_fraction=error_fraction,
            **{name: getattr(self, name) / factor for name in rates},
            **{name: getattr(self, name) * factor for name in spent},
            vector_passes=self.vector_passes * factor,
        )


PAPER = Calibration(
    # Fitted.
    vector_passes=6.77,
    link_fraction=0.551,
    hop_seconds=2.54e-6,
    # Round values near what a fit of all six gives.
    ring_gain=1.5,
    exposed_fraction=2 / 3,
    matmul_fraction=0.9,  # the TPU compiler estimates 590 ms for products of 540 ms at peak (540B, 1M tokens, 64 v4)
    # Not from the points.
    memory_fraction=0.9,  # a copy on one H200 reaches 4.3e12 of 4.8e12 bytes/s (measured)
    unhidden_fraction=0.25,  # the first piece of a loop over four chips; what the points have is bound otherwise
    error_fraction=0.08,  # rms of the points by constants fitted without their model: 6.5 %; the paper's own: 2 to 3 %
)

ELSEWHERE = replace(
    PAPER,
    link_fraction=0.9,  # assumed to be as of memory: collectives have become faster since the paper
    hop_seconds=1e-6,  # How to Scale Your Model: about a microsecond
    # Llama-3.1-70B in int8 on v5e 4x4 takes 6.3, 14.6 and 25.4 ms a step at batch 8, 64 and 128 (jax-llm-examples; the
    # context is not told). This says 9.5, 18 and 30 at a context of 1024, the paper's constants 14, 27 and 44.
    error_fraction=0.3,
)
"""Of chips the paper did not have."""


UNMEASURED_FRACTION = 0.3
"""One standard deviation where no point had the layout. The TPU compiler's estimate of a layer of 62B on 8 v4, in 2D
and in 1D, is 1.08 and 1.16 ms; by the formulas 1D would take 0.83 times as long as 2D, not 1.07 times: 30 % apart."""


def is_measured(phase: str, layout: Layout) -> bool:
    """Whether some point had it: weights in place in two dimensions, or gathered over all axes; one chip has none."""
    if layout.mesh.slice_chips == 1:
        return True
    if layout.ffn == "wg-xyz":
        return phase == "prefill" and layout.attention == "batch"
    usual = {"prefill": "heads", "decode": "batch"}
    return layout.ffn == "ws2d" and layout.mesh.x > 1 and layout.attention == usual.get(phase)


def calibration_of(chip: str) -> Calibration:
    """The constants for a chip by name."""
    return PAPER if chip == "v4" else ELSEWHERE
