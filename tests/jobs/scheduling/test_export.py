"""What is exported is read by the tools it is for, and calls run-due at the right times."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.scheduling.cron import Cron, time_zone
from jobs.scheduling.export import TARGETS, Calling
from jobs.scheduling.export.call import Fields
from jobs.scheduling.export.systemd import calendar
from jobs.scheduling.schedule_file import Scheduled, load
from pipeline.errors import JobError
from tests.jobs.scheduling.conftest import SCHEDULE

JOB = "name: x\ntask: generate\nmodel: {checkpoint: gs://m/c}\ninput: {id: id}\nprompt: {template: a}\noutput: {}\n"
CLOUD = {"input": "gs://in/{{ ts }}/*.parquet", "output": "gs://out/dt={{ ts_nodash }}"}
EVERY_HOUR = "0 * * * *"
WORKDAYS = "30 2 * * MON-FRI"


def schedule(directory: Path, **changes: Any) -> Scheduled:
    (directory / "job.yaml").write_text(JOB)
    (directory / "s.yaml").write_text(yaml.safe_dump({**SCHEDULE, **changes}))
    return load(str(directory / "s.yaml"))


def exported(target: str, directory: Path, **changes: Any) -> dict[str, str]:
    image = "registry/penstock:1" if target in ("kubernetes", "cloud-scheduler") else None
    return dict(TARGETS[target](Calling(schedule(directory, **changes), image=image)))


@pytest.mark.parametrize(
    ("cron", "delay_minutes", "expression"),
    [
        ("0 * * * *", 0, "0 * * * *"),
        ("0 * * * *", 20, "20 * * * *"),
        ("*/30 * * * *", 10, "10,40 * * * *"),
        ("45 * * * *", 20, "5 * * * *"),
        ("45 * * * MON", 20, "45 * * * 1"),  # would fall on another day: the call waits instead
        ("30 2 * * MON-FRI", 90, "0 4 * * 1-5"),
        ("30 23 * * *", 45, "30 23 * * *"),
        ("0 6 1,15 JAN,JUL 7,0", 0, None),
        ("0 6 * * 7", 0, "0 6 * * 0"),
        ("@daily", 0, "0 0 * * *"),
        ("0 0 L * *", 0, None),
        ("0 0 * * 5#2", 0, None),
    ],
)
def test_calls_come_when_partitions_are_due(cron: str, delay_minutes: int, expression: str | None) -> None:
    fields = " ".join(Cron(cron, datetime.UTC).fields)
    if expression is None:
        with pytest.raises(JobError, match="use --every"):
            Fields.of(fields)
    else:
        assert Fields.of(fields).moved(delay_minutes).expression == expression


@pytest.mark.parametrize("cron", [EVERY_HOUR, WORKDAYS, "*/15 9-17 * * *", "0 0 1 */3 *", "5,35 * 1-7 6-8 *"])
def test_what_is_written_has_the_same_ticks(cron: str) -> None:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    written = Cron(Fields.of(cron).expression, datetime.UTC)
    for ours, theirs, _ in zip(Cron(cron, datetime.UTC).after(start), written.after(start), range(200), strict=False):
        assert ours == theirs


@pytest.mark.parametrize("every", ["10min", "1h"])
def test_even_intervals_are_the_same_in_every_time_zone(tmp_path: Path, every: str) -> None:
    calling = Calling(schedule(tmp_path, delay="20min"), every=every)
    assert calling.zone == "UTC"
    assert "--wait" not in calling.arguments
    with pytest.raises(JobError, match="a whole part of an hour"):
        _ = Calling(calling.scheduled, every="7min").fields


def test_a_crontab_names_its_zone_and_calls_run_due(tmp_path: Path) -> None:
    directory = tmp_path / "50% of it"
    directory.mkdir()
    (text,) = exported("cron", directory, cron=WORKDAYS, timezone="Europe/Berlin", output="o/{{ ds }}").values()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "CRON_TZ=Europe/Berlin"
    *fields, command = lines[1].split(maxsplit=5)
    Cron(" ".join(fields), datetime.UTC)
    assert command == rf"penstock run-due '{tmp_path}/50\% of it/s.yaml'"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("cron", [EVERY_HOUR, WORKDAYS, "0 0 1 */3 *"])
def test_systemd_reads_the_units_and_agrees_on_the_times(tmp_path: Path, cron: str) -> None:
    zone = "Europe/Berlin"
    files = exported("systemd", tmp_path, cron=cron, timezone=zone, output="o/{{ ts_nodash }}", delay="10min")
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("ExecStart=penstock", f"ExecStart={shutil.which('true')}"))
    timer = next(name for name in files if name.endswith(".timer"))
    verify = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in files)]
    said = subprocess.run(verify, capture_output=True, text=True, check=False)
    complaints = [line for line in said.stderr.splitlines() if str(tmp_path) in line or "penstock" in line]
    assert complaints == []
    (when,) = re.findall(r"OnCalendar=(.*)", files[timer])
    command = ["systemd-analyze", "calendar", "--base-time=2026-03-01 00:00:00 UTC", "--iterations=20", when]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"}).stdout
    theirs = [
        datetime.datetime.strptime(found, "%Y-%m-%d %H:%M:%S").replace(tzinfo=datetime.UTC)
        for found in re.findall(r"(?:Next elapse|Iter\. #\d+|\(in UTC\)): \w+ (\S+ \S+) UTC", told)
    ]
    theirs = sorted(set(theirs))
    moved = Cron(Fields.of(" ".join(Cron(cron, datetime.UTC).fields)).moved(10).expression, time_zone(zone))
    start = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    ours = [tick.astimezone(datetime.UTC) for tick, _ in zip(moved.after(start), range(len(theirs)), strict=False)]
    assert len(theirs) == 20
    assert theirs == ours


def test_a_calendar_lists_what_it_restricts() -> None:
    assert calendar(Fields.of("*/20 9-17 * 1,2 *"), "UTC") == "*-1,2-* 9..17:0,20,40:00 UTC"
    assert calendar(Fields.of("0 2 * * 1-3,SUN"), "UTC") == "Sun,Mon,Tue,Wed *-*-* 2:0:00 UTC"


def test_kubernetes_accepts_the_cron_job(tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    (text,) = exported("kubernetes", tmp_path, timezone="Europe/Berlin", delay="10min", **CLOUD).values()
    config, job = yaml.safe_load_all(text)
    for document in (config, job):
        validate.validate(document, validate.latest_version(), strict=True)
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == ("10 * * * *", "Europe/Berlin")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["run-due", "/etc/penstock/s.yaml", "--wait", "10min"]
    assert len(job["metadata"]["name"]) <= 52
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name, content in config["data"].items():
        (mounted / name).write_text(content)
    assert load(str(mounted / "s.yaml")).root == "gs://out"


def test_kubernetes_is_not_given_what_no_pod_finds(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="where no pod finds it"):
        exported("kubernetes", tmp_path)
    with pytest.raises(JobError, match="needs --image"):
        TARGETS["kubernetes"](Calling(schedule(tmp_path, **CLOUD)))


def test_the_airflow_dag_is_python(tmp_path: Path) -> None:
    ((name, text),) = exported(
        "airflow", tmp_path, cron=WORKDAYS, timezone="Europe/Berlin", output="o/{{ ds }}"
    ).items()
    assert name == "penstock_hourly.py"
    compile(text, name, "exec")
    assert "CronTriggerTimetable('30 2 * * 1-5', timezone='Europe/Berlin')" in text


@pytest.mark.skipif(
    not os.environ.get("PENSTOCK_AIRFLOW_PYTHON"),
    reason="PENSTOCK_AIRFLOW_PYTHON does not name an interpreter that has apache-airflow",
)
def test_airflow_loads_the_dag_and_agrees_on_the_times(tmp_path: Path) -> None:
    ((name, text),) = exported(
        "airflow", tmp_path, cron=WORKDAYS, timezone="Europe/Berlin", output="o/{{ ds }}"
    ).items()
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / name).write_text(text)
    program = f"""
