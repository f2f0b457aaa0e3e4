"""Drift is what chance does not do: by hand, by scipy-free arithmetic, and by many draws without any drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs.reporting import drift


def test_the_index_by_hand() -> None:
    shift = drift.of_categories({"a": 300, "b": 700}, {"a": 500, "b": 500})
    assert shift is not None
    p, q = np.array([300.5, 700.5]) / 1001, np.array([500.5, 500.5]) / 1001
    assert shift.value == pytest.approx(float(np.sum((p - q) * np.log(p / q))), rel=1e-12)
    assert shift.threshold == drift.PSI_THRESHOLD
    assert not shift.is_drift


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 10.828), (9, 27.877), (11, 31.264), (20, 45.315), (29, 58.301)])
def test_the_quantile_of_chi_squared(degrees: int, quantile: float) -> None:
    assert drift._chi_squared_999(degrees) == pytest.approx(quantile, rel=6e-3)


def test_a_lasting_shift_is_flagged_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=7000)
    for seed in range(200):
        shift = drift.of_values(np.random.default_rng(seed).normal(size=1000), before)
        assert shift is not None
        assert not shift.is_drift
    shift = drift.of_values(rng.normal(0.8, size=1000), before)
    assert shift is not None
    assert shift.is_drift


def test_a_few_rows_reach_the_index_by_chance_and_are_not_flagged() -> None:
    draws = [np.random.default_rng(seed).normal(size=115) for seed in range(200)]
    shifts = [shift for draw in draws if (shift := drift.of_values(draw[:15], draw[15:])) is not None]
    assert sum(shift.value > drift.PSI_THRESHOLD for shift in shifts) > 100, "the guard would have nothing to guard"
    assert sum(shift.is_drift for shift in shifts) <= 2


def test_values_that_are_all_equal() -> None:
    same = drift.of_values(np.full(100, 3.0), np.full(700, 3.0))
    assert same is not None
    assert same.value == 0.0
    for other in (2.0, 4.0):
        moved = drift.of_values(np.full(100, other), np.full(700, 3.0))
        assert moved is not None
        assert moved.is_drift


def test_nothing_to_compare_is_no_drift() -> None:
    empty = np.empty(0)
    assert drift.of_values(empty, np.ones(3)) is None
    assert drift.of_values(np.ones(3), empty) is None
    assert drift.of_categories({}, {"a": 1}) is None
    assert drift.of_rates(0, 0, 1, 10) is None


def test_rates_by_hand() -> None:
    shift = drift.of_rates(60, 1000, 70, 7000)
    pooled = 130 / 8000
    z = (0.06 - 0.01) / math.sqrt(pooled * (1 - pooled) * (1 / 1000 + 1 / 7000))
    assert shift is not None
    assert shift.value == pytest.approx(z)
    assert shift.is_drift


def test_a_tiny_change_of_a_huge_partition_is_no_drift() -> None:
    shift = drift.of_rates(6_000, 1_000_000, 7_000, 7_000_000)
    assert shift is not None
    assert shift.value > 50
    assert not shift.is_drift


def test_no_failures_at_all() -> None:
    shift = drift.of_rates(0, 100, 0, 700)
    assert shift is not None
    assert shift.value == 0
