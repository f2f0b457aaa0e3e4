"""Alerts are delivered once each, keep their URL to themselves, and never make a run fail. And what drift is."""

from __future__ import annotations

import http.server
import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.scheduling.drift import drifts, figures
from schemas.manifest import Summary
from tests.jobs.scheduling.conftest import Place

KEY = "dt=2026-01-05/hour=00"


class Webhook:
    """A server that keeps what is posted to it, and answers with `status`."""

    def __init__(self) -> None:
        self.status, self.received = 200, []
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret-token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    hook = Webhook()
    monkeypatch.setenv("TEST_WEBHOOK", hook.url)
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def test_a_late_partition_is_said_once_to_a_webhook(place: Place, webhook: Webhook) -> None:
    place.schedule(alerts={"webhook_env": "TEST_WEBHOOK"})
    for _ in range(2):
        assert place.states("2026-01-05T01:00") == {"hour=00": "late"}
    (said,) = webhook.received
    assert said["text"] == f"hourly: {KEY} is late: no input yet: {place.directory}/in/{KEY}/*.jsonl"
    assert (said["occasion"], said["partition"], said["output"]) == ("late", KEY, f"{place.out}/{KEY}")


def test_a_failing_webhook_fails_no_run_keeps_its_url_and_is_tried_again(
    place: Place, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    place.schedule(alerts={"webhook_env": "TEST_WEBHOOK"})
    webhook.status = 500
    with caplog.at_level(logging.INFO):
        assert place.states("2026-01-05T01:00") == {"hour=00": "late"}
    assert "the webhook answers 500" in caplog.text
    webhook.status = 200
    place.call("2026-01-05T01:00")
    place.call("2026-01-05T01:00")
    assert len(webhook.received) == 2
    kept = "".join(file.read_text() for file in place.out.rglob("*.json"))
    assert "secret-token" not in caplog.text + kept


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "http://127.0.0.1:1/secret-token", "http://[secret-token"])
def test_a_url_that_is_none_or_leads_nowhere_is_survived(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv("TEST_WEBHOOK", url)
    place.schedule(alerts={"webhook_env": "TEST_WEBHOOK"})
    assert place.states("2026-01-05T01:00") == {"hour=00": "late"}
    assert "could not be delivered" in caplog.text
    assert "secret-token" not in caplog.text


def test_a_command_gets_it_on_its_standard_input_and_its_failure_is_survived(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = f"import sys; open({str(tmp_path / 'said')!r}, 'a').write(sys.stdin.read() + '\\n')"
    place.schedule(alerts={"command": [sys.executable, "-c", program]}, retries={"limit": 0})
    place.write(KEY).write_text("{}\n")
    assert place.states("2026-01-05T01:00") == {"hour=00": "failed"}
    (said,) = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert said["occasion"] == "failure"
    assert "no row has a column" in said["reason"]
    place.schedule(alerts={"command": ["no-such-command"]})
    assert place.states("2026-01-05T02:00") == {"hour=00": "failed", "hour=01": "late"}
    assert "no-such-command" in caplog.text


def test_only_what_was_asked_for_is_said(place: Place, webhook: Webhook) -> None:
    place.schedule(alerts={"webhook_env": "TEST_WEBHOOK", "on": ["refused"]}, late_data={"on_change": "refuse"})
    place.call("2026-01-05T01:00")
    place.write(KEY)
    place.call("2026-01-05T01:00")
    place.write(KEY, range(5))
    place.call("2026-01-05T01:00")
    place.write(KEY, range(6))
    place.call("2026-01-05T01:00")
    assert [said["occasion"] for said in webhook.received] == ["refused"]


def test_drift_is_said(place: Place, webhook: Webhook) -> None:
    place.schedule(alerts={"webhook_env": "TEST_WEBHOOK", "on": ["drift"]})
    for hour in range(7):
        place.write(f"dt=2026-01-05/hour={hour:02}", range(4 if hour == 6 else 2))
    place.call("2026-01-05T07:00")
    (said,) = webhook.received
    assert said["partition"] == "dt=2026-01-05/hour=06"
    assert said["reason"].startswith("rows 4, 2 before")


def summary(**changes: Any) -> Summary:
    values = {
        "name": "x", "task": "generate", "job_fingerprint": "", "model_fingerprint": "", "shards": 1, "rows": 100,
        "ok": 100, "failed": 0, "failed_reasons": {}, "prompt_tokens": 1000, "completion_tokens": 2000,
        "scored_tokens": 0, "started_at": None, "finished_at": None, "shard_seconds": 1.0, "busy_seconds": 1.0,
        "compile_seconds": 0.0, "slots_busy_fraction": None, "padding_fraction": None, "predicted": None,
    }  # fmt: skip
    return Summary(**{**values, **changes})


def test_drift_is_a_distance_from_the_median_in_spreads_and_in_itself() -> None:
    before = [figures([summary(completion_tokens=2000 + 10 * (i % 3))]) for i in range(10)]
    assert drifts(figures([summary(completion_tokens=2150)]), before) == []  # under a tenth
    (found,) = drifts(figures([summary(completion_tokens=2600)]), before)
    assert str(found) == "generated tokens per row 26, 20.1 before"
    noisy = [figures([summary(completion_tokens=1000 + 300 * i)]) for i in range(10)]
    assert drifts(figures([summary(completion_tokens=3700)]), noisy) == []  # over a tenth, within the noise
    assert drifts(figures([summary(completion_tokens=9000)]), before[:4]) == []  # nothing to differ from


def test_failed_rows_drift_by_their_share() -> None:
    before = [figures([summary()]) for _ in range(6)]
    assert drifts(figures([summary(ok=99, failed=1)]), before) == []
    assert [d.figure for d in drifts(figures([summary(ok=95, failed=5, prompt_tokens=950)]), before)] == [
        "failed share"
    ]


def test_a_partition_in_several_versions_is_one() -> None:
    assert figures([summary(), summary(ok=50)])["rows"] == 150
