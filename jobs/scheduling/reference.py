"""The schedule file described from its own models: a JSON schema for editors, and a page to read.

penstock schema --schedule > schedule.schema.json
penstock schema --schedule --markdown > docs/schedule-reference.md
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from jobs.reference import DescribedSchema, section_table
from jobs.scheduling.partitions import FIELDS
from jobs.scheduling.spec import Schedule
from jobs.section import sections

EXAMPLE = """\
name: hourly-scores
job: score.yaml                        # without input.path and output.path
set: {sampling.max_tokens: 32}         # fields of the job to replace
cron: "0 * * * *"                      # when partitions begin
timezone: UTC
input: "gs://in/dt={{ ds }}/hour={{ hour }}/*.parquet"
output: "gs://out/dt={{ ds }}/hour={{ hour }}"
start: 2026-01-01
catch_up: 7d                           # how far back missed partitions are run
delay: 30min                           # grace for data to arrive
concurrency: 2
timeout: 6h
retries: {limit: 2, backoff: 1min, longest: 15min}
late_data: {watch: 3d, on_change: version, on_shrink: refuse}
alerts: {webhook_env: PENSTOCK_WEBHOOK, on: [failure, late, drift, refused]}
"""

_PAGE = """\
<!-- Made by `penstock schema --schedule --markdown`; change the descriptions in jobs/scheduling/spec.py instead. -->
# The schedule file

A schedule is one YAML file, read as a job file is. [Scheduled scoring](scheduling.md) says what it is for.

```yaml
{example}```

- Relative paths start at the schedule file's own directory.
- A length of time is a number and s, min, h or d: `90s`, `30min`, `6h`, `7d`.
- A moment is a date, or a date and a time, in the schedule's time zone: `2026-01-31`, `2026-01-31T06:00`.
- A key that is not listed here is an error, and so is a key given twice.

{sections}
## Fields of the templates

`input` and `output` are Jinja templates over these, in the schedule's time zone:

{fields}
"""


def schedule_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a schedule file."""
    schema = Schedule.model_json_schema(schema_generator=DescribedSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def schedule_reference() -> str:
    """The page docs/schedule-reference.md."""
    definitions = schedule_schema()["$defs"]
    properties = {model: definitions.get(model.__name__, schedule_schema()) for _, model in sections(Schedule)}
    return _PAGE.format(
        example=EXAMPLE,
        sections="\n".join(
            section_table(path or "the schedule", properties[model]) for path, model in sections(Schedule)
        ),
        fields="\n".join(
            ["| field | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in FIELDS.items())]
        ),
    )
