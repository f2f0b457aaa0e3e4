"""`penstock profile`: where a machine's profile goes, and what is said where there is none."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from rich.console import Console

import engine.compilation.measure
from engine.errors import NoFeasiblePlan
from jobs.planning.kept_machine import kept_at, kept_machine, run
from pipeline.errors import JobError
from tests.engine.planning.test_machine import MACHINE


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine.compilation.measure, "measure", lambda: MACHINE)
    return tmp_path


def test_the_profile_is_kept_where_plans_look_for_it(quick: Path) -> None:
    console = Console(record=True, width=200)
    assert run(argparse.Namespace(out=None), console)
    assert kept_at() == quick / "cache" / "penstock" / "machine.json"
    assert kept_machine() == MACHINE
    printed = console.export_text()
    assert "200 GFLOP/s" in printed
    assert str(kept_at()) in printed


def test_it_goes_where_it_is_asked_to(quick: Path) -> None:
    run(argparse.Namespace(out=str(quick / "new" / "m.json")), Console(quiet=True))
    assert kept_machine(quick / "new" / "m.json") == MACHINE
    with pytest.raises(NoFeasiblePlan, match=r"no profile in .*machine\.json; measure this machine with penstock prof"):
        kept_machine()


def test_a_place_that_cannot_be_is_refused_before_anything_is_measured(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (quick / "file").touch()
    monkeypatch.setattr(engine.compilation.measure, "measure", lambda: pytest.fail("measured"))
    with pytest.raises(JobError, match=r"cannot be written.*--out"):
        run(argparse.Namespace(out=str(quick / "file" / "m.json")), Console(quiet=True))
