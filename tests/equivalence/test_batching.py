"""With a real model: a record's result depends on the record, not on shards, threads, slots or what runs beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine import Engine
from tests import fake_job
from tests.engine.tiny import CONFIG, tiny_engine
from tests.pipeline import tiny_tokenizers

QUESTIONS = [{"id": f"id-{i}", "question": "why " * (i % 7) + f"is {i} so?", "answer": i} for i in range(24)]
CASES = {
    "greedy": fake_job.settings(temperature=0.0, max_tokens=12, id="id"),
    "sampled": fake_job.settings(temperature=1.0, top_p=0.9, max_tokens=12, n=3, stop=["e", "th"], logprobs=2, id="id"),
    "scored": fake_job.score_settings(continuations=[" {{ answer }}", " because"], token_logprobs=True, id="id"),
    "whole text": fake_job.score_settings(prompt={"template": "{{ question }}"}, id="id"),
}
WHERE_IT_STOOD = ("source_file", "source_row", "job_fingerprint")
"""What may differ when the rows come in another order; everything else is the same, to the last bit."""


def tiny(checkpoint: str, *, slots: int | None = None, **asked: Any) -> Engine:
    """A random model with the vocabulary of the tiny tokenizer."""
    return tiny_engine(dataclasses.replace(CONFIG, vocab=400), eos=(1,), slots=slots or 8)


def run(directory: Path, rows: list[dict], asked: dict, *, shard_rows: int, slots: int, workers: int) -> dict:
    source = fake_job.write_jsonl(directory / "in" / "a.jsonl", rows)
    (directory / "checkpoint").mkdir()
    fake_job.run(
        source,
        directory / "out",
        tiny_tokenizers.save_byte_level(directory / "checkpoint"),
        asked | {"shard_rows": shard_rows},
        engine=f"{__name__}:tiny",
        slots=slots,
        flags=(*fake_job.FN_API, "--direct_running_mode=multi_threading", f"--direct_num_workers={workers}"),
    )
    found = {(row["record_id"], row["sample_index"]): row for row in fake_job.results(directory / "out")}
    assert {row["status"] for row in found.values()} == {"ok"}
    return found


FEW, MANY = (3, 4), (32, 2)
"""(slots, workers), beside 8 and 1"""


@pytest.mark.usefixtures("compiled_as_users_do")
@pytest.mark.parametrize(
    ("case", "others"),
    [
        ("sampled", [FEW]),
        ("scored", [MANY]),
        *(pytest.param(case, [FEW, MANY], marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_a_record_alone_is_a_record_among_others(
    tmp_path_factory: pytest.TempPathFactory, case: str, others: list[tuple[int, int]]
) -> None:
    asked = CASES[case]
    one = run(tmp_path_factory.mktemp("one"), QUESTIONS, asked, shard_rows=100, slots=8, workers=1)
    assert len(one) == len(QUESTIONS) * (asked["sampling"] or {"n": 1})["n"]
    for slots, workers in others:
        other = run(
            tmp_path_factory.mktemp("other"), QUESTIONS[::-1], asked, shard_rows=5, slots=slots, workers=workers
        )
        assert one.keys() == other.keys()
        for key, row in one.items():
            for name in row.keys() - set(WHERE_IT_STOOD):
                assert row[name] == other[key][name], (key, name)
