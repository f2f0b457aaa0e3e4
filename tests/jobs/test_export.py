"""Results in other forms: read back by other programs, whole, in order, and never over a file that is there."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.export import errors_beside, export
from pipeline.errors import JobError, OutputError
from tests.jobs.reporting.results import choice, completion, make_output
from tests.pipeline.example_output import plan_example, run_example

TEXT = 'two\nlines, "quoted", \u2028 and \x00 <b> \U0001f600'


def _some(number: int) -> dict[str, Any]:
    if number % 10 == 3:
        return {"error": f"too long: {number} tokens"}
    return completion(number) | {
        "text": f"{number} {TEXT}",
        "cumulative_logprob": float("-inf") if number == 1 else -2.0,
    }


@pytest.fixture
def output(tmp_path: Path) -> str:
    return make_output(tmp_path / "out", _some)


def _lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line, parse_constant=pytest.fail) for line in data.split(b"\n")[:-1]]


def test_json_lines(output: str, tmp_path: Path) -> None:
    export(output, "jsonl", str(tmp_path / "x.jsonl"))
    rows = _lines(tmp_path / "x.jsonl")
    assert [row["source_row"] for row in rows] == list(range(25))
    assert rows[0]["text"] == f"0 {TEXT}"
    assert rows[0]["token_ids"] == [1, 2, 3, 4]
    assert rows[1]["cumulative_logprob"] is None, "infinity is no JSON"
    assert (rows[3]["status"], rows[3]["error"]) == ("failed", "too long: 3 tokens")


def test_csv_is_read_back_whole(output: str, tmp_path: Path) -> None:
    export(output, "csv", str(tmp_path / "x.csv"))
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["source_row"]) for row in rows] == list(range(25))
    assert rows[2]["text"] == f"2 {TEXT}"
    assert json.loads(rows[0]["token_ids"]) == [1, 2, 3, 4]
    assert rows[3]["text"] == ""


def test_some_columns_compressed_and_the_same_bytes_each_time(output: str, tmp_path: Path) -> None:
    for name in ("x.jsonl.gz", "y.jsonl.gz"):
        export(output, "jsonl", str(tmp_path / name), columns=["record_id", "text"])
    assert (tmp_path / "x.jsonl.gz").read_bytes() == (tmp_path / "y.jsonl.gz").read_bytes()
    assert list(_lines(tmp_path / "x.jsonl.gz")[0]) == ["record_id", "text"]


def test_openai_batch(output: str, tmp_path: Path) -> None:
    outcome = export(output, "openai-batch", str(tmp_path / "x.jsonl"))
    assert (outcome.lines, outcome.failed_lines, outcome.errors) == (22, 3, str(tmp_path / "x.errors.jsonl"))
    lines, errors = _lines(tmp_path / "x.jsonl"), _lines(tmp_path / "x.errors.jsonl")
    assert [line["custom_id"] for line in errors] == ["a.jsonl:3", "a.jsonl:13", "a.jsonl:23"]
    assert errors[0]["response"] is None
    assert errors[0]["error"] == {"code": "too long", "message": "too long: 3 tokens"}
    assert lines[0]["error"] is None
    assert lines[0]["response"]["status_code"] == 200
    body = lines[0]["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    assert body["choices"] == [{"index": 0, "text": f"0 {TEXT}", "logprobs": None, "finish_reason": "length"}]
    assert len({line["id"] for line in lines + errors}) == 25


def test_openai_batch_of_a_chat_with_samples(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    settings = {"prompt": {"messages": [{"role": "user", "content": "{{ question }}"}]}}
    run_example(output, plan_example(tmp_path, output, settings=settings), samples=3).finalise()
    export(output, "openai-batch", str(tmp_path / "x.jsonl"))
    lines = _lines(tmp_path / "x.jsonl")
    assert len(lines) == 25
    body = lines[0]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["choices"][1]["message"] == {"role": "assistant", "content": "fine 1", "refusal": None}
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert body["created"] > 1_700_000_000


def test_to_the_standard_output_failed_rows_are_among_the_others(
    output: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["export", output, "--to", "openai-batch"]) == DONE
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.decode().split("\n")[:-1]]
    assert [line["custom_id"] for line in lines] == [f"a.jsonl:{number}" for number in range(25)]
    assert sum(line["error"] is not None for line in lines) == 3


def test_what_does_not_fit_the_form_is_refused(output: str, tmp_path: Path) -> None:
    scores = make_output(tmp_path / "scores", choice)
    with pytest.raises(JobError, match="this output is of task score: use jsonl or csv"):
        export(scores, "openai-batch", str(tmp_path / "x"))
    with pytest.raises(JobError, match="has a form of its own"):
        export(output, "openai-batch", str(tmp_path / "x"), columns=["text"])
    with pytest.raises(JobError, match="failed rows are among the others"):
        export(output, "csv", str(tmp_path / "x"), errors=str(tmp_path / "y"))
    with pytest.raises(JobError, match="there is no column nope; the output has record_id"):
        export(output, "csv", str(tmp_path / "x"), columns=["nope"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("there", ["x.jsonl", "x.errors.jsonl"])
def test_a_file_that_is_there_is_not_replaced(output: str, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(OutputError, match=f"{there} is already there"):
        export(output, "openai-batch", str(tmp_path / "x.jsonl"))
    assert (tmp_path / there).read_text() == "mine"
    assert len(list(tmp_path.glob("x*"))) == 1


def test_a_part_that_is_damaged_leaves_no_half_file(output: str, tmp_path: Path) -> None:
    part = sorted((tmp_path / "out").glob("part-*"))[2]
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(OutputError, match=f"{part.name} is damaged"):
        export(output, "jsonl", str(tmp_path / "x.jsonl"))
    assert [path.name for path in tmp_path.iterdir() if "x.jsonl" in path.name] == []


def test_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output(tmp_path / "out", shards=1)
    assert cli.main(["export", output, "--to", "csv", "--out", str(tmp_path / "x.csv")]) == REFUSED
    assert "is not finished: 1 of 3 shards are there" in capsys.readouterr().err
    assert cli.main(["export", output, "--to", "csv", "--out", str(tmp_path / "x.csv"), "--partial"]) == DONE
    assert "rows     10 lines to" in capsys.readouterr().out


def test_the_name_of_the_file_of_errors() -> None:
    assert errors_beside("gs://b.c/d/a.jsonl.gz") == "gs://b.c/d/a.errors.jsonl.gz"
    assert errors_beside("answers") == "answers.errors"
