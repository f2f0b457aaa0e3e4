"""The rows of a shard: conserved, in order, bounded in flight, and none that takes the others with it."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from engine.errors import RequestError
from engine.runtime.request import GenerateRequest, ScoreRequest
from pipeline import activity, shard
from pipeline.errors import PromptError
from pipeline.inference import ShardJob, run_shard
from pipeline.tokenizer import Tokenizer
from pipeline.workplan import work_items
from schemas.manifest import encode_fields
from tests import fake_job
from tests.fake_engine import FakeEngine, Options

QUESTIONS = fake_job.questions(30)


@pytest.fixture(autouse=True)
def _fresh_activity():
    activity.reset()
    yield
    activity.reset()


class Job:
    """A job of one shard."""

    def __init__(self, path: Path, tokenizer: Tokenizer, rows: Iterable[Any], asked: dict[str, Any]) -> None:
        source = fake_job.write_jsonl(path / "in" / "rows.jsonl", rows)
        self.output = path / "out"
        self.tokenizer = tokenizer
        plan = fake_job.make_plan(source, self.output, asked | {"shard_rows": 10_000})
        (self.item,) = work_items(plan)
        self.job = ShardJob.of(str(self.output), plan, checkpoint="unused")

    def run(self, engine: Any = None) -> list[dict[str, Any]]:
        run_shard(self.item, self.job, engine or FakeEngine(), self.tokenizer)
        return fake_job.table(self.output).to_pylist()


@pytest.fixture
def job(tmp_path: Path, byte_level: Tokenizer):
    def make(rows: Iterable[Any] = QUESTIONS, asked: dict[str, Any] | None = None, **changes: Any) -> Job:
        return Job(tmp_path, byte_level, rows, asked or fake_job.settings(**changes))

    return make


class Held(FakeEngine):
    """Answers nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[Future[Any]] = []

    def submit(self, request: Any) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


class Refusing(FakeEngine):
    """Refuses what `refuses` says."""

    def __init__(self, refuses) -> None:
        super().__init__(delay_seconds=0.001)
        self._refuses = refuses
        self.futures: list[Future[Any]] = []

    def submit(self, request: Any) -> Future[Any]:
        if self._refuses(request):
            raise RequestError("not this one")
        self.futures.append(super().submit(request))
        return self.futures[-1]


# --- what comes out


def test_every_row_comes_out_once_in_input_order(job) -> None:
    rows = job().run(FakeEngine(delay_seconds=0.001))  # answers out of order
    assert [row["source_row"] for row in rows] == list(range(30))
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["prompt"] for row in rows] == [f"Q: {question['question']}\nA:" for question in QUESTIONS]


def test_results_do_not_depend_on_slots_window_or_time(job, tmp_path, byte_level, monkeypatch) -> None:
    plain = job(n=3, stop=["a"]).run()
    monkeypatch.setattr(shard, "LEAST_WINDOW", 1)
    other = Job(tmp_path / "other", byte_level, QUESTIONS, fake_job.settings(n=3, stop=["a"]))
    assert other.run(FakeEngine(options=Options(slots=2), delay_seconds=0.001)) == plain


def test_samples_of_a_record_stand_together(job) -> None:
    rows = job(n=3).run()
    assert [(row["source_row"], row["sample_index"]) for row in rows] == [(i, j) for i in range(30) for j in range(3)]
    assert len({row["text"] for row in rows}) > 80


def test_scores_come_out(job) -> None:
    rows = job(asked=fake_job.score_settings(continuations=[" {{ answer }}", " no"])).run()
    assert len(rows) == 30
    assert all(len(row["logprob"]) == 2 and row["status"] == "ok" and row["seed"] is None for row in rows)


def test_columns_that_every_row_has(job) -> None:
    made = job(keep_columns=["answer"], seed=11)
    row = made.run()[3]
    assert row["answer"] == 3
    assert row["seed"] == 11
    assert row["source_file"] == "rows.jsonl"
    assert row["model_fingerprint"] == "model"
    assert row["job_fingerprint"] == made.job.plan.job_fingerprint


def test_prompts_are_left_out_on_request(job) -> None:
    row = job(include_prompt=False).run()[0]
    assert row["prompt"] is None
    assert row["prompt_token_count"] > 0


def test_only_needed_columns_are_read(job, monkeypatch) -> None:
    asked = []
    read_rows = shard.read_rows
    monkeypatch.setattr(shard, "read_rows", lambda item, columns: asked.append(columns) or read_rows(item, columns))
    job(id="id", keep_columns=["answer"]).run()
    assert asked == [{"question", "id", "answer"}]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_format_gives_the_same_rows(job, tmp_path, byte_level, suffix: str) -> None:
    columns = pa.Table.from_pylist([{**question, "unused": b"\xff"} for question in QUESTIONS])
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        pa.csv.write_csv(columns.drop(["unused"]), path)
    else:
        pa.parquet.write_table(columns, path, row_group_size=7)
    asked = fake_job.settings(id="answer", shard_rows=100)  # an integer in Parquet, a string in CSV
    plan = fake_job.make_plan(path, tmp_path / suffix, asked)
    run_shard(*work_items(plan), ShardJob.of(str(tmp_path / suffix), plan, "unused"), FakeEngine(), byte_level)
    expected = [(row["record_id"], row["text"]) for row in job(id="answer").run()]
    assert [(row["record_id"], row["text"]) for row in fake_job.table(tmp_path / suffix).to_pylist()] == expected


