"""`penstock submit` as planned: what is chosen for workers elsewhere, what is pinned, kept, said, and refused.

Nothing is sent: the runner is one that takes every job.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.planning.history import Earlier, job_key, model_key, remember
from jobs.submission import dry_run, submit
from pipeline.inference import ShardJob
from schemas.prediction import Prediction
from tests.jobs import running
from tests.jobs.submission.jobs import DATAFLOW
from tests.jobs.submission.test_dataflow_job import TPUS

IMAGE = "us-docker.pkg.dev/my-project/penstock/worker:0.1.0-{target}"
PRICES = "date: 2026-11-01\ncurrency: USD\nchip_hour: {{v5e: {v5e}, v6e: 2.7, h100: 9}}\n"


FEW = ("--set", "engine.slots=8", "--set", "engine.prefill_tokens=1024", "--set", "engine.prefill.attention=heads")
"""Where something else is to be chosen: these are played one by one, which takes a while."""
ONE = (*FEW, "--set", "engine.mesh=1x1x1")


class Accepted:
    """The result of a runner that has the job."""

    job_id = "17"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ShardJob]:
    """What workers are told by submissions, of which none leaves this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    for module in (dry_run, submit):
        monkeypatch.setattr(module, "refuse_unreachable", lambda job: None)  # in place of a bucket
    monkeypatch.setattr(submit.endpoints, "require", lambda job: None)
    monkeypatch.setattr("jobs.beam_run.new_pipeline", lambda *_: None)  # for which Beam asks about credentials
    monkeypatch.setattr(submit, "_accepted", lambda pipeline, job: Accepted())
    return running.told_to_workers(monkeypatch)


