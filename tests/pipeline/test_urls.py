"""Credentials are refused in URLs, and never shown: not in an error, a log, a plan or any other file."""

import json
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.job_file import load
from pipeline import storage
from pipeline.errors import InputError, JobError, PenstockError
from pipeline.manifest import Manifest
from tests.stores.serving import reached

from .example_output import plan_example, run_example

SECRET = "sEcReT0123456789"
CARRYING = [
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/a",
    f"https://user:{SECRET}@example.com/a.jsonl",
    f"https://{SECRET}@example.com/a.jsonl",
    f"https://bucket.s3.amazonaws.com/a?X-Amz-Credential=x&X-Amz-Signature={SECRET}",
    f"https://storage.googleapis.com/b/a?X-Goog-Signature={SECRET}&X-Goog-Expires=9",
    f"https://account.blob.core.windows.net/c/a?sv=2022&sig={SECRET}",
    f"https://example.com/a.jsonl?access_token={SECRET}",
    f"https://example.com/a.jsonl?api_key={SECRET}",
    f"simplecache::s3://key:{SECRET}@bucket/a",
]
HARMLESS = [
    "gs://bucket/dt=2026-01-31/a.jsonl", "s3://bucket/tokens/a?.jsonl", "/data/user@host/a", "./a@b.jsonl",
    "gs://bucket/key=1/b", "https://example.com/a.jsonl?version=3", "s3://bucket/a?versionId=3", "gs://bucket/a@b/c",
]  # fmt: skip


@pytest.mark.parametrize("url", CARRYING)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    for use in (storage.open_input, storage.expand, storage.exists, storage.check_writable, storage.list_names):
        with pytest.raises(InputError, match=r"carries .*give credentials in the usual places") as caught:
            use(url)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", HARMLESS)
def test_other_urls_are_not(url):
    storage.refuse_secrets(url)


@pytest.mark.parametrize("field", ["model.checkpoint", "input.path", "output.path"])
@pytest.mark.parametrize("url", CARRYING[:4])
def test_a_job_with_credentials_is_refused_by_the_name_of_the_field(tmp_path, field, url):
    job = {
        "name": "job", "task": "generate", "model": {"checkpoint": "c"}, "input": {"path": "a.jsonl"},
        "prompt": {"template": "{{ a }}"}, "output": {"path": "out"},
    }  # fmt: skip
    section, key = field.split(".")
    job[section][key] = url
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    with pytest.raises(JobError, match=rf"job\.yaml:1: {field}: the URL .* carries") as caught:
        load(str(tmp_path / "job.yaml"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://u:{SECRET}@host/x failed",
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIA/x, Signature={SECRET}'}}",
        f"POST https://host/upload/o?uploadType=resumable&upload_id={SECRET}: 503",
        f"'X-Amz-Security-Token': '{SECRET}'",
        f"aws_secret_access_key={SECRET}",
        f'{{"access_token": "{SECRET}"}}',
        f"https://host/a?x=1&X-Goog-Signature={SECRET}\nand more",
    ],
)
def test_secrets_are_taken_out_of_what_drivers_say(text):
    assert SECRET not in storage.redacted(text)
    assert "***" in storage.redacted(text)


@given(st.text())
def test_what_is_shown_is_one_line_and_shown_again_stays_the_same(text):
    shown = storage.redacted(text)
    assert "\n" not in shown
    assert storage.redacted(shown) == shown


def test_a_long_answer_is_cleared_in_a_moment():
    """Drivers repeat whole bodies."""
    started = time.process_time()
    storage.redacted("a" * 200_000 + "?" * 200_000 + f"token={SECRET}")
    assert time.process_time() - started < 10  # it would be an hour if it grew with the square


@pytest.mark.parametrize("kind", ["gcs", "s3"])
def test_the_credentials_of_the_machine_are_in_no_file_message_or_log(tmp_path, kind, caplog, monkeypatch):
    """A job whose requests fail and are refused, with everything logged that `-v` shows."""
    with caplog.at_level(logging.INFO), reached(kind, tmp_path / "store") as store:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}-session")
        out = f"{store.scheme}://bucket/out"
        plan = plan_example(tmp_path, out)
        run_example(out, plan).finalise()
        store.denied = dict.fromkeys(("GET", "HEAD", "POST", "PUT"), 403)
        said = []
        for attempt in (Manifest(out, plan).todo, lambda: storage.publish_if_absent(f"{out}/a", b"")):
            with pytest.raises(PenstockError, match="refuses to") as caught:
                attempt()
            said.append(str(caught.value))
    written = [file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert len(written) > 8
    assert SECRET not in "\n".join([*said, caplog.text])
    assert not any(SECRET.encode() in data for data in written)


def test_the_address_of_an_upload_under_way_is_not_shown(tmp_path, caplog):
    """It is all that it takes to write there."""
    with caplog.at_level(logging.INFO, "pipeline"), reached("gcs", tmp_path / "store") as store:
        (tmp_path / "large").write_bytes(bytes(6 * 2**20))
        store.forgets_uploads = True
        with pytest.raises(PenstockError, match=r"after 6 tries.*upload_id=\*\*\*") as caught:
            storage.publish_if_absent("gs://bucket/large", tmp_path / "large")
    assert caught.value.__cause__ is None
    for text in (str(caught.value), caplog.text):
        assert "upload_id=***" in text
        assert "upload_id=" not in text.replace("upload_id=***", "")


def test_the_command_logs_nothing_that_opens_a_door(capsys):
    """Whatever a driver logs, in its message or in a traceback."""
    from jobs import logs

    try:
        raise FileNotFoundError(f"https://host/o?upload_id={SECRET}")
    except FileNotFoundError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("gcsfs", logging.ERROR, "", 0, f"Bearer {SECRET}", None, info)
    for formatter in (logs._Text(), logs._Json()):
        shown = formatter.format(record)
        assert SECRET not in shown
        assert "Traceback" in shown
