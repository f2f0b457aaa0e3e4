"""`penstock plan --model`: what it answers, what it prints, how it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from engine.compilation.compile_check import Answer, Question
from engine.compilation.tpu_compiler import Compiled
from jobs.cli import main
from jobs.commands.exit_codes import DONE, REFUSED, TOO_MANY_FAILED
from jobs.planning import compiled_plan

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "jobs" / "examples" / "arithmetic" / "checkpoint"
ASKED = ["plan", "--model", "palm-540b", "--chips", "v4:4x4x4", "--context", "2048"]
DECODE = [*ASKED, "--phase", "decode", "--batch", "512"]
PREFILL = [*ASKED, "--phase", "prefill", "--batch", "512"]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]):
    def of(*line: str, code: int = DONE) -> dict:
        assert main([*line, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return of


def test_a_decode_step(answer) -> None:
    found = answer(*DECODE, "--tokens", "64")
    assert (found["model"], found["batch"], found["tokens"], found["chips"]) == ("palm-540b", 512, 64, "v4:4x4x4")
    assert (found["mesh"], found["ffn"], found["attention"], found["fits"]) == ("4x4x4", "ws2d", "batch", True)
    assert found["seconds"] == pytest.approx(64 * found["seconds_per_token"])
    assert found["chip_seconds_per_token"] == pytest.approx(64 * found["seconds_per_token"] / 512)
    nominal = 540.35e9
    mfu = 2 * nominal * 512 / (64 * 275e12 * found["seconds_per_token"])  # the paper's definition
    assert found["mfu"] == pytest.approx(mfu, rel=0.005)
    assert sum(found["bound_by"].values()) == pytest.approx(1)
    assert found["weight_bytes"] + found["kv_bytes"] + found["activation_bytes"] == found["peak_bytes"]
    assert found["peak_bytes"] < found["limit_bytes"] == 30.75 * 2**30
    assert found["collective_bytes"] == pytest.approx(sum(found["collective_bytes_by_axis"].values()))
    assert found["seconds_low"] < found["seconds"] < found["seconds_high"]
    assert {(one["ffn"], one["attention"]) for one in found["runners_up"]} >= {("ws1d", "batch")}
    assert all(one["seconds_per_token"] >= found["seconds_per_token"] for one in found["runners_up"])


def test_tokens_change_the_whole_and_not_the_step(answer) -> None:
    one, many = answer(*DECODE, "--tokens", "1"), answer(*DECODE, "--tokens", "100")
    assert many["seconds"] == pytest.approx(100 * one["seconds"])
    assert many["seconds_per_token"] == one["seconds_per_token"]


def test_a_prefill(answer) -> None:
    found = answer(*PREFILL)
    assert found["ffn"].startswith("wg")
    assert (found["attention"], found["tokens"], found["kv_bytes"]) == ("batch", None, 512 * 2048 * 118 * 1024 // 64)
    assert found["seconds_per_token"] == pytest.approx(found["seconds"] / 2048)
    assert found["chip_seconds_per_token"] == pytest.approx(64 * found["seconds"] / (512 * 2048))
    assert any("--tokens" in note for note in answer(*PREFILL, "--tokens", "64")["notes"])


def test_scoring_is_a_prefill_with_a_head(answer) -> None:
    line = ["plan", "--model", "llama-3.1-8b", "--chips", "v5e:2x2", "--batch", "16", "--context", "1024"]
    scored, prefilled = answer(*line, "--phase", "score"), answer(*line, "--phase", "prefill")
    assert scored["counted"] == "one score"
    assert 1 < scored["flops"] / prefilled["flops"] < 1.2
    assert 1 < scored["seconds"] / prefilled["seconds"] < 1.5


def test_what_is_pinned(answer) -> None:
    pins = ["--mesh", "8x4x2", "--ffn", "ws1d", "--attention", "sequence", "--weights", "int8", "--kv", "int8"]
    found = answer(*DECODE, *pins)
    assert [found[name] for name in ("mesh", "ffn", "attention", "weights", "kv")] == pins[1::2]
    assert found["runners_up"] == []


def test_int8_weights_are_half(answer) -> None:
    assert answer(*DECODE, "--weights", "int8")["weight_bytes"] / answer(*DECODE)["weight_bytes"] == pytest.approx(
        0.5, abs=0.01
    )


def test_what_does_not_fit_is_answered_and_no_success(answer, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*ASKED, "--phase", "decode", "--batch", "4096", "--mesh", "4x4x4", "--ffn", "ws2d"]
    found = answer(*line, code=TOO_MANY_FAILED)
    assert found["fits"] is False
    assert found["peak_bytes"] > found["limit_bytes"]
    assert "What binds is weights" in found["problem"]
    assert main(line) == TOO_MANY_FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: {found['problem']}\n" == said.err


def test_without_a_batch_many_are_tried(answer) -> None:
    found = answer("plan", "--model", "llama-3.1-8b", "--chips", "v5e", "--max-chips", "8", "--phase", "decode",
                   "--context", "1024")  # fmt: skip
    front = found["frontier"]
    assert len(front) > 3
    assert len({one["chips"] for one in front}) > 1
    assert [one["seconds_per_token"] for one in front] == sorted(one["seconds_per_token"] for one in front)
    costs = [one["chip_seconds_per_token"] for one in front]
    assert costs == sorted(costs, reverse=True)
    assert found["chip_seconds_per_token"] == costs[-1]


PRICES = "date: 2026-11-01\ncurrency: USD\nchip_hour: {v5e: 1.2, v6e: 2.7}\n"


def test_prices_decide_between_chips(answer, tmp_path: Path) -> None:
    (tmp_path / "dear.yaml").write_text(PRICES)
    (tmp_path / "cheap.csv").write_text("chip,chip_hour,date,currency\nv5e,1,2026-11-01,EUR\nv6e,0.01,2026-11-01,EUR\n")
    line = ["plan", "--model", "llama-3.1-8b", "--chips", "v5e,v6e", "--max-chips", "4", "--phase", "decode"]
    line += ["--batch", "64", "--context", "1024", "--prices"]
    dear, cheap = answer(*line, str(tmp_path / "dear.yaml")), answer(*line, str(tmp_path / "cheap.csv"))
    for found, price in ((dear, {"v5e": 1.2, "v6e": 2.7}), (cheap, {"v5e": 1, "v6e": 0.01})):
        chip = found["chips"].split(":")[0]
        assert found["price_per_million_tokens"] == pytest.approx(
            price[chip] * found["chip_seconds_per_token"] * 1e6 / 3600
        )
    assert cheap["chips"].startswith("v6e")
    assert (cheap["prices"]["date"], cheap["prices"]["currency"]) == ("2026-11-01", "EUR")
    fastest = answer(*line, str(tmp_path / "dear.yaml"), "--goal", "fastest")
    assert fastest["seconds"] == fastest["frontier"][0]["seconds_per_token"] * 64


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DECODE) == DONE
    out = capsys.readouterr().out
    assert "v4:4x4x4, mesh 4x4x4: ws2d, attention over batch" in out
    assert re.search(r"W weights 1[56]\.\d\d GiB, K KV 1\.84 GiB, a activations 0\.\d\d GiB, \. free 1\d\.", out)
    assert "chip-hours a million tokens (no prices: --prices FILE)" in out
    assert "ws1d, attention over batch" in out
    assert "predicted, not measured" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["plan"], "name one: a job (penstock plan JOB.yaml) or a model"),
        ([*DECODE, "--chips", "v9"], "no chip is known by the name 'v9'; there are v3, v4"),
        ([*DECODE, "--chips", "v4:4x4"], "the torus of v4 has 3 axes"),
        ([*DECODE, "--chips", "v4", "--mesh", "4x4"], "--mesh 4x4 needs one slice"),
        ([*DECODE, "--mesh", "2x2"], "a mesh of 2x2x1 is 4 devices, and v4:4x4x4 has 64"),
        ([*DECODE, "--mesh", "2*4x4x2"], "a pipeline over 2 slices: --chips such as 2*v4:4x4x4"),
        ([*DECODE, "--ffn", "wg-q"], "'wg-q' is not a feed-forward layout"),
        ([*DECODE, "--model", "llama-9"], "'llama-9' is neither a directory with a checkpoint nor a model"),
        ([*ASKED, "--batch", "8"], "--model needs --phase prefill, decode or score, and --context"),
        ([*DECODE, "--tokens", "4000"], "--tokens 4000: the cache holds 2048 tokens"),
        ([*DECODE, "--deadline", "6h"], "--deadline is for a whole job"),
        ([*DECODE, "--prices", "absent.yaml"], "cannot read the prices absent.yaml"),
    ],
)
def test_what_cannot_be_is_refused(line: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == REFUSED
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--batch", "--context", "--tokens", "--max-chips"])
def test_nonsense_is_refused(flag: str) -> None:
    for value in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as ended:
            main([*DECODE, flag, value])
        assert ended.value.code == REFUSED


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.yaml", "v5e: 1.2\n", "prices are a mapping with date, currency and chip_hour"),
        ("p.yaml", PRICES.replace("1.2", "-1"), "the price of v5e is -1, not a positive number"),
        ("p.yaml", PRICES.replace("2.7", "true"), "the price of v6e is True, not a positive number"),
        ("p.yaml", PRICES.replace("v5e", "v9"), "no chip is known by the name 'v9'"),
        ("p.yaml", PRICES.replace("2026-11-01", "last week"), "date is 'last week'"),
        ("p.yaml", PRICES.replace("USD", "''"), "currency is ''"),
        ("p.yaml", PRICES, "has no price of v4; add it, or restrict --chips"),
        ("p.yaml", "a: [", "not valid YAML"),
        ("p.csv", "chip,price\nv4,3\n", "must name the columns chip, chip_hour, currency, date"),
        ("p.csv", "chip,chip_hour,date,currency\nv4,3\n", "a line has 4 values"),
        ("p.csv", "chip,chip_hour,date,currency\nv4,x,2026-11-01,USD\n", "the price of v4 is 'x'"),
        ("p.csv", "chip,chip_hour,date,currency\nv4,3,2026-11-01,USD\nv5e,3,2026-11-02,USD\n", "of one date"),
        ("p.csv", "chip,chip_hour,date,currency\nv4,3,2026-11-01,USD\nv4,4,2026-11-01,USD\n", "v4 is priced twice"),
    ],
)
def test_bad_prices(name: str, text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text(text)
    assert main([*DECODE, "--prices", str(tmp_path / name)]) == REFUSED
    assert says in capsys.readouterr().err


def test_a_checkpoint_on_one_chip(answer) -> None:
    found = answer("plan", "--model", str(CHECKPOINT), "--chips", "v5e:1x1", "--phase", "decode", "--batch", "4",
                   "--context", "64")  # fmt: skip
    assert (found["mesh"], found["collective_bytes"], found["rows"]) == ("1x1x1", 0, 8)


def test_it_answers_within_three_seconds() -> None:
    """Llama 3.1 405B over all slices of v5e, v5p and v6e up to 256 chips and eleven batches, in seconds of this CPU."""
    line = ["plan", "--model", "llama-3.1-405b", "--chips", "v5e,v5p,v6e", "--phase", "decode", "--context", "2048"]
    program = f"import resource\nfrom jobs.cli import main\nmain({[*line, '--json']!r})\n"
    program += "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    answered, seconds = said.stdout.rstrip().rsplit("\n", 1)
    assert json.loads(answered)["frontier"]
    assert float(seconds) < 3


def test_a_drawing(answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    line = ["plan", "--model", "llama-3.1-8b", "--chips", "v5e:2x2,v6e:1x1", "--phase", "decode", "--context", "1024"]
    front = answer(*line, "--plot", str(page))["frontier"]
    text = page.read_text()
    for svg in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(svg)  # well-formed
    assert text.count("<svg") == 2
    assert all(f"batch {one['batch']}<" in text for one in front)  # each point says what it is
    for value in re.findall(r'c[xy]="([^"]+)"', text):
        assert 0 < float(value) < 820
    for name, says in (("plan.pdf", "must end in .html or .png"), ("no/plan.html", "cannot be written")):
        assert main([*line, "--plot", str(tmp_path / name)]) == REFUSED
        assert says in capsys.readouterr().err
    if importlib.util.find_spec("matplotlib") is None:
        assert main([*line, "--plot", str(tmp_path / "plan.png")]) == REFUSED
        assert "pip install 'penstock[plot]'" in capsys.readouterr().err


def test_the_compiler_is_asked_about_the_chosen_plan(answer, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Question] = []

    def check(question: Question) -> Answer:
        asked.append(question)
        fits = len(asked) < 3
        return Answer(question, Compiled("decode", 1.5, fits, 40 * 2**30, "", 2**30, 0, 2**20, 0), None)

    monkeypatch.setattr(compiled_plan, "check", check)
    found = answer(*DECODE, "--compile")
    (question,), (compiled,) = asked, found["compiled"]
    assert str(question.topology) == found["chips"]
    assert str(question.mesh_shape) == found["mesh"]
    assert (question.layout.ffn, question.layout.attention) == (found["ffn"], found["attention"])
    assert (question.batch, question.context_tokens) == (512, 2048)
    assert (compiled["peak_bytes"], compiled["planned_peak_bytes"]) == (40 * 2**30, found["peak_bytes"])
    assert main([*DECODE, "--compile"]) == DONE
    assert "planned / compiled" in capsys.readouterr().out
    assert main([*DECODE, "--compile"]) == TOO_MANY_FAILED
    assert "DOES NOT FIT" in capsys.readouterr().out