import json
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before Airflow 3.1
    from airflow.models import DagBag
bag = DagBag({str(dags)!r})
dag = bag.dags["penstock-hourly"]
task = dag.get_task("run_due")
print(json.dumps([dict(bag.import_errors), task.bash_command, task.retries, dag.max_active_runs, dag.catchup]))
"""
    home = {"AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [os.environ["PENSTOCK_AIRFLOW_PYTHON"], "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **home})
    assert said.returncode == 0, said.stderr
    errors, line, retries, runs, catchup = json.loads(said.stdout.splitlines()[-1])
    assert (errors, retries, runs, catchup) == ({}, 0, 1, False)
    assert line == f"penstock run-due {tmp_path}/s.yaml"


def test_the_script_for_cloud_scheduler_calls_gcloud_as_it_takes_it(tmp_path: Path) -> None:
    here = schedule(tmp_path, delay="10min", **CLOUD)
    with pytest.raises(JobError, match="is on this machine"):
        TARGETS["cloud-scheduler"](Calling(here, image="i"))
    there = Scheduled("gs://conf/s.yaml", here.schedule, here.partitions)
    (text,) = TARGETS["cloud-scheduler"](Calling(there, image="registry/penstock:1")).values()
    (tmp_path / "gcloud").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "script.sh").write_text(text)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PROJECT": "p", "REGION": "r", "SERVICE_ACCOUNT": "s@x"}
    command = ["sh", str(tmp_path / "script.sh")]
    run, schedule_call = map(
        json.loads,
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines(),
    )
    options = dict(zip(run[4::2], run[5::2], strict=True))
    assert run[:4] == ["run", "jobs", "create", "penstock-hourly"]
    assert options["--args"] == "run-due,gs://conf/s.yaml,--wait,10min"
    options = dict(zip(schedule_call[5::2], schedule_call[6::2], strict=True))
    assert (options["--schedule"], options["--time-zone"]) == ("10 * * * *", "UTC")
    assert options["--uri"].endswith("/projects/p/locations/r/jobs/penstock-hourly:run")
    nothing = subprocess.run(command, env={"PATH": environment["PATH"]}, capture_output=True, text=True, check=False)
    assert nothing.returncode != 0