# --- who a row is


def test_without_an_id_column_a_row_is_its_place(job) -> None:
    assert [row["record_id"] for row in job().run()][:2] == ["rows.jsonl:0", "rows.jsonl:1"]


def test_ids_are_strings_or_integers(job) -> None:
    rows = job([{"question": "?", "id": "a"}, {"question": "?", "id": 17}], id="id").run()
    assert [row["record_id"] for row in rows] == ["a", "17"]


@pytest.mark.parametrize("bad", [{}, {"id": None}, {"id": ""}, {"id": 1.5}, {"id": True}, {"id": ["a"]}])
def test_a_row_without_a_usable_id_fails(job, bad: dict) -> None:
    ok, failed = job([{"question": "?", "id": "a"}, {"question": "?"} | bad], id="id").run()
    assert ok["status"] == "ok"
    assert (failed["status"], failed["record_id"]) == ("failed", "rows.jsonl:1")
    assert failed["error"].startswith("id: column 'id' ")


def test_a_record_is_itself_in_another_place(job, tmp_path, byte_level) -> None:
    """What is sampled for a record depends on its id, not on where it stands."""
    there = Job(tmp_path / "reversed", byte_level, QUESTIONS[::-1], fake_job.settings(id="id"))
    texts = {row["record_id"]: row["text"] for row in job(id="id").run()}
    assert {row["record_id"]: row["text"] for row in there.run()} == texts


# --- rows that fail


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ('{"question": "cut in ha', "invalid JSON: "),
        ({"question": None}, "prompt: prompt template: column 'question' is null"),
        ({"other": 1}, "prompt: prompt template: the row has no column 'question'"),
        ({"question": "~" * 600}, "too long: 608 tokens of context are needed, the engine holds 512"),
    ],
)
def test_a_bad_row_fails_alone(job, bad: Any, error: str) -> None:
    rows = job([*QUESTIONS[:5], bad, *QUESTIONS[5:9]], n=2).run()
    ok = [row["source_row"] for row in rows if row["status"] == "ok"]
    assert ok == [row for row in range(10) for _ in range(2) if row != 5]
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (failed["source_row"], failed["sample_index"], failed["text"]) == (5, 0, None)
    assert failed["error"].startswith(error)


def test_an_empty_prompt_fails(job) -> None:
    rows = job([{"question": ""}], prompt={"template": "{{ question }}"}).run()
    assert rows[0]["error"] == "prompt: the prompt is empty"


def test_a_kept_value_that_does_not_fit_its_column_fails_the_row(job) -> None:
    made = job(keep_columns=["id"])  # strings
    facts = dataclasses.replace(made.job.plan, columns=encode_fields([pa.field("id", pa.int64())]))
    made.job = dataclasses.replace(made.job, plan=facts)
    row = made.run()[0]
    assert row["status"] == "failed"
    assert row["error"].startswith("kept column 'id': ")


@pytest.mark.parametrize(
    "fault", [RecursionError("deep"), ValueError("odd \ud800"), PromptError("refused\n  by  \ud800")]
)
def test_whatever_rendering_raises_fails_the_row_in_one_line(job, monkeypatch, fault: Exception) -> None:
    prepare = shard.Generate.prepare

    def prepare_or_fail(self, values):
        if values["id"] == "id-3":
            raise fault
        return prepare(self, values)

    monkeypatch.setattr(shard.Generate, "prepare", prepare_or_fail)
    rows = job().run()
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["source_row"] == 3
    assert failed["error"].startswith("prompt: ")
    assert "\n" not in failed["error"]


def test_reasons_are_short(job) -> None:
    failed = job([{"question": {"a": "x" * 5000}, "id": ["y" * 5000]}], id="id").run()[0]
    assert 0 < len(failed["error"]) <= 500


def test_a_request_that_the_engine_refuses_fails_the_row(job) -> None:
    is_tenth = [False] * 10 + [True] + [False] * 100
    rows = job().run(Refusing(lambda request: is_tenth.pop(0)))
    assert [(row["source_row"], row["error"]) for row in rows if row["status"] == "failed"] == [
        (10, "request: not this one")
    ]


def test_a_request_that_is_refused_later_fails_the_row_too(job) -> None:
    class Late(FakeEngine):
        def submit(self, request: Any) -> Future[Any]:
            future = super().submit(request)
            if request.prompt == tuple(made.tokenizer.encode("Q: what is 4?\nA:", add_special_tokens=True)):
                future = Future()
                future.set_exception(RequestError("not this one"))
            return future

    made = job()
    failed = [row for row in made.run(Late()) if row["status"] == "failed"]
    assert [(row["source_row"], row["error"], row["text"]) for row in failed] == [(4, "request: not this one", None)]


