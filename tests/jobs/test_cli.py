"""The command line: what it prints, what it returns, and how quickly it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli
from jobs.commands import exit_codes
from jobs.reference import job_reference, job_schema

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["schema"]])
def test_help_and_schema_import_nothing_heavy(arguments: list[str]) -> None:
    """These answer at once: Beam alone takes two seconds to import."""
    program = (
        "import contextlib, sys\nfrom jobs.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
        "print('imported:', *({'apache_beam', 'jax', 'pyarrow', 'fsspec', 'numpy'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "imported:"
    assert len(said.stdout) > 12


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(
        f"\n  {code} " in said
        for code in (exit_codes.DONE, exit_codes.TOO_MANY_FAILED, exit_codes.REFUSED, exit_codes.INTERRUPTED)
    )
    assert all(f" {name} " in said for name in ("run", "validate", "status", "show", "schema"))


def test_schema_and_reference_are_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == exit_codes.DONE
    assert json.loads(capsys.readouterr().out) == job_schema()
    assert cli.main(["schema", "--markdown"]) == exit_codes.DONE
    assert capsys.readouterr().out == job_reference()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["status", "out", "--runner=x"], "unknown: --runner=x; see penstock status --help"),
        (["show", "out", "--limit", "-3"], "'-3' is not a number of rows"),
        (["show", "out", "--limit", "many"], "'many' is not a number of rows"),
        (["rum", "job.yaml"], "invalid choice: 'rum'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == exit_codes.REFUSED
    assert problem in capsys.readouterr().err


def test_errors_are_one_sentence_and_a_traceback_with_v(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path / "absent.yaml")]) == exit_codes.REFUSED
    said = capfd.readouterr().err
    assert said == f"error: cannot read the job file {tmp_path}/absent.yaml: No such file or directory\n"
    command = [sys.executable, "-m", "jobs.cli", "run", "-v", str(tmp_path / "absent.yaml")]
    loud = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert loud.returncode == exit_codes.REFUSED
    assert "Traceback" in loud.stderr
    assert said in loud.stderr


@pytest.mark.usefixtures("fake_engine")
def test_a_job_from_validate_to_show(
    write_job: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write_job(), str(tmp_path / "out")
    assert cli.main(["validate", path]) == exit_codes.DONE
    assert "verdict  the job can be run" in capsys.readouterr().out
    assert not os.path.exists(output)
    assert cli.main(["status", output]) == exit_codes.REFUSED
    assert cli.main(["show", output]) == exit_codes.REFUSED
    capsys.readouterr()

    assert cli.main(["run", path, "--runner", "BundleBasedDirectRunner"]) == exit_codes.DONE
    said = capsys.readouterr()
    assert "rows     100 done: 98 ok, 2 failed (2.00%)\n         2 invalid JSON\n" in said.out
    assert [line[:40] for line in said.err.splitlines()] == ["note     nothing is predicted on this proc"[:40]]
    assert cli.main(["run", path, "--set", "limits.max_failed_fraction=0.01"]) == exit_codes.TOO_MANY_FAILED
    assert "limit    2.00% failed, limits.max_failed_fraction is 1.00%" in capsys.readouterr().out
    assert cli.main(["validate", path, "--set", "limits.max_failed_fraction=0.01"]) == exit_codes.TOO_MANY_FAILED

    assert cli.main(["status", output]) == exit_codes.DONE
    assert "questions (generate), finished" in capsys.readouterr().out
    assert cli.main(["show", output, "--failed"]) == exit_codes.DONE
    assert "questions.jsonl:57" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_engine")
def test_a_flag_that_nobody_knows_is_refused(write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", write_job(), "--direct_num_worker=3"]) == exit_codes.REFUSED
    assert "did you mean --direct_num_workers?" in capsys.readouterr().err


def test_what_is_not_used_is_said(write_job: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write_job(10)
    cli.main(["validate", path, "--set", "score.continuations=[a]"])
    assert "note     task is generate, so the section score is not used" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "jobs.cli", "schema"]
    ended = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (exit_codes.DONE, "")
