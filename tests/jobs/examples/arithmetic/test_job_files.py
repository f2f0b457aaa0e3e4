"""The job files ask what the checkpoint was trained on, and the whole way from them to the accuracy works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jobs.examples.arithmetic as example
from jobs.examples.arithmetic.accuracy import accuracy, main
from jobs.examples.arithmetic.problems import PROMPT
from jobs.job_file import load
from pipeline.prompts import PromptTemplate

HERE = Path(example.__file__).parent
JOBS = ("generate", "score", "chat")
ROWS = 40
SOME_ROWS = f'input={{tfds: arithmetic_questions, split: "test[:{ROWS}]", data_dir: data/tfds, id: id}}'


@pytest.mark.parametrize("name", ["generate", "score"])
def test_the_prompt_is_the_one_trained_on(name: str) -> None:
    job = load(str(HERE / f"{name}.yaml"))
    assert job.prompt is not None
    assert isinstance(job.prompt.template, str)
    question = "What is 37 plus 48?"
    assert PromptTemplate(job.prompt.template).render({"question": question}) == PROMPT.format(question=question)


@pytest.mark.parametrize("name", [pytest.param(job, marks=pytest.mark.slow if job != "chat" else ()) for job in JOBS])
def test_a_job_runs_and_is_right(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / name)
    command = ["run", str(HERE / f"{name}.yaml"), "--set", f"output.path={output}", "--set", SOME_ROWS]
    ran = subprocess.run([sys.executable, "-m", "jobs.cli", *command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert accuracy(output).rows == ROWS
    assert accuracy(output).right >= 0.95 * ROWS

    main([output])
    printed = capsys.readouterr().out
    assert f"arithmetic-{name}: {accuracy(output)}\n" in printed
    assert "tokens per second" in printed
    assert output in printed
