"""What was foreseen of a job, and in what shape it was to run: `_prediction.json` beside the results.

`penstock plan JOB.yaml --out FILE` writes the same document, for `penstock run --plan FILE`. At an output it is
created once, before the first row is computed, and a resumed job takes its `engine` from it.

Times are of the whole job, in seconds: `seconds` = `startup_seconds` + `prefill_seconds` + `decode_seconds`; for a job
that scores, `prefill_seconds` is scoring. `low` and `high` are one standard deviation either way.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from .documents import Document, DocumentError

PREDICTION_VERSION = 1
PREDICTION_NAME = "_prediction.json"

_IN_BRIEF = (
    "made_at chips workers chip_count rows prompt_tokens completion_tokens seconds seconds_low seconds_high "
    "startup_seconds prefill_seconds decode_seconds slots_busy_fraction padding_fraction mfu chip_hours price currency "
    "calibration correction correction_runs"
)


_ABOVE_ZERO = ("workers", "chip_count", "rows", "seconds", "chip_hours", "peak_flops", "correction", "limit_bytes")


@dataclass(frozen=True)
class PhaseShape:
    """The layout of a phase."""

    ffn: str
    attention: str


@dataclass(frozen=True)
class EngineShape:
    """The engine section of a job file, with nothing left open but what is to be the engine's own to choose."""

    mesh: str
    prefill: PhaseShape
    decode: PhaseShape
    slots: int
    max_length: int | str
    prefill_tokens: int

    def section(self) -> dict[str, Any]:
        """As in a job file."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Prediction(Document):
    """A plan, and what it takes."""

    LATEST: ClassVar[int] = PREDICTION_VERSION
    version: int = PREDICTION_VERSION
    made_at: str
    job: str  # its name
    asked: dict[str, Any]  # what of the job and the model the plan depends on
    chips: str  # of a worker, such as "v5e:4x4"; "cpu:1" is a measured machine
    workers: int
    chip_count: int  # of all workers
    engine: EngineShape
    chosen: tuple[str, ...]  # which fields of it were chosen, and not said by the job
    rows: int
    prompt_tokens: float
    completion_tokens: float
    completions_from: str  # how their lengths were known
    seconds: float
    seconds_low: float
    seconds_high: float
    startup_seconds: float
    prefill_seconds: float
    decode_seconds: float
    startup_error_fraction: float  # of the start: one standard deviation
    error_fraction: float  # of prefill and decode, likewise
    slots_busy_fraction: float | None
    padding_fraction: float  # of the tokens that prefill or scoring computes
    mfu: float  # without the start
    flops_per_token: float  # 2 N
    peak_flops: float  # of all chips together, a second
    chip_hours: float
    price: float | None
    currency: str | None
    prices_date: str | None
    weight_bytes: int  # of one device, as the three below
    kv_bytes: int
    activation_bytes: int
    limit_bytes: int
    calibration: str  # a hash of the constants of the cost model, before they were corrected
    correction: float  # by how much times were multiplied, after earlier runs
    correction_runs: int

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The document in `data`; DocumentError, also for a number that no count or time can be."""
        read = super().from_json(data)
        for name, value in vars(read).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise DocumentError(f"{name!r} must be a positive number, not {value!r}")
            if name in _ABOVE_ZERO and not value:
                raise DocumentError(f"{name!r} must be above zero")
        return read

    def in_brief(self) -> dict[str, Any]:
        """What the summary of the job keeps of it."""
        return {name: getattr(self, name) for name in _IN_BRIEF.split()}

    @property
    def work_seconds(self) -> float:
        """Without the start."""
        return self.prefill_seconds + self.decode_seconds

    def work_seconds_of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What was foreseen for so many tokens: each phase in proportion to its own."""
        prefill = self.prefill_seconds * prompt_tokens / max(1.0, self.prompt_tokens)
        return prefill + self.decode_seconds * completion_tokens / max(1.0, self.completion_tokens)

    def mfu_of(self, tokens: float, seconds: float) -> float:
        """Of so many tokens, of prompts and completions, in so much time."""
        return self.flops_per_token * tokens / (self.peak_flops * seconds)
