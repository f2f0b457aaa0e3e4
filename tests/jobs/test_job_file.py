"""A job file becomes a Job, or an error that names every wrong field, its line and what was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from engine.planning.chips import CHIPS
from engine.runtime import request
from jobs.job_file import load
from jobs.spec import EngineOptions, Job, Sampling
from pipeline.errors import JobError

PRINTED = r"""
name: capitals
task: generate                       # generate | score
model: {checkpoint: ./checkpoint, dtype: float32}          # dtype: auto | float32 | bfloat16
input: {path: "data/*.jsonl", format: jsonl, id: id}       # or format: parquet | csv | text, or tfds: ...
prompt: {template: "Q: {{ question }}\nA:"}                # or messages: [{role: user, content: ...}]
sampling: {temperature: 0.0, max_tokens: 64, stop: ["\n"], n: 1, seed: 7, logprobs: 0}
score: {continuations: ["{{ a }}", "{{ b }}"]}              # task score: prompt is the context
output: {path: ./out, keep_columns: [answer], include_prompt: true, shard_rows: 1000}
engine: {slots: auto, max_length: auto}
limits: {max_failed_fraction: 0.01}
runner: {name: local}
"""

SHORTEST = """\
name: short
task: generate
model: {checkpoint: /models/tiny}
input: {path: /data/questions.jsonl}
prompt: {template: "{{ question }}"}
output: {path: /out}
"""


def _load(tmp_path: Path, text: str, *overrides: str) -> Job:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load(str(path), overrides)


def _problems(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        _load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path), "")


def test_the_printed_job_is_valid(tmp_path: Path) -> None:
    job = _load(tmp_path, PRINTED)
    assert job.name == "capitals"
    assert job.sampling.stop == ("\n",)
    assert job.sampling.seed == 7
    assert job.prompt is not None
    assert job.prompt.template == "Q: {{ question }}\nA:"
    assert job.output.keep_columns == ("answer",)
    assert job.limits.max_failed_fraction == 0.01
    assert list(job.notes()) == ["task is generate, so the section score is not used"]


def test_defaults(tmp_path: Path) -> None:
    job = _load(tmp_path, SHORTEST)
    assert list(job.notes()) == []
    assert job.settings() == {
        "task": "generate",
        "dtype": "auto",
        "id": None,
        "prompt": {"template": "{{ question }}"},
        "sampling": {
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "max_tokens": 64,
            "min_tokens": 0,
            "stop": [],
            "stop_token_ids": [],
            "ignore_eos": False,
            "n": 1,
            "seed": 0,
            "logprobs": 0,
        },
        "score": None,
        "include_prompt": True,
        "max_length": "auto",
    }
    assert (job.engine.slots, job.runner.name, job.runner.workers) == ("auto", "local", 2)
    assert job.limits.max_failed_fraction == 0.01


@pytest.mark.parametrize(
    "override",
    [
        "output.path=/elsewhere",
        "engine.slots=4",
        "limits.max_failed_fraction=1",
        "runner.workers=1",
        "name=other",
        "model.checkpoint=/moved",
        "sampling.top_k=-1",
        "sampling.stop=[]",
    ],
)
def test_settings_hold_nothing_that_leaves_results_alone(tmp_path: Path, override: str) -> None:
    assert _load(tmp_path, SHORTEST, override).settings() == _load(tmp_path, SHORTEST).settings()


@pytest.mark.parametrize(
    "override",
    [
        "model.dtype=bfloat16",
        "prompt.template=x",
        "sampling.seed=1",
        "sampling.stop=x",
        "engine.max_length=128",
        "output.include_prompt=false",
        "input.id=id",
    ],
)
def test_settings_hold_all_that_bears_on_results(tmp_path: Path, override: str) -> None:
    assert _load(tmp_path, SHORTEST, override).settings() != _load(tmp_path, SHORTEST).settings()


def test_one_stop_string_is_a_list_of_one(tmp_path: Path) -> None:
    one, several = (_load(tmp_path, SHORTEST, f"sampling.stop={stop}") for stop in ("END", "[END]"))
    assert one.settings() == several.settings()


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    job = _load(tmp_path, PRINTED, "output.path=../out", "input.path=gs://bucket/*.jsonl", "model.checkpoint=~/tiny")
    assert job.output.path == str(tmp_path.parent / "out")
    assert job.input.path == "gs://bucket/*.jsonl"
    assert job.model.checkpoint == "/home/someone/tiny"
    assert _load(tmp_path, PRINTED).input.path == str(tmp_path / "data/*.jsonl")


def test_overrides_set_fields_that_the_file_lacks(tmp_path: Path) -> None:
    job = _load(tmp_path, SHORTEST, "sampling.temperature=1e-1", "sampling.n=4", "output.keep_columns=[a, no]")
    assert (job.sampling.temperature, job.sampling.n) == (0.1, 4)
    assert job.output.keep_columns == ("a", "no")


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    messages = ["prompt.template=null", "prompt.messages=[{role: user, content: a}]"]
    job = _load(tmp_path, SHORTEST, *messages, "prompt.messages.0.content=b")
    assert job.prompt is not None
    assert job.prompt.model_dump()["messages"] == ({"role": "user", "content": "b"},)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sampling.n", "--set sampling.n: write it as key=value, such as --set sampling.max_tokens=32"),
        ("=3", "--set =3: write it as key=value, such as --set sampling.max_tokens=32"),
        ("name.first=x", "--set name.first=x: name is 'short', which has no 'first'"),
        ("sampling.n=[", "--set sampling.n:1:2: not valid YAML"),
        ("sampling.n=x", '--set: sampling.n: should be a valid integer; got "x"'),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, problem: str) -> None:
    assert _problems(tmp_path, SHORTEST, override).startswith(problem)


def test_every_wrong_field_is_named_with_its_line(tmp_path: Path) -> None:
    text = """\
