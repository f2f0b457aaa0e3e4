"""The page in a real browser: it says nothing on the console, asks for nothing, and its script runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.reporting.report import write_report
from tests.jobs.reporting.results import make_output
from tests.jobs.reporting.test_report import hostile_output

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH: apt-get install chromium")


@dataclass(frozen=True)
class _Seen:
    dom: str
    console: list[str]
    requests: set[str]


def _open(page: Path, profile: Path) -> _Seen:
    assert BROWSER
    net_log = profile / "net.json"
    profile.mkdir()
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
            "--enable-logging=stderr", f"--log-net-log={net_log}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    events = json.loads(net_log.read_text())["events"]
    requests = {str(event.get("params", {}).get("url")) for event in events}
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return _Seen(done.stdout, console, {url for url in requests if "hostile.invalid" in url})


def test_a_page_with_hostile_rows(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    output = hostile_output(tmp_path / "scored" / "dt=2")
    make_output(tmp_path / "scored" / "dt=1")
    write_report([str(tmp_path / "scored")], str(page))
    assert output
    seen = _open(page, tmp_path / "profile")
    assert seen.console == []
    assert seen.requests == set()
    assert '<button id="theme" type="button">' in seen.dom, "the page's own script has not run"
    assert "data-tip=" in seen.dom


def test_the_browser_would_have_said_so(tmp_path: Path) -> None:
    """Without a policy and unescaped, both show: the test above can fail."""
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><img src="http://hostile.invalid/x"><script>console.error("loud")</script>')
    seen = _open(page, tmp_path / "profile")
    assert len(seen.console) == 1
    assert seen.requests == {"http://hostile.invalid/x"}
