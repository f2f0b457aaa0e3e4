"""The files in the repository hold what the script writes, and the two of them hold the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import jobs.examples.arithmetic as example
from jobs.examples.arithmetic import problems
from pipeline.sources import open_source, read_rows

DATA = Path(example.__file__).parent / "data"


@pytest.fixture(scope="module")
def stored() -> list[dict]:
    return pq.read_table(DATA / "questions.parquet").to_pylist()


def test_the_file_holds_what_the_script_makes(stored: list[dict]) -> None:
    from jobs.examples.arithmetic.make_dataset import rows

    assert list(rows()) == stored


def test_every_question_is_held_out_and_its_label_is_the_answer(stored: list[dict]) -> None:
    assert len({row["id"] for row in stored}) == len(stored) == 1000
    for row in stored:
        operation, a, b = row["id"].split("-")
        problem = problems.Problem(operation, int(a), int(b))
        assert problem.is_held_out
        assert row["question"] in [problem.question(n) for n in range(len(problems.PHRASINGS[operation]))]
        assert row["answer"] == str(problem.answer) == row[f"choice_{'abcd'[row['label']]}"]


@pytest.mark.filterwarnings("ignore:label\\(\\) is deprecated:DeprecationWarning")  # protobuf to TFDS, not to us
def test_the_tfds_dataset_holds_the_same_rows(stored: list[dict]) -> None:
    source = open_source(tfds="arithmetic_questions:1.0.0", split="test", data_dir=str(DATA / "tfds"))
    assert [row.values for item in source.work_items(300) for row in read_rows(item)] == stored
