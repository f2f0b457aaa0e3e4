"""The page: what it says of which output, that it escapes everything, and what is refused."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.commands.exit_codes import DONE, REFUSED, TOO_MANY_FAILED
from jobs.reporting.outputs import find_outputs
from jobs.reporting.report import write_report
from pipeline.errors import OutputError
from schemas.manifest import PLAN_NAME
from tests.jobs.reporting.results import choice, completion, make_output
from tests.pipeline.example_output import contents

HOSTILE = (
    "</style></script><script>alert(1)</script><img src=http://hostile.invalid/x onerror=alert(1)>"
    "{{ 7*7 }}\x1b[31m\u202e\0"
)


class _Elements(html.parser.HTMLParser):
    """What a page holds: element names with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("style", "script"):
            self.text += f" {data}"


def _page(tmp_path: Path, *outputs: str, **options: Any) -> str:
    path = tmp_path / "report.html"
    write_report(outputs, str(path), **options)
    return path.read_text()


def hostile_output(directory: Path) -> str:
    """Failed rows whose text would steer a page, in every place where text can stand."""
    return make_output(
        directory,
        lambda n: (
            {"error": f"{HOSTILE}{n % 3}: {HOSTILE * 50}"} if n % 2 else completion(n) | {"finish_reason": HOSTILE}
        ),
    )


def test_a_finished_output(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out")
    before = contents(tmp_path / "out")
    page = _page(tmp_path, output)
    assert contents(tmp_path / "out") == before
    text = _Elements(page).words
    assert "finished" in text
    assert "Rows 25 of 25" in text
    assert "Failed 0 0.0% of rows done" in text
    assert "Tokens generated 100 and 319 of prompts" in text
    assert "Slots busy 90.0%" in text
    assert "Completion length" in text
    assert "length 5 20.0%" in text
    assert "Failed rows" not in text
    assert "of all rows" in text


def test_a_score_output(tmp_path: Path) -> None:
    text = _Elements(_page(tmp_path, make_output(tmp_path / "out", choice))).text
    assert "Chosen continuation (best_index)" in text
    assert "Lead of the best choice" in text
    assert "Completion length" not in text


def test_an_unfinished_output_and_one_without_a_shard(tmp_path: Path) -> None:
    text = _Elements(_page(tmp_path, make_output(tmp_path / "some", shards=2))).words
    assert "not finished" in text
    assert "Rows 20 of 25" in text
    text = _Elements(_page(tmp_path, make_output(tmp_path / "none", shards=0))).words
    assert "No shard is done yet: 3 are planned, of 25 rows." in text


def test_every_row_failed(tmp_path: Path) -> None:
    text = _Elements(_page(tmp_path, make_output(tmp_path / "out", lambda n: {"error": "prompt: no"}))).text
    assert "100.0% of rows done" in text
    assert "Completion length" not in text


def test_hostile_rows_are_text_and_nothing_else(tmp_path: Path) -> None:
    page = _page(tmp_path, hostile_output(tmp_path / "out"))
    elements = _Elements(page)
    assert [tag for tag, _ in elements.found if tag in ("script", "style", "img", "iframe", "link", "object")] == [
        "style",
        "script",
    ]
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "action")], tag
        assert not (attributes.get("href") or "#main").startswith("http")
    assert "<script>alert(1)</script>" in elements.text
    assert "{{ 7*7 }}" in elements.text
    assert not re.search(r"[\x00\x1b\u202e]", page)
    assert len(page) < 400_000


