"""The constants in use are the fit's, and the errors that are stated are those that come out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.cost_model import FITTED, RANGES, Point, fit, left_out, points, rms
from engine.planning.calibration import PAPER


@pytest.fixture(scope="module")
def measured() -> list[Point]:
    return points()


def test_the_points_are_those_given(measured: list[Point]) -> None:
    """37 of figure 1, eight of the tables, an efficiency for each model; on 8 to 64 chips."""
    sources = [point.source for point in measured]
    assert [sources.count(one) for one in ("figure 1", "tables 2,3", "efficiency")] == [37, 8, 3]
    assert {point.program.chips for point in measured} == {8, 16, 32, 64}
    headline = next(p for p in measured if p.source == "tables 2,3" and p.program.rows == 512 and p.seconds > 80)
    assert headline.seconds == 85.2
    assert headline.program.layout.ffn == "wg-xyz"


def test_the_constants_in_use_are_fitted(measured: list[Point]) -> None:
    found = fit(measured)
    for name in FITTED:
        assert getattr(PAPER, name) == pytest.approx(getattr(found, name), rel=0.005), name
    assert rms(measured, PAPER) == pytest.approx(0.056, abs=1e-3)


def test_no_other_value_of_a_constant_is_better(measured: list[Point]) -> None:
    best = rms(measured, fit(measured))
    for name in FITTED:
        for factor in (0.9, 1.1):
            assert rms(measured, replace(PAPER, **{name: factor * getattr(PAPER, name)})) > best, name


def test_round_values_are_near_their_best(measured: list[Point]) -> None:
    everything = fit(measured, tuple(RANGES))
    assert rms(measured, PAPER) - rms(measured, everything) < 0.001
    for name, limits in RANGES.items():
        assert limits.least < getattr(PAPER, name) < limits.most + 1e-9, name


def test_a_model_that_was_left_out_is_foreseen(measured: list[Point]) -> None:
    found = left_out(measured)
    assert {model: round(error, 3) for model, (error, _) in found.items()} == {"540b": 0.042, "62b": 0.085, "8b": 0.105}
    squares = [error**2 * sum(point.model == model for point in measured) for model, (error, _) in found.items()]
    assert PAPER.error_fraction > (sum(squares) / len(measured)) ** 0.5


def test_no_point_is_far_off(measured: list[Point]) -> None:
    worst = max(measured, key=lambda point: abs(point.error(PAPER)))
    assert abs(worst.error(PAPER)) < 0.12, worst
