"""A host that follows: what it hands on to the engine, and what it refuses before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.commands import exit_codes
from jobs.job_file import load
from pipeline import inference
from schemas.manifest import SUCCESS_NAME

HOSTS = ("--set", "engine.mesh=2x2x1", "--set", "engine.hosts={count: 2, coordinator: '10.0.0.1:8476'}")


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the engine was asked for; it ends at once."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(inference, "follow", lambda *args: asked.append(args))
    return asked


def test_the_engine_is_asked_for_what_the_leader_has(write_job: Callable[..., str], followed, capsys) -> None:
    path = write_job()
    assert cli.main(["follow", path, "--process", "1", *HOSTS]) == exit_codes.DONE
    job = load(path, HOSTS[1::2])
    hosts = {"count": 2, "coordinator": "10.0.0.1:8476"}
    assert followed == [(job.model.checkpoint, job.settings(), hosts, 1, "auto")]
    assert capsys.readouterr().out == "follow   the leader has ended the run\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--process", "1"], "engine.hosts: is missing, so this job runs on one host"),
        (["--process", "0", *HOSTS], "--process 0: engine.hosts.count is 2, so the other hosts are 1 to 1"),
        (["--process", "2", *HOSTS], "--process 2: engine.hosts.count is 2, so the other hosts are 1 to 1"),
        (["--process", "1", *HOSTS, "--set", "engine.hosts.count=1"], "engine.hosts.count"),
        (["--process", "1", *HOSTS, "--set", "engine.hosts.coordinator=10.0.0.1"], "engine.hosts.coordinator"),
        (["--process", "1", *HOSTS, "--set", "engine.mesh=3x1"], "engine.mesh: 3x1 is 3 chips, which 2 hosts"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    write_job: Callable[..., str], followed, capsys, arguments: list[str], said: str
) -> None:
    assert cli.main(["follow", write_job(), *arguments]) == exit_codes.REFUSED
    assert said in capsys.readouterr().err
    assert followed == []


def test_a_finished_job_needs_nobody(tmp_path: Path, write_job: Callable[..., str], followed, capsys) -> None:
    path = write_job()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SUCCESS_NAME).touch()
    assert cli.main(["follow", path, "--process", "1", *HOSTS]) == exit_codes.DONE
    assert "nothing to do" in capsys.readouterr().out
    assert followed == []


def test_hosts_bear_on_no_result(write_job: Callable[..., str]) -> None:
    path = write_job()
    assert load(path, HOSTS[1::2]).settings() == load(path, HOSTS[1:2]).settings()
