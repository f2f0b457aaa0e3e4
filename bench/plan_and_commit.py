"""What the pipeline costs without a model: planning, committing, finishing and rerunning a job over JSONL rows.

    python -m bench.plan_and_commit --rows 1000000

Every result row has 16 token ids and logprobs, as a short generation has; one kept column is text (its type is known
after one row), one is numeric (its type needs every row). Memory is the peak of the whole process, so it must not
grow with --rows: Python, Arrow and the widest phase.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline.kept_columns import convert
from pipeline.manifest import Manifest
from pipeline.records import default_record_id
from pipeline.sink import write_shard
from pipeline.sources import open_source, read_rows
from pipeline.sources.base import WorkItem
from pipeline.workplan import PlanFacts, plan_job
from schemas.manifest import Plan

T = TypeVar("T")
TOKENS = 16
SHARDS_OPEN = 2


def write_input(path: Path, rows: int) -> None:
    with open(path, "w") as f:
        for i in range(rows):
            question = f"What is {i} plus {i % 97}, and what is its square, to the nearest whole number?"
            f.write(json.dumps({"id": f"row-{i}", "question": question, "answer": i + i % 97}) + "\n")


def result_rows(item: WorkItem, facts: PlanFacts) -> Iterator[dict[str, Any]]:
    kept = facts.kept
    for row in read_rows(item):
        assert row.values is not None
        yield {
            "record_id": default_record_id(item.source_file, row.row),
            "sample_index": 0,
            "source_file": item.source_file,
            "source_row": row.row,
            "status": "ok",
            "prompt": row.values["question"],
            "prompt_token_count": 20,
            "text": "the answer is here and it is of a usual length",
            "token_ids": [(row.row + j) % 32_000 for j in range(TOKENS)],
            "completion_token_count": TOKENS,
            "finish_reason": "stop",
            "logprobs": [-1.0 / (j + 1 + row.row % 7) for j in range(TOKENS)],
            "cumulative_logprob": -3.0,
            "seed": 7,
            "model_fingerprint": facts.model_fingerprint,
            "job_fingerprint": facts.job_fingerprint,
            **{field.name: convert(row.values[field.name], field) for field in kept},
        }


def compute(output: str, plan: Plan) -> None:
    facts = PlanFacts.of(plan)
    with ThreadPoolExecutor(SHARDS_OPEN) as pool:
        for _ in pool.map(lambda item: write_shard(output, facts, item, result_rows(item, facts)), todo(output, plan)):
            pass


def todo(output: str, plan: Plan) -> list[WorkItem]:
    return Manifest(output, plan).todo()


def timed(name: str, rows: int, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{name:<28} {seconds:8.2f} s {rows / seconds:14,.0f} rows/s {peak_bytes / 2**20:8,.0f} MiB peak")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shard-rows", type=int, default=1000)
    arguments = parser.parse_args()
    rows = arguments.rows
    directory = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        write_input(directory / "input.jsonl", rows)
        size_bytes = (directory / "input.jsonl").stat().st_size
        print(f"{rows:,} rows, {size_bytes / 2**20:,.0f} MiB of JSONL, shards of {arguments.shard_rows:,} rows")
        output = str(directory / "out")

        def plan(output: str, *keep: str) -> Plan:
            return plan_job(
                output,
                open_source(path=str(directory / "input.jsonl"), format="jsonl"),
                name="bench",
                task="generate",
                settings={},
                model_fingerprint="none",
                tokenizer_fingerprint="none",
                keep_columns=keep,
                shard_rows=arguments.shard_rows,
            )

        timed("plan, a text column kept", rows, lambda: plan(str(directory / "text"), "question"))
        made = timed("plan, a numeric column kept", rows, lambda: plan(output, "answer"))
        timed("plan, taken over", rows, lambda: plan(output, "answer"))
        timed("read, write, commit", rows, lambda: compute(output, made))
        timed("finalise", rows, lambda: Manifest(output, made).finalise())
        rerun = timed(
            "rerun of the finished job",
            rows,
            lambda: (todo(output, plan(output, "answer")), Manifest(output, made).finalise()),
        )
        assert rerun[0] == []
        assert rerun[1].ok == rows
        plan_bytes = (directory / "out" / "_plan.json").stat().st_size
        written = sum(path.stat().st_size for path in (directory / "out").glob("*.parquet"))
        print(f"plan {plan_bytes / 2**10:,.0f} KiB, results {written / 2**20:,.0f} MiB")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
