"""A small job without an engine: an input, what is asked of it, and result rows that any worker would compute."""

import json
from pathlib import Path

from pipeline.kept_columns import convert
from pipeline.manifest import Manifest
from pipeline.records import default_record_id
from pipeline.sink import write_shard
from pipeline.sources import open_source, read_rows
from pipeline.workplan import PlanFacts, plan_job


def write_jsonl(path: Path, rows: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": i}) + "\n" for i in range(rows)))
    return str(path)


def asked(**changes):
    return {
        "name": "example",
        "task": "generate",
        "settings": {"template": "{{ question }}", "sampling": {"temperature": 0.0, "stop": ["\n"]}},
        "model_fingerprint": "model-1",
        "tokenizer_fingerprint": "tokenizer-1",
        "keep_columns": ["answer"],
        "shard_rows": 10,
        **changes,
    }


def plan_example(tmp_path: Path, output: str, rows: int = 25, **changes):
    source = open_source(path=write_jsonl(tmp_path / "input" / "a.jsonl", rows), format="jsonl")
    return plan_job(output, source, **asked(**changes))


def result_rows(item, facts, *, text: str = "fine", failed: frozenset[int] = frozenset(), samples: int = 1):
    """The rows of a shard; those whose source row is in `failed` fail."""
    for row in read_rows(item):
        base = {
            "record_id": default_record_id(item.source_file, row.row),
            "source_file": item.source_file,
            "source_row": row.row,
            "prompt_token_count": 3,
            "model_fingerprint": facts.model_fingerprint,
            "job_fingerprint": facts.job_fingerprint,
        }
        base |= {field.name: convert((row.values or {}).get(field.name), field) for field in facts.kept}
        if row.row in failed:
            yield base | {"sample_index": 0, "status": "failed", "error": f"prompt: row {row.row} is too long"}
        else:
            for sample in range(samples):
                result = {"text": f"{text} {sample}", "token_ids": [1, 2], "completion_token_count": 2}
                yield base | {"sample_index": sample, "status": "ok", **result}


def run_example(output: str, plan, **changes) -> Manifest:
    """Compute and commit what is missing."""
    manifest, facts = Manifest(output, plan), PlanFacts.of(plan)
    for item in manifest.todo():
        write_shard(output, facts, item, result_rows(item, facts, **changes))
    return manifest


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of an output with its bytes and the time it was written."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
