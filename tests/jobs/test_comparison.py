"""Foreseen against fact, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.comparison import Comparison
from schemas.manifest import Summary
from schemas.prediction import EngineShape, PhaseShape, Prediction

PREDICTION = Prediction(
    made_at="2026-01-31T12:00:00+00:00", job="questions", asked={"model": "m", "sampling.n": 1}, chips="v5e:2x2",
    workers=1, chip_count=4,
    engine=EngineShape("4x1x1", PhaseShape("ws1d", "heads"), PhaseShape("ws1d", "heads"), 64, "auto", 8192),
    chosen=("slots",), rows=100, prompt_tokens=1000.0, completion_tokens=2000.0, completions_from="as given",
    seconds=110.0, seconds_low=90.0, seconds_high=130.0, startup_seconds=10.0, prefill_seconds=20.0,
    decode_seconds=80.0, startup_error_fraction=0.5, error_fraction=0.2, slots_busy_fraction=0.9,
    padding_fraction=0.25, mfu=0.3, flops_per_token=2e9, peak_flops=4e11, chip_hours=440 / 3600, price=4.4,
    currency="USD", prices_date="2026-01-01", weight_bytes=1, kv_bytes=1, activation_bytes=1, limit_bytes=10,
    calibration="abc", correction=1.0, correction_runs=0,
)  # fmt: skip
DONE = Summary(
    name="questions", task="generate", job_fingerprint="f", model_fingerprint="m", shards=5, rows=50, ok=50, failed=0,
    failed_reasons={}, prompt_tokens=500, completion_tokens=500, scored_tokens=0, started_at=None, finished_at=None,
    shard_seconds=80.0, busy_seconds=45.0, compile_seconds=5.0, slots_busy_fraction=0.8, padding_fraction=0.3,
    predicted={},
)  # fmt: skip


def test_work_is_compared_for_the_tokens_there_were() -> None:
    """Half of the prompts and a quarter of the completions: 10 + 20 s of work foreseen; it took 45 - 5."""
    compared = Comparison(PREDICTION, DONE)
    assert (compared.foreseen_seconds, compared.seconds) == (30.0, 40.0)
    assert compared.ratio == pytest.approx(4 / 3)
    assert compared.mfu == pytest.approx(2e9 * 1000 / (4e11 * 40))
    assert compared.chip_hours == pytest.approx(45 * 4 / 3600)
    assert compared.price == pytest.approx(4.4 * 180 / 440)
    assert list(compared.lines()) == [
        ("work", "40 s; foreseen for these tokens 30 s, between 24 s and 36 s: 1.33 times as long"),
        ("", "10.0 tokens generated a row; foreseen 20.0"),
        ("use", "slots 80% busy, foreseen 90%; prefill 30% padding, foreseen 25%; MFU 12%, foreseen 30%"),
        ("cost", "1.80 USD in shards, 0.05 chip-hours; foreseen 4.40, the start included"),
    ]


def test_within_the_interval_and_without_prices() -> None:
    plan = replace(PREDICTION, price=None, currency=None, prices_date=None)
    lines = dict(Comparison(plan, replace(DONE, busy_seconds=36.0)).lines())
    assert lines["work"].endswith(": within the interval")
    assert lines["cost"] == "0.04 chip-hours in shards; foreseen 0.12, the start included"


def test_scoring_is_compared_by_rows() -> None:
    plan = replace(PREDICTION, slots_busy_fraction=None, decode_seconds=0.0, completion_tokens=0.0)
    compared = Comparison(plan, replace(DONE, completion_tokens=0, scored_tokens=700, slots_busy_fraction=None))
    assert compared.foreseen_seconds == 10.0
    assert compared.mfu == pytest.approx(2e9 * 500 / (4e11 * 40))
    assert [label for label, _ in compared.lines()] == ["work", "use", "cost"]


@pytest.mark.parametrize("busy", [0.0, 5.0, 4.0])
def test_there_is_nothing_to_compare_before_there_is_any_work(busy: float) -> None:
    compared = Comparison(PREDICTION, replace(DONE, busy_seconds=busy))
    assert (compared.ratio, compared.mfu, list(compared.lines())) == (None, None, [])
