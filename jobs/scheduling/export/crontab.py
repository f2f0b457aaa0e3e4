"""A crontab entry. cronie and others read CRON_TZ; Debian's cron does not, and keeps the time of the machine."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.scheduling.export.call import Calling


def export(calling: Calling) -> Mapping[str, str]:
    line = calling.line.replace("%", r"\%")  # cron takes a bare % for the end of the line
    zone = "" if calling.every else f"CRON_TZ={calling.zone}\n"
    about = "" if calling.every else (
        "# CRON_TZ holds for all lines below it. Debian's cron does not know it and keeps the machine's own time:\n"
        "# there use --to systemd, or --every 10min, which is right in any time zone.\n"
    )  # fmt: skip
    return {f"{calling.name}.crontab": f"{about}{zone}{calling.fields.expression} {line}\n"}
