"""What a run leaves beside its results is shown where it is usable, and ignored where it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.reporting.facts import read_facts
from jobs.reporting.foreseen import foreseen_against_fact
from jobs.reporting.outputs import Output
from jobs.reporting.report import write_report
from schemas.prediction import PREDICTION_NAME
from schemas.worker import WORKERS_NAME
from tests.jobs.reporting.results import make_output
from tests.jobs.test_comparison import PREDICTION

FORESEEN = replace(
    PREDICTION, rows=50, prompt_tokens=500.0, completion_tokens=100.0, slots_busy_fraction=0.9, padding_fraction=0.2,
    chip_hours=0.01,
)  # fmt: skip


def test_by_hand(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out")
    (tmp_path / "out" / PREDICTION_NAME).write_bytes(FORESEEN.to_json())
    rows = {row.name: row for row in foreseen_against_fact(read_facts(Output("out", output)))}
    assert (rows["rows"].foreseen, rows["rows"].happened, rows["rows"].ratio) == ("50", "25", 0.5)
    assert rows["rows"].is_off
    assert rows["tokens of a prompt"].ratio == pytest.approx(319 / 25 / 10)
    assert rows["tokens generated a row"].ratio == pytest.approx(2.0)
    assert (rows["slots busy"].foreseen, rows["slots busy"].happened) == ("90.0%", "90.0%")
    assert not rows["slots busy"].is_off
    assert rows["padding of prefill"].ratio == pytest.approx(1.0)
    assert rows["its interval"].happened in ("inside", "outside")
    assert rows["chip-hours"].foreseen == "0.01"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"rows": "many", "seconds": -1, "chip_hours": true}', '{"rows": 1e999}', "{}"],
    ids=["empty", "cut", "list", "deep", "wrong types", "infinite", "nothing"],
)
def test_what_cannot_be_used_is_left_out(tmp_path: Path, text: str) -> None:
    output = make_output(tmp_path / "out", rows=5)
    (tmp_path / "out" / PREDICTION_NAME).write_text(text)
    (tmp_path / "out" / WORKERS_NAME).mkdir()
    (tmp_path / "out" / WORKERS_NAME / "a.json").write_text(text)
    write_report([output], str(tmp_path / "report.html"))
    assert "Foreseen and happened" not in (tmp_path / "report.html").read_text()


def test_workers(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", rows=5)
    (tmp_path / "out" / WORKERS_NAME).mkdir()
    worker = {"worker": "host:<b>7</b>", "device_kind": "TPU v5e", "devices": 4, "load_seconds": 75.0,
              "peak_memory_bytes": 3 * 2**30, "dtype": "bfloat16", "slots": 128}  # fmt: skip
    (tmp_path / "out" / WORKERS_NAME / "run-host-7.json").write_text(json.dumps(worker))
    write_report([output], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "host:&lt;b&gt;7&lt;/b&gt;" in page
    cells = ("TPU v5e", "4", "bfloat16", "128", "1 min 15 s", "3.0 GiB", "\N{EN DASH}")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page
