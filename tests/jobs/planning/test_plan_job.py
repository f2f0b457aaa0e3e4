"""`penstock plan JOB.yaml`: a look at real rows, the plan of a small job, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.commands.exit_codes import DONE, REFUSED, TOO_MANY_FAILED
from jobs.job_file import load
from jobs.planning.job_sample import sample

PRICES = "date: 2026-11-01\ncurrency: USD\nchip_hour: {v5e: 3.6}\n"
ON = ["--chips", "v5e:1x1", "--max-chips", "4"]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def of(*line: str) -> dict:
        assert main(["plan", *line, "--json"]) == DONE
        return json.loads(capsys.readouterr().out)

    return of


def test_a_plan_can_be_written_into_the_job_and_stays(write_job, answer, tmp_path: Path) -> None:
    job = write_job(200)  # ten shards
    (tmp_path / "prices.yaml").write_text(PRICES)
    found = answer(job, *ON, "--prices", str(tmp_path / "prices.yaml"))
    plan = found["plan"]
    assert (found["rows"], found["rows_looked_at"], found["goal"]) == (200, 200, "cheapest")
    assert found["completion_tokens"] == 196 * 16  # four lines are cut in half
    assert (plan["chips"], plan["workers"], plan["fits"]) == ("v5e:1x1", 1, True)
    assert plan["price"] == pytest.approx(plan["seconds"] / 1000)
    assert plan["seconds"] == pytest.approx(300 + plan["prefill_seconds"] + plan["decode_seconds"])
    assert plan["price_low"] < plan["price"] < plan["price_high"]
    assert plan["weight_bytes"] + plan["kv_bytes"] + plan["activation_bytes"] == plan["peak_bytes"]
    assert any("4 of 200 rows looked at would fail" in note for note in found["notes"])
    assert any("sampling.max_tokens (16) for every one" in note for note in found["notes"])
    fixed = [f"--set=engine.{name}={json.dumps(value)}" for name, value in plan["engine"].items()]
    again = answer(job, *ON, *fixed)["plan"]
    assert again["engine"] == plan["engine"]
    assert again["seconds"] == plan["seconds"]


def test_no_prices_are_said(write_job, answer, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(write_job(), *ON)
    assert (found["plan"]["price"], found["prices"]) == (None, None)
    assert any("no prices were given (--prices FILE), so costs are chip-hours" in note for note in found["notes"])
    assert main(["plan", write_job(), *ON]) == DONE
    out = capsys.readouterr().out
    for words in ("chip-hours", "engine:", "slots:", "% busy", "predicted, not measured", "would fail"):
        assert words in out


def test_goals(write_job, answer, tmp_path: Path) -> None:
    job = write_job(100)
    (tmp_path / "prices.yaml").write_text(PRICES)
    cheap, fast = answer(job, *ON)["plan"], answer(job, *ON, "--goal", "fastest")["plan"]
    assert fast["seconds"] < cheap["seconds"]
    assert fast["chip_hours"] > cheap["chip_hours"]
    assert answer(job, *ON, "--deadline", "6h")["plan"] == cheap
    assert answer(job, *ON, "--budget", "1000", "--prices", str(tmp_path / "prices.yaml"))["goal"] == "fastest"
    assert answer(job, *ON, "--startup", "0")["plan"]["seconds"] < 10


def test_lengths_of_completions(write_job, tmp_path: Path) -> None:
    job = load(write_job(100))
    (tmp_path / "lengths.csv").write_text("tokens,count\n4,3\n8,1\n100,0\n")
    assert set(sample(job, 1000).workload.completions) == {16}
    assert set(sample(job, 1000, "5").workload.completions) == {5}
    drawn = sample(job, 1000, str(tmp_path / "lengths.csv")).workload.completions
    assert set(drawn) == {4, 8}
    assert drawn.count(4) > drawn.count(8)


@pytest.mark.usefixtures("fake_engine")
def test_an_earlier_run_tells_how_long_completions_are(write_job, tmp_path: Path) -> None:
    path = write_job(60)
    assert main(["run", path]) == DONE
    looked = sample(load(path), 1000, str(tmp_path / "out"))
    assert max(looked.workload.completions) <= 16
    assert len(set(looked.workload.completions)) > 1
    assert "those of the run in" in looked.completions_from


def test_rows_are_taken_from_everywhere(write_job) -> None:
    looked = sample(load(write_job(1000)), 40)
    assert (looked.rows, looked.looked_at, looked.is_whole) == (1000, 40, False)
    assert looked.workload.requests == pytest.approx(1000, abs=60)
    # Questions are longer by a token a digit: 7 of 1000 would be among the first 40.
    assert len(set(looked.workload.prompts)) > 1
    whole = sample(load(write_job(1000)), 5000)
    assert whole.is_whole
    assert whole.workload.max_length <= looked.workload.max_length


def test_a_job_that_scores(write_job, answer) -> None:
    path = Path(write_job(60))
    text = (
        path.read_text().replace("task: generate", "task: score").replace("sampling: {max_tokens: 16, seed: 7}\n", "")
    )
    path.write_text(text + 'score: {continuations: [" yes", " no"]}\n')
    found = answer(str(path), *ON)
    assert found["plan"]["decode_seconds"] == 0
    assert found["plan"]["slots_busy_fraction"] is None
    assert sample(load(str(path)), 100).workload.requests == 2 * 58


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--batch", "4"], "--batch is for --model; a job says it itself: --set engine.slots=256"),
        (["--chips", "v9"], "no chip is known by the name 'v9'"),
        (["--budget", "3"], "--budget needs to know what chips cost: --prices FILE"),
        (["--budget", "3", "--goal", "cheapest"], "--budget goes with --goal fastest"),
        (["--deadline", "soon"], "--deadline soon: write a time such as 90min"),
        (["--goal", "deadline"], "--goal deadline needs --deadline"),
        (["--deadline", "1s"], "no plan is done within 1 s"),
        (["--output-tokens", "17"], "sampling.max_tokens is 16; give 1 to 16"),
        (["--output-tokens", "nowhere.csv"], "no number, no file, and no output of a run"),
        (["--set", "engine.mesh=2x1"], "engine.mesh: 2x1 is 2 chips, and no slice in question has as many"),
        (["--set", "engine.decode.ffn=ws3d"], "engine.decode.ffn"),
        (["--set", "prompt.template=Q {{ nothing }}"], "no row has a column nothing"),
        (["--model", "llama-3.1-8b"], "name one: a job"),
    ],
)
def test_what_cannot_be_is_refused(line: list[str], says: str, write_job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", write_job(), *ON, *line]) == REFUSED
    assert says in capsys.readouterr().err


def test_nothing_to_look_at(write_job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_job(60)
    (tmp_path / "data" / "questions.jsonl").write_text("")
    assert main(["plan", path, *ON]) == REFUSED
    assert "no rows" in capsys.readouterr().err
    (tmp_path / "data" / "questions.jsonl").write_text('{"id": "a", "question": null}\n' * 3)
    assert main(["plan", path, *ON]) == REFUSED
    assert "none of the 3 rows looked at has a prompt" in capsys.readouterr().err


def test_what_does_not_fit(write_job, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("engine.planning.job_planner.MOST_CHIPS", 1)  # larger ones would take seconds here
    line = ["plan", write_job(), *ON, "--set", "engine.slots=100000000000"]
    assert main(line) == TOO_MANY_FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert "slots of 128 tokens) a device needs" in said.err
    assert "What binds is activations" in said.err
    assert main([*line, "--json"]) == TOO_MANY_FAILED
    found = json.loads(capsys.readouterr().out)
    assert (found["plan"]["fits"], found["frontier"]) == (False, [])


@pytest.mark.parametrize(
    "text", ["", "tokens,n\n3,4\n", "tokens,count\n0,4\n", "tokens,count\n3\n", "tokens,count\n3,0\n"]
)
def test_bad_histograms(text: str, write_job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lengths.csv").write_text(text)
    assert main(["plan", write_job(), *ON, "--output-tokens", str(tmp_path / "lengths.csv")]) == REFUSED
    assert "lengths.csv" in capsys.readouterr().err
