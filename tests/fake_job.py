"""A whole job with the fake engine: input, plan, Beam run, and its results as rows to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import Manifest
from pipeline.sources import open_source
from pipeline.storage import join, list_names, open_input
from pipeline.workplan import plan_job
from schemas.manifest import Plan

SAMPLING = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 24, "min_tokens": 0, "stop": [],
    "stop_token_ids": [], "ignore_eos": False, "n": 1, "seed": 7, "logprobs": 0,
}  # fmt: skip
SETTINGS = {
    "task": "generate", "dtype": "float32", "id": None, "prompt": {"template": "Q: {{ question }}\nA:"},
    "sampling": SAMPLING, "score": None, "keep_columns": [], "include_prompt": True, "shard_rows": 10,
    "max_length": "auto",
}  # fmt: skip


def settings(**changes: Any) -> dict[str, Any]:
    """Those of a small job as the job file gives them; sampling options may be named directly."""
    sampling = {name: changes.pop(name) for name in SAMPLING if name in changes}
    return {**SETTINGS, "sampling": {**SAMPLING, **sampling}, **changes}


def score_settings(**changes: Any) -> dict[str, Any]:
    score = {"continuations": None, "text": None, "token_logprobs": False}
    score |= {name: changes.pop(name) for name in score if name in changes}
    return {**SETTINGS, "task": "score", "sampling": None, "score": score, **changes}


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def questions(count: int) -> list[dict[str, Any]]:
    return [{"id": f"id-{i}", "question": f"what is {i}?", "answer": i} for i in range(count)]


def make_plan(source: Path | str, output: Path | str, asked: Mapping[str, Any]) -> Plan:
    return plan_job(
        str(output),
        open_source(path=str(source)),
        name="fake",
        task=asked["task"],
        settings=asked,
        model_fingerprint="model",
        tokenizer_fingerprint="tokenizer",
        keep_columns=asked["keep_columns"],
        shard_rows=asked["shard_rows"],
    )


def run(
    source: Path | str,
    output: Path | str,
    checkpoint: Path | str,
    asked: Mapping[str, Any] = SETTINGS,
    *,
    engine: str = "tests.fake_engine:instant",
    slots: int | None = None,
    flags: Sequence[str] = (),
    **work: Any,
) -> Any:
    """Plan, run what is missing, finish; Beam's result."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.graph import build
    from pipeline.inference import ShardJob

    plan = make_plan(source, output, asked)
    job = ShardJob.of(str(output), plan, str(checkpoint), slots=slots, engine_factory=engine, **work)
    with beam.Pipeline(options=PipelineOptions(list(flags or FN_API))) as pipeline:
        build(pipeline, Manifest(str(output), plan).todo(), job)
    return pipeline.result


FN_API = ("--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",)


def results(output: Path | str) -> list[dict[str, Any]]:
    """All rows, sorted by where they come from."""
    rows = table(output).to_pylist()
    return sorted(rows, key=lambda row: (row["source_file"], row["source_row"], row["sample_index"]))


def table(output: Path | str) -> pa.Table:
    tables = []
    for name in list_names(str(output)):
        if name.startswith("part-"):
            with open_input(join(str(output), name)) as file:
                tables.append(pq.read_table(file))
    return pa.concat_tables(tables)
