"""Logs: one JSON object a line whatever is said, shard and run in it, and no secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli
from jobs.commands.exit_codes import DONE, REFUSED
from jobs.logs import blotted, logging_to_stderr
from pipeline import activity


def _objects(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_is_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr("json", verbose=False):
        print("note: two\nlines \x1b[31m", file=sys.stderr)
        with activity.working_on(7):
            try:
                raise ValueError("odd\nmessage")
            except ValueError:
                logging.getLogger("pipeline.sink").exception("it went wrong: %s", "here")
        logging.getLogger("urllib3").warning("not ours, and quiet")
        sys.stderr.write("without an end")
    print("as before", file=sys.stderr)
    *said, last = capsys.readouterr().err.splitlines()
    lines = _objects("\n".join(said))
    assert [line["message"] for line in lines] == [
        "note: two",
        "lines \x1b[31m",
        "it went wrong: here",
        "without an end",
    ]
    assert lines[2]["level"] == "ERROR"
    assert lines[2]["shard"] == 7
    assert "ValueError: odd\nmessage" in str(lines[2]["exception"])
    assert "shard" not in lines[0]
    assert len({line["run"] for line in lines}) == 1
    assert all(str(line["time"]).endswith("Z") for line in lines)
    assert last == "as before"


def test_handlers_do_not_pile_up(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with logging_to_stderr("text", verbose=False):
            logging.getLogger("jobs").warning("once")
    assert capsys.readouterr().err.count("once") == 3


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("GET https://user:hunter2@host/x", "GET https://***@host/x"),
        ("Authorization: Bearer ya29.a0AfH6SMB", "Authorization: Bearer ***"),
        ("https://x/y?X-Goog-Signature=abcdef0123&a=1", "https://x/y?X-Goog-Signature=***&a=1"),
        ("?X-Amz-Security-Token=FwoGZXIvYXdz&b", "?X-Amz-Security-Token=***&b"),
        ('{"client_secret": "s3cr3t-value", "n": 1}', '{"client_secret": "***", "n": 1}'),
        ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key=***"),
        ("?sig=abc%2Fdef%3D", "?sig=***"),
        ("prompt_tokens: 1234567, design=abcdefgh", "prompt_tokens: 1234567, design=abcdefgh"),
        ("slots 128 instead of 256, tokens=4096", "slots 128 instead of 256, tokens=4096"),
    ],
)
def test_secrets_are_blotted_out(said: str, shown: str) -> None:
    assert blotted(said) == shown


@pytest.mark.parametrize("form", ["json", "text"])
def test_secrets_in_messages_and_tracebacks(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(form, verbose=True):
        try:
            raise OSError("cannot open https://u:pass-in-url@h")
        except OSError:
            logging.getLogger("pipeline").warning("token=abcdefghijk", exc_info=True)
    said = capsys.readouterr().err
    assert "pass-in-url" not in said
    assert "abcdefghijk" not in said
    assert "***" in said


def test_an_error_of_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path), "--log-format", "json"]) == REFUSED
    (line,) = _objects(capsys.readouterr().err)
    assert line["level"] == "ERROR"
    assert "is not the output of a job" in str(line["message"])


@pytest.mark.usefixtures("fake_engine")
def test_a_whole_run(write_job: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", write_job(20), "--log-format", "json", "-v"]) == DONE
    said = capfd.readouterr()
    assert "questions (generate), finished" in said.out
    assert all({"time", "level", "message", "run"} <= line.keys() for line in _objects(said.err))


def test_levels_are_as_they_were_when_a_command_has_ended(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in (None, "engine", "pipeline", "jobs", "jobs.said")]
    before = [logger.level for logger in loggers]
    assert cli.main(["status", str(tmp_path)]) == REFUSED
    assert [logger.level for logger in loggers] == before
