"""Metrics: scraped from a real run, read by Prometheus' own parser, with the numbers that the output has."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.runtime.request import Request
from jobs import cli, metrics
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.metrics import Exposed, engine_counts
from pipeline import activity
from tests.fake_engine import FakeEngine

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return _samples(answer.read().decode())


def test_scraped_while_it_runs_and_kept_in_a_file(
    write_job: Callable[..., str],
    tmp_path: Path,
    fake_engine: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = threading.Event()

    class Held(FakeEngine):
        """Stops in the middle until it is let go."""

        def submit(self, request: Request) -> Future[Any]:
            if self.counters["prompt_tokens"] > 500:
                held.wait(60)
            return super().submit(request)

    monkeypatch.setattr(activity, "_engines", weakref.WeakSet())  # those of earlier tests live on in this process
    monkeypatch.setattr("tests.fake_engine.held", lambda checkpoint, **asked: Held(), raising=False)
    fake_engine("held")
    port, file, code = _free_port(), tmp_path / "run.prom", []
    arguments = ["run", write_job(100), "--metrics-port", str(port), "--metrics-file", str(file)]
    running = threading.Thread(target=lambda: code.append(cli.main(arguments)))
    running.start()
    live: Samples = {}
    ready, at_work = ("penstock_rows_total", (("status", "ok"),)), ("penstock_open_shards", ())
    while running.is_alive() and not (live.get(ready) and live.get(at_work)):
        time.sleep(0.02)
        with contextlib.suppress(OSError):  # it does not listen yet
            live = _scrape(port)
    held.set()
    running.join()
    assert code == [DONE]
    assert live["penstock_engine_slots", ()] == 16
    assert live["penstock_queue_rows", ()] >= 0
    assert live["penstock_job_finished", ()] == 0
    assert live["penstock_run_info", (("job", "questions"), ("task", "generate"))] == 1

    end = _samples(file.read_text())
    assert end["penstock_rows_total", (("status", "ok"),)] == 98
    assert end["penstock_rows_total", (("status", "failed"),)] == 2
    assert end["penstock_failures_total", (("reason", "invalid JSON"),)] == 2
    assert end["penstock_job_rows", (("state", "ok"),)] == 98
    assert end["penstock_job_shards", (("state", "done"),)] == 5
    assert end["penstock_job_shards", (("state", "left"),)] == 0
    assert end["penstock_job_finished", ()] == 1
    tokens = end["penstock_tokens_total", (("kind", "generated"),)]
    assert tokens == end["penstock_job_tokens", (("kind", "generated"),)] > 0
    assert end["penstock_queue_rows", ()] == end["penstock_open_shards", ()] == 0
    with pytest.raises(OSError, match=r"refused|reset"):
        _scrape(port)


def test_the_engine_s_counters_have_names_with_units() -> None:
    counts = {"slot_steps_busy": 70, "slot_steps_total": 100, "prefill_tokens": 8, "prefill_tokens_padded": 10,
              "device_seconds": 1.5, "decode_steps": 4, "out_of_memory_retries": 1, "what_is_new": 3}  # fmt: skip
    families = engine_counts([counts, counts])
    assert families["slot_steps"][1] == [({"state": "busy"}, 140), ({"state": "idle"}, 60)]
    assert families["prefill_tokens"][1] == [({"kind": "useful"}, 16), ({"kind": "padding"}, 4)]
    assert families["device_seconds"][1] == [({}, 3.0)]
    assert families["out_of_memory_retries"][1] == [({}, 2)]
    assert "what_is_new" not in families


def test_an_output_that_cannot_be_read_does_not_fail_a_scrape(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_plan.json").write_text("{")
    port = _free_port()
    with Exposed(port=str(port)).while_running("j", "generate", str(tmp_path / "out")):
        seen = _scrape(port)
    assert ("penstock_run_info", (("job", "j"), ("task", "generate"))) in seen
    assert not [name for name, _ in seen if name.startswith("penstock_job_")]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--metrics-port", "http"], "--metrics-port http: write PORT or HOST:PORT"),
        (["--metrics-port", "70000"], "--metrics-port 70000: write PORT or HOST:PORT"),
        (["--metrics-file", "run.txt"], "--metrics-file run.txt: the name must end in .prom"),
        (["--metrics-file", "/absent/run.prom"], "--metrics-file /absent/run.prom: cannot be written"),
    ],
)
@pytest.mark.usefixtures("fake_engine")
def test_what_cannot_be_exposed_is_said_before_the_run(
    write_job: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    assert cli.main(["run", write_job(10), *arguments]) == REFUSED
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fake_engine")
def test_a_port_that_is_taken(write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert cli.main(["run", write_job(10), "--metrics-port", str(port)]) == REFUSED
    assert f"--metrics-port {port}: cannot listen there" in capsys.readouterr().err


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert cli.main(["run", write_job(10), "--metrics-port", "9464"]) == REFUSED
    assert "pip install 'penstock[metrics]'" in capsys.readouterr().err


def test_reasons_are_bounded() -> None:
    activity.reset()
    for number in range(100):
        activity.count([{"status": "failed", "error": f"kind {number}: reason"}])
    assert len(activity.failures()) == 21
    assert activity.failures()["other"] == 80
    activity.reset()
    assert metrics.OUTPUT_SECONDS > 1
