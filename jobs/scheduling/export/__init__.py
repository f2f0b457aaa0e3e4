"""The few lines by which something that keeps time calls `penstock run-due`.

All targets make the same call. It may be made too often, too late or twice at once without harm, so nothing of the
schedule's own rules (catch-up, retries, concurrency) is repeated in the target, and targets are told not to retry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.scheduling.export import airflow, cloud_scheduler, crontab, kubernetes, systemd
from jobs.scheduling.export.call import Calling

TARGETS: Mapping[str, Callable[[Calling], Mapping[str, str]]] = {
    "cron": crontab.export,
    "systemd": systemd.export,
    "kubernetes": kubernetes.export,
    "airflow": airflow.export,
    "cloud-scheduler": cloud_scheduler.export,
}
"""What each target needs: files, by name."""

__all__ = ["TARGETS", "Calling"]
