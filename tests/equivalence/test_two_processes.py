"""Two processes with four devices each: the rows of one process with eight, bit for bit, whichever of them dies.

Through the whole job, by the commands that a user gives: `penstock run` leads, `penstock follow` follows. The job is
killed twice in its middle, once on each side, and then finished; so all that three runs leave together is compared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.commands import exit_codes
from schemas.manifest import SUCCESS_NAME
from tests import fake_job
from tests.compiling import FLAGS
from tests.engine.runtime.connections import free_port
from tests.engine.tiny_checkpoint import write_tiny_checkpoint
from tests.pipeline.tiny_tokenizers import save_byte_level

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
SHARDS, SHARD_ROWS = 6, 4

JOB = """\
name: two-processes
task: generate
model: {{checkpoint: ./checkpoint, dtype: float32}}
input: {{path: questions.jsonl, id: id}}
prompt: {{template: "{{{{ question }}}}"}}
sampling: {{max_tokens: 5, temperature: 1.0, seed: 3, logprobs: 2}}
output: {{path: ./out, shard_rows: {shard_rows}}}
engine: {{mesh: 2x2x2, slots: 8, max_length: 32, hosts: {{count: 2, coordinator: "127.0.0.1:{port}"}}}}
runner: {{workers: 1}}
"""

Run = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the checkpoint and the input of the job."""
    directory = tmp_path_factory.mktemp("two-processes")
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 512}
    write_tiny_checkpoint(directory / "checkpoint", max_position_embeddings=64, **shape)
    (directory / "checkpoint" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    save_byte_level(directory / "checkpoint")
    fake_job.write_jsonl(directory / "questions.jsonl", fake_job.questions(SHARDS * SHARD_ROWS))
    (directory / "job.yaml").write_text(JOB.format(shard_rows=SHARD_ROWS, port=free_port()))
    return directory


@pytest.fixture
def start(directory: Path) -> Iterator[Run]:
    """Begins `penstock` with four devices; its errors go to a file named after the command."""
    running = []

    def run(*arguments: str) -> subprocess.Popen:
        environment = os.environ | {"XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=4"}
        with (directory / f"{arguments[0]}.log").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def pair(start: Run, directory: Path) -> tuple[subprocess.Popen, subprocess.Popen]:
    """A leader and its follower."""
    job = str(directory / "job.yaml")
    return start("run", job), start("follow", job, "--process", "1")


@pytest.fixture(scope="module")
def of_one_process(directory: Path) -> list[dict[str, Any]]:
    """The rows of the same job in this process, with its eight devices."""
    alone = ["--set", "engine.hosts=null", "--set", f"output.path={directory}/alone"]
    assert cli.main(["run", str(directory / "job.yaml"), *alone]) == exit_codes.DONE
    return fake_job.results(directory / "alone")


def parts(directory: Path) -> set[str]:
    return {path.name for path in (directory / "out").glob("part-*")}


def killed_in_the_middle(victim: subprocess.Popen, survivor: subprocess.Popen, directory: Path) -> set[str]:
    """SIGKILL once another shard is finished; waits for the survivor's end; the shards that are there then."""
    before, deadline = parts(directory), time.monotonic() + PATIENCE_SECONDS
    while parts(directory) == before:
        assert victim.poll() is None, "it ended before its time"
        assert time.monotonic() < deadline, "no shard was finished"
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    survivor.wait(timeout=30)
    assert not (directory / "out" / SUCCESS_NAME).exists(), "it was killed too late to see anything"
    return parts(directory)


def last_words(directory: Path, command: str) -> str:
    return (directory / f"{command}.log").read_text()


def test_1_when_the_follower_is_killed_the_leader_says_so_and_ends(directory: Path, pair) -> None:
    leader, follower = pair
    kept = killed_in_the_middle(follower, leader, directory)
    assert leader.returncode == exit_codes.REFUSED
    said = last_words(directory, "run")
    assert "error: lost process 1 (127.0.0.1): its process has ended. See what it said last; then start the job" in said
    assert "finished shards stay" in said
    assert "Traceback" not in said
    assert kept


def test_2_when_the_leader_is_killed_the_follower_says_so_and_ends(directory: Path, pair) -> None:
    leader, follower = pair
    kept = parts(directory)
    assert killed_in_the_middle(leader, follower, directory) > kept
    assert follower.returncode == exit_codes.REFUSED
    said = last_words(directory, "follow")
    assert "error: lost the leader at 127.0.0.1:" in said
    assert "Terminating process" not in said  # of jax, when it sees its coordination service go
    assert "Traceback" not in said


def test_3_run_again_it_is_finished_and_every_row_is_that_of_one_process(directory: Path, pair, of_one_process) -> None:
    leader, follower = pair
    assert leader.wait(timeout=PATIENCE_SECONDS) == exit_codes.DONE, last_words(directory, "run")
    assert follower.wait(timeout=30) == exit_codes.DONE, last_words(directory, "follow")
    rows = fake_job.results(directory / "out")
    assert len(rows) == SHARDS * SHARD_ROWS
    assert rows == of_one_process
    assert {row["status"] for row in rows} == {"ok"}
