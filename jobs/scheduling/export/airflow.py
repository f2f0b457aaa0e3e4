"""A DAG with one task. Airflow keeps the time; which partitions there are, and what became of them, Penstock knows, so
the DAG neither catches up nor retries."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.scheduling.export.call import Calling

_DAG = '''\
"""Partitions of {schedule} that are due. Made by `penstock schedule export --to airflow`."""

from airflow.timetables.trigger import CronTriggerTimetable
from pendulum import datetime

try:
    from airflow.providers.standard.operators.bash import BashOperator
    from airflow.sdk import DAG
except ImportError:  # before Airflow 3
    from airflow import DAG
    from airflow.operators.bash import BashOperator

with DAG(
    dag_id={name!r},
    schedule=CronTriggerTimetable({expression!r}, timezone={zone!r}),
    start_date=datetime({year}, {month}, {day}, tz={zone!r}),
    catchup=False,
    max_active_runs=1,
) as dag:
    BashOperator(task_id="run_due", bash_command={line!r}, retries=0)
'''


def export(calling: Calling) -> Mapping[str, str]:
    start = calling.scheduled.partitions.begin
    text = _DAG.format(
        schedule=calling.scheduled.schedule.name,
        name=calling.name,
        expression=calling.fields.expression,
        zone=calling.zone,
        year=start.year,
        month=start.month,
        day=start.day,
        line="{% raw %}" + calling.line + "{% endraw %}" if "{" in calling.line else calling.line,
    )
    return {f"{calling.name.replace('-', '_')}.py": text}
