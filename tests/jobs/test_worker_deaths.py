"""A worker process of this machine that is killed in a step from which nothing goes on: Beam does not notice."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from jobs import worker_deaths
from jobs.beam_run import in_thread
from pipeline.errors import RunFailed
from tests import fake_job


def stay(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of Beam's own threads
def test_its_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_deaths, "NOTICE_SECONDS", 0.1)
    worker = tmp_path / "worker"

    def kill() -> None:
        while not (worker.exists() and worker.read_text()):
            time.sleep(0.05)
        os.kill(int(worker.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    options = PipelineOptions([*fake_job.FN_API, "--direct_running_mode=multi_processing"])
    pipeline = beam.Pipeline(options=options)
    _ = pipeline | beam.Create([str(worker)]) | beam.Map(stay)
    with pytest.raises(RunFailed, match="a worker process ended without a word"):
        in_thread(lambda: pipeline.run().wait_until_finish())
