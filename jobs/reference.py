"""The job file described from its own models: a JSON schema for editors, and a page to read.

penstock schema > job.schema.json          then, as the first line of a job file:
                                           # yaml-language-server: $schema=./job.schema.json
penstock schema --markdown > docs/job-reference.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from jobs.section import sections
from jobs.spec import Job, Sampling

EXAMPLE = """\
name: capitals
task: generate                       # generate | score
model: {checkpoint: ./checkpoint, dtype: float32}       # dtype: auto | float32 | bfloat16; weights, kv: auto | int8
input: {path: "data/*.jsonl", format: jsonl, id: id}    # or tfds: "name/config:1.0.0", split: "train[:10%]"
prompt: {template: "Q: {{ question }}\\nA:"}             # or messages: [...]
sampling: {temperature: 0.0, max_tokens: 64, stop: ["\\n"], n: 1, seed: 7, logprobs: 0}
output: {path: ./out, keep_columns: [answer], include_prompt: true, shard_rows: 1000}
engine: {slots: auto, max_length: auto, mesh: 1x1x1}    # on chips: mesh: 4x4x4, prefill: {ffn: wg-xyz}, decode: ...
limits: {max_failed_fraction: 0.01}
runner: {name: local, workers: 2}
"""

SCORE_EXAMPLE = """\
name: capitals-choice
task: score
model: {checkpoint: ./checkpoint}
input: {path: "data/*.jsonl", id: id}
prompt: {template: "Q: {{ question }}\\nA:"}             # the context
score: {continuations: [" {{ a }}", " {{ b }}"]}         # or, without a prompt, text: "{{ document }}"
output: {path: ./scores, keep_columns: [answer]}
"""

_PAGE = """\
<!-- Made by `penstock schema --markdown`; change the descriptions in jobs/spec.py instead. -->
# The job file

A job is one YAML file. `penstock validate JOB.yaml` checks it and writes nothing. `penstock run JOB.yaml`
runs it; again, it does only what is missing.

```yaml
{example}```

Scoring asks how likely given text is:

```yaml
{score_example}```

Editors complete and check a job file that names the schema in its first line, after
`penstock schema > job.schema.json`:

```yaml
# yaml-language-server: $schema=./job.schema.json
```

- Relative paths start at the job file's own directory, also those given with `--set`.
- `--set key=value` replaces one field for one run: `--set sampling.max_tokens=32`,
  `--set 'output.keep_columns=[a, b]'`.
- A key that is not listed here is an error, and so is a key given twice.
- YAML is read by version 1.2's rules: `no`, `on` and `2026-01-31` are text; `true` and `null` are not.
- `slots`, `prefill_tokens`, `compile_cache`, `hosts`, `limits` and `runner` may change between runs on one output. What
  bears on the results may not.

{sections}
## Not supported

These fields of vLLM's SamplingParams are refused by name:

{not_supported}
"""


def job_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a job file."""
    schema = Job.model_json_schema(schema_generator=DescribedSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def job_reference() -> str:
    """The page docs/job-reference.md."""
    definitions = job_schema()["$defs"]
    properties = {model: definitions.get(model.__name__, job_schema()) for _, model in sections(Job)}
    return _PAGE.format(
        example=EXAMPLE,
        score_example=SCORE_EXAMPLE,
        sections="\n".join(section_table(path or "the job", properties[model]) for path, model in sections(Job)),
        not_supported="\n".join(f"- `{name}`: {reason}" for name, reason in sorted(Sampling.NOT_SUPPORTED.items())),
    )


class DescribedSchema(GenerateJsonSchema):
    """Without titles that repeat the names, and with descriptions on one line."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        return _unwrap(super().generate(schema, mode))


def _unwrap(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_unwrap(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _unwrap(value)
        for key, value in schema.items()
    }


def section_table(name: str, schema: dict[str, Any]) -> str:
    """A heading and a table of the fields of one mapping."""
    required = schema.get("required", [])
    rows = [
        f"| `{field}` | {_type(facts)} | {_default(field, facts, required)} | {facts['description']} |"
        for field, facts in schema["properties"].items()
    ]
    head = ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {name if ' ' in name else f'`{name}`'}", "", *head, *rows, ""])


def _default(field: str, facts: dict[str, Any], required: list[str]) -> str:
    if field in required:
        return "required"
    default = facts.get("default")
    if isinstance(default, dict) or default is None or default == []:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(facts: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_types(facts)))


def _types(facts: dict[str, Any]) -> Iterator[str]:
    for branch in facts.get("anyOf", []):
        yield from _types(branch)
    if "$ref" in facts:
        yield "mapping"
    elif "const" in facts:
        yield f"`{facts['const']}`"
    elif "enum" in facts:
        yield from (f"`{value}`" for value in facts["enum"])
    elif facts.get("type") == "array":
        yield f"list of {_type(facts['items']).replace('mapping', 'mappings').replace('string', 'strings')}"
    elif facts.get("type") == "object":
        yield "mapping"
    elif facts.get("type") not in (None, "null"):
        yield f"{facts['type']}{_range(facts)}"


def _range(facts: dict[str, Any]) -> str:
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    words = [f"{sign} {facts[key]}" for key, sign in limits.items() if key in facts]
    return f" {', '.join(words)}" if words else ""
