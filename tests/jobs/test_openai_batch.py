"""A job over request files of OpenAI's Batch API, from the file to the exported answers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import cli, launch
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.job_file import load

ROOT = Path(__file__).parents[2]
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
JOB = """\
name: batch
task: generate
model: {{checkpoint: {checkpoint}, dtype: float32}}
input: {{path: requests.jsonl, format: openai-batch}}
sampling: {{max_tokens: 5, seed: 7}}
output: {{path: ./out, shard_rows: 3}}
limits: {{max_failed_fraction: 1}}
"""


def request(name: Any, said: str = "hello", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": said}]} if "chat" in url else {"prompt": said}
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "gpt", **asked, **body}}


@pytest.fixture
def write(tmp_path: Path, checkpoint: Path) -> Callable[..., str]:
    """Writes requests and a job over them; the job file's path."""
    there = tmp_path / "checkpoint"
    there.mkdir()
    for file in checkpoint.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    config = json.loads((there / "tokenizer_config.json").read_text())
    (there / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))

    def files(*requests: Any) -> str:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in requests]
        (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n")
        (tmp_path / "job.yaml").write_text(JOB.format(checkpoint=there))
        return str(tmp_path / "job.yaml")

    return files


def run(path: str, *changes: str) -> list[dict[str, Any]]:
    launch.run(load(path, changes), engine_factory="tests.fake_engine:instant")
    output = load(path, changes).output.path
    return sorted(pq.read_table(output).to_pylist(), key=lambda row: (row["source_row"], row["sample_index"]))


def exported(tmp_path: Path) -> dict[str, Any]:
    output = str(tmp_path / "out")
    assert cli.main(["export", output, "--to", "openai-batch", "--out", str(tmp_path / "answers.jsonl")]) == DONE
    text = (tmp_path / "answers.jsonl").read_text() + (tmp_path / "answers.errors.jsonl").read_text()
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def test_every_request_is_sampled_as_it_says_and_comes_back_under_its_custom_id(
    write: Callable[..., str], tmp_path: Path
) -> None:
    rows = run(
        write(
            request("plain"),
            request("short", max_tokens=2, ignore_eos=True),
            request("many", n=3, temperature=1, seed=5, max_completion_tokens=9),
            request("stopped", stop=[*"abcdefghijkl"], max_tokens=50, ignore_eos=True, logprobs=True, top_logprobs=2),
            request("penalised", presence_penalty=1.5),
            request("other", url="/v1/completions"),
            request("never", stop="\ufffd"),
            "no JSON",
            request(None),
        )
    )
    assert [(row["record_id"], row["status"]) for row in rows if row["sample_index"] == 0] == [
        ("plain", "ok"), ("short", "ok"), ("many", "ok"), ("stopped", "ok"), ("penalised", "failed"),
        ("other", "failed"), ("never", "failed"), ("requests.jsonl:7", "failed"), ("requests.jsonl:8", "failed"),
    ]  # fmt: skip
    by_id = {row["record_id"]: row for row in rows}
    assert by_id["plain"]["prompt"] == "<user>hello<assistant>"
    assert by_id["plain"]["completion_token_count"] <= 5
    assert (by_id["plain"]["seed"], by_id["many"]["seed"]) == (7, 5)
    assert by_id["short"]["completion_token_count"] == 2
    assert [row["sample_index"] for row in rows if row["record_id"] == "many"] == [0, 1, 2]
    assert by_id["stopped"]["stop_reason"] in "abcdefghijkl"
    assert len(by_id["stopped"]["top_logprobs"][0]) == 2
    assert by_id["plain"]["top_logprobs"] is None
    assert by_id["penalised"]["error"] == "prompt: body.presence_penalty: 1.5 is not supported; leave it out"
    assert by_id["other"]["error"].startswith("prompt: url: '/v1/completions', and input.endpoint is")
    assert by_id["never"]["error"].startswith("prompt: body.stop: stop string")
    assert by_id["requests.jsonl:7"]["error"].startswith("invalid JSON")
    assert by_id["requests.jsonl:8"]["error"] == "id: column 'custom_id' is missing or null"

    answers = exported(tmp_path)
    assert answers.keys() == by_id.keys()
    body = answers["many"]["response"]["body"]
    assert body["object"] == "chat.completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert answers["penalised"]["error"]["code"] == "prompt"


def test_completions_take_their_prompt_as_it_stands(write: Callable[..., str], tmp_path: Path) -> None:
    text = "  {{ 7 * 7 }} {% raw %}\n"
    url = "/v1/completions"
    rows = run(write(request("a", text, url), request("b", "", url)), f"input.endpoint={url}")
    assert [(row["status"], row["prompt"]) for row in rows] == [("ok", text), ("failed", None)]
    assert exported(tmp_path)["a"]["response"]["body"]["object"] == "text_completion"


def test_a_request_that_says_what_the_job_says_gets_the_same_bytes(write: Callable[..., str], tmp_path: Path) -> None:
    said = {"temperature": 0, "max_tokens": 5, "seed": 7, "top_p": 1, "n": 1}
    silent = run(write(*(request(f"r{i}", f"what is {i}?") for i in range(7))))
    spoken = run(write(*(request(f"r{i}", f"what is {i}?", **said) for i in range(7))), "output.path=./spoken")
    differs = {"job_fingerprint"}
    assert [{k: v for k, v in row.items() if k not in differs} for row in silent] == [
        {k: v for k, v in row.items() if k not in differs} for row in spoken
    ]


@pytest.mark.usefixtures("fake_engine")
def test_the_example_of_the_documentation(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    page = (ROOT / "docs" / "openai-batch.md").read_text()
    for name, language in (("requests.jsonl", "json"), ("batch.yaml", "yaml")):
        (text,) = re.findall(f"`{name}`:\n\n```{language}\n(.*?)```", page, re.DOTALL)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^\$ penstock (.*)$", page, re.MULTILINE):
        assert cli.main(shlex.split(command)) == DONE, command
    answers = {
        line["custom_id"]: line
        for name in ("answers.jsonl", "answers.errors.jsonl")
        for line in map(json.loads, Path(name).read_text().splitlines())
    }
    assert len(answers["capital-2"]["response"]["body"]["choices"]) == 2
    assert answers["capital-3"]["error"]["message"] in page


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["prompt.template=x"], "prompt: leave it out: requests of openai-batch bring their own messages or prompt"),
        (["input.id=x"], "input.id: leave it out: requests of openai-batch are known by their custom_id"),
        (["task=score"], "input.format: requests of openai-batch ask for completions; use task generate"),
        (["input.format=jsonl", "prompt.template=x", "input.endpoint=/v1/completions"], "input.endpoint: belongs to"),
        (["input.format=jsonl"], "prompt: is missing"),
    ],
)
def test_what_does_not_go_with_such_files_is_refused(
    write: Callable[..., str], changes: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for change in changes for word in ("--set", change)]
    assert cli.main(["validate", write(request("a")), *sets]) == REFUSED
    assert problem in capsys.readouterr().err


def test_files_that_are_something_else_are_refused_before_anything_runs(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", write({"question": "what?"})]) == REFUSED
    assert "input.id: no row has a column custom_id; they have question" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
