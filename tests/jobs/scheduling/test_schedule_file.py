"""What a schedule file may say, and what is said when it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.document import parse
from jobs.scheduling.reference import EXAMPLE, schedule_reference, schedule_schema
from jobs.scheduling.schedule_file import load, load_all
from jobs.scheduling.spec import Schedule
from jobs.section import sections
from pipeline.errors import JobError
from tests.jobs.scheduling.conftest import SCHEDULE

PAGE = Path(__file__).parents[3] / "docs" / "schedule-reference.md"
JOB = """\
name: scores
task: generate
model: {checkpoint: ./checkpoint}
input: {id: id}
prompt: {template: "{{ question }}"}
output: {keep_columns: [answer]}
"""


def write(directory: Path, job_text: str = JOB, name: str = "schedule.yaml", **changes: Any) -> str:
    (directory / "job.yaml").write_text(job_text)
    (directory / name).write_text(yaml.safe_dump({**SCHEDULE, **changes}))
    return str(directory / name)


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == schedule_reference(), (
        "run: penstock schema --schedule --markdown > docs/schedule-reference.md"
    )


def test_the_example_is_valid() -> None:
    Schedule.model_validate(parse(EXAMPLE, source="example").values, strict=False)


def test_the_schema_describes_every_field() -> None:
    definitions = schedule_schema()["$defs"]
    for path, model in sections(Schedule):
        schema = definitions.get(model.__name__, schedule_schema())
        assert schema["additionalProperties"] is False, path
        assert all(len(field["description"]) > 10 for field in schema["properties"].values()), path


def test_a_partition_is_a_job_of_its_own(tmp_path: Path) -> None:
    scheduled = load(write(tmp_path, set={"sampling.max_tokens": 7}))
    partition = next(scheduled.partitions.after(scheduled.partitions.begin))
    job = scheduled.job(partition, partition.output)
    assert job.input.path == f"{tmp_path}/in/dt=2026-01-05/hour=01/*.jsonl"
    assert job.output.path == f"{tmp_path}/out/dt=2026-01-05/hour=01"
    assert job.sampling.max_tokens == 7
    assert scheduled.root == f"{tmp_path}/out"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cron": "0 25 * * *"}, "cron: '25' is no hour"),
        ({"timezone": "Mars/Olympus"}, "timezone: 'Mars/Olympus' is no time zone"),
        ({"end": "2026-01-05"}, "end: is 2026-01-05, not after start (2026-01-05)"),
        ({"start": "2026-02-30"}, "start: is no date"),
        ({"start": "yesterday"}, "start: should match"),
        ({"catch_up": "a week"}, "catch_up: should match"),
        ({"concurency": 2}, "concurency: is not a field; did you mean concurrency?"),
        ({"alerts": {"on": ["late"]}}, "alerts.webhook_env: is missing: say how to alert"),
        ({"set": {"output.path": "x"}}, "set: output.path is decided by the schedule's output"),
        ({"only_new_rows": True, "concurrency": 2}, "concurrency: is 1 with only_new_rows"),
        ({"output": "out/all"}, "write a field into it, such as dt={{ ds }}"),
        ({"output": "out/dt={{ ds }}"}, "name them more finely"),
        ({"timezone": "Europe/Berlin"}, "clocks are set back"),
        ({"output": "out/{{ nothing }}"}, "there is no field nothing; there are ds,"),
        ({"output": "out/{{ ds"}, "output, line 1: unexpected end of template"),
        ({"output": "out/{{ '../' ~ ts }}"}, "an empty step, a step up or a strange character"),
        ({"output": "out/{{ ts }}/../x"}, "an empty step, a step up or a strange character"),
        ({"output": "out/{{ '/etc/' ~ ts }}"}, "an empty step, a step up or a strange character"),
        ({"input": "in/{{ '../../' ~ ts }}"}, "an empty step, a step up or a strange character"),
        ({"output": "gs://{{ ds }}/x"}, "has a field before the first directory"),
        ({"output": "out/_{{ ts }}"}, "readers skip '_2026"),
        ({"output": "out/{{ ts }}*"}, "an output is one directory"),
        ({"output": "out/{{ ts.__class__ }}"}, "out of reach of templates"),
        ({"output": "out/{% for i in range(10**9) %}{{ ts }}{% endfor %}"}, "output: "),
        ({"output": "out/{% if hour == '00' %}midnight/{% endif %}{{ ts }}"}, "differ in depth"),
        ({"output": "in/dt={{ ds }}/hour={{ hour }}"}, "is where the input is"),
        ({"job": "absent.yaml"}, "cannot read the job file"),
        ({"set": {"sampling.max_tokens": "many"}}, "sampling.max_tokens: should be a valid integer"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(JobError) as error:
        load(write(tmp_path, **changes))
    said = str(error.value)
    assert problem in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("pinned", "problem"),
    [
        ("output: {path: out}", "job.yaml:6: output.path is given, and so is output in the schedule"),
        ("output: {}\nlimits: {}", ""),
    ],
)
def test_a_job_that_pins_its_output_is_refused(tmp_path: Path, pinned: str, problem: str) -> None:
    path = write(tmp_path, JOB.replace("output: {keep_columns: [answer]}", pinned))
    if not problem:
        assert load(path)
        return
    with pytest.raises(JobError) as error:
        load(path)
    assert problem in str(error.value)


def test_two_schedules_that_write_to_one_place_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path)
    other = write(tmp_path, name="other.yaml")
    inner = write(tmp_path, name="inner.yaml", output="out/inner/{{ ts }}")
    for pair in ([one, other], [one, inner], [inner, one]):
        with pytest.raises(JobError, match="both write below"):
            load_all(pair)
    apart = write(tmp_path, name="apart.yaml", output="out2/{{ ts }}")
    assert len(load_all([one, apart])) == 2


def test_only_new_rows_needs_an_id(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"only_new_rows needs input\.id"):
        load(write(tmp_path, JOB.replace("input: {id: id}", "input: {}"), only_new_rows=True))