def test_the_other_sequences_of_a_refused_row_are_given_up(job) -> None:
    """Of two continuations the second is refused: nobody will wait for the first."""
    refused = "no no no"
    made = job(asked=fake_job.score_settings(continuations=[" yes", refused]))
    tokens = tuple(made.tokenizer.encode(refused, add_special_tokens=False))
    engine = Refusing(lambda request: isinstance(request, ScoreRequest) and request.tokens[-len(tokens) :] == tokens)
    rows = made.run(engine)
    assert {row["status"] for row in rows} == {"failed"}
    assert all(future.cancelled() or future.done() for future in engine.futures)


# --- what is asked of the engine


def test_requests_carry_the_sampling_of_the_job(job) -> None:
    asked = {
        "temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.25, "max_tokens": 9, "min_tokens": 2, "seed": 5,
        "n": 3, "ignore_eos": True, "stop_token_ids": [7, 9], "logprobs": 2,
    }  # fmt: skip
    requests: list[GenerateRequest] = []
    job(id="id", **asked).run(Refusing(lambda request: requests.append(request)))
    assert len(requests) == 30
    assert len({request.record for request in requests}) == 30
    for request in requests:
        assert (request.seed, request.samples, request.watch) == (5, 3, None)
        sampling = dataclasses.asdict(request.sampling) | {"stop_token_ids": list(request.sampling.stop_token_ids)}
        assert sampling == {name: asked[name] for name in sampling}


@pytest.mark.parametrize(("slots", "n", "most"), [(2, 1, 8), (4, 1, 16), (2, 4, 2), (2, 100, 1)])
def test_a_window_of_requests_is_open(job, monkeypatch, slots: int, n: int, most: int) -> None:
    """Wide enough to fill the slots, and no wider: it is what bounds memory."""
    monkeypatch.setattr(shard, "LEAST_WINDOW", 1)
    engine = FakeEngine(options=Options(slots=slots), delay_seconds=0.005)
    job(n=n).run(engine)
    assert most <= engine.most_open_requests <= most + 1


# --- failures that are no row's


def test_a_failing_engine_fails_the_shard_and_leaves_nothing(job) -> None:
    made = job()
    with pytest.raises(RuntimeError, match="the device was lost"):
        made.run(FakeEngine(fail_on=range(1 << 62)))
    assert [path.name for path in made.output.iterdir() if "part" in path.name] == []


def test_a_shard_that_fails_gives_its_requests_up(job) -> None:
    engine = Held()
    made = job()

    def run() -> None:
        with pytest.raises(RuntimeError, match="gone"):
            made.run(engine)

    thread = threading.Thread(target=run)
    thread.start()
    while len(engine.futures) < 30:
        assert thread.is_alive()
    engine.futures[0].set_exception(RuntimeError("gone"))
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert all(future.cancelled() for future in engine.futures[1:])


def test_a_cancelled_run_stops_at_once_and_leaves_nothing(job) -> None:
    engine = Held()
    made = job()
    raised: list[BaseException] = []

    def run() -> None:
        with pytest.raises(activity.Cancelled, match="goes on where it stopped") as caught:
            made.run(engine)
        raised.append(caught.value)

    thread = threading.Thread(target=run)
    thread.start()
    while not engine.futures:
        assert thread.is_alive()
    activity.cancel()
    thread.join(timeout=5)
    assert raised
    assert all(future.cancelled() for future in engine.futures)
    assert [path.name for path in made.output.iterdir() if "part" in path.name] == []
    with pytest.raises(activity.Cancelled):  # and so does every later shard
        made.run()
    activity.reset()
    assert len(made.run()) == 30


# --- for the one who watches


def test_live_counts_are_those_of_the_rows(job) -> None:
    rows = job([*QUESTIONS, "not JSON"], n=2).run()
    ok = [row for row in rows if row["status"] == "ok"]
    assert activity.live() == {
        "records_done": 31,
        "records_failed": 1,
        "prompt_tokens": sum(row["prompt_token_count"] for row in ok if row["sample_index"] == 0),
        "generated_tokens": sum(len(row["token_ids"]) for row in ok),
        "scored_tokens": 0,
    }
    activity.reset()
    assert set(activity.live().values()) == {0}


def test_live_counts_of_scores(job) -> None:
    rows = job(asked=fake_job.score_settings(continuations=[" {{ answer }}", " no"])).run()
    assert activity.live()["scored_tokens"] == sum(sum(row["token_count"]) for row in rows) > 60


def test_failed_rows_are_copied_for_reading(job) -> None:
    made = job([QUESTIONS[0], "not JSON"])
    made.run()
    (line,) = (made.output / "_errors" / "00000.jsonl").read_text().splitlines()
    assert json.loads(line)["source_row"] == 1
