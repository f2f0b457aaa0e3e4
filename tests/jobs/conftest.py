"""A small job on disk: a checkpoint with random weights, questions with some bad lines, and the job file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import launch
from tests.engine.tiny_checkpoint import write_tiny_checkpoint
from tests.pipeline.tiny_tokenizers import save_byte_level

JOB = """\
name: questions
task: generate
model: {{checkpoint: {checkpoint}}}
input: {{path: "data/*.jsonl", id: id}}
prompt: {{template: "Q: {{{{ question }}}}\\nA:"}}
sampling: {{max_tokens: 16, seed: 7}}
output: {{path: ./out, keep_columns: [answer], shard_rows: 20}}
limits: {{max_failed_fraction: 0.05}}
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    write_tiny_checkpoint(directory, vocab_size=512, max_position_embeddings=256)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    return save_byte_level(directory)


@pytest.fixture
def write_job(tmp_path: Path, checkpoint: Path) -> Callable[..., str]:
    """Writes a job over `rows` questions, of which every 50th line is cut in half; returns the job file's path."""

    def write(rows: int = 100) -> str:
        lines = [json.dumps({"id": f"q{i}", "question": f"what is {i}?", "answer": i}) for i in range(rows)]
        lines = [line[:20] if i % 50 == 7 else line for i, line in enumerate(lines)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "questions.jsonl").write_text("\n".join(lines) + "\n")
        (tmp_path / "job.yaml").write_text(JOB.format(checkpoint=checkpoint))
        return str(tmp_path / "job.yaml")

    return write


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every run of this process use an engine of tests.fake_engine."""
    run = launch.run

    def use(name: str) -> None:
        monkeypatch.setattr(launch, "run", functools.partial(run, engine_factory=f"tests.fake_engine:{name}"))

    use("instant")
    return use
