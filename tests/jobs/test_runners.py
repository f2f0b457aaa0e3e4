"""What Beam is told: the job's runner, and the user's own flags on top."""

from __future__ import annotations

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from jobs.runners import pipeline_options
from jobs.spec import Runner
from pipeline.errors import JobError


def test_local_is_the_runner_in_this_process_with_a_thread_for_each_open_shard() -> None:
    options = pipeline_options(Runner(workers=3), [])
    assert options.view_as(StandardOptions).runner.endswith(".FnApiRunner")
    assert options.view_as(DirectOptions).direct_running_mode == "multi_threading"
    assert options.view_as(DirectOptions).direct_num_workers == 3


def test_flags_of_the_user_win() -> None:
    flags = ["--direct_running_mode", "in_memory", "--direct_num_workers=1", "--runner=BundleBasedDirectRunner"]
    options = pipeline_options(Runner(), [*flags, "--direct_runner_bundle_repeat=2"])
    assert options.view_as(StandardOptions).runner == "BundleBasedDirectRunner"
    assert options.view_as(DirectOptions).direct_running_mode == "in_memory"
    assert options.view_as(DirectOptions).direct_num_workers == 1
    assert options.view_as(DirectOptions).direct_runner_bundle_repeat == 2


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--runer=x"], "--runer=x is known neither to penstock nor to Beam; did you mean --runner?"),
        (["--sett", "a=b"], "did you mean --set?"),
        (["stray"], "stray is known neither to penstock nor to Beam"),
        (["-x"], "-x is known neither"),
        (["--direct_num_workers", "two"], "Beam refuses --direct_num_workers two: .*invalid int value"),
        (["--direct_running_mode=fast"], "invalid choice: 'fast'"),
        (["--runner=DaskRunner"], "--runner: Beam's DaskRunner loses data and still reports DONE"),
        (["--runner", "apache_beam.runners.dask.dask_runner.DaskRunner"], "DaskRunner loses data"),
    ],
)
def test_what_cannot_be_honoured_is_refused(flags: list[str], problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        pipeline_options(Runner(), flags)