name: a b
task: eval
model: 3
input: {path: x, zzz: 0}
prompt:
  messages:
  - {role: user, content: hi}
  - {rol: user}
sampling:
  temprature: 1
  presence_penalty: 1
  stop: [3]
  max_tokens: true
output: {}
engine: {slots: some, max_length: 0}
limits: {max_failed_fraction: 7}
runner: {name: DaskRunner}
top_p: 1
zzz: 1
"""
    assert _problems(tmp_path, text).splitlines() == [
        "the job has errors",
        "  /job.yaml:1: name: should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'; got \"a b\"",
        "  /job.yaml:2: task: should be 'generate' or 'score'; got \"eval\"",
        "  /job.yaml:3: model: should be a mapping; got 3",
        "  /job.yaml:4: input.zzz: is not a field; input has path, format, endpoint, id, tfds, split, data_dir",
        "  /job.yaml:8: prompt.messages.1.role: is missing: Who speaks.",
        "  /job.yaml:8: prompt.messages.1.content: is missing: What is said: a Jinja template over the row's columns.",
        "  /job.yaml:8: prompt.messages.1.rol: is not a field; did you mean role?",
        "  /job.yaml:13: sampling.max_tokens: should be a valid integer; got true",
        "  /job.yaml:12: sampling.stop.0: should be a valid string; got 3",
        "  /job.yaml:10: sampling.temprature: is not a field; did you mean temperature?",
        "  /job.yaml:11: sampling.presence_penalty: is not supported here, though vLLM has it: there are no"
        " penalties yet; leave it out or set temperature, top_p or min_p",
        "  /job.yaml:14: output.path: is missing: Directory to write to, local or a URL. It holds one job:"
        " another job on the same path is refused.",
        "  /job.yaml:15: engine.slots: should be 'auto' or a valid integer; got \"some\"",
        "  /job.yaml:15: engine.max_length: should be 'auto' or greater than or equal to 2; got 0",
        "  /job.yaml:16: limits.max_failed_fraction: should be less than or equal to 1; got 7",
        "  /job.yaml:17: runner.name: Beam's DaskRunner loses data and still reports DONE, so it is refused; use local",
        "  /job.yaml:18: top_p: is not a field here; did you mean sampling.top_p?",
        "  /job.yaml:19: zzz: is not a field; a job has name, task, model, input, prompt, sampling, score,"
        " output, engine, limits, runner",
    ]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["input.tfds=x", "input.split=train"], "input.path: give one of path (files) and tfds"),
        (["input.path=null"], "input.path: give one of path (files) and tfds"),
        (["input.path=null", "input.tfds=x"], "input.split: is missing"),
        (["input.split=train"], "input.split: belongs to tfds"),
        (["prompt.messages=conversation"], "prompt.template: give one of template"),
        (["prompt=null"], "prompt: is missing: task generate continues a prompt"),
        (["prompt={}"], "prompt.template: give one of template"),
        (["sampling.min_tokens=65"], "sampling.min_tokens: is 65, more than max_tokens (64)"),
        (["sampling.n=2"], "sampling.n: 2 completions at temperature 0 are all the same"),
        (["sampling.temperature=.inf"], "sampling.temperature: should be a finite number"),
        (["sampling.top_p=.nan"], "sampling.top_p: should be"),
        (["sampling.best_of=2"], "sampling.best_of: is not supported here, though vLLM has it: ask for n"),
        (["output.keep_columns=[text]"], "output.keep_columns: 'text' is a column of the output itself"),
        (["output.keep_columns=[a, a]"], "output.keep_columns: names 'a' twice"),
        (["task=score", "sampling.seed=1"], "sampling: task score samples nothing"),
        (["task=score", "prompt=null"], "score: nothing to score"),
        (["task=score", "score.text=x"], "score.text: is scored without a prompt"),
        (["task=score", "score.text=x", "score.continuations=[x]"], "score.text: is a whole text by itself"),
        (
            ["task=score", "prompt=null", "score.continuations=[x, y]"],
            "prompt: is missing: it is the context",
        ),
        (["task=score", "output.keep_columns=[logprob]"], "output.keep_columns: 'logprob' is a column"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(tmp_path: Path, overrides: list[str], problem: str) -> None:
    assert problem in _problems(tmp_path, SHORTEST, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["score.continuations=[x]"],
        ["score.continuations=[x, y]", "score.token_logprobs=true"],
        [],
        ["prompt=null", "score.text=x"],
        ["prompt=null", "score.continuations=[x]"],
        ["output.keep_columns=[text]"],
    ],
)
def test_the_ways_to_ask_for_scores(tmp_path: Path, overrides: list[str]) -> None:
    job = _load(tmp_path, SHORTEST, "task=score", *overrides)
    assert job.settings()["sampling"] is None


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    assert _problems(tmp_path, "") == (
        "/job.yaml: a job file is a mapping of name, task, model, input, output ...; see `penstock schema`"
    )
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(JobError, match=r"latin.yaml is not UTF-8 text: .* at byte 9"):
        load(str(tmp_path / "latin.yaml"))
    with pytest.raises(JobError, match=r"cannot read the job file .*absent.yaml: No such file"):
        load(str(tmp_path / "absent.yaml"))
    with pytest.raises(JobError, match=r"cannot read the job file .*: Is a directory"):
        load(str(tmp_path))


def test_a_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + SHORTEST.encode())
    assert load(str(tmp_path / "job.yaml")).name == "short"


def test_sampling_is_what_the_engine_takes() -> None:
    """The job's fields, limits and defaults against those of the engine's own request."""
    engine = {field.name: field.default for field in dataclasses.fields(request.Sampling)}
    job = {name: field.default for name, field in Sampling.model_fields.items()}
    assert {name: job[name] for name in engine} == engine
    assert job.keys() - engine.keys() == {"stop", "n", "seed"}
    schema = Sampling.model_json_schema()["properties"]
    assert schema["n"]["maximum"] == request.MAX_SAMPLES
    assert schema["logprobs"]["maximum"] == request.MAX_LOGPROBS
    assert schema["stop_token_ids"]["maxItems"] == request.MAX_STOP_TOKEN_IDS
    assert not Sampling.NOT_SUPPORTED.keys() & job.keys()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{template: hi, date: 2026-01-31}", "prompt.date: is for chat templates"),
        ("{messages: turns, date: 2026-02-31}", "prompt.date: is no date"),
        ("{messages: turns, date: today}", "prompt.date: "),
    ],
)
def test_a_date_is_for_chat_templates_and_must_be_one(tmp_path: Path, prompt: str, says: str) -> None:
    assert says in _problems(tmp_path, SHORTEST.replace('{template: "{{ question }}"}', prompt))
    job = _load(tmp_path, SHORTEST.replace('{template: "{{ question }}"}', "{messages: turns, date: 2026-01-31}"))
    assert job.settings()["prompt"] == {"messages": "turns", "date": "2026-01-31"}


def test_every_chip_that_is_known_can_be_asked_for() -> None:
    annotation = EngineOptions.model_fields["chip"].annotation
    assert set(get_args(annotation)) == {"auto", *CHIPS}
