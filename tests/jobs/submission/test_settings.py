"""What the runner section of a job file may say, and the names by which the rest is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.job_file import load
from jobs.reference import job_schema
from jobs.refused_runners import refused_runner
from jobs.runners import pipeline_options
from jobs.spec import Runner
from jobs.submission.beam_flags import beam_flags, beam_options, dataflow_name
from jobs.submission.dataflow_machines import TPU_HOSTS
from jobs.submission.reachable import ends_with_this_process, is_here, notes, refuse_unreachable
from pipeline.errors import JobError
from tests.jobs.submission.jobs import DATAFLOW, dataflow_job, job


def _error(write_job: Callable[..., str], *overrides: str) -> str:
    with pytest.raises(JobError) as error:
        load(write_job(), overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"project": None}, "runner.dataflow.project: is missing: The Google Cloud project"),
        ({"colour": "red"}, "runner.dataflow.colour: is not a field"),
        ({"machine": 3}, "did you mean machines?"),
        ({"temp_location": "/tmp"}, "runner.dataflow.temp_location: should match"),
        ({"temp_location": "gs://b/temp"}, "runner.dataflow.temp_location: should match"),
        ({"zone": "us-east1-b"}, "runner.dataflow.zone: us-east1-b is not in region us-central1"),
        ({"network": "a", "subnetwork": "b"}, "runner.dataflow.network: give one of network and subnetwork"),
        ({"topology": "2x2x1"}, "runner.dataflow.topology: v5e has 1x1, 2x2, 2x4, not 2x2x1"),
        ({"accelerator": "v4"}, "runner.dataflow.accelerator: should be 'auto', 'v5e', 'v6e', 'v5p'"),
        ({"accelerator": "auto", "topology": "2x2"}, "runner.dataflow.topology: 2x2 is of one accelerator"),
        ({"accelerator": "auto"}, "runner.dataflow.image: is made for one kind of worker; with accelerator auto write"),
        ({"image": "worker:{tag}"}, "runner.dataflow.image: {tag} stands for nothing; {target} stands for"),
        ({"image": "worker:{"}, "runner.dataflow.image: { stands for nothing"),
        ({"machine_type": "n1-standard-4"}, "runner.dataflow.machine_type: v5e is in ct5lp-hightpu-1t or"),
        ({"topology": "2x2", "machine_type": "ct5lp-hightpu-8t"}, "v5e 2x2 is in ct5lp-hightpu-4t, not"),
        ({"accelerator": "nvidia-l4"}, "machine_type: is missing: name the machine for nvidia-l4, such as g2-"),
        ({"accelerator": "nvidia-l4", "machine_type": "n1-standard-4"}, "nvidia-l4 is in g2-* machines"),
        ({"accelerator": "cpu", "topology": "1x1", "machine_type": "n2-standard-8"}, "topology: is of TPUs"),
        ({"machines": 0}, "runner.dataflow.machines: should be greater than or equal to 1"),
        ({"image": "a b"}, "runner.dataflow.image: should match"),
    ],
)
def test_settings_of_dataflow_are_refused_by_name(
    write_job: Callable[..., str], changes: dict[str, object], problem: str
) -> None:
    settings = {name: value for name, value in {**DATAFLOW, **changes}.items() if value is not None}
    assert problem in _error(write_job, "runner.name=dataflow", f"runner.dataflow={json.dumps(settings)}")


@pytest.mark.parametrize(
    ("runner", "problem"),
    [
        ("{name: portable, portable: {job_endpoint: localhost}}", "runner.portable.job_endpoint: should be 'embed' or"),
        ("{name: portable, portable: {job_endpoint: embed, environment: DOCKER}}", "runner.portable.image: is missing"),
        ("{name: portable, portable: {job_endpoint: embed, image: x}}", "image: belongs to environment DOCKER, and"),
        ("{name: flink, flink: {master: 'host:1'}}", "runner.flink.environment: LOOPBACK workers are in this process"),
        ("{name: spark, spark: {master: 'spark://host:1'}}", "runner.spark.environment: LOOPBACK workers"),
        ("{name: dask}", "runner.name: Beam's DaskRunner loses data"),
        ("{name: DirectRunner}", "runner.name: Beam's DirectRunner first tries to download"),
        ("{name: ray}", "runner.name: should be 'local', 'dataflow', 'flink', 'spark' or 'portable'"),
    ],
)
def test_what_does_not_go_together_is_refused(write_job: Callable[..., str], runner: str, problem: str) -> None:
    assert problem in _error(write_job, f"runner={runner}")


def test_every_setting_is_described() -> None:
    for name in ("Dataflow", "Portable", "Flink", "Spark"):
        for field, facts in job_schema()["$defs"][name]["properties"].items():
            assert facts.get("description"), f"{name}.{field}"


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [
        ("DaskRunner", True), ("apache_beam.runners.dask.dask_runner.DaskRunner", True), ("DirectRunner", True),
        ("SwitchingDirectRunner", True), ("RenderRunner", True), ("PrismRunner", True), ("direct", True),
        ("BundleBasedDirectRunner", False), ("apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner", False),
        ("apache_beam.runners.portability.fn_api_runner.FnApiRunner", False), ("local", False),
    ],
)  # fmt: skip
def test_runners_that_lose_data_or_run_nothing_are_refused_with_the_reason(name: str, is_refused: bool) -> None:
    assert (refused_runner(name) is not None) is is_refused


@pytest.mark.parametrize("name", ["DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner"])
def test_penstock_run_points_to_submit_for_runners_elsewhere(name: str) -> None:
    with pytest.raises(JobError, match="works elsewhere; use penstock submit --runner"):
        pipeline_options(Runner(), [f"--runner={name}"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--resource_hints=accelerator=type:nvidia-l4"], "right fitting does not support accelerators"),
        (["--resource_hint", "min_ram=1GB"], "right fitting"),
        (["--experiments=use_multiple_sdk_containers"], "one process on a worker"),
        (["--experiments", "use_multiple_sdk_containers"], "one process on a worker"),
        (["--dataflow_service_options=enable_prime"], "right fitting"),
        (["--runner=DataflowRunner"], "say it without Beam's name"),
        (["--s3_secret_access_key=abc"], "the runner stores and shows flags"),
        (["--template_location=gs://a/b"], "makes no templates"),
        (["--max_num_worker=3"], "is known neither to penstock nor to Beam; did you mean --max_num_workers"),
    ],
)
def test_flags_that_break_a_promise_are_refused(flags: list[str], problem: str) -> None:
    with pytest.raises(JobError, match=problem) as error:
        beam_options(dataflow_job(), flags)
    assert "abc" not in str(error.value)


def test_a_flag_of_the_user_wins() -> None:
    from apache_beam.options.pipeline_options import WorkerOptions

    assert beam_options(dataflow_job(), ["--disk_size_gb=77"]).view_as(WorkerOptions).disk_size_gb == 77


def test_the_name_at_dataflow_is_one_for_each_output() -> None:
    first = dataflow_name(dataflow_job())
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", first)
    assert dataflow_name(dataflow_job(machines=9)) == first
    elsewhere = job({"name": "dataflow", "dataflow": DATAFLOW}, output={"path": "gs://bucket/other"})
    assert dataflow_name(elsewhere) != first
    long = job({"name": "dataflow", "dataflow": DATAFLOW}, name="x" * 99)
    assert len(dataflow_name(long)) <= 63


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": {"checkpoint": "/checkpoint"}}, "model.checkpoint: workers of Dataflow are other machines"),
        ({"input": {"path": "data/*.jsonl"}}, "input.path: .* not data/"),
        ({"input": {"tfds": "a", "split": "train"}}, "input.data_dir: .* not on this machine, its default"),
        ({"output": {"path": "file:///out"}}, "output.path: workers of Dataflow"),
        ({"output": {"path": "memory://out"}}, "output.path: memory:// is in this process"),
        (
            {"engine": {"mesh": "2x4x1", "hosts": {"count": 2, "coordinator": "10.0.0.1:8476"}}},
            "engine.hosts: several hosts hold one model together only under penstock run",
        ),
    ],
)
def test_what_workers_cannot_reach_is_refused(changes: dict[str, object], problem: str) -> None:
    runner = {"name": "dataflow", "dataflow": DATAFLOW}
    refuse_unreachable(job(runner))
    with pytest.raises(JobError, match=problem):
        refuse_unreachable(job(runner, **changes))


def test_a_local_path_is_said_where_workers_may_share_a_disk() -> None:
    process = {"name": "portable", "portable": {"job_endpoint": "host:1", "environment": "PROCESS"}}
    assert list(notes(job(process, output={"path": "/mnt/out"}))) == [
        "output.path: local paths; every worker must find the same files under them"
    ]
    assert list(notes(job(process))) == []
    here = {"name": "portable", "portable": {"job_endpoint": "embed"}}
    assert list(notes(job(here, output={"path": "/out"}))) == []


@pytest.mark.parametrize(
    ("runner", "here", "ends"),
    [
        ({"name": "local"}, True, True),
        ({"name": "dataflow", "dataflow": DATAFLOW}, False, False),
        ({"name": "portable", "portable": {"job_endpoint": "embed"}}, True, True),
        ({"name": "portable", "portable": {"job_endpoint": "embed", "environment": "PROCESS"}}, False, True),
        ({"name": "portable", "portable": {"job_endpoint": "a:1", "environment": "PROCESS"}}, False, False),
        ({"name": "portable", "portable": {"job_endpoint": "a:1"}}, True, True),
        ({"name": "flink"}, True, True),
        ({"name": "flink", "flink": {"master": "a:1", "environment": "PROCESS"}}, False, True),
    ],
)
def test_what_ends_with_this_process(runner: dict[str, object], here: bool, ends: bool) -> None:
    assert is_here(job(runner)) is here
    assert (ends_with_this_process(job(runner)) is not None) is ends


def test_flags_of_the_portable_runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "job-server.jar"
    jar.write_bytes(b"")
    (tmp_path / "java").write_text("")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    flink = {
        "job_server_jar": str(jar),
        "master": "host:8081",
        "environment": "DOCKER",
        "image": "i:1",
        "parallelism": 4,
    }
    flags = beam_flags(job({"name": "flink", "flink": flink}))
    assert {
        "--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--flink_master=host:8081", "--parallelism=4",
        "--environment_type=DOCKER", "--environment_options=docker_container_image=i:1", "--sdk_location=container",
    } <= set(flags)  # fmt: skip
    spark = {"job_server_jar": str(jar), "environment": "PROCESS"}
    flags = beam_flags(job({"name": "spark", "spark": spark}))
    assert {
        "--runner=SparkRunner", f"--spark_job_server_jar={jar}", "--spark_master_url=local[4]",
        "--environment_type=PROCESS", "--environment_options=process_command=penstock-worker",
    } <= set(flags)  # fmt: skip
    portable = {"job_endpoint": "a:1", "environment": "EXTERNAL", "service_address": "b:2"}
    flags = beam_flags(job({"name": "portable", "portable": portable}))
    assert {"--job_endpoint=a:1", "--environment_config=b:2"} <= set(flags)
    assert not any("direct_num_workers" in flag for flag in flags)  # each would be another process on the same chips
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match="needs Java 11 or newer"):
        beam_flags(job({"name": "spark", "spark": spark}))


@pytest.mark.parametrize(("runner", "artifact"), [("flink", "beam-runners-flink-"), ("spark", "beam-runners-spark-3")])
def test_without_a_job_server_jar_the_error_says_which(runner: str, artifact: str) -> None:
    with pytest.raises(JobError, match=f"runner.{runner}.job_server_jar: is missing: .*{artifact}.*Maven Central"):
        beam_flags(job({"name": runner}))
    with pytest.raises(JobError, match=r"there is no file /absent.jar"):
        beam_flags(job({"name": runner, runner: {"job_server_jar": "/absent.jar"}}))


@pytest.mark.parametrize("runner", ["dataflow", "portable"])
def test_without_its_section_a_runner_says_what_it_needs(runner: str) -> None:
    with pytest.raises(JobError, match=f"runner.{runner}: is missing: say there how to reach it"):
        beam_flags(job({"name": runner}))


def test_the_job_of_the_page_on_dataflow_is_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "dataflow.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "job.yaml").write_text(example.replace("BUCKET", "bucket"))
    flags = beam_flags(load(str(tmp_path / "job.yaml")))
    assert "--worker_machine_type=ct5lp-hightpu-8t" in flags
    shown = set(re.findall(r"`(--[a-z_]+)", page[page.index("## What is sent") :]))
    assert shown <= {flag.partition("=")[0] for flag in flags} | {"--dry-run"}
    for hosts in TPU_HOSTS.values():
        for host in hosts:
            for word in (host.type, host.topology, host.machine_type.rpartition("-")[0]):
                assert word in page
