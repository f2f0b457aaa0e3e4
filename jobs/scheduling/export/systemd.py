"""A systemd timer and its service. systemd never starts a service that still runs, and `Persistent` makes up for a call
that was missed while the machine was off."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.scheduling.export.call import Calling, Fields

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")

_SERVICE = """\
[Unit]
Description=Partitions of {schedule} that are due (Penstock)
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={command}
TimeoutStartSec=infinity
TimeoutStopSec=60
"""

_TIMER = """\
[Unit]
Description=When {schedule} is looked at (Penstock)

[Timer]
OnCalendar={calendar}
Persistent=true

[Install]
WantedBy=timers.target
"""


def export(calling: Calling) -> Mapping[str, str]:
    schedule = calling.scheduled.schedule.name
    command = " ".join(map(_quoted, [calling.command, *calling.arguments]))
    return {
        f"{calling.name}.service": _SERVICE.format(schedule=schedule, command=command),
        f"{calling.name}.timer": _TIMER.format(schedule=schedule, calendar=calendar(calling.fields, calling.zone)),
    }


def calendar(fields: Fields, zone: str) -> str:
    """`Mon,Tue *-*-* 02:30:00 Europe/Berlin`."""
    days = "" if len(fields.weekdays) == 7 else ",".join(_DAYS[day] for day in fields.weekdays) + " "
    date = f"*-{fields.text(fields.months, 12)}-{fields.text(fields.days, 31)}"
    return f"{days}{date} {fields.text(fields.hours, 24)}:{fields.text(fields.minutes, 60)}:00 {zone}"


def _quoted(argument: str) -> str:
    """As a unit file takes it: % and $ mean something there, and words are split."""
    escaped = argument.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"')
    return escaped if escaped == argument and not any(c.isspace() or c in "';" for c in argument) else f'"{escaped}"'
