"""A machine that was measured: what its processor reaches, and what the engine's programs cost besides.

Stated rates say little of a processor, so here they are measured (engine/runtime/measure.py): in products, as seconds
for each number of a matrix and for each number and row,

    seconds = numbers x (bytes / bytes_per_second + 2 rows / flops_per_second)

and in whole programs, as what is left of their time when the products are taken away. A machine makes a chip and the
constants that go with it, and the timing model (engine/planning/cost.py) is the same as for any other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from engine.errors import NoFeasiblePlan
from engine.planning.calibration import Calibration
from engine.planning.chips import Chip
from engine.planning.program import Dtype

VERSION = 1


@dataclass(frozen=True)
class Rates:
    """Of products with weights in one dtype."""

    flops_per_second: float
    bytes_per_second: float
    """Of weights, as they are read."""


@dataclass(frozen=True)
class Machine:
    """One processor with its memory."""

    name: str
    cores: int
    memory_bytes: int
    products: dict[Dtype, Rates]
    pass_seconds: float
    """Of any program, whatever it does: dispatch, a step of the loop."""
    layer_seconds: float
    row_seconds: float
    """Of one row in one layer of a step of decode."""
    position_seconds: float
    """Of one position that such a row sees."""
    logit_seconds: float
    """Of one row and one token of the vocabulary: to sample, in decode."""
    cache_bytes_per_second: float
    vector_bytes_per_second: float
    """What products take and give, and the logits of attention."""
    error_fraction: float
    """Of the measured programs themselves, rms."""

    def rates(self, weights: Dtype) -> Rates:
        if weights not in self.products:
            raise NoFeasiblePlan(
                f"{self.name} was not measured with weights in {weights}, but in {', '.join(self.products)}; "
                "measure it again with penstock profile"
            )
        return self.products[weights]

    def chip(self, weights: Dtype) -> Chip:
        """With the rates of products in this dtype as its peak and its bandwidth."""
        rates = self.rates(weights)
        return Chip(
            name=self.name,
            hbm_bytes=float(self.memory_bytes),
            hbm_bytes_per_second=rates.bytes_per_second,
            bf16_flops_per_second=rates.flops_per_second,
            int8_ops_per_second=rates.flops_per_second,
            link_bytes_per_second=rates.bytes_per_second,
            network_bytes_per_second=rates.bytes_per_second,
            source="measured on this machine by penstock profile",
            domain=1,
            reads_filled_pages=True,
        )

    def calibration(self, weights: Dtype) -> Calibration:
        """Relative to that chip."""
        bandwidth = self.rates(weights).bytes_per_second
        return Calibration(
            matmul_fraction=1.0,
            vector_passes=bandwidth / self.vector_bytes_per_second,
            memory_fraction=1.0,
            cache_fraction=self.cache_bytes_per_second / bandwidth,
            link_fraction=1.0,
            ring_gain=1.0,
            hop_seconds=0.0,
            network_hop_seconds=0.0,
            exposed_fraction=1.0,
            serial_fraction=1.0,
            pass_seconds=self.pass_seconds,
            layer_seconds=self.layer_seconds,
            row_seconds=self.row_seconds,
            position_seconds=self.position_seconds,
            logit_seconds=self.logit_seconds,
            error_fraction=self.error_fraction,
        )

    def to_json(self) -> str:
        return json.dumps({"version": VERSION} | asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """NoFeasiblePlan if it is no profile, or an older one."""
        try:
            fields = json.loads(text)
            if fields.pop("version") != VERSION:
                raise ValueError("of another version")
            products = {dtype: Rates(**rates) for dtype, rates in fields.pop("products").items()}
            return cls(products=products, **fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NoFeasiblePlan(
                f"no profile of a machine ({error}); measure it again with penstock profile"
            ) from error
