"""Telling somebody: a webhook, or a command, is given one JSON object for each thing worth knowing.

    {"text": "hourly-scores: dt=2026-01-31/hour=05 is late: no input yet ...", "schedule": ..., "occasion": "late",
     "partition": ..., "reason": ..., "output": ..., "at": ...}

Each thing is said once: what was said is written down in the output, after it was said, so a webhook that was down is
tried again by the next call. An alert that cannot be delivered is logged and never makes a run fail. The URL is a
secret: it is read from the environment and is in no file, log or message.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass

from jobs.scheduling.partitions import Partition
from jobs.scheduling.schedule_file import Scheduled
from jobs.scheduling.spec import Alerts
from pipeline import storage
from pipeline.errors import PenstockError
from pipeline.records import content_hash
from schemas.scheduling import ALERTS_NAME

DELIVERY_SECONDS = 20.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """One thing worth knowing. `about` tells it from others of the same partition and occasion."""

    occasion: str  # failure | late | drift | refused
    partition: Partition
    reason: str
    about: str = ""


def send(scheduled: Scheduled, alert: Alert) -> bool:
    """Says it, unless it was said or nobody wants to know; whether it was said now."""
    alerts = scheduled.schedule.alerts
    if alerts is None or alert.occasion not in alerts.on:
        return False
    message = _message(scheduled, alert)
    try:
        said = storage.join(scheduled.root, ALERTS_NAME, alert.partition.key, _name(alert))
        if storage.exists(said):
            return False
        _deliver(alerts, json.dumps(message, ensure_ascii=False).encode())
        storage.publish_if_absent(said, (json.dumps(message, indent=1, ensure_ascii=False) + "\n").encode())
    except _Undelivered as error:
        _log.warning("the alert %r could not be delivered: %s", message["text"][:200], error)
        return False
    except (PenstockError, OSError) as error:
        _log.warning("the alert %r could not be written down: %s", message["text"][:200], error)
        return False
    return True


class _Undelivered(Exception):
    pass


def _name(alert: Alert) -> str:
    return f"{alert.occasion}-{content_hash({'about': alert.about})[:12]}.json"


def _message(scheduled: Scheduled, alert: Alert) -> dict[str, str]:
    name = scheduled.schedule.name
    what = {"failure": "failed", "late": "is late", "drift": "drifts", "refused": "was left as it is"}[alert.occasion]
    return {
        "text": f"{name}: {alert.partition.key} {what}: {alert.reason}",
        "schedule": name,
        "occasion": alert.occasion,
        "partition": alert.partition.key,
        "reason": alert.reason,
        "output": alert.partition.output,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _deliver(alerts: Alerts, body: bytes) -> None:
    """By all ways that the schedule names; one that fails does not keep the others from being tried."""
    problems = []
    for deliver in (_post, _run):
        try:
            deliver(alerts, body)
        except _Undelivered as error:
            problems.append(str(error))
    if problems:
        raise _Undelivered("; ".join(problems))


def _post(alerts: Alerts, body: bytes) -> None:
    if not alerts.webhook_env:
        return
    url = os.environ.get(alerts.webhook_env, "")
    if not url.startswith(("http://", "https://")):
        raise _Undelivered(f"the environment variable {alerts.webhook_env} holds no http(s) URL")
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=DELIVERY_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        raise _Undelivered(f"the webhook answers {error.code}") from None
    except (OSError, ValueError) as error:  # their text may hold the URL
        raise _Undelivered(f"the webhook cannot be reached: {type(error).__name__}") from None


def _run(alerts: Alerts, body: bytes) -> None:
    if not alerts.command:
        return
    try:
        done = subprocess.run(alerts.command, input=body, capture_output=True, timeout=DELIVERY_SECONDS, check=False)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _Undelivered(f"the command {alerts.command[0]!r}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise _Undelivered(f"the command {alerts.command[0]!r} ended with {done.returncode}: {said}")
