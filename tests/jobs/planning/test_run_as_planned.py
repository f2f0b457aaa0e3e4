"""`penstock run` as planned: what is chosen and kept, what is said, what is compared, which plans are refused.

The engine is a fake one: what is tested is what it is asked for, and what is made of the counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import engine.compilation.here
from engine.planning.chips import named_chip
from engine.planning.machine import Machine
from jobs import launch, settle
from jobs.cli import main
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.job_file import load
from jobs.planning.foresight import foresee
from jobs.planning.history import Earlier, history_at, job_key, model_key, read_history, remember
from jobs.planning.kept_machine import kept_at
from jobs.planning.known import Known
from jobs.planning.places import Here
from pipeline.inference import ShardJob
from schemas.prediction import Prediction
from tests.engine.planning.test_machine import MACHINE
from tests.jobs import running
from tests.pipeline.example_output import contents

FACTORY = "tests.fake_engine:instant"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose machine was not measured yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def measured(user: Path) -> Path:
    keep_profile(MACHINE)
    return user


def keep_profile(machine: Machine) -> None:
    kept_at().parent.mkdir(parents=True, exist_ok=True)
    kept_at().write_text(machine.to_json())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ShardJob]:
    """What the workers are told, run by run."""
    return running.told_to_workers(monkeypatch)


def read(output: Path) -> Prediction:
    return Prediction.from_json((output / "_prediction.json").read_bytes())


def rows(output: Path) -> list[dict]:
    return sorted(pq.read_table(output).to_pylist(), key=lambda row: row["record_id"])


@pytest.mark.usefixtures("fake_engine")
def test_a_machine_that_was_not_measured_is_told_how(user: Path, write_job, asked, capsys) -> None:
    assert main(["run", write_job()]) == DONE
    said = capsys.readouterr().err
    assert "note     nothing is predicted on this processor; `penstock profile` measures it once" in said
    assert (asked[0].slots, asked[0].prefill_tokens) == (None, None)
    assert not (user / "out" / "_prediction.json").exists()
    assert not history_at().exists()
    assert json.loads((user / "out" / "_summary.json").read_bytes())["predicted"] == {}


@pytest.mark.usefixtures("fake_engine")
def test_a_run_says_what_it_takes_and_is_compared_with_it(measured: Path, write_job, asked, capsys) -> None:
    prices = measured / "config" / "penstock" / "prices.yaml"
    prices.parent.mkdir(parents=True)
    prices.write_text("date: 2026-11-01\ncurrency: USD\nchip_hour: {cpu: 3.6}\n")
    path = write_job()
    assert main(["run", path]) == DONE
    out, err = capsys.readouterr()
    for words in ("plan     this machine's processor: ", "time     about ", "USD, between ", "memory   ["):
        assert words in err
    assert "foreseen for these tokens" in out
    kept, summary = read(measured / "out"), json.loads((measured / "out" / "_summary.json").read_bytes())
    assert (asked[0].slots, asked[0].prefill_tokens) == (kept.engine.slots, kept.engine.prefill_tokens)
    assert (kept.chips, kept.chosen, kept.rows) == ("cpu:1", ("slots", "prefill_tokens"), 100)
    assert (kept.completion_tokens, kept.price) == (98 * 16, pytest.approx(kept.seconds / 1000))
    assert summary["predicted"] == kept.in_brief()
    assert main(["status", str(measured / "out")]) == DONE
    assert "foreseen for these tokens" in capsys.readouterr().out
    (run,) = read_history().runs
    assert run.chip == "cpu"
    assert run.completion_tokens == pytest.approx(summary["completion_tokens"] / 98)

    remember(replace(run, seconds=run.foreseen_seconds * 100))  # and now it is known to be much slower
    assert main(["run", path, "--set", "output.path=again"]) == DONE
    assert "corrected by " in capsys.readouterr().err
    again = read(measured / "again")
    assert (again.correction_runs, again.calibration) == (2, kept.calibration)
    assert again.correction > 1
    assert again.completion_tokens == pytest.approx(summary["completion_tokens"], rel=0.01)
    assert rows(measured / "out") == rows(measured / "again")


@pytest.mark.usefixtures("fake_engine")
def test_a_dry_run_writes_nothing(measured: Path, write_job, asked, capsys) -> None:
    path = write_job()
    before = contents(measured)
    assert main(["run", path, "--dry-run"]) == DONE
    out = capsys.readouterr().out
    assert "job      questions (generate): 100 rows in 5 shards" in out
    assert "time     about " in out
    assert out.endswith("dry run  nothing was written\n")
    assert (contents(measured), asked) == (before, [])
    assert main(["run", path]) == DONE
    next((measured / "out").glob("part-00003*")).unlink()
    before = contents(measured)
    assert main(["run", path, "--dry-run"]) == DONE
    assert "for the 20% that are left" in capsys.readouterr().out
    assert contents(measured) == before


@pytest.mark.usefixtures("fake_engine")
def test_a_resumed_job_keeps_its_shape_whatever_is_known_by_then(measured: Path, write_job, asked) -> None:
    path = write_job()
    assert main(["run", path]) == DONE
    first, kept = asked[0], read(measured / "out")
    (measured / "out" / "_SUCCESS").unlink()
    next((measured / "out").glob("part-00003*")).unlink()
    keep_profile(replace(MACHINE, row_seconds=1.0, pass_seconds=1e-9))  # by which fewer slots are better
    assert foresee(launch.open_parts(load(path)), Known(), Here(None, 1)).engine.slots != first.slots
    assert main(["run", path]) == DONE
    assert (asked[1].slots, asked[1].prefill_tokens) == (first.slots, first.prefill_tokens)
    assert read(measured / "out") == kept
    next((measured / "out").glob("part-00002*")).unlink()
    assert main(["run", path, "--set", "engine.slots=3"]) == DONE  # what the job says itself counts
    assert asked[2].slots == 3


@pytest.mark.usefixtures("fake_engine")
def test_what_was_begun_without_a_prediction_goes_on_without(measured: Path, write_job, asked, capsys) -> None:
    path = write_job()
    assert main(["run", path]) == DONE
    next((measured / "out").glob("part-00003*")).unlink()
    for text in (b"", b'{"version": 2}', b"x" * (1 << 20) + b"x"):
        (measured / "out" / "_prediction.json").write_bytes(text)
        assert main(["run", path]) == REFUSED
        assert "_prediction.json cannot be used: " in capsys.readouterr().err
        assert main(["status", str(measured / "out")]) == DONE
    (measured / "out" / "_prediction.json").unlink()
    assert main(["run", path]) == DONE
    assert asked[1].slots is None
    assert not (measured / "out" / "_prediction.json").exists()


@pytest.mark.usefixtures("fake_engine")
def test_spoilt_surroundings_stop_no_job(measured: Path, write_job, capsys, monkeypatch) -> None:
    path = write_job()
    history_at().write_text("no run\n")
    prices = measured / "config" / "penstock" / "prices.yaml"
    prices.parent.mkdir(parents=True)
    prices.write_text("{}")
    assert main(["run", path]) == DONE
    said = capsys.readouterr().err
    assert "1 of 1 lines of" in said
    assert "no cost: " in said
    kept_at().write_text("{}")
    parts = launch.open_parts(load(path, ["output.path=two"]))
    (note,) = settle.settle(parts, settle.NOTHING_SAID).notes[2:]
    assert note.startswith("nothing is predicted: no profile of a machine")
    keep_profile(MACHINE)
    monkeypatch.setattr("jobs.planning.foresight.sample_of", lambda *_, **__: 1 / 0)
    (note,) = settle.settle(parts, settle.NOTHING_SAID).notes[2:]
    assert note == "nothing is predicted, through a fault of Penstock's own: ZeroDivisionError('division by zero')"
    assert main(["run", path, "--set", "output.path=four", "--prices", str(prices)]) == REFUSED


@pytest.mark.parametrize("flag", ["--runner=DirectRunner", "--direct_running_mode=multi_processing"])
def test_devices_are_left_alone_where_others_compute(measured: Path, write_job, monkeypatch, flag: str) -> None:
    monkeypatch.setattr(Here, "found", lambda: pytest.fail("touched"))
    parts = launch.open_parts(load(write_job()))
    settled = settle.settle(parts, settle.NOTHING_SAID, [flag])
    assert settled.prediction is None
    assert settled.notes == ("nothing is predicted of chips that are not in this process; see penstock plan",)


# On accelerators.


@pytest.fixture
def four_chips(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "found", lambda: Here(named_chip("v5e"), 4))


@pytest.mark.usefixtures("four_chips")
def test_on_a_mesh_layouts_are_chosen_and_are_part_of_the_work_plan(user: Path, write_job, asked) -> None:
    job = load(write_job(), ["engine.mesh=2x2", "engine.decode.attention=heads"])
    launch.run(job, engine_factory=FACTORY)
    kept = read(user / "out")
    assert (kept.chips, kept.chip_count, kept.engine.decode.attention) == ("v5e:2x2", 4, "heads")
    assert kept.chosen == ("slots", "prefill_tokens", "prefill", "decode")
    assert kept.engine.max_length == "auto"
    layouts = asked[0].settings["layouts"]
    assert layouts["mesh"] == "2x2"
    assert layouts["prefill"] == list(asdict(kept.engine.prefill).values())
    assert layouts["decode"] == list(asdict(kept.engine.decode).values())
    assert asked[0].settings["max_length"] == "auto"

    for name in ("_prediction.json", "_SUCCESS"):  # the layouts are known without the first
        (user / "out" / name).unlink()
    next((user / "out").glob("part-00003*")).unlink()
    launch.run(job, engine_factory=FACTORY)
    assert asked[1].settings == asked[0].settings
    launch.run(load(str(user / "out" / "_job.json")), engine_factory=FACTORY)  # finished: and it is the same job


@pytest.mark.usefixtures("four_chips")
def test_a_run_that_was_second_to_begin_takes_what_the_first_has_chosen(
    user: Path, write_job, asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(write_job(), ["engine.mesh=2x2"])
    launch.run(job, engine_factory=FACTORY)
    kept = read(user / "out")
    chosen = settle.settle
    first = (user / "out").rename(user / "first")

    def late(parts: launch.Parts, *rest: Any, **chooses: bool) -> settle.Settled:
        """Meanwhile the other run has begun, in a shape that would not be chosen now."""
        found = chosen(parts, *rest, **chooses)
        if not (user / "out").exists() or not list((user / "out").iterdir()):
            other = replace(kept, engine=replace(kept.engine, slots=5))
            plan = json.loads((first / "_plan.json").read_bytes())
            plan["settings"]["layouts"]["decode"] = ["wg-xyz", "batch"]
            (user / "out").mkdir(exist_ok=True)
            (user / "out" / "_plan.json").write_text(json.dumps(plan))
            (user / "out" / "_prediction.json").write_bytes(other.to_json())
        return found

    monkeypatch.setattr(launch, "settle", late)
    launch.run(job, engine_factory=FACTORY)
    assert asked[1].slots == 5
    assert asked[1].settings["layouts"]["decode"] == ["wg-xyz", "batch"]


def test_programs_leave_room_beside_a_cache_that_fills_the_memory(user: Path, write_job) -> None:
    parts = launch.open_parts(load(write_job()))
    found = foresee(parts, Known(), Here(named_chip("v5e"), 1))
    assert found.activation_bytes <= 0.13 * found.limit_bytes


# A plan that was made before.


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """What was planned, once for all: it does not depend on where the job lies."""
    return {}


@pytest.fixture
def plan(measured: Path, write_job, capsys, made: dict[str, bytes]) -> Callable[..., str]:
    """Plans the job for this machine, with fields of the plan changed; returns the file."""

    def of(**changes: object) -> str:
        path = measured / "plan.json"
        if not made:
            assert main(["plan", write_job(), "--chips", "here", "--out", str(path)]) == DONE
            capsys.readouterr()
            made["plan"] = path.read_bytes()
        path.write_text(json.dumps(json.loads(made["plan"]) | changes))
        return str(path)

    return of


@pytest.mark.usefixtures("fake_engine")
def test_a_plan_is_run(plan, write_job, measured: Path, asked, capsys) -> None:
    path = plan()
    planned = Prediction.from_json(Path(path).read_bytes())
    assert planned.chosen == ("mesh", "prefill", "decode", "slots", "max_length", "prefill_tokens")
    assert main(["run", write_job(), "--plan", path, "--set", "engine.mesh=1x1"]) == DONE
    assert (asked[0].slots, asked[0].settings["max_length"]) == (planned.engine.slots, 128)
    kept = read(measured / "out")
    assert (kept.engine, kept.chosen) == (planned.engine, planned.chosen)
    assert kept.seconds == pytest.approx(planned.seconds)
    next((measured / "out").glob("part-00003*")).unlink()
    assert main(["run", write_job()]) == DONE  # without it: the output knows
    assert (asked[1].slots, asked[1].settings) == (asked[0].slots, asked[0].settings)
    Path(path).write_bytes(replace(planned, engine=replace(planned.engine, slots=7)).to_json())
    next((measured / "out").glob("part-00003*")).unlink()
    assert main(["run", write_job(), "--plan", path]) == REFUSED
    assert f"engine.slots: {planned.engine.slots} -> 7; resume it without --plan" in capsys.readouterr().err


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize(
    ("changes", "line", "says"),
    [
        ({}, ["--set", "sampling.max_tokens=4"], "sampling.max_tokens: planned for 16, the job has 4"),
        ({}, ["--set", "engine.slots=3"], "engine.slots: the plan has"),
        ({}, ["--set", "engine.mesh=2x1"], "engine.mesh: the plan has 1x1x1, the job 2x1"),
        ({"asked": {"model": "other"}}, [], "model: planned for 'other', the job has"),
        ({"chips": "v5e:4x4"}, [], "is for v5e:4x4, here is cpu; plan again with --chips here"),
        ({"workers": 2}, [], "is for 2 workers, and this run is one"),
        ({"version": 9}, [], "was written by a newer Penstock (version 9"),
        ({"surprise": 1}, [], "unknown key 'surprise'"),
        ({"engine": {}}, [], "missing key 'engine.decode'"),
        ({"seconds": -3}, [], "'seconds' must be"),
    ],
)
def test_a_plan_of_something_else_is_refused(
    changes: dict, line: list[str], says: str, plan, write_job, measured: Path, capsys
) -> None:
    assert main(["run", write_job(), "--plan", plan(**changes), *line]) == REFUSED
    assert says in capsys.readouterr().err
    assert not (measured / "out" / "_plan.json").exists()


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("field", [{"slots": 0}, {"mesh": "0x1"}, {"decode": {"ffn": "ws3d", "attention": "heads"}}])
def test_a_plan_that_says_what_no_job_may_say_is_refused(field: dict, plan, write_job, capsys) -> None:
    path = plan()
    document = json.loads(Path(path).read_bytes())
    document["engine"] |= field
    Path(path).write_text(json.dumps(document))
    assert main(["run", write_job(), "--plan", path]) == REFUSED
    assert f"error: --plan {path}: engine." in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, b"", b"{", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_a_file_that_is_no_plan_is_refused(text: bytes | None, user: Path, write_job, capsys) -> None:
    path = user / "plan.json"
    if text is not None:
        path.write_bytes(text)
    assert main(["run", write_job(), "--plan", str(path)]) == REFUSED
    assert f"error: --plan {path}" in capsys.readouterr().err


# Plans learn.


@pytest.mark.usefixtures("fake_engine")
def test_a_plan_learns_from_earlier_runs_and_says_so(measured: Path, write_job, capsys) -> None:
    path = write_job()
    line = ["plan", path, "--chips", "cpu", "--json"]
    assert main(line) == DONE
    before = json.loads(capsys.readouterr().out)
    parts = launch.open_parts(load(path))
    key = settle_asked(parts)
    remember(Earlier(model_key(key), "cpu", job_key(key), 1.0, 4.0, 33.0, 2.5))
    assert main(line) == DONE
    after = json.loads(capsys.readouterr().out)
    assert "times are corrected by 2.00 from 1 earlier run of this model on cpu" in after["notes"]
    assert any("33 s to load and compile" in note for note in after["notes"])
    assert after["completion_tokens"] == pytest.approx(98 * 2.5, abs=1)
    assert after["plan"]["prefill_seconds"] == pytest.approx(2 * before["plan"]["prefill_seconds"])
    history_at().unlink()
    assert main(["run", path]) == DONE
    history_at().unlink()
    capsys.readouterr()
    assert main([*line, "--learn-from", str(measured / "out")]) == DONE
    assert any("from 1 earlier run" in note for note in json.loads(capsys.readouterr().out)["notes"])
    (measured / "out" / "_prediction.json").unlink()
    assert main([*line, "--learn-from", str(measured / "out")]) == REFUSED
    assert "nothing was predicted of that run" in capsys.readouterr().err
    assert main(["plan", "--model", "llama-3.1-8b", "--out", "x", "--phase", "decode", "--context", "9"]) == REFUSED
    assert "--out is for a whole job" in capsys.readouterr().err


def settle_asked(parts: launch.Parts) -> dict:
    from jobs.planning.asked import asked_of

    return asked_of(parts)


def test_validate_says_how_long_it_takes_where_it_is_known(measured: Path, write_job, capsys, monkeypatch) -> None:
    path = write_job()
    assert main(["validate", path, "--set", "limits.max_failed_fraction=0.5"]) == DONE
    assert "time     about " in capsys.readouterr().out
    monkeypatch.setattr(engine.compilation.here, "is_processor_alone", lambda: False)
    assert main(["validate", path, "--set", "limits.max_failed_fraction=0.5"]) == DONE
    assert "penstock plan says what to run it on" in capsys.readouterr().out
