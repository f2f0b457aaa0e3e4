"""`penstock compile`: what it asks, what it prints, how it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from engine.compilation.compile_check import Answer, Question
from engine.compilation.hlo_report import report
from engine.compilation.tpu_compiler import Compiled
from jobs.cli import main
from jobs.commands.exit_codes import DONE, REFUSED, TOO_MANY_FAILED
from jobs.planning import compile_report
from tests.engine.compilation.small_programs import SMALL, recorded

CHECKPOINT = Path(__file__).parents[3] / "jobs" / "examples" / "arithmetic" / "checkpoint"
ASKED = ["compile", "--model", "llama-2-7b", "--chips", "v4:4x4x4", "--phase", "prefill"]
ASKED += ["--batch", "64", "--context", "2048"]


def answered(question: Question, *, fits: bool = True) -> Answer:
    """A recorded program, as if it were the one that was asked for."""
    compiled = Compiled("prefill", 1.5, fits, 40 * 2**30, "text", 2**30, 0, 2**20, 0)
    small = SMALL["scatter_padded"]
    read = report(recorded("scatter_padded"), small.topology, small.axes, small.mesh, layers=question.config.layers)
    return Answer(question, compiled, read if fits else None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Questions that reached the compiler; it answers at once."""
    questions: list[Question] = []

    def check(question: Question) -> Answer:
        questions.append(question)
        return answered(question)

    monkeypatch.setattr(compile_report, "check", check)
    return questions


def test_what_is_asked(asked: list[Question]) -> None:
    how = ["--ffn", "wg-xy", "--attention", "batch", "--weights", "int8", "--kv", "int8", "--layers", "3"]
    assert main([*ASKED, "--mesh", "8x4x2", *how]) == DONE
    (question,) = asked
    assert str(question.topology) == "v4:4x4x4"
    assert (question.batch, question.context_tokens, question.config.layers) == (64, 2048, 3)
    assert (str(question.mesh_shape), question.weights, question.kv) == ("8x4x2", "int8", "int8")
    assert (question.layout.ffn, question.layout.attention) == ("wg-xy", "batch")
    assert question.layouts.decode == question.layout  # nothing is asked of the other phase


def test_what_is_not_said_is_the_usual(asked: list[Question]) -> None:
    assert main(ASKED) == DONE
    (question,) = asked
    assert (question.config.layers, str(question.mesh_shape), question.layout.ffn) == (32, "4x4x4", "ws2d")
    assert question.assumed_runs == (9,)  # blocks of keys that a block of queries sees on average, of 16


def test_a_decode_step_attends_to_the_whole_context() -> None:
    whole = Question.of("llama-2-7b", "v5e:4x4", "decode", 64, 2000)
    assert whole.assumed_runs == (1, 16)
    over_sequence = Question.of("llama-2-7b", "v5e:4x4", "decode", 64, 4096, attention="sequence")
    assert over_sequence.assumed_runs == (1, 2)  # 32 blocks over 16 chips


def test_slices_are_the_stages_of_a_pipeline() -> None:
    question = Question.of("llama-2-7b", "2*v5e:4x4", "decode", 64, 2000)
    assert (str(question.mesh_shape), question.layouts.decode.attention) == ("2*4x4x1", "heads")
    assert question.counted == "one tick (2 a step)"
    assert str(Question.of("llama-2-7b", "2*v5e:4x4", "decode", 64, 2000, mesh="2*8x2").mesh_shape) == "2*8x2x1"


def test_json_has_what_the_issue_asks_for(asked: list[Question], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--json"]) == DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] is True
    assert (answer["peak_bytes"], answer["limit_bytes"]) == (40 * 2**30, 30.75 * 2**30)
    assert (answer["argument_bytes"], answer["temp_bytes"]) == (2**30, 2**20)
    assert {
        "model",
        "chips",
        "mesh",
        "layout",
        "layers",
        "program",
        "compile_seconds",
        "cache_aliased",
    } <= answer.keys()
    assert answer["compute_seconds"] > 0
    assert 0 < answer["collective_seconds"]["exposed"] <= answer["collective_seconds"]["raw"]
    scattered = answer["collectives"][0]
    assert (scattered["kind"], scattered["axes"], scattered["count"]) == ("reduce-scatter", ["x"], 1)
    assert scattered["wire_bytes"] == (scattered["bytes"] + scattered["padding_bytes"]) * 3 // 4
    assert any("padded" in warning for warning in answer["warnings"])
    assert "estimates" in answer["estimates"]


def test_for_people(asked: list[Question], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASKED) == DONE
    out = capsys.readouterr().out
    assert "fits: 40.00 GiB of 30.75 GiB" in out
    assert "reduce-scatter" in out
    assert "padded by 3.1%" in out
    assert "nothing was measured" in out


def test_what_does_not_fit_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compile_report, "check", lambda question: answered(question, fits=False))
    assert main(ASKED) == TOO_MANY_FAILED
    assert "it does not fit: 40.00 GiB a device are needed, and a program may use 30.75" in capsys.readouterr().out
    assert main([*ASKED, "--json"]) == TOO_MANY_FAILED
    answer = json.loads(capsys.readouterr().out)
    assert (answer["fits"], answer["compute_seconds"], answer["collectives"]) == (False, None, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--model": "llama-9"}, "'llama-9' is neither a directory with a checkpoint nor a model known by name"),
        ({"--model": "./nowhere"}, "there is no checkpoint at"),
        ({"--chips": "v9:2x2"}, "there is no TPU compiler for 'v9'"),
        ({"--chips": "v4:4x4"}, "the torus of v4 has 3 axes"),
        ({"--mesh": "2x2"}, "a mesh of 2x2x1 is 4 devices, and a slice of v4:4x4x4 has 64"),
        ({"--ffn": "wg-q"}, "'wg-q' is not a feed-forward layout"),
        ({"--layers": "33"}, "the model has 32 layers; 33 of them cannot be compiled"),
    ],
)
def test_what_cannot_be_is_refused(
    change: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend = lambda question: answered(question) if question.layout else None  # noqa: E731
    if "--mesh" not in change:
        monkeypatch.setattr(compile_report, "check", pretend)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # refused before the compiler is needed
    assert main([*ASKED, *(part for pair in change.items() for part in pair)]) == REFUSED
    assert says in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'penstock[tpu]'"
)
def test_a_checkpoint_on_one_chip(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["compile", "--model", str(CHECKPOINT), "--chips", "v5e:1x1", "--phase", "prefill"]
    assert main([*line, "--batch", "4", "--context", "64", "--layers", "1", "--json"]) == DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] is True
    assert answer["collectives"] == []
    assert 0 < answer["argument_bytes"] < answer["peak_bytes"]
