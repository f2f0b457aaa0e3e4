"""What is read of the rows: the right figures, a bounded part, and no crash over a file that is damaged."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.reporting import sampling
from jobs.reporting.sampling import EXAMPLE_CHARS, EXAMPLES_PER_REASON, failure_examples, take_sample
from jobs.status import read_status
from pipeline.manifest import Manifest
from schemas.manifest import part_name
from tests.jobs.reporting.results import choice, completion, make_output


def _entries(output: str) -> list[Any]:
    return Manifest(output, read_status(output).plan).entries()


def test_a_whole_output(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out")
    sample = take_sample(output, _entries(output))
    assert (sample.rows, sample.is_whole, sample.problems) == (25, True, [])
    assert sorted(sample.prompt_tokens) == sorted(10 + i % 7 for i in range(25))
    assert sample.completion_tokens.tolist() == [4.0] * 25
    assert sample.logprob_per_token == pytest.approx(np.full(25, -0.5))
    assert sample.finish_reasons == {"stop": 20, "length": 5}


def test_scores(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", choice, rows=9)
    sample = take_sample(output, _entries(output))
    assert sample.best_index == {"1": 9}
    assert sorted(sample.margin) == [1.0] * 3 + [2.0] * 3 + [3.0] * 3
    assert sorted(sample.logprob_per_token) == [-1.5] * 3 + [-1.0] * 3 + [-0.5] * 3


def test_perplexity_that_is_infinite_is_left_out(tmp_path: Path) -> None:
    def whole(number: int) -> dict[str, Any]:
        values = {"logprob": [-3.0], "token_count": [2], "logprob_per_token": [-1.5]}
        return values | {"perplexity": float("inf") if number == 3 else 2.0}

    output = make_output(tmp_path / "out", whole, rows=5, task="score")
    sample = take_sample(output, _entries(output))
    assert sample.perplexity.tolist() == [2.0] * 4
    assert not sample.best_index
    assert sample.logprob_per_token.tolist() == [-1.5] * 5


def test_a_sample_is_bounded_and_sees_every_part(tmp_path: Path) -> None:
    output = make_output(
        tmp_path / "out", lambda n: completion(n) | {"prompt_token_count": n // 100}, rows=1000, shard_rows=100
    )
    sample = take_sample(output, _entries(output), limit=50)
    assert 50 <= sample.rows <= 60
    assert not sample.is_whole
    assert set(sample.prompt_tokens) == set(range(10))


def test_long_texts_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = make_output(
        tmp_path / "out", lambda n: completion(n) | {"text": os.urandom(50_000).hex()}, rows=40, shard_rows=40
    )
    entries = _entries(output)
    size = (Path(output) / entries[0].file).stat().st_size
    read = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            count = super().readinto(buffer)
            read.append(count or 0)
            return count

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(-1 if size is None else size) or b""
            read.append(len(data))
            return data

    monkeypatch.setattr(sampling, "open_input", lambda url: Counting(url, "rb"))
    assert take_sample(output, entries).rows == 40
    assert size > 1_000_000
    assert 1_000 < sum(read) < 100_000


def test_examples_of_failures(tmp_path: Path) -> None:
    def some(number: int) -> dict[str, Any]:
        if number % 2:
            return completion(number)
        return {"error": "too long: " + "y" * 5000} if number % 4 else {"error": f"prompt: {number}"}

    output = make_output(tmp_path / "out", some)
    examples = failure_examples(output, _entries(output))
    assert set(examples) == {"too long", "prompt"}
    assert all(len(found) == EXAMPLES_PER_REASON for found in examples.values())
    assert len(examples["too long"][0].error) == EXAMPLE_CHARS + 1
    assert examples["prompt"][0].place == "a.jsonl, row 0"


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "gone", "other columns"])
def test_a_damaged_part_is_named_and_the_rest_is_read(tmp_path: Path, damage: str) -> None:
    output = make_output(tmp_path / "out")
    part = Path(output) / part_name(1, 3)
    whole = part.read_bytes()
    if damage == "cut":
        part.write_bytes(whole[:-100])
    elif damage == "noise":
        part.write_bytes(whole[:100] + bytes(range(256)) * 4 + whole[-400:])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "other columns":
        pq.write_table(pa.table({"x": [1] * 10}), part)
    entries = _entries(output)
    if damage == "gone":
        part.unlink()
    sample = take_sample(output, entries)
    assert len(sample.problems) == 1
    assert sample.problems[0].startswith(f"{part.name} cannot be read: ")
    assert sample.rows in (15, 25)
    assert failure_examples(output, entries) == {}