Line = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def dataflow(told: list[ShardJob], write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Line:
    """`penstock submit` to Dataflow with other settings: its exit code, what it prints line by line, and its errors."""

    def line(*words: str, **settings: Any) -> tuple[int, list[str], str]:
        said = {name: value for name, value in {**DATAFLOW, "image": IMAGE, **settings}.items() if value is not None}
        runner = {"name": "dataflow", "dataflow": said}
        code = cli.main(["submit", write_job(), "--set", f"runner={json.dumps(runner)}", *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return line


def kept(output: Path) -> Prediction:
    return Prediction.from_json((output / "_prediction.json").read_bytes())


@pytest.mark.parametrize(("chip", "mesh", "type", "topology", "machine"), TPUS)
def test_the_mesh_of_every_tpu_worker_is_chosen(
    chip: str, mesh: str, type: str, topology: str, machine: str, dataflow: Line, told, tmp_path: Path
) -> None:
    code, said, _ = dataflow("--dry-run", *FEW, accelerator=chip, topology=topology, machines=3)
    assert code == DONE
    environment = json.loads((tmp_path / "questions.dataflow.json").read_text())["environment"]
    (pool,) = environment["workerPools"]
    assert environment["serviceOptions"] == [f"worker_accelerator=type:{type};topology:{topology}"]
    assert (pool["machineType"], pool["numWorkers"]) == (machine, 3)
    host = dict(line.split(": ", 1) for line in said if ": " in line)
    assert host["pinned   runner.dataflow.topology"] == topology
    assert host["follows  runner.dataflow.machine_type"] == machine
    assert host["pinned   runner.dataflow.machines"] == "3"
    sizes = [int(size) for size in host["chosen   engine.mesh"].split("x")]
    assert sizes[0] * sizes[1] * sizes[2] == int(machine.rpartition("-")[2].removesuffix("t"))
    assert any(line.startswith(f"plan     3 x {chip}:{topology}: ") for line in said)
    assert any(line.startswith("time     about ") and ", between " in line for line in said)
    assert any(line.startswith("cost     ") and "chip-hours, between " in line for line in said)
    target = pool["workerHarnessContainerImage"].rpartition("0.1.0-")[2]
    assert any(f"TPU_TYPE={target} " in line for line in said)
    assert (told[0].chip, told[0].slots) == (chip, 8)
    assert (told[0].settings.get("layouts") is None) == (topology == "1x1")
    assert not (tmp_path / "out").exists()


def test_the_accelerator_is_chosen_by_what_chips_cost(dataflow: Line, tmp_path: Path) -> None:
    code, _, err = dataflow("--dry-run", accelerator="auto")
    assert code == REFUSED
    assert "runner.dataflow.accelerator: auto: chips of different kinds are compared by what they cost" in err
    for price, chosen in ((1.2, "v5e"), (5.0, "v6e")):
        (tmp_path / "prices.yaml").write_text(PRICES.format(v5e=price))
        code, said, _ = dataflow("--dry-run", *ONE, "--prices", "prices.yaml", accelerator="auto")
        assert code == DONE
        assert f"chosen   runner.dataflow.accelerator: {chosen}" in said
        assert any("USD, between " in line and "(prices of 2026-11-01)" in line for line in said)
    words = ["--goal", "fastest", "--max-chips", "1", "--set", "engine.chip=v6e"]
    code, said, _ = dataflow("--dry-run", *ONE, *words, accelerator="auto")
    assert code == DONE
    assert "chosen   runner.dataflow.accelerator: v6e" in said


def test_what_is_pinned_stays(dataflow: Line, told) -> None:
    words = [*FEW, "--set", "engine.mesh=1x4x1", "--set", "engine.slots=24", "--set", "engine.decode.attention=heads"]
    code, said, _ = dataflow("--dry-run", *words, accelerator="v6e")
    assert code == DONE
    assert {
        "pinned   engine.mesh: 1x4x1",
        "pinned   engine.slots: 24",
        "pinned   engine.decode.attention: heads",
        "chosen   engine.decode.ffn: ws1d",
        "default  engine.max_length: auto",
        "pinned   runner.dataflow.accelerator: v6e",
        "follows  runner.dataflow.topology: 2x2",
        "chosen   runner.dataflow.machines: 1",
    } <= set(said)
    assert told[0].slots == 24
    assert told[0].settings["layouts"]["decode"] == ["ws1d", "heads"]


def test_what_was_chosen_is_kept_and_goes_on(dataflow: Line, told, tmp_path: Path, capsys) -> None:
    code, said, err = dataflow("--detach", *FEW, topology="2x2")
    assert code == DONE
    assert "submitted: dataflow job 17" in err
    assert "plan     v5e:2x2: " in err
    first = kept(tmp_path / "out")
    assert (first.chips, first.workers, first.chosen[0]) == ("v5e:2x2", 1, "mesh")
    assert (told[0].slots, told[0].chip) == (first.engine.slots, "v5e")
    assert told[0].settings["layouts"]["mesh"] == first.engine.mesh
    assert told[0].settings["max_length"] == "auto"

    remember(Earlier(model_key(first.asked), "v5e", job_key(first.asked), 1.0, 900.0, 9.0, 2.5))
    code, said, _ = dataflow("--dry-run", *FEW, "--deadline", "1s")  # any topology would do now, but it has begun
    assert code == DONE
    assert f"kept     engine.mesh: {first.engine.mesh}" in said
    assert "follows  runner.dataflow.topology: 2x2" in said
    assert any("has had its shape since it was begun, so --deadline chooses nothing" in line for line in said)
    (tmp_path / "out" / "_prediction.json").unlink()  # as a driver leaves it that was killed before
    dataflow("--detach", *FEW, accelerator="v6e", machines=2)
    assert told[-1].settings == told[0].settings
    assert kept(tmp_path / "out").chips == "v6e:2x2"
    cli.main(["status", str(tmp_path / "out")])
    assert "as foreseen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        ([*FEW, "--deadline", "1s"], {"topology": "1x1"}, "--deadline: no plan is done within 1 s, its error included"),
        (["--budget", "1"], {}, "--budget needs to know what chips cost: --prices FILE"),
        (["--set", "engine.chip=v6e"], {}, "engine.chip: is v6e, and runner.dataflow.accelerator is v5e"),
        (["--set", "engine.slots=100000000000"], {"topology": "1x1"}, "engine.mesh: none can be chosen: the job does"),
        (
            ["--deadline", "1h"],
            {"accelerator": "nvidia-l4", "machine_type": "g2-standard-8"},
            "--deadline: nothing is predicted of nvidia-l4: its times are not known",
        ),
        (["--max-chips", "8"], {"machines": 2}, "--max-chips: runner.dataflow.machines says how many there are, 2"),
        (["--plan", "plan.json", "--max-chips", "8"], {}, "--max-chips is for choosing, and --plan plan.json has"),
        (["--plan", "plan.json", "--goal", "fastest"], {}, "--goal is for choosing, and --plan plan.json has chosen"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    words: list[str], settings: dict, says: str, dataflow: Line, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("engine.planning.job_planner.MOST_CHIPS", 1)  # larger ones would take seconds here
    code, _, err = dataflow("--detach", *words, **settings)
    assert code == REFUSED
    assert says in err
    assert not (tmp_path / "out" / "_plan.json").exists()


# A plan that was made before.


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """What was planned, once for all: it does not depend on where the job lies."""
    return {}


@pytest.fixture
def plan(told, write_job: Callable[..., str], made: dict[str, bytes], tmp_path: Path, capsys) -> Callable[..., str]:
    """Plans the job for a machine of four v5e; returns the file, with fields of it changed."""

    def of(**changes: Any) -> str:
        path = tmp_path / "plan.json"
        if not made:
            assert cli.main(["plan", write_job(), *FEW, "--chips", "v5e:2x2", "--out", str(path)]) == DONE
            made["plan"] = path.read_bytes()
            capsys.readouterr()
        path.write_text(json.dumps(json.loads(made["plan"]) | changes))
        return str(path)

    return of


def test_a_plan_is_submitted(dataflow: Line, plan, told, tmp_path: Path) -> None:
    code, said, _ = dataflow("--dry-run", "--plan", plan(workers=2))
    planned = Prediction.from_json((tmp_path / "plan.json").read_bytes())
    assert code == DONE
    assert f"planned  engine.mesh: {planned.engine.mesh}" in said
    assert "planned  engine.max_length: 128" in said
    assert "planned  runner.dataflow.machines: 2" in said
    code, _, _ = dataflow("--detach", "--plan", plan(workers=2), machines=4)  # which stays
    found = kept(tmp_path / "out")
    assert code == DONE
    assert (found.engine, found.chosen, found.workers) == (planned.engine, planned.chosen, 4)
    assert (told[-1].slots, told[-1].settings["max_length"]) == (planned.engine.slots, 128)
    assert told[-1].settings["layouts"]["mesh"] == planned.engine.mesh
    code, _, _ = dataflow("--detach")  # without it: the output knows
    assert told[-1].settings == told[-2].settings


@pytest.mark.parametrize(
    ("changes", "settings", "says"),
    [
        ({}, {"accelerator": "v6e"}, "is for v5e:2x2, and by runner.dataflow workers are v6e:1x1, v6e:2x2, v6e:2x4"),
        (
            {},
            {"topology": "2x4"},
            "is for v5e:2x2, and by runner.dataflow workers are v5e:2x4; plan again with --chips",
        ),
        ({"chips": "v5e:4x4"}, {}, "is for v5e:4x4, and by runner.dataflow workers are v5e:1x1, v5e:2x2, v5e:2x4"),
        ({"chips": "cpu:1"}, {}, "is for the processor that it was made on, and workers of dataflow are not here"),
        ({"asked": {"model": "other"}}, {}, "model: planned for 'other', the job has"),
        ({"version": 9}, {}, "was written by a newer Penstock (version 9"),
    ],
)
def test_a_plan_of_something_else_is_refused(
    changes: dict, settings: dict, says: str, dataflow: Line, plan, tmp_path: Path
) -> None:
    code, _, err = dataflow("--detach", "--plan", plan(**changes), **settings)
    assert code == REFUSED
    assert says in err
    assert not (tmp_path / "out" / "_plan.json").exists()


# Workers that are somebody's own.


@pytest.fixture
def portable(told, write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Line:
    def line(*words: str) -> tuple[int, list[str], str]:
        runner = {"name": "portable", "portable": {"job_endpoint": "nowhere.invalid:1", "environment": "PROCESS"}}
        code = cli.main(["submit", write_job(), "--set", f"runner={json.dumps(runner)}", *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return line


def test_of_workers_whose_chip_is_not_known_nothing_is_chosen(portable: Line, told, tmp_path: Path) -> None:
    code, said, _ = portable("--dry-run")
    assert code == DONE
    assert any("compute on is not known here; engine.chip says it to both" in line for line in said)
    assert "default  engine.slots: auto" in said
    code, _, err = portable("--detach", "--set", "engine.chip=v5e", "--set", "engine.mesh=2x2")
    assert code == DONE
    assert "how many workers there are is for portable to say: what is foreseen is of one" in err
    found = kept(tmp_path / "out")
    assert (found.chips, found.workers) == ("v5e:2x2", 1)
    assert (told[-1].slots, told[-1].chip) == (found.engine.slots, "v5e")
    assert told[-1].settings["layouts"]["mesh"] == "2x2"


def test_a_plan_says_what_workers_have(portable: Line, plan, told) -> None:
    code, _, err = portable("--detach", "--plan", plan(chips="cpu:1"))
    assert code == REFUSED
    assert "is for the processor that it was made on, and workers of portable are not here" in err
    code, _, err = portable("--detach", "--goal", "fastest")
    assert code == REFUSED
    assert "--goal: is for runner dataflow, whose machines can be chosen" in err
    assert portable("--detach", "--plan", plan())[0] == DONE
    assert told[-1].chip == "v5e"  # and a worker with another refuses
