"""When waiting for workers is given up: only after nothing at all has happened for long enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import silence
from jobs.silence import Silence, WorkersSilent
from pipeline.errors import OutputError
from schemas.lease import Lease, lease_name

LEASE = Lease(shard=3, run="run", worker="host:1", process=None, nonce="n", renewals=0, taken_at="2026-01-01T00:00:00")


def test_every_sign_of_life_begins_the_wait_again(tmp_path: Path) -> None:
    now = 0.0

    def seconds_pass(seconds: float) -> None:
        nonlocal now
        now += seconds
        waiting.look()

    def write(name: str, data: bytes = b"{}") -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)

    waiting = Silence(str(tmp_path), 600, "Do this", clock=lambda: now)
    assert waiting.pause_seconds == 30
    signs: list[Callable[[], None]] = [
        lambda: write("_workers/run-host-1.json"),
        lambda: write(f"_leases/{lease_name(3)}", LEASE.to_json()),
        lambda: write(f"_leases/{lease_name(3)}", dataclasses.replace(LEASE, renewals=1).to_json()),
        lambda: write("_manifest/00003.json"),
        lambda: (tmp_path / "_leases" / lease_name(3)).unlink(),
    ]
    seconds_pass(1)
    for sign in signs:
        seconds_pass(599)
        sign()
        seconds_pass(1)
    seconds_pass(599)
    with pytest.raises(WorkersSilent, match=r"at .* for 10 min: none has started, or it was killed.* Do this$"):
        seconds_pass(1)


def test_a_store_that_does_not_answer_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    waiting = Silence(str(tmp_path), 600, "Do this", clock=lambda: now)
    waiting.look()

    def refuses(directory: str) -> list[str]:
        raise OutputError("503")

    with monkeypatch.context() as patch:
        patch.setattr(silence.storage, "list_names", refuses)
        now = 700.0
        waiting.look()
    with pytest.raises(WorkersSilent):
        waiting.look()
