"""The page: one HTML file with its drawings, style and script in it, that asks nothing of any network.

What rows hold is hostile until escaped: Jinja escapes everything (autoescape), drawings escape in svg.py, and the
page forbids itself, by its own Content-Security-Policy, every script and style but the two it was made with, by their
hashes.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.metadata
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from jobs.reporting.figures import percent, short, whole
from jobs.reporting.sections import outputs_section, partitions_section
from jobs.reporting.svg import meter
from jobs.reporting.trend import Partition
from jobs.wording import duration, printable

MARK = b"<!doctype html>\n<!-- penstock report -->\n"
"""How a report begins: a file that begins otherwise is not replaced by one."""


def page(partitions: Sequence[Partition], *, left_out: int = 0, now: datetime.datetime | None = None) -> bytes:
    """The report on the last partition in detail and, where there are several, on all of them as a trend.

    `left_out`: how many earlier partitions are not shown.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    style, script = (_text(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_text),
    )  # fmt: skip
    environment.filters |= {
        "whole": whole, "short": short, "percent": percent, "duration": duration, "meter": meter,
        "safe_text": lambda text: printable(str(text)),
    }  # fmt: skip
    html = environment.get_template("page.html").render(
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        trend=partitions_section(partitions, left_out) if len(partitions) > 1 else None,
        job=outputs_section(partitions[-1].facts),
        made_at=f"{now:%Y-%m-%d %H:%M UTC}",
        version=importlib.metadata.version("penstock"),
    )
    return MARK + html.encode("utf-8", "backslashreplace")


def _text(name: str) -> str:
    return resources.files("jobs.reporting").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
