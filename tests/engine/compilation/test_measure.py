"""Measuring a machine: that the fit finds what made the times, and that a measurement runs."""

from __future__ import annotations

import numpy as np
import pytest

from engine.compilation import measure
from engine.compilation.measure import Measured, fit_programs
from engine.planning.cost import Ideal, Links

TRUE = {"flop": 5e-12, "byte": 2e-10, "pass": 3e-5, "row": 4e-6, "cache": 3e-10, "vector": 1e-10}


def made(rng: np.random.Generator) -> list[Measured]:
    """Programs whose times are made of TRUE."""
    found = []
    for _ in range(30):
        large = float(rng.choice([1, 1000]))
        rows = int(rng.choice([1, 8, 32, 128, 0]))
        work = Ideal(
            products=large * (rows or 256) * 1e5,
            vector=large * (rows or 256) * float(rng.uniform(1e3, 9e3)),
            weights=large * 2e5,
            cache=float(rows * rng.integers(30, 300) * 1000),
            activations=Links(),
            gathers=Links(),
            hops=0,
            network_hops=0,
            layers=int(rng.integers(2, 6)),
            rows=rows * 4,
            positions=float(rows * rng.integers(30, 300)),
            logits=int(rows * large),
        )
        units = {"flop": work.products, "byte": work.weights, "pass": 1.0, "row": work.rows, "cache": work.cache}
        seconds = sum(TRUE[name] * value for name, value in units.items()) + TRUE["vector"] * work.vector
        found.append(Measured(work, seconds))
    return found


def test_the_fit_finds_what_made_the_times() -> None:
    each, error = fit_programs(made(np.random.default_rng(0)))
    assert error < 1e-6
    for name, value in each.items():
        assert value == pytest.approx(TRUE.get(name, 0.0), rel=1e-3, abs=1e-13), name


def test_runs_that_something_disturbed_move_it_little() -> None:
    rng = np.random.default_rng(1)
    programs = made(rng)
    disturbed = [one._replace(seconds=one.seconds * (3 if at % 6 == 0 else 1)) for at, one in enumerate(programs)]
    each, _ = fit_programs(disturbed)
    for name, value in TRUE.items():
        assert each[name] == pytest.approx(value, rel=0.1), name


def test_runs_take_turns_and_the_shortest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbance of one round is in no result."""
    monkeypatch.setattr(measure, "_LEAST_RUNS", 3)
    order: list[int] = []
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def of(which: int) -> None:
        order.append(which)
        clock[0] += (which + 1) * (5.0 if 2 <= len(order) < 5 else 1.0)

    shortest = measure.take_turns([lambda which=which: of(which) for which in range(2)], 0.0)
    assert order == [0, 1] * 4
    assert shortest == [1.0, 2.0]


def test_a_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SIZES", ((32, 64, 2, 16, 32, 1),))
    monkeypatch.setattr(measure, "_SLOTS", (8,))
    monkeypatch.setattr(measure, "_PROMPTS", (32,))
    monkeypatch.setattr(measure, "_WEIGHT_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(measure, "_LEAST_RUNS", 1)
    machine = measure.measure(("float32",))
    assert machine.products.keys() == {"float32"}
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    for rates in machine.products.values():
        assert rates.flops_per_second > 1e6
        assert rates.bytes_per_second > 1e5
