"""The schema and the reference page say what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.document import parse
from jobs.reference import EXAMPLE, SCORE_EXAMPLE, job_reference, job_schema
from jobs.section import sections
from jobs.spec import Job

PAGE = Path(__file__).parents[2] / "docs" / "job-reference.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == job_reference(), "run: penstock schema --markdown > docs/job-reference.md"


@pytest.mark.parametrize("example", [EXAMPLE, SCORE_EXAMPLE])
def test_the_examples_are_valid(example: str) -> None:
    job = Job.model_validate(parse(example, source="example").values, strict=False)
    assert list(job.notes()) == []


def test_the_schema_describes_every_field() -> None:
    definitions = job_schema()["$defs"]
    for path, model in sections(Job):
        schema = definitions.get(model.__name__, job_schema())
        assert schema["additionalProperties"] is False, path
        for name, field in schema["properties"].items():
            assert "\n" not in field["description"], (path, name)
            assert len(field["description"]) > 10, (path, name)


def test_the_schema_says_what_is_required() -> None:
    schema = job_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name", "task", "model", "input", "output"]
    assert schema["properties"]["task"]["enum"] == ["generate", "score"]
    assert schema["$defs"]["Prompt"]["oneOf"] == [{"required": ["template"]}, {"required": ["messages"]}]
