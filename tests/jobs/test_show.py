"""Results as a table: which rows, which columns, and nothing that could steer the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from jobs.show import LONGEST_CELL, cell, show
from pipeline.errors import JobError, OutputError
from tests.pipeline.example_output import plan_example, run_example


@pytest.fixture
def output(tmp_path: Path) -> str:
    path = str(tmp_path / "out")
    text = "red \x1b[31m [bold]not markup[/bold]"
    run_example(path, plan_example(tmp_path, path), text=text, failed=frozenset({12, 20}))
    return path


def _text(table: Table) -> str:
    console = Console(width=400, file=None, record=True, quiet=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _headers(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def test_the_first_rows_with_the_columns_to_read_first(output: str) -> None:
    table = show(output, limit=12)
    assert _headers(table) == ["record_id", "sample_index", "prompt", "text", "finish_reason", "answer"]
    assert table.row_count == 12
    said = _text(table)
    assert "a.jsonl:11 " in said
    assert "a.jsonl:12 " not in said


def test_text_of_a_model_does_not_reach_the_terminal_as_commands(output: str) -> None:
    said = _text(show(output, limit=1))
    assert r"red \x1b[31m [bold]not markup[/bold]" in said
    assert "\x1b" not in said


def test_failed_rows_of_all_shards(output: str) -> None:
    table = show(output, failed=True)
    assert _headers(table) == ["record_id", "source_file", "source_row", "error"]
    said = _text(table)
    assert table.row_count == 2
    assert "prompt: row 12 is too long" in said
    assert "prompt: row 20 is too long" in said


def test_chosen_columns_in_their_order(output: str) -> None:
    table = show(output, columns=["answer", "record_id"], failed=True, limit=1)
    assert _headers(table) == ["answer", "record_id"]
    assert table.row_count == 1


def test_what_is_not_there_is_named(output: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no column anser; the output has record_id, .*answer"):
        show(output, columns=["anser"])
    with pytest.raises(OutputError, match="holds no results yet"):
        show(str(tmp_path / "input"))


def test_a_score_output_shows_its_scores(tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    from pipeline.sink import write_shard
    from pipeline.workplan import PlanFacts, work_items

    plan = plan_example(tmp_path, path, rows=2, task="score")
    facts, (item,) = PlanFacts.of(plan), work_items(plan)
    common = {
        "sample_index": 0,
        "source_file": item.source_file,
        "status": "ok",
        "model_fingerprint": "m",
        "job_fingerprint": facts.job_fingerprint,
    }
    scores = {"continuations": ["yes", "no"], "logprob": [-1.25, -0.5], "best_index": 1}
    rows = [{**common, "record_id": str(i), "source_row": i, **scores} for i in range(2)]
    write_shard(path, facts, item, rows)
    table = show(path)
    assert _headers(table) == [
        "record_id", "prompt", "continuations", "logprob", "is_greedy", "best_index", "perplexity", "answer",
    ]  # fmt: skip
    assert "[-1.25, -0.5]" in _text(table)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (1.23456789, "1.235"),
        ([1, 2], "[1, 2]"),
        ([[0.5], None], "[[0.5], ]"),
        (list(range(100)), "[" + ", ".join(map(str, range(20))) + ", …]"),
        ("line\nline", "line\nline"),
        ("\u202e\x00", "\\u202e\\x00"),
        ("x" * 1000, "x" * LONGEST_CELL + "…"),
    ],
)
def test_values_on_the_screen(value: object, text: str) -> None:
    assert cell(value) == text