def test_the_policy_allows_the_two_it_was_made_with_and_no_others(tmp_path: Path) -> None:
    import base64
    import hashlib

    page = _page(tmp_path, make_output(tmp_path / "out"))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    policy = policy.replace("&#39;", "'")
    for name in ("script", "style"):
        (inside,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")


def test_partitions_and_their_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "scored"
    for day in range(1, 6):
        late = day == 5
        make_output(
            root / f"dt=2026-02-0{day}",
            lambda n, late=late: {"error": "prompt: none"} if late and n % 3 == 0
            else completion(n) | {"completion_token_count": (40 if late else 4) + n % 5},
            rows=300, shard_rows=100,
        )  # fmt: skip
    path = tmp_path / "report.html"
    assert cli.main(["report", str(root), "--out", str(path)]) == DONE
    said = capsys.readouterr().out
    assert "drift    1 partition of 5 flagged\n         dt=2026-02-05: failure rate, completion length" in said
    text = _Elements(path.read_text()).words
    assert "5 partitions. 1 differs from those before it more than chance allows" in text
    assert "The last partition: dt=2026-02-05" in text
    assert cli.main(["report", str(root), "--out", str(path), "--fail-on-drift"]) == TOO_MANY_FAILED
    assert cli.main(["report", f"{root}/dt=2026-02-0[1-4]", "--out", str(path), "--fail-on-drift"]) == DONE
    assert cli.main(["report", str(root), "--out", str(path), "--last", "2"]) == DONE
    assert "2 partitions, the last of 5." in _Elements(path.read_text()).words


def test_a_partition_is_shown_in_its_newest_version(tmp_path: Path) -> None:
    root, many = tmp_path / "scored", {"rows": 300, "shard_rows": 300}
    for key in ("r=eu/dt=1", "r=eu/dt=2", "r=eu/dt=3"):
        make_output(root / key, lambda n: completion(n) | {"completion_token_count": 4 + n % 5}, **many)
    replaced = root / "_versions" / "r=eu" / "dt=3"
    make_output(replaced / "v0002", lambda n: completion(n) | {"completion_token_count": 40 + n % 5}, **many)
    make_output(replaced / "v0003", shards=0)  # begun, and not done
    make_output(root / "r=eu" / "dt=2" / "late-0002", rows=5)
    report = write_report([str(root)], str(tmp_path / "report.html"))
    labels = ["dt=1", "dt=2 (without 1 addition)", "dt=3 (version 2)"]
    assert [partition.facts.label for partition in report.partitions] == labels
    assert "completion length" in report.drifted
    by_pattern = write_report([f"{root}/r=eu/dt=[13]"], str(tmp_path / "report.html"))
    assert [partition.facts.label for partition in by_pattern.partitions] == ["dt=1", "dt=3 (version 2)"]
    named = write_report([str(root / "r=eu" / "dt=3")], str(tmp_path / "report.html"))
    assert [partition.facts.label for partition in named.partitions] == ["dt=3"]
    assert named.partitions[0].facts.sample.completion_tokens.max() < 40


def test_a_partition_without_rows_done_is_no_baseline(tmp_path: Path) -> None:
    root = tmp_path / "scored"
    for day in range(3):
        make_output(root / f"dt={day}", shards=0 if day == 1 else None)
    report = write_report([str(root)], str(tmp_path / "report.html"))
    assert [sorted(p.shifts) == [] for p in report.partitions] == [True, True, False]
    assert report.drifted == []


def test_labels_of_partitions_below_one_root(tmp_path: Path) -> None:
    for place in ("a=1/b=2", "a=1/b=3", "a=2/b=2"):
        make_output(tmp_path / "root" / place, rows=5)
    assert [output.label for output in find_outputs([str(tmp_path / "root")])] == ["a=1/b=2", "a=1/b=3", "a=2/b=2"]
    assert [output.label for output in find_outputs([str(tmp_path / "root/a=1/b=2")])] == ["b=2"]


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the output of a job"):
        write_report([str(tmp_path)], str(tmp_path / "report.html"))
    with pytest.raises(OutputError, match="is not the output of a job"):
        write_report([str(tmp_path / "dt=*")], str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_only_a_report_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output(tmp_path / "out")
    mine = tmp_path / "job.yaml"
    mine.write_text("name: mine")
    assert cli.main(["report", output, "--out", str(mine)]) == REFUSED
    assert "is there and is no report" in capsys.readouterr().err
    assert mine.read_text() == "name: mine"
    assert cli.main(["report", output, "--out", str(tmp_path)]) == REFUSED
    assert "is a directory; name a file" in capsys.readouterr().err
    for _ in range(2):
        assert cli.main(["report", output, "--out", str(tmp_path / "report.html")]) == DONE


def test_a_foreign_file_and_a_damaged_plan_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output(tmp_path / "out")
    (tmp_path / "out" / "foreign.parquet").write_bytes(b"x")
    assert cli.main(["report", output, "--out", str(tmp_path / "r.html")]) == REFUSED
    assert "holds foreign.parquet, which is not of this job" in capsys.readouterr().err
    (tmp_path / "out" / "foreign.parquet").unlink()
    plan = json.loads((tmp_path / "out" / PLAN_NAME).read_text())
    (tmp_path / "out" / PLAN_NAME).write_text(json.dumps(plan | {"version": 99}))
    assert cli.main(["report", output, "--out", str(tmp_path / "r.html")]) == REFUSED
    assert "was written by a newer Penstock" in capsys.readouterr().err
