"""SIGTERM, as a scheduler sends it: a run ends quickly and cleanly, a worker at once, and the next run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import launch
from jobs.job_file import load
from pipeline.leases import holders
from tests import fake_job
from tests.engine.tiny_checkpoint import write_tiny_checkpoint
from tests.equivalence import processes
from tests.pipeline.tiny_tokenizers import save_byte_level

ROOT = Path(__file__).parents[2]
SHARDS, SHARD_ROWS = 30, 4

JOB = """\
name: preempted
task: generate
model: {checkpoint: ./checkpoint}
input: {path: questions.jsonl, id: id}
prompt: {template: "{{ question }}"}
sampling: {max_tokens: 8, temperature: 1.0, seed: 3}
output: {path: ./out, shard_rows: 4}
engine: {slots: 1}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("preempted")
    write_tiny_checkpoint(directory / "checkpoint", vocab_size=512, max_position_embeddings=256)
    (directory / "checkpoint" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    save_byte_level(directory / "checkpoint")
    fake_job.write_jsonl(directory / "questions.jsonl", fake_job.questions(SHARDS * SHARD_ROWS))
    (directory / "job.yaml").write_text(JOB)
    return directory


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[dict[str, Any]]:
    launch.run(load(str(directory / "job.yaml"), ["output.path=whole"]), engine_factory="tests.fake_engine:instant")
    return fake_job.results(directory / "whole")


def wait_for(there: Callable[[], Any], process: Any) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        assert (process.poll() if isinstance(process, subprocess.Popen) else process.exitcode) is None
        time.sleep(0.005)


def test_a_run_that_is_terminated_lets_go_and_the_next_goes_on(directory: Path, expected) -> None:
    output, job = directory / "out", str(directory / "job.yaml")
    command = [sys.executable, "-m", "tests.jobs.fake_command", "slow", "run", job]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(output.glob("part-*")) and holders(str(output)), process)
    process.send_signal(signal.SIGTERM)
    _, logged = process.communicate(timeout=30)
    assert process.returncode == 143
    assert f"ended by SIGTERM; finished shards stay. To go on:\n  penstock run {job}" in logged
    assert "Traceback" not in logged
    assert holders(str(output)) == []
    assert not list(output.rglob(".*"))
    done = len(list(output.glob("part-*")))
    assert 0 < done < SHARDS
    outcome = launch.run(load(job), engine_factory="tests.fake_engine:instant")
    assert outcome.this_run.shards == SHARDS - done
    assert fake_job.results(output) == expected


def test_a_worker_that_is_terminated_loses_its_open_shards_alone(directory: Path, expected, tmp_path: Path) -> None:
    """A runner's worker has nobody who would catch the signal: it ends where it stands."""
    job = {
        "source": directory / "questions.jsonl",
        "checkpoint": directory / "checkpoint",
        "asked": fake_job.settings(id="id", prompt={"template": "{{ question }}"}, max_tokens=8, seed=3, shard_rows=4),
    }
    fake_job.run(output=tmp_path / "whole", **job)
    worker = processes.start(output=tmp_path / "out", engine="tests.fake_engine:slow", slots=1, **job)
    wait_for(lambda: list((tmp_path / "out").glob("part-*")), worker)
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == -signal.SIGTERM
    done = {path: path.read_bytes() for path in (tmp_path / "out").glob("part-*")}
    assert 0 < len(done) < SHARDS
    fake_job.run(output=tmp_path / "out", **job)
    assert {path: path.read_bytes() for path in done} == done
    assert fake_job.results(tmp_path / "out") == fake_job.results(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(".*"))
