"""A look at a job before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.job_file import load
from jobs.validate import PROBLEMS_LISTED, Findings, finding_lines, validate
from pipeline.errors import JobError


def _validate(path: str, *overrides: str, **options: int) -> Findings:
    return validate(load(path, overrides), **options)


def test_prompts_are_rendered_and_counted(write_job: Callable[..., str], tmp_path: Path) -> None:
    findings = _validate(write_job(), shown=2)
    assert [(name, text) for name, text, _ in findings.prompts] == [
        ("questions.jsonl:0", "Q: what is 0?\nA:"),
        ("questions.jsonl:1", "Q: what is 1?\nA:"),
    ]
    assert (findings.rows, len(findings.token_counts)) == (100, 98)
    assert all(5 < count < 40 for count in findings.token_counts)
    assert [name for name, _ in findings.problems] == ["questions.jsonl:7", "questions.jsonl:57"]
    assert not findings.is_over_limit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "job.yaml"]


def test_only_the_first_rows_are_looked_at(write_job: Callable[..., str]) -> None:
    findings = _validate(write_job(), rows=10)
    assert (findings.rows, len(findings.problems)) == (10, 1)
    assert findings.is_over_limit  # 10 % of those looked at, and the job allows 5 %


def test_rows_that_would_fail_are_named_with_the_reason(write_job: Callable[..., str], tmp_path: Path) -> None:
    path = write_job()
    rows = [
        {"id": "a", "question": "fine"},
        {"id": "b", "question": "long " * 300},
        {"id": "c", "question": None},
        {"id": None, "question": "fine"},
        {"question": "fine"},
        {"id": "f"},
    ]
    (tmp_path / "data" / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = dict(_validate(path, "output.keep_columns=[]").problems)
    assert list(problems) == [f"questions.jsonl:{row}" for row in range(1, 6)]
    reasons = list(problems.values())
    assert reasons[0].startswith("too long: ")
    assert "question" in reasons[1]
    assert reasons[2] == reasons[3] == "id: column 'id' is missing, null or empty"
    assert "question" in reasons[4]


def test_completions_that_the_context_cuts_are_counted(write_job: Callable[..., str]) -> None:
    assert _validate(write_job(), "sampling.max_tokens=250").cut_rows == 98
    assert _validate(write_job()).cut_rows == 0


def test_a_job_that_cannot_run_at_all_is_an_error(write_job: Callable[..., str]) -> None:
    with pytest.raises(JobError, match="no row has a column qestion"):
        _validate(write_job(), "prompt.template='{{ qestion }}'")
    with pytest.raises(JobError, match="keep_columns: none of the first 100 rows has a column anser; they have answer"):
        _validate(write_job(), "output.keep_columns=[answer, anser]")


def test_findings_in_words(write_job: Callable[..., str]) -> None:
    lines = list(finding_lines(_validate(write_job(1000), shown=1)))
    labels = [label for label, _ in lines if label]
    assert labels == ["job", "model", "input", "prompt", "rows", "tokens", *["bad row"] * PROBLEMS_LISTED, "verdict"]
    words = dict(lines)
    assert words["rows"] == "the first 1,000 were looked at, 20 of them would fail"
    assert words[""] == "and 10 more"
    assert words["model"].startswith("LlamaForCausalLM, ")
    assert words["verdict"] == "the job can be run"
    verdict = dict(finding_lines(_validate(write_job(), "limits.max_failed_fraction=0")))["verdict"]
    assert verdict == "more rows would fail than limits.max_failed_fraction (0.00%) allows"
